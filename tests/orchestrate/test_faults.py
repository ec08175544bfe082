"""Sweeps whose processes are killed with SIGKILL: what was finished stays, what was cut off goes on to the same end."""

import os
import random
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from service import driver
from service.records import SweepStore, TrialRecord

from .conftest import Bitfront, descendants, kill, named, wait_for

SPEC = """\
name: s
network: {{name: resnet8}}
data: {{name: digits, image_size: 8, fraction: 0.3}}
reference: {{epochs: 2, batch_size: 64}}
method: {{name: gmpq, epochs: {epochs}, batch_size: 64, eta: 1.0}}
finetune: {{epochs: {epochs}, batch_size: 64}}
space: {{method.zeta: {{loguniform: [0.05, 2.0]}}, method.top_k: {{int: [2, 4]}}}}
sampler: {{name: tpe, seed: 3}}
gallery: {{random: false}}
trials: {trials}
resources: {resources}
limits: {limits}
storage: {{path: st}}
"""
KILLS = int(os.environ.get("BITFRONT_TEST_KILLS", "4"))
TIMED = {"device_hours", "search_device_hours", "search_cost_hours", "finetune_device_hours", "images_per_s"}


def write_spec(folder: Path, **changes: object) -> Path:
    filled = {"epochs": 8, "trials": 1, "resources": "{}", "limits": "{}", **changes}
    path = folder / "s.yaml"
    path.write_text(SPEC.format(**filled))
    return path


def trials_of(store: SweepStore) -> list[TrialRecord]:
    """None while there is no such sweep."""
    return SweepStore(store.folder).trials() if (store.folder / "trials").exists() else []


def epochs_told(store: SweepStore) -> int:
    """Lines in the histories of all trials."""
    return sum(len(store.history(trial.trial_id)) for trial in trials_of(store))


def begun(bitfront: Bitfront, *, epochs: int) -> tuple[SweepStore, subprocess.Popen[str]]:
    """The sweep of `s.yaml` and its driver, once its trials have told of so many epochs."""
    store, process = SweepStore(bitfront.folder / "st" / "s"), bitfront.start("run", "s.yaml")
    wait_for(lambda: epochs_told(store) >= epochs)
    return store, process


def outcome(store: SweepStore) -> list[object]:
    """What the sweep found, without what a clock has told."""
    return [
        (t.trial_id, t.state, t.settings, t.policy_hash, {k: v for k, v in t.metrics.items() if k not in TIMED})
        for t in store.trials()
    ]


def check_all_is_true(store: SweepStore, *, epochs: int) -> None:
    """Storage, study and mirror agree; nothing is left running, nothing is there twice."""
    trials = store.trials()
    for trial in trials:
        stages = [(line["stage"], line["epoch"]) for line in store.history(trial.trial_id)]
        assert stages == [(stage, epoch) for stage in ("search", "finetune") for epoch in range(1, epochs + 1)]
        times = [line["time_ms"] for line in store.history(trial.trial_id)]
        assert times == sorted(times)
        assert not store.checkpoint(trial.trial_id).exists()
    storage = JournalStorage(JournalFileBackend(str(store.folder / "study.journal")))
    study = optuna.load_study(study_name=store.folder.name, storage=storage)
    # A suggestion in which the driver was killed is a failed one of the study, and no trial of the sweep.
    assert {t.state.name for t in study.trials if "trial" not in t.user_attrs} <= {"FAIL"}
    told = [t for t in study.trials if "trial" in t.user_attrs]
    assert [t.user_attrs["trial"] for t in told] == [t.trial_id for t in trials]
    assert [t.params for t in told] == [t.settings for t in trials]
    assert [t.values for t in told] == [[t.metrics[o] for o in ("top1", "bops_g", "ard")] for t in trials]
    client = MlflowClient(f"sqlite:///{store.folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("bitfront").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = [run for run in runs if "bitfront.trial" in run.data.tags]
    assert len(runs) == len(children) + 1
    assert sorted(run.data.tags["bitfront.trial"] for run in children) == [t.trial_id for t in trials]
    for run in children:
        points = client.get_metric_history(run.info.run_id, "search/loss")
        assert [point.step for point in points] == list(range(epochs))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What three trials of eight and eight epochs find when nobody kills anything."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_spec(folder, trials=3)
    command = Bitfront(folder)
    try:
        command("run", "s.yaml")
    finally:
        command.close()
    store = SweepStore(folder / "st" / "s")
    check_all_is_true(store, epochs=8)
    return outcome(store)


@pytest.mark.long
def test_drivers_killed_at_random_moments_until_the_sweep_is_done_change_nothing(
    bitfront: Bitfront, undisturbed: list[object]
) -> None:
    write_spec(bitfront.folder, trials=3)
    store, moments = SweepStore(bitfront.folder / "st" / "s"), random.Random(0)
    finished: Mapping[str, int] = {}
    for attempt in range(KILLS):
        process, known = bitfront.start("run", "s.yaml"), epochs_told(store)
        if attempt % 3 == 0:
            time.sleep(moments.uniform(0.5, 9.0))
        else:
            wait_for(lambda known=known, process=process: epochs_told(store) > known or process.poll() is not None)
            time.sleep(moments.uniform(0.0, 3.0))
        kill(process.pid)
        process.wait()
        again = {t.trial_id: t.ended_ms for t in trials_of(store) if t.final}
        assert finished.items() <= again.items(), "a finished trial was lost or run again"
        finished = again
    bitfront("run", "s.yaml")
    assert outcome(store) == undisturbed
    check_all_is_true(store, epochs=8)


@pytest.mark.long
def test_a_trial_whose_process_is_killed_goes_on_after_its_last_epoch(
    bitfront: Bitfront, undisturbed: list[object]
) -> None:
    write_spec(bitfront.folder)
    store, process = begun(bitfront, epochs=3)
    (trial,) = named(descendants(process.pid), "ray::ImplicitFunc")
    before = store.history("t0000")
    kill(trial)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "t0000: its process was lost; it goes on from its last epoch" in output
    (record,) = store.trials()
    assert (record.state, record.attempts) == ("done", 2)
    assert store.history("t0000")[: len(before)] == before
    assert outcome(store) == undisturbed[:1]
    check_all_is_true(store, epochs=8)


@pytest.mark.long
def test_a_trial_that_is_lost_too_often_fails_with_its_class_and_can_be_run_again(bitfront: Bitfront) -> None:
    write_spec(bitfront.folder, limits="{retries: 0}")
    store, process = begun(bitfront, epochs=2)
    (trial,) = named(descendants(process.pid), "ray::ImplicitFunc")
    kill(trial)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    (record,) = store.trials()
    assert (record.state, record.failure, record.attempts) == ("failed", "lost worker", 1)
    kept = store.history("t0000")
    assert "Running again: t0000" in bitfront("rerun-failed", "s", "--storage", "st")
    store = SweepStore(store.folder)
    (record,) = store.trials()
    assert (record.state, record.attempts) == ("done", 2)
    assert store.history("t0000")[: len(kept)] == kept
    client = MlflowClient(f"sqlite:///{store.folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("bitfront").experiment_id])
    assert [(run.info.status, run.data.tags.get("bitfront.failure")) for run in runs] == [("FINISHED", None)] * 2


@pytest.mark.long
def test_a_train_worker_that_is_killed_is_replaced_and_the_trial_goes_on(bitfront: Bitfront) -> None:
    write_spec(bitfront.folder, resources="{workers: 2}", epochs=6)
    store, process = begun(bitfront, epochs=2)
    workers = named(descendants(process.pid), "ray::RayTrainWorker")
    assert len(workers) == 2
    before = store.history("t0000")
    kill(workers[1])
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    (record,) = store.trials()
    assert (record.state, record.attempts) == ("done", 1)
    assert store.history("t0000")[: len(before)] == before
    check_all_is_true(store, epochs=6)


@pytest.mark.long
def test_a_whole_ray_that_is_killed_ends_the_driver_and_resume_goes_on(
    bitfront: Bitfront, undisturbed: list[object]
) -> None:
    write_spec(bitfront.folder)
    store, process = begun(bitfront, epochs=3)
    for pid in descendants(process.pid):
        kill(pid)
    process.wait(timeout=90)
    assert process.returncode != 0
    assert not driver.alive(store.folder)
    assert "Its driver is gone" in bitfront("status", "s", "--storage", "st")
    bitfront("sync", "s", "--storage", "st")
    client = MlflowClient(f"sqlite:///{store.folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("bitfront").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 2
    bitfront("resume", "s", "--storage", "st")
    assert outcome(store) == undisturbed[:1]
    check_all_is_true(store, epochs=8)


@pytest.mark.long
def test_a_stop_while_the_reference_is_trained_ends_the_sweep_and_the_reference_goes_on_later(
    bitfront: Bitfront,
) -> None:
    path = write_spec(bitfront.folder, epochs=1)
    path.write_text(path.read_text().replace("reference: {epochs: 2,", "reference: {epochs: 200,"))
    process, references = bitfront.start("run", "s.yaml"), bitfront.folder / "st" / "references"
    wait_for(lambda: list(references.glob(".*.checkpoint.pt")) or process.poll() is not None)
    assert "has ended" in bitfront("stop", "s", "--storage", "st")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Ended early: stopped on request" in output
    (checkpoint,) = references.glob(".*.checkpoint.pt")
    assert checkpoint.stat().st_size > 100_000
    assert "s: stopped (stopped on request)" in bitfront("status", "s", "--storage", "st")
