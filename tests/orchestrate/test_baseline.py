"""The random policy beside the knee: made at the end of a real sweep, found again, made anew, and never in its way."""

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dashboards.gallery import section
from service.baseline import Baseline, attribution_of, checkpoint_of, policy_of
from service.orchestrate.baseline import baseline_is_due, make_baseline
from service.orchestrate.sweep import SweepOutcome, run_sweep
from service.progress import Progress
from service.records import SweepStore, now_ms
from service.spec import SweepSpec, load_spec
from service.sweeps import open_sweep
from service.view import read_view
from trainables import api
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.samples import SampleImages, SampleMaps

from .conftest import Bitfront, descendants, kill, wait_for

SPEC = """\
name: s
network: {{name: resnet8}}
data: {{name: digits, image_size: 16, fraction: 0.3}}
reference: {{epochs: 1, batch_size: 64}}
method: {{name: gmpq, epochs: 1, batch_size: 64, eta: 1.0}}
finetune: {{epochs: {epochs}, batch_size: 64}}
space: {{method.zeta: {{grid: [0.3, 0.05]}}}}
sampler: {{name: grid}}
trials: {trials}
resources: {resources}
gallery: {gallery}
storage: {{path: st}}
"""
TIMED = {"device_hours", "search_device_hours", "search_cost_hours", "finetune_device_hours", "images_per_s"}


def spec_of(folder: Path, **changes: object) -> SweepSpec:
    filled = {"epochs": 1, "trials": 1, "resources": "{}", "gallery": "{images: 3}", **changes}
    (folder / "s.yaml").write_text(SPEC.format(**filled))
    spec = load_spec(folder / "s.yaml")
    return dataclasses.replace(spec, storage=dataclasses.replace(spec.storage, path=str(folder / "st")))


def run(spec: SweepSpec, science: object = api) -> tuple[SweepOutcome, str]:
    console = Console(record=True, width=300)
    store = open_sweep(spec, now_ms=now_ms())
    outcome = run_sweep(spec, store, lambda s: Progress(console, s, epochs_per_trial=2), science=science)  # type: ignore[arg-type]
    return outcome, console.export_text()


def untimed(metrics: object) -> dict[str, float]:
    return {k: v for k, v in dict(metrics).items() if k not in TIMED}  # type: ignore[call-overload]


def check_baseline(spec: SweepSpec, store: SweepStore) -> Baseline:
    """It is as costly as the knee, measured, with maps, and no trial."""
    kept, front = Baseline.find(store.folder), json.loads((store.folder / "front.json").read_text())
    assert kept is not None
    assert kept.knee == front["knee"]
    knee = store.trial(kept.knee)
    assert kept.is_of(knee.trial_id, knee.policy_hash, spec.seed)
    assert 0.97 * knee.metrics["bops_g"] <= kept.metrics["bops_g"] <= knee.metrics["bops_g"]
    assert kept.metrics.keys() == knee.metrics.keys() - {"search_device_hours", "search_cost_hours"}
    policy = PolicyRecord.load(policy_of(store.folder))
    assert (policy.policy.hash, policy.method) == (kept.policy_hash, "random")
    assert policy.costs["bops_g"] == kept.metrics["bops_g"]
    maps = SampleMaps.load(attribution_of(store.folder))
    ours = SampleMaps.load(store.trial_folder(kept.knee) / "attribution.npz")
    assert maps.samples == ours.samples
    assert len(maps.ard) == spec.gallery.images
    SampleImages.load(SampleImages.path(store.references, ours.reference, ours.samples))
    assert not checkpoint_of(store.folder).exists()
    assert [trial.number for trial in store.trials()] == list(range(spec.trials))
    # What it is worth is what its policy is worth, whoever finetunes it with as many threads.
    torch.set_num_threads(spec.resources.cpus_per_worker)
    again = api.finetune(spec.trial_config(knee.settings), policy, lambda epoch: None, store=store.references)
    assert untimed(again.metrics) == untimed(kept.metrics)
    return kept


@pytest.mark.usefixtures("local_ray")
def test_a_finished_sweep_has_a_random_policy_of_its_knees_cost_once(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, trials=2)
    outcome, told = run(spec)
    kept = check_baseline(spec, outcome.store)
    assert f"random policy of {kept.knee}'s cost: finetuning" in told
    assert f"random policy: top-1 {kept.metrics['top1']:.2f} %" in told
    assert outcome.end == "finished"
    assert "random policy" in section(read_view(outcome.store))
    # Found again, it is not made again; of another knee, as after `extend`, it is.
    before = policy_of(outcome.store.folder).stat().st_mtime_ns
    _, told = run(spec)
    assert "random policy" not in told
    dataclasses.replace(kept, knee_policy="another").save(outcome.store.folder)
    policy_of(outcome.store.folder).write_text("another's")
    _, told = run(spec)
    assert "random policy: top-1" in told
    assert check_baseline(spec, outcome.store).metrics.keys() == kept.metrics.keys()
    assert policy_of(outcome.store.folder).stat().st_mtime_ns > before


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_it_is_finetuned_on_as_many_workers_as_a_trial(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, resources="{workers: 2}")
    outcome, told = run(spec)
    kept = Baseline.find(outcome.store.folder)
    assert "random policy: top-1" in told
    assert kept is not None
    assert kept.metrics["finetune_device_hours"] > 0
    assert len(SampleMaps.load(attribution_of(outcome.store.folder)).ard) == 3


@pytest.mark.usefixtures("local_ray")
def test_what_goes_wrong_with_it_is_told_and_the_sweep_is_finished_all_the_same(tmp_path: Path) -> None:
    class Broken:
        """Cannot finetune a given policy."""

        ensure_reference, run_trial = staticmethod(api.ensure_reference), staticmethod(api.run_trial)

        def finetune(self, *arguments: object, **others: object) -> None:
            raise RuntimeError("no finetune here")

    spec = spec_of(tmp_path)
    outcome, told = run(spec, Broken())
    assert (outcome.end, [trial.state for trial in outcome.found.members]) == ("finished", ["done"])
    assert "random policy: failed: RayTaskError" in told
    assert "no finetune here" in told
    assert "`bitfront resume s` makes it" in told
    assert "no finetune here" in (outcome.store.folder / "random-error.txt").read_text()
    assert baseline_is_due(spec, outcome.store)
    assert "sweep ended without one" in section(read_view(outcome.store))
    # What is done meanwhile is done once, of a policy that is drawn and not finetuned; it may go wrong as well.
    seen: list[tuple[bool, Baseline | None]] = []

    def full() -> None:
        seen.append((policy_of(outcome.store.folder).exists(), Baseline.find(outcome.store.folder)))
        raise OSError("no space left for a page")

    told = told_by_baseline(spec, outcome.store, meanwhile=full)
    assert "random policy: failed: OSError: no space left for a page; `bitfront resume s` makes it" in told
    assert seen == [(True, None)]
    assert baseline_is_due(spec, outcome.store)
    _, told = run(spec)
    assert "random policy: top-1" in told
    check_baseline(spec, outcome.store)


def finished(folder: Path, **limits: str) -> tuple[SweepSpec, SweepStore]:
    """A sweep whose one trial is done, by somebody else: it has a policy and no choices."""
    spec = spec_of(folder)
    spec = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, **limits))  # type: ignore[arg-type]
    store = open_sweep(spec, now_ms=1)
    store.plan_trial("t0000", number=0, settings={"method.zeta": 0.3})
    work = api.count("resnet8", image_size=16, num_classes=10)
    policy = BitPolicy(network="resnet8", bits={name: LayerBits(2, 2) for name in work.layers})
    record = PolicyRecord.measured(policy, work, method="gmpq", settings={}, image_size=16, num_classes=10)
    store.save_policy("t0000", record)
    begun = store.start_trial("t0000", now_ms=2)
    metrics = {**record.costs, "top1": 90.0, "ard": 1.0}
    store.finish_trial(dataclasses.replace(begun, state="done", ended_ms=3, metrics=metrics, policy_hash=policy.hash))
    return spec, store


def told_by_baseline(
    spec: SweepSpec, store: SweepStore, *, seconds: float = 9.0, meanwhile: Callable[[], object] = list
) -> str:
    console = Console(record=True, width=300)
    with Progress(console, store, epochs_per_trial=2) as progress:
        make_baseline(spec, store, progress, api, seconds=seconds, meanwhile=meanwhile)
    return console.export_text()


def test_an_old_sweep_without_choices_has_none_and_says_why_once(tmp_path: Path) -> None:
    spec, store = finished(tmp_path)
    assert baseline_is_due(spec, store)
    told = told_by_baseline(spec, store)
    assert "random policy: none: s/t0000 has no choices.json" in told
    assert "makes it" not in told
    kept = Baseline.find(store.folder)
    assert kept is not None
    assert "run the search again" in kept.error
    assert not baseline_is_due(spec, store)


def test_with_the_wall_time_used_up_nothing_is_begun_and_the_advice_is_to_extend(tmp_path: Path) -> None:
    spec, store = finished(tmp_path, wall_time="10s")
    assert baseline_is_due(spec, store)
    told = told_by_baseline(spec, store, seconds=-1.0)
    assert "no time left within limits.wall_time; `bitfront extend s --wall-time …` makes it" in told
    assert "finetuning" not in told
    store.save_sweep(dataclasses.replace(store.sweep(), running_s=10.0))
    assert not baseline_is_due(spec, store)
    more = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, wall_time="1h"))
    assert baseline_is_due(more, store)


@pytest.mark.usefixtures("local_ray")
def test_ctrl_c_while_it_is_made_leaves_a_finished_sweep_and_says_what_goes_on(tmp_path: Path) -> None:
    class Interrupting:
        """Presses Ctrl-C in the driver, and is not done for long."""

        def __init__(self, pid: int) -> None:
            self.pid = pid

        ensure_reference, run_trial = staticmethod(api.ensure_reference), staticmethod(api.run_trial)

        def finetune(self, *arguments: object, **others: object) -> None:
            os.kill(self.pid, signal.SIGINT)
            time.sleep(20)

    spec = spec_of(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        outcome, told = run(spec, Interrupting(os.getpid()))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (outcome.end, len(outcome.found.members)) == ("finished", 1)
    assert "random policy: stopped on request; `bitfront resume s` makes it" in told
    assert baseline_is_due(spec, outcome.store)


def test_a_page_that_cannot_be_drawn_loses_neither_the_end_nor_the_front(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, store = finished(tmp_path)
    spec = dataclasses.replace(spec, gallery=dataclasses.replace(spec.gallery, random=False))
    # Where the page should be is a folder.
    (store.folder / "front.html").mkdir()
    outcome = run_sweep(spec, store, lambda s: Progress(Console(), s, epochs_per_trial=2))
    assert (outcome.end, store.sweep().end, len(outcome.found.members)) == ("finished", "finished", 1)
    assert "the page could not be drawn: IsADirectoryError" in (store.folder / "log.txt").read_text()
    assert "the page could not be drawn" in caplog.text
    assert json.loads((store.folder / "front.json").read_text())["knee"] == "t0000"
    assert "IsADirectoryError" in (store.folder / "page-error.txt").read_text()
    assert not [thread for thread in threading.enumerate() if thread.name == "bitfront-mirror"]


@pytest.mark.usefixtures("local_ray")
def test_without_images_a_sweep_has_no_gallery_and_no_random_policy(tmp_path: Path) -> None:
    """One with images and without a random policy is that of test_promote.py."""
    outcome, told = run(spec_of(tmp_path, gallery="{images: 0}"))
    assert outcome.end == "finished"
    assert "random policy" not in told
    assert Baseline.find(outcome.store.folder) is None
    assert not (outcome.store.trial_folder("t0000") / "attribution.npz").exists()
    assert not section(read_view(outcome.store))


@pytest.mark.long
def test_a_driver_killed_while_it_is_made_leaves_a_finished_sweep_and_resume_goes_on(bitfront: Bitfront) -> None:
    spec = spec_of(bitfront.folder, epochs=5)
    process, store = bitfront.start("run", "s.yaml"), SweepStore(bitfront.folder / "st" / "s")
    wait_for(lambda: checkpoint_of(store.folder).exists() or process.poll() is not None)
    for pid in [*descendants(process.pid), process.pid]:
        kill(pid)
    process.wait(60)
    assert checkpoint_of(store.folder).exists()
    assert Baseline.find(store.folder) is None
    assert "s: finished" in bitfront("status", "s", "--storage", "st")
    assert "gallery" in section(read_view(store))
    policy, results = policy_of(store.folder).read_text(), store.trials()
    output = bitfront("resume", "s", "--storage", "st")
    assert "random policy: top-1" in output
    assert (policy_of(store.folder).read_text(), SweepStore(store.folder).trials()) == (policy, results)
    check_baseline(spec, SweepStore(store.folder))


@pytest.mark.long
def test_a_stop_while_it_is_made_ends_the_driver_of_a_finished_sweep(bitfront: Bitfront) -> None:
    spec_of(bitfront.folder, epochs=5)
    process, store = bitfront.start("run", "s.yaml"), SweepStore(bitfront.folder / "st" / "s")
    wait_for(lambda: policy_of(store.folder).exists() or process.poll() is not None)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "random policy: stopped on request; `bitfront resume s` makes it" in output
    assert store.sweep().end == "finished"
    assert Baseline.find(store.folder) is None
