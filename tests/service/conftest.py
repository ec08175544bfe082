import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.front import accuracy_of
from service.promotion import candidates, enrol
from service.records import Failure, State, SweepRecord, SweepStore
from service.rules import Gates, parse_rule
from service.template import load_template
from service.tracking import connect
from trainables import api
from trainables.bops import CostModel
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.report import EpochReport

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to make its tables takes seconds, to copy it nothing."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def closed_port() -> int:
    """Where nobody listens."""
    return free_port()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Starts `bitfront ui` on a storage folder and gives its address; ends it after the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(storage: Path) -> str:
        port = free_port()
        command = [sys.executable, "-m", "service.cli", "ui", "--storage", str(storage), "--port", str(port)]
        running.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True))
        url = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        return url

    yield start
    for process in running:
        os.killpg(process.pid, 15)
        process.wait(20)


TEMPLATES = {
    "classification": """\
name: {name}
data: {{name: digits, image_size: 16}}
reference: {{epochs: 1}}
finetune: {{epochs: 2, quantizer: pact}}
""",
    "detection": """\
name: {name}
task: detection
detector: {{name: fasterrcnn_resnet18}}
data: {{format: voc, root: /data/VOCdevkit, train: [2007/trainval], validation: [2007/test]}}
finetune: {{epochs: 2, quantizer: pact}}
""",
}
SPEC = """\
name: {name}
network: {{name: resnet8}}
data: {{name: digits, image_size: 16}}
reference: {{epochs: 1}}
method: {{name: gmpq, epochs: 1, zeta: 0.1, eta: 1.0}}
finetune: {{epochs: 1}}
space: {{method.zeta: {{uniform: [0.0, 1.0]}}}}
trials: {trials}
"""
FINGERPRINT = "ab" * 32
MakeSearch = Callable[..., SweepStore]
MakePromotion = Callable[..., SweepStore]
MakeMethods = Callable[..., SweepStore]


@pytest.fixture(scope="session")
def work() -> CostModel:
    return api.count("resnet8", image_size=16, num_classes=10)


def _epochs(store: SweepStore, trial_id: str, stages: Mapping[str, int], start_ms: int) -> None:
    """One epoch of each stage, of so many seconds."""
    for stage, seconds in stages.items():
        report = EpochReport(stage=stage, epoch=1, epochs=1, metrics={"loss": 1.0})
        store.append_epoch(trial_id, report, seconds=seconds, now_ms=start_ms + 1)


@pytest.fixture
def recorded_search(work: CostModel) -> MakeSearch:
    """Makes a sweep whose trials have these bits in all layers and this top-1; each took an hour and a half."""

    def make(
        storage: Path,
        found: Sequence[tuple[int, float]] = ((2, 70.0), (3, 85.0), (4, 90.0), (5, 93.0), (3, 84.0)),
        *,
        name: str = "s",
        created_ms: int = 1_000,
    ) -> SweepStore:
        references = {"k": {"key": "k", "top1": 99.0, "device_hours": 0.0, "data_fingerprint": FINGERPRINT}}
        sweep = SweepRecord(
            name=name, spec_hash="h", facts={"network": "resnet8", "data": "digits"}, total_trials=len(found),
            created_ms=created_ms, ended_ms=created_ms + 9_000, end="finished", references=references,
        )  # fmt: skip
        store = SweepStore.create(storage, sweep, spec_text=SPEC.format(name=name, trials=len(found)))
        for number, (bits, top1) in enumerate(found):
            trial_id, start = f"t{number:04d}", created_ms + 1_000 + number
            store.plan_trial(trial_id, number=number, settings={"method.zeta": 0.1 * number})
            begun = store.start_trial(trial_id, now_ms=start)
            _epochs(store, trial_id, {"search": 3600, "finetune": 1800}, start)
            policy = BitPolicy(network="resnet8", bits={layer: LayerBits(bits, bits) for layer in work.layers})
            settings = {"quantizer": "pact"}
            record = PolicyRecord.measured(
                policy, work, method="gmpq", settings=settings, image_size=16, num_classes=10
            )
            store.save_policy(trial_id, record)
            metrics = {**record.costs, "top1": top1, "ard": 6.0 - bits, "ard_normalised": 0.5, "device_hours": 1.5}
            done = replace(begun, state="done", ended_ms=start + 50, metrics=metrics, policy_hash=policy.hash)
            store.finish_trial(done)
        return store

    return make


@pytest.fixture
def recorded_promotion() -> MakePromotion:
    """Promotes the front of a sweep, and finishes the finetunes with this accuracy on the target by bits of a layer.

    Policies without one stay planned; each finetune took two hours.
    """

    def make(
        search: SweepStore,
        accuracies: Mapping[int, float],
        *,
        name: str = "p",
        task: str = "classification",
        now_ms: int = 20_000,
        seed: int = 0,
        storage: Path | None = None,
    ) -> SweepStore:
        path = search.folder.parent.parent / f"{name}.yaml"
        path.write_text(TEMPLATES[task].format(name=name) + f"seed: {seed}\n")
        template = load_template(path)
        chosen, _ = candidates(search, parse_rule("all"), Gates())
        store = enrol(template, storage or search.folder.parent, chosen, now_ms=now_ms)
        for trial in store.trials():
            record = store.policy(trial.trial_id)
            bits = next(iter(record.policy.bits.values())).weight
            if trial.final or bits not in accuracies:
                continue
            begun = store.start_trial(trial.trial_id, now_ms=now_ms + trial.number)
            _epochs(store, trial.trial_id, {"finetune": 7200}, now_ms)
            metrics = {**record.costs, "images_per_s": 100.0, "finetune_device_hours": 2.0, "device_hours": 2.0}
            metrics |= _worth(accuracies[bits], bits, task)
            ended = replace(begun, state="done", ended_ms=now_ms + 500, metrics=metrics, policy_hash=record.policy.hash)
            store.finish_trial(ended)
        sweep = store.sweep()
        assert accuracy_of(sweep).name == ("top1" if task == "classification" else "map")
        store.save_sweep(replace(sweep, ended_ms=now_ms + 900, end="finished"))
        return store

    return make


Measured = float | State | tuple[float, int, float]
"""Of a trial: top-1; or that with the bits of its layers and the device-hours of its search; or a state without a
result."""
FILE = """\
name: {name}
network: {{name: resnet8}}
data: {{name: digits, image_size: 16}}
reference: {{epochs: 1}}
finetune: {{epochs: 1}}
"""


@pytest.fixture
def recorded_methods(tmp_path: Path, work: CostModel) -> MakeMethods:
    """Makes a sweep with a trial for each pair of settings and of what was measured. ARD is 100 - top-1."""

    def make(
        trials: Sequence[tuple[Mapping[str, Any], Measured]], *, name: str = "m", fixed: str = "", **changes: Any
    ) -> SweepStore:
        reference = {"key": "k", "top1": 98.0, "device_hours": 0.25, "data_fingerprint": FINGERPRINT}
        sweep = SweepRecord(
            name=name, spec_hash="h", facts={"network": "resnet8", "data": "digits", "method": "gmpq"},
            total_trials=len(trials), created_ms=1_000, references={"k": reference},
        )  # fmt: skip
        text = FILE.format(name=name) + fixed
        store = SweepStore.create(tmp_path / "sweeps", replace(sweep, **changes), spec_text=text)
        for number, (settings, measured) in enumerate(trials):
            store.plan_trial(f"t{number:04d}", number=number, settings=settings)
            if measured != "pending":
                _end(store, work, f"t{number:04d}", measured)
        return store

    return make


def _end(store: SweepStore, work: CostModel, trial_id: str, measured: Measured) -> None:
    begun = store.start_trial(trial_id, now_ms=2_000, reference="k")
    if isinstance(measured, str):
        failure: Failure = "out of memory" if measured == "failed" else ""
        store.finish_trial(replace(begun, state=measured, ended_ms=9_000, failure=failure))
        return
    top1, bits, hours = measured if isinstance(measured, tuple) else (measured, 3, 0.01)
    policy = BitPolicy(network="resnet8", bits={layer: LayerBits(bits, bits) for layer in work.layers})
    record = PolicyRecord.measured(policy, work, method="gmpq", settings={}, image_size=16, num_classes=10)
    store.save_policy(trial_id, record)
    metrics = {
        **record.costs, "top1": top1, "ard": 100.0 - top1, "ard_normalised": 0.5, "reference_top1": 98.0,
        "search_device_hours": hours, "finetune_device_hours": 0.02, "device_hours": hours + 0.02,
    }  # fmt: skip
    store.finish_trial(replace(begun, state="done", ended_ms=9_000, metrics=metrics, policy_hash=policy.hash))


def _worth(accuracy: float, bits: int, task: str) -> dict[str, float]:
    if task == "detection":
        ap = {"ap": accuracy / 2, "ap50": accuracy, "ap75": accuracy / 3}
        return {"map": accuracy, **ap, "backbone_bops_g": 0.01 * bits, "backbone_bops_paper_g": 0.01 * bits}
    return {"top1": accuracy, "top5": 99.0, "ard": 5.5 - bits, "ard_normalised": 0.3, "entropy": 2.0}
