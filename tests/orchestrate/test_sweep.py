"""Whole sweeps on a real Ray, with real training: one process a trial, and two workers a trial under Ray Train."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from service.orchestrate.scheduler import longest_trial
from service.orchestrate.sweep import SweepOutcome, run_sweep
from service.pareto import front
from service.progress import Progress
from service.records import SweepStore, now_ms
from service.spec import SweepSpec, load_spec
from service.sweeps import open_sweep

SPEC = """\
name: {name}
network: {{name: resnet8}}
data: {{name: digits, image_size: 8, fraction: 0.3}}
reference: {{epochs: 2, batch_size: 64}}
method: {{name: gmpq, epochs: 1, {method}}}
finetune: {{epochs: 1, batch_size: 64}}
space: {space}
sampler: {{name: random, seed: 3}}
gallery: {{random: false}}
trials: {trials}
resources: {resources}
storage: {{path: {path}}}
tags: {{team: a}}
"""


def spec_of(folder: Path, **changes: object) -> SweepSpec:
    filled = {
        "name": "tiny",
        "method": "batch_size: 64, eta: 1.0",
        "space": "{method.zeta: {loguniform: [0.05, 2.0]}, method.top_k: {int: [2, 4]}}",
        "trials": 2,
        "resources": "{concurrency: 2}",
        "path": folder / "storage",
        **changes,
    }
    (folder / "tiny.yaml").write_text(SPEC.format(**filled))
    return load_spec(folder / "tiny.yaml")


def run(spec: SweepSpec) -> tuple[SweepOutcome, str]:
    console = Console(record=True, width=200)

    def progress(store: SweepStore) -> Progress:
        return Progress(console, store, epochs_per_trial=longest_trial(spec))

    return run_sweep(spec, open_sweep(spec, now_ms=now_ms()), progress), console.export_text()


def study_of(store: SweepStore) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(store.folder / "study.journal")))
    return optuna.load_study(study_name=store.folder.name, storage=storage)


def check_records(outcome: SweepOutcome, *, trials: int) -> Mapping[str, float]:
    """Storage, study and mirror agree on every trial; one trial's metrics."""
    records = outcome.store.trials()
    assert [(r.number, r.state) for r in records] == [(n, "done") for n in range(trials)]
    study = study_of(outcome.store)
    for record, told in zip(records, study.trials, strict=True):
        assert all(math.isfinite(value) for value in record.metrics.values())
        assert told.values == [record.metrics[name] for name in ("top1", "bops_g", "ard")]
        assert told.params == record.settings
        policy = outcome.store.policy(record.trial_id)
        assert policy.policy.hash == record.policy_hash
        assert policy.costs["bops_g"] == record.metrics["bops_g"]
        stages = [line["stage"] for line in outcome.store.history(record.trial_id)]
        assert stages == ["search", "finetune"]
    client = MlflowClient(f"sqlite:///{outcome.store.folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("bitfront").experiment_id])
    assert outcome.mirror_error is None
    assert [run.info.status for run in runs] == ["FINISHED"] * (trials + 1)
    on_front = {run.data.tags["bitfront.trial"] for run in runs if run.data.tags.get("bitfront.front") == "true"}
    assert on_front == {records[i].trial_id for i in front([r.metrics for r in records])}
    assert on_front == {p["trial"] for p in json.loads((outcome.store.folder / "front.json").read_text())["front"]}
    return records[0].metrics


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_leaves_true_records_and_repeats_itself_bit_for_bit_however_it_is_launched(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    first, text = run(spec)
    metrics = check_records(first, trials=2)
    assert metrics["compression"] > 30
    assert metrics["attribution_pixels"] == 4
    assert metrics["device_hours"] == pytest.approx(metrics["search_device_hours"] + metrics["finetune_device_hours"])
    assert "reference: training" in text
    assert "2/2 done" in text
    # Again, this time each trial's one worker under Ray Train: the same function started in another way.
    again, text = run(spec_of(tmp_path, name="again", resources="{launch: train}"))
    assert "reference: found" in text
    timed = {"device_hours", "search_device_hours", "search_cost_hours", "finetune_device_hours", "images_per_s"}
    for one, other in zip(first.store.trials(), again.store.trials(), strict=True):
        assert (one.settings, one.policy_hash) == (other.settings, other.policy_hash)
        assert {k: v for k, v in one.metrics.items() if k not in timed} == {
            k: v for k, v in other.metrics.items() if k not in timed
        }


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_a_sweep_whose_trials_run_on_two_train_workers_each(tmp_path: Path) -> None:
    outcome, text = run(spec_of(tmp_path, resources="{workers: 2}"))
    check_records(outcome, trials=2)
    assert "2/2 done" in text
    (reference,) = outcome.store.sweep().references.values()
    assert reference["top1"] > 30


@pytest.mark.usefixtures("local_ray")
def test_diverged_and_failed_trials_are_results_and_the_sweep_goes_on(tmp_path: Path) -> None:
    """A learning rate of 1e30 diverges; a batch larger than the data is an error of the settings."""
    space = (
        "{method.weight_lr: {choice: [0.01, 1.0e+30]}, method.batch_size: {choice: [64, 4096]}, "
        "method.zeta: {uniform: [0.1, 0.2]}}"
    )
    outcome, text = run(spec_of(tmp_path, space=space, method="eta: 0.0", trials=7))
    records = outcome.store.trials()
    for record in records:
        if record.settings["method.batch_size"] == 4096:
            assert record.state == "failed"
            assert record.error.startswith("ConfigError: batch_size is 4096")
            trace = (outcome.store.trial_folder(record.trial_id) / "error.txt").read_text()
            assert trace.startswith("Traceback")
        elif record.settings["method.weight_lr"] == 1e30:
            assert record.state == "diverged"
            assert "no longer finite" in record.error
        else:
            assert record.state == "done"
    states = [record.state for record in records]
    assert {"done", "diverged", "failed"} == set(states)
    told = [trial.state.name for trial in study_of(outcome.store).trials]
    assert told == ["COMPLETE" if state == "done" else "FAIL" for state in states]
    assert "1 diverged" in text
    client = MlflowClient(f"sqlite:///{outcome.store.folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("bitfront").experiment_id])
    assert "RUNNING" not in {run.info.status for run in runs}
