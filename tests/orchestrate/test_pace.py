"""A sweep's pace under load and with an MLflow that hangs: its trials' ends are seen in the storage."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from ray.tune.experiment import Trial
from rich.console import Console

from service.mirror import Tracker
from service.orchestrate.sweep import _Watcher
from service.progress import Progress
from service.records import SweepRecord, SweepStore
from tests.service.faulty_server import faulty

from .conftest import ROOT, wait_for
from .test_commands import free_port, mlflow_server

TRIALS = 60
NO_SCIENCE = """\
import sys
from pathlib import Path

import ray
from load import without_torch
from overhead import SPEC, NoScience
from rich.console import Console

from service.orchestrate.sweep import run_sweep
from service.progress import Progress
from service.spec import load_spec
from service.sweeps import open_sweep

folder, uri, trials = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         runtime_env={"worker_process_setup_hook": without_torch})
(folder / "s.yaml").write_text(
    SPEC.format(trials=trials, storage=folder / "st", sampler="random") + f"tracking: {{uri: '{uri}'}}\\n"
)
spec = load_spec(folder / "s.yaml")
store = open_sweep(spec, now_ms=1)
quiet = Console(file=(folder / "out.txt").open("w"))
outcome = run_sweep(spec, store, lambda store: Progress(quiet, store, epochs_per_trial=2), science=NoScience())
print(outcome.end, outcome.mirror_error)
"""


class Poked:
    """Somebody who wants to hear of it."""

    def __init__(self) -> None:
        self.times = 0

    def poke(self) -> None:
        self.times += 1


def test_the_driver_writes_the_front_once_a_second_however_many_trials_end_and_keeps_none_of_their_means(
    tmp_path: Path,
) -> None:
    sweep = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=9, created_ms=1)
    store = SweepStore.create(tmp_path, sweep, spec_text="name: s\n")
    progress = Progress(Console(file=(tmp_path / "out.txt").open("w")), store, epochs_per_trial=1)
    now, poked = [0.0], Poked()
    watcher = _Watcher(store, progress, poked, clock=lambda: now[0])  # type: ignore[arg-type]
    written: list[int] = []
    for number in range(9):
        trial_id = f"t{number:04d}"
        store.plan_trial(trial_id, number=number, settings={})
        begun = store.start_trial(trial_id, now_ms=2)
        found = {"top1": 90.0 + number, "bops_g": 0.1 + number, "ard": 1.0, "compression": 9.0}
        store.finish_trial(replace(begun, state="done", ended_ms=3 + number, metrics=found))
        trial = Trial("none", stub=True, config={"trial_id": trial_id})
        trial.update_last_result({"loss": 1.0, "training_iteration": 1})
        assert set(trial.metric_analysis) == set(trial.metric_n_steps) == {"loss", "training_iteration"}
        watcher.on_trial_complete(0, [], trial)
        # Or the driver's memory grows by it with each trial.
        assert not trial.metric_analysis
        assert not trial.metric_n_steps
        watcher.on_step_end(0, [])
        written.append(len(json.loads((store.folder / "front.json").read_text())["front"]))
        now[0] += 0.3
    assert written == [1, 1, 1, 1, 5, 5, 5, 5, 9]
    assert poked.times == 9
    now[0] += 1.0
    before = (store.folder / "front.json").stat().st_mtime_ns
    watcher.on_step_end(0, [])
    assert (store.folder / "front.json").stat().st_mtime_ns == before


@pytest.mark.long
def test_trials_go_on_at_their_own_pace_while_mlflow_hangs(tmp_path: Path) -> None:
    port, timeout_s = free_port(), 20
    store = SweepStore(tmp_path / "st" / "overhead")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with mlflow_server(tmp_path, port), faulty(f"http://127.0.0.1:{port}") as proxy:
        command = [sys.executable, "-c", NO_SCIENCE, str(tmp_path), proxy.uri, str(TRIALS)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        wait_for(lambda: len(list(store.folder.glob("trials/*/result.json"))) >= TRIALS // 4, seconds=240)
        proxy.mode = "hangs"
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0
        end, _, error = output.splitlines()[-1].partition(" ")
        assert end == "finished"
        assert "does not answer within 20 s" in error
        trials = store.trials()
        assert [trial.state for trial in trials] == ["done"] * TRIALS
        ends = sorted(trial.ended_ms for trial in trials)
        # Whoever waits for one request that hangs is there 20 seconds later.
        assert max(later - earlier for earlier, later in pairwise(ends)) < 1000 * timeout_s / 2
        proxy.mode = "well"
        Tracker(store, uri=proxy.uri, experiment="bitfront").sync(alive=False)
        client = MlflowClient(proxy.uri)
        runs = client.search_runs([client.get_experiment_by_name("bitfront").experiment_id], max_results=1000)
        assert sorted(run.data.tags.get("bitfront.trial", "") for run in runs) == ["", *(t.trial_id for t in trials)]
