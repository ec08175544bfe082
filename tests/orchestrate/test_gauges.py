"""A sweep's metrics: their values from its storage, and under which names Ray's endpoint has them."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from service.front import find_front
from service.hypervolume import Box
from service.orchestrate.gauges import BOX_TRIALS, EXPORTED, Sampler, exported, hypervolume
from service.records import SweepRecord, SweepStore
from trainables.errors import StorageError
from trainables.report import EpochReport

ROOT = Path(__file__).parents[2]
SWEEP = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=9, created_ms=1, workers=2)


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    return SweepStore.create(tmp_path, SWEEP, spec_text="name: s\n")


def add_trial(
    store: SweepStore, number: int, *, state: str, top1: float = 0.0, bops: float = 1.0, failure: str = ""
) -> None:
    """A trial of one epoch that took 9 seconds; it ended at its number, in ms."""
    trial_id = f"t{number:04d}"
    store.plan_trial(trial_id, number=number, settings={})
    if state == "pending":
        return
    begun = store.start_trial(trial_id, now_ms=number)
    report = EpochReport(stage="search", epoch=1, epochs=2, metrics={"loss": 1.0})
    store.append_epoch(trial_id, report, seconds=9.0, now_ms=number)
    if state != "running":
        metrics = {"top1": top1, "bops_g": bops, "ard": 1.0} if state == "done" else {}
        store.finish_trial(replace(begun, state=state, ended_ms=number + 1, metrics=metrics, failure=failure))


def values(store: SweepStore, *, ended: bool = False) -> dict[str, float]:
    return {
        sample.metric.name.removeprefix("bitfront_sweep_") + (f":{sample.label}" if sample.label else ""): sample.value
        for sample in Sampler(store).read(ended=ended)
    }


def test_every_metric_is_what_the_storage_says(store: SweepStore) -> None:
    add_trial(store, 0, state="done", top1=90.0, bops=2.0)
    add_trial(store, 1, state="done", top1=80.0, bops=3.0)
    add_trial(store, 2, state="done", top1=85.0, bops=1.0)
    add_trial(store, 3, state="failed", failure="lost worker")
    add_trial(store, 4, state="diverged")
    add_trial(store, 5, state="running")
    add_trial(store, 6, state="pending")
    expected = {
        "trials:pending": 3, "trials:running": 1, "trials:done": 3, "trials:pruned": 0, "trials:diverged": 1,
        "trials:failed": 1, "trials_failed:lost worker": 1, "trials_planned": 9, "front_policies": 2,
        "best_top1_ratio": 0.9, "device_seconds_total": pytest.approx(6 * 9.0 * 2),
    }  # fmt: skip
    assert values(store) == expected
    # A sweep that has ended runs nothing, whatever its last trials had written.
    assert values(store, ended=True) == {**expected, "trials:pending": 4, "trials:running": 0}


def test_a_sweep_that_has_not_begun_has_zeros_and_no_measures(store: SweepStore) -> None:
    found = values(store)
    assert found["trials:pending"] == found["trials_planned"] == 9
    assert {name for name, value in found.items() if value} == {"trials:pending", "trials_planned"}
    assert "hypervolume" not in found
    assert "best_top1_ratio" not in found


def test_a_class_of_failures_that_is_run_again_falls_to_zero(store: SweepStore) -> None:
    add_trial(store, 0, state="failed", failure="out of memory")
    sampler = Sampler(store)

    def failed() -> list[tuple[str, float]]:
        samples = sampler.read(ended=False)
        return [(one.label, one.value) for one in samples if one.metric.name == "bitfront_sweep_trials_failed"]

    assert failed() == [("out of memory", 1)]
    store.reopen_trial("t0000")
    assert failed() == [("out of memory", 0)]


def test_the_hypervolume_never_falls_as_trials_come_and_ignores_what_does_not_reach_the_front(
    store: SweepStore,
) -> None:
    points = [(70.0, 3.0), (60.0, 2.0), (75.0, 4.0), (50.0, 1.5), (74.0, 3.5), (40.0, 9.0), (90.0, 5.0), (91.0, 1.0)]
    seen = []
    for number, (top1, bops) in enumerate(points):
        add_trial(store, number, state="done", top1=top1, bops=bops)
        seen.append(hypervolume(find_front(store.trials(), SWEEP)))
    assert seen[: BOX_TRIALS - 1] == [None] * (BOX_TRIALS - 1)
    measured = [volume for volume in seen if volume is not None]
    assert measured == sorted(measured)
    first = [{"top1": top1, "bops_g": bops, "ard": 1.0} for top1, bops in points[:BOX_TRIALS]]
    assert measured[0] == pytest.approx(Box.around(first).share(first))
    assert measured[2] == measured[1]  # (40, 9) is dominated, and far beyond the corner
    assert measured[-1] > 1  # (91, 1) dominates all of the box, and more


def test_a_small_sweep_has_a_hypervolume_once_it_is_extended_and_none_before_that_could_fall(store: SweepStore) -> None:
    store.save_sweep(replace(SWEEP, total_trials=2))
    for number in range(2):
        add_trial(store, number, state="done", top1=80.0 + number, bops=1.0 + number)
    assert "hypervolume" not in values(store)
    store.save_sweep(replace(SWEEP, total_trials=4))
    for number in (2, 3):
        add_trial(store, number, state="done", top1=80.0 + number, bops=1.0 + number)
    assert "hypervolume" in values(store)


def test_names_are_those_that_prometheus_asks_for() -> None:
    for metric in EXPORTED:
        assert metric.name.startswith("bitfront_sweep_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not metric.name.endswith(("_hours", "_percent", "_ms"))


@pytest.mark.usefixtures("local_ray")
def test_a_storage_that_cannot_be_read_holds_up_nothing_and_is_told_once(
    store: SweepStore, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with exported(store):
        time.sleep(0.3)
        (store.folder / "sweep.json").rename(store.folder / "elsewhere.json")
    assert time.monotonic() - began < 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the sweep's metrics are behind" in caplog.text
    with exported(store):
        pass
    assert "the sweep has no metrics" in caplog.text


@pytest.mark.usefixtures("local_ray")
def test_an_error_of_the_sweep_itself_passes_through(store: SweepStore) -> None:
    with pytest.raises(StorageError, match="mine"), exported(store):
        raise StorageError("mine")
    assert not [thread for thread in threading.enumerate() if thread.name == "bitfront-gauges"]


SCRAPED = """
import json, os, sys, threading, time, urllib.request
from pathlib import Path
os.environ["RAY_USAGE_STATS_ENABLED"], os.environ["RAY_AUTH_MODE"] = "0", "disabled"
import ray
from rich.console import Console
from overhead import SPEC, NoScience
from service.orchestrate import gauges
from service.orchestrate.sweep import run_sweep
from service.progress import Progress
from service.spec import load_spec
from service.standing import standing
from service.sweeps import open_sweep
from trainables.errors import DivergedError

folder, port = Path(sys.argv[1]), int(sys.argv[2])

class Science(NoScience):
    def run_trial(self, config, report, *, store, checkpoint=None):
        time.sleep(1.5)
        if config.method.zeta < 0.1:
            raise DivergedError("a loss is nan")
        if config.method.zeta < 0.15:
            raise ValueError("nobody foresaw it")
        return super().run_trial(config, report, store=store, checkpoint=checkpoint)

def scrape():
    found = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("ray_bitfront"):
                name, _, rest = line.partition("{")
                labels, _, value = rest.rpartition("} ")
                pairs = dict(pair.split("=", 1) for pair in labels.split(","))
                kept = {k: json.loads(v) for k, v in pairs.items() if k in ("sweep", "owner", "state", "failure")}
                found[name + json.dumps(kept, sort_keys=True)] = float(value)
    return found

seen = []
def watch():
    while True:
        try:
            seen.append(scrape())
        except OSError:
            pass
        time.sleep(0.5)

gauges.INTERVAL_S = 0.2
ray.init(
    address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
    _metrics_export_port=port, _system_config={"metrics_report_interval_ms": 1000},
)
threading.Thread(target=watch, daemon=True).start()
(folder / "s.yaml").write_text(SPEC.format(trials=12, storage=folder / "st", sampler="random") + "owner: ann\\n")
spec = load_spec(folder / "s.yaml")
store = open_sweep(spec, now_ms=1)
quiet = Console(file=(folder / "out.txt").open("w"))
run_sweep(spec, store, lambda store: Progress(quiet, store, epochs_per_trial=2), science=Science())
last = gauges.Sampler(store).read(ended=True)
expected = {
    f"ray_{one.metric.name}" + json.dumps(
        {"sweep": "overhead", "owner": "ann", **({one.metric.label: one.label} if one.label else {})}, sort_keys=True
    ): one.value for one in last
}
deadline = time.time() + 30
while (found := scrape()) != expected and time.time() < deadline:
    time.sleep(0.3)
print(json.dumps({"expected": expected, "found": found, "seen": seen}))
"""


@pytest.mark.long
def test_the_endpoint_has_every_metric_with_the_value_that_the_sweep_ended_with(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SCRAPED, str(tmp_path), str(port)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["found"] == pytest.approx(told["expected"])
    names = {name.partition("{")[0] for name in told["found"]}
    assert names == {f"ray_{metric.name}" for metric in EXPORTED}
    trials = 'ray_bitfront_sweep_trials{"owner": "ann", "state": "%s", "sweep": "overhead"}'
    states = {s: told["found"][trials % s] for s in ("pending", "running", "done", "diverged", "failed")}
    assert states["pending"] == states["running"] == 0
    assert states["done"] >= BOX_TRIALS
    assert states["diverged"] > 0
    assert states["failed"] > 0
    assert sum(states.values()) == 12
    # And on the way there.
    assert max(one.get(trials % "running", 0) for one in told["seen"]) == 2
    assert {one.get(trials % "pending", 0) for one in told["seen"]} - {0.0, 12.0}
