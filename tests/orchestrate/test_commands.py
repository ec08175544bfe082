"""The commands in processes of their own, as people call them; each test makes a few sweeps and looks at them long."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from service import driver
from service.records import SweepStore

from .conftest import Bitfront, descendants, kill, wait_for

SPEC = """\
name: {name}
network: {{name: resnet8}}
data: {{name: digits, image_size: 8, fraction: 0.3}}
reference: {{epochs: 2, batch_size: 64}}
method: {{name: gmpq, batch_size: 64, {method}}}
finetune: {{epochs: 1, batch_size: 64}}
space: {space}
sampler: {{name: {sampler}, seed: 3}}
gallery: {{random: false}}
trials: {trials}
limits: {limits}
storage: {{path: st}}
tracking: {tracking}
"""


def write_spec(folder: Path, **changes: object) -> None:
    filled = {
        "name": "s",
        "method": "eta: 1.0, epochs: 1",
        "space": "{method.zeta: {loguniform: [0.05, 2.0]}}",
        "sampler": "random",
        "trials": 1,
        "limits": "{}",
        "tracking": "{}",
        **changes,
    }
    (folder / f"{filled['name']}.yaml").write_text(SPEC.format(**filled))


def store_of(bitfront: Bitfront, name: str = "s") -> SweepStore:
    return SweepStore(bitfront.folder / "st" / name)


def runs_at(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name("bitfront").experiment_id]))


def mirrored(bitfront: Bitfront) -> list[Run]:
    return runs_at(f"sqlite:///{bitfront.folder}/st/mlflow.db")


def statuses(runs: list[Run]) -> list[str]:
    return sorted(run.info.status for run in runs)


def results(store: SweepStore) -> dict[str, bytes]:
    """What must never change once it is there."""
    return {
        str(path.relative_to(store.folder)): path.read_bytes()
        for name in ("result.json", "history.jsonl", "policy.json", "trial.json")
        for path in store.folder.glob(f"trials/*/{name}")
    }


def epochs_told(store: SweepStore, trial_id: str) -> int:
    known = (store.folder / "trials" / trial_id).exists()
    return len(store.history(trial_id)) if known else 0


def seconds_of(bitfront: Bitfront, *arguments: str, status: int = 0) -> tuple[str, float]:
    began = time.monotonic()
    output = bitfront(*arguments, status=status)
    return output, time.monotonic() - began


def test_a_finished_sweep_is_looked_at_run_again_changed_and_extended(bitfront: Bitfront) -> None:
    write_spec(bitfront.folder)
    assert "st holds no sweep." in bitfront("list", "--storage", "st")
    output, whole_s = seconds_of(bitfront, "run", "s.yaml")
    assert "Pareto front of 1 policies" in output
    store = store_of(bitfront)
    before = results(store)
    assert len(before) == 4

    # Again: the same end, at once, and nothing new anywhere.
    runs = {run.info.run_id: run.to_dictionary()["data"]["metrics"] for run in mirrored(bitfront)}
    output, again_s = seconds_of(bitfront, "run", "s.yaml")
    assert "Pareto front of 1 policies" in output
    assert again_s < whole_s
    assert results(store) == before
    assert {run.info.run_id: run.to_dictionary()["data"]["metrics"] for run in mirrored(bitfront)} == runs
    assert statuses(mirrored(bitfront)) == ["FINISHED"] * 2

    # Changed: refused, with what differs.
    write_spec(bitfront.folder, method="eta: 2.0, epochs: 1")
    output = bitfront("run", "s.yaml", status=2)
    assert "holds another sweep of this name. What differs, there -> here:\n  method.eta: 1.0 -> 2.0\n" in output
    assert "method.eta: 1.0 -> 3.0" in bitfront("run", "s.yaml", "--set", "method.eta=3.0", status=2)
    write_spec(bitfront.folder, trials=2)
    assert "bitfront extend s --trials 2" in bitfront("run", "s.yaml", status=2)
    assert results(store) == before

    # Looked at.
    text = bitfront("status", "s", "--storage", "st")
    assert text.splitlines()[:2] == ["s: finished", "  trials   1 done of 1"]
    found = json.loads(bitfront("status", "s", "--storage", "st", "--json"))
    assert (found["state"], found["trials_by_state"]["done"], found["front_size"]) == ("finished", 1, 1)
    assert [one["name"] for one in json.loads(bitfront("list", "--storage", "st", "--json"))] == ["s"]
    listed = bitfront("list", "--storage", "st").strip()
    assert re.fullmatch(r"s +finished +1/1 trials +front 1 +(just now|\d+ min ago)", listed)
    log = bitfront("logs", "s", "--storage", "st")
    assert "reference: training" in log
    assert "1/1 done" in log
    assert "closed: finished" in log
    assert bitfront("logs", "s", "--storage", "st", "--follow") == log
    lines = bitfront("logs", "s", "t0000", "--storage", "st").splitlines()
    assert lines[0].startswith("method.zeta: ")
    assert [line.split("  ")[0] for line in lines[1:3]] == ["search 1/1", "finetune 1/1"]
    assert lines[3] == "t0000: done"
    assert "is not a trial's name" in bitfront("logs", "s", "../x", "--storage", "st", status=2)
    assert "t0009" in bitfront("logs", "s", "t0009", "--storage", "st", status=2)
    assert "s is not running." in bitfront("stop", "s", "--storage", "st")
    assert "did you mean 's'" in bitfront("status", "ss", "--storage", "st", status=2)
    assert "_bitfront_completion" in bitfront("completion", "bash")
    assert " MB freed" in bitfront("clean", "s", "--storage", "st")
    assert not (store.folder / "tune").exists()
    assert results(store) == before

    # Extended: one more, and the first is as it was.
    assert "Nothing to extend" in bitfront("extend", "s", "--storage", "st", status=2)
    assert "nothing is taken away" in bitfront("extend", "s", "--storage", "st", "--trials", "0", status=2)
    output = bitfront("extend", "s", "--storage", "st", "--trials", "+1")
    assert "reference: found" in output
    assert "2/2 done" in output
    store = store_of(bitfront)
    assert [trial.state for trial in store.trials()] == ["done", "done"]
    assert before.items() <= results(store).items()
    assert statuses(mirrored(bitfront)) == ["FINISHED"] * 3

    # Deleted, the second time it is asked.
    asked = subprocess.run(
        [sys.executable, "-m", "service.cli", "clean", "s", "--storage", "st", "--all"],
        cwd=bitfront.folder, env=bitfront.environment, input="n\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 1
    assert "with its 2 trials?" in asked.stdout
    assert results(store)
    bitfront("clean", "s", "--storage", "st", "--all", "--yes")
    assert "st holds no sweep." in bitfront("list", "--storage", "st")
    assert (bitfront.folder / "st" / "references").exists()


@pytest.mark.long
def test_a_running_sweep_is_stopped_interrupted_and_gone_on_with(bitfront: Bitfront) -> None:
    write_spec(bitfront.folder, method="eta: 1.0, epochs: 150")
    store = store_of(bitfront)
    process = bitfront.start("run", "s.yaml")
    wait_for(lambda: epochs_told(store, "t0000") >= 2)
    assert bitfront("status", "s", "--storage", "st").startswith("s: running")
    assert "is run by process" in bitfront("run", "s.yaml", status=1)
    assert "is run by process" in bitfront("extend", "s", "--storage", "st", "--trials", "+1", status=2)
    output, seconds = seconds_of(bitfront, "stop", "s", "--storage", "st")
    assert "s has ended; go on with: bitfront resume s" in output
    assert seconds < 20
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "Ended early: stopped on request. Go on with:" in output
    assert "RUNNING" not in statuses(mirrored(bitfront))
    assert [trial.state for trial in store.trials()] == ["pending"]
    assert "s: stopped (stopped on request)" in bitfront("status", "s", "--storage", "st")
    assert store.checkpoint("t0000").exists()
    first = store.history("t0000")

    # Ctrl-C, in a terminal sent to the whole group.
    process = bitfront.start("resume", "s", "--storage", "st")
    wait_for(lambda: epochs_told(store, "t0000") > len(first))
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not driver.alive(store.folder)
    assert store.sweep().end == "interrupted"
    assert "Ended early: interrupted. Go on with:" in output
    assert "RUNNING" not in statuses(mirrored(bitfront))
    assert store.history("t0000")[: len(first)] == first

    bitfront("resume", "s", "--storage", "st")
    store = store_of(bitfront)
    assert [(t.state, t.attempts) for t in store.trials()] == [("done", 3)]
    told = [(line["stage"], line["epoch"]) for line in store.history("t0000")]
    assert told == [*(("search", epoch) for epoch in range(1, 151)), ("finetune", 1)]
    assert store.history("t0000")[: len(first)] == first
    assert statuses(mirrored(bitfront)) == ["FINISHED"] * 2


@pytest.mark.long
def test_a_trial_that_takes_too_long_fails_and_the_sweep_goes_on(bitfront: Bitfront) -> None:
    # The first trial would take minutes; the next one waits behind it.
    write_spec(
        bitfront.folder, name="slow", method="eta: 1.0, zeta: 0.3", space="{method.epochs: {grid: [2000, 1]}}",
        sampler="grid", trials=2, limits="{trial_time: 30s}",
    )  # fmt: skip
    output = bitfront("run", "slow.yaml")
    slow = store_of(bitfront, "slow")
    states = [(trial.state, trial.failure) for trial in slow.trials()]
    assert states == [("failed", "timed out"), ("done", "")], output
    assert slow.trials()[0].error == "ran longer than limits.trial_time (30s)"
    assert "t0000 failed: ran longer than limits.trial_time (30s)" in output
    assert slow.trials()[0].ended_ms - slow.trials()[0].started_ms < 40_000
    assert json.loads(bitfront("status", "slow", "--storage", "st", "--json"))["failures"] == {"timed out": 1}
    assert sorted(run.data.tags.get("bitfront.failure", "") for run in mirrored(bitfront)) == ["", "", "timed out"]


@pytest.mark.long
def test_limits_of_a_sweep_end_it_early_and_extend_goes_on(bitfront: Bitfront) -> None:
    write_spec(bitfront.folder, name="short", method="eta: 1.0, epochs: 4", limits="{device_hours: 1.0e-6}")
    output = bitfront("run", "short.yaml", status=1)
    assert "Ended early: reached limits.device_hours (1e-06). Go on with:" in output
    store = store_of(bitfront, "short")
    assert [trial.state for trial in store.trials()] == ["pending"]
    output = bitfront("extend", "short", "--storage", "st", "--device-hours", "1", "--wall-time", "1s", status=1)
    assert "Ended early: reached limits.wall_time. Go on with:" in output
    bitfront("extend", "short", "--storage", "st", "--wall-time", "1h")
    store = store_of(bitfront, "short")
    assert [trial.state for trial in store.trials()] == ["done"]
    assert len(store.history("t0000")) == 5
    assert "RUNNING" not in statuses(mirrored(bitfront))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A tracking server on loopback that answers; killed at the end with all that it has started."""
    arguments = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "art")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments, "--host", "127.0.0.1", "--port", str(port),
         "--workers", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
        except OSError:
            return False
        return True

    try:
        wait_for(answers, seconds=90)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[Any]) -> None:
    for pid in [*descendants(process.pid), process.pid]:
        kill(pid)
    process.wait(20)


@pytest.mark.long
def test_a_tracking_server_that_goes_away_holds_nothing_up_and_sync_catches_up(bitfront: Bitfront) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    write_spec(bitfront.folder, method="eta: 1.0, epochs: 3", trials=2, tracking=f"{{uri: '{uri}'}}")

    # Away at the start: nothing is begun.
    output, seconds = seconds_of(bitfront, "run", "s.yaml", status=2)
    assert f"tracking.uri: {uri} cannot be reached" in output
    assert seconds < 20
    assert not (bitfront.folder / "st").exists()

    store = store_of(bitfront)
    with mlflow_server(bitfront.folder, port) as server:
        process = bitfront.start("run", "s.yaml")
        wait_for(lambda: epochs_told(store, "t0000") >= 1)
        end(server)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 4, output
    assert "2/2 done" in output
    assert "The tracking record is behind (" in output
    assert "sync s --storage st" in output
    assert [trial.state for trial in store.trials()] == ["done", "done"]
    assert "cannot be reached" in bitfront("sync", "s", "--storage", "st", status=2)

    with mlflow_server(bitfront.folder, port):
        for _ in range(2):
            assert f"s: 2 trials are recorded at {uri}" in bitfront("sync", "s", "--storage", "st")
        runs = runs_at(uri)
        assert statuses(runs) == ["FINISHED"] * 3
        children = {run.data.tags["bitfront.trial"]: run for run in runs if "bitfront.trial" in run.data.tags}
        assert sorted(children) == ["t0000", "t0001"]
        client = MlflowClient(uri)
        for trial in store.trials():
            run = children[trial.trial_id]
            assert run.data.metrics["top1"] == trial.metrics["top1"]
            points = client.get_metric_history(run.info.run_id, "search/loss")
            assert [point.step for point in points] == [0, 1, 2]
            assert "policy.json" in [file.path for file in client.list_artifacts(run.info.run_id)]
        assert store.sweep().end == "finished"
