"""Sweeps as jobs, on a Ray head with its dashboard in processes of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from ray.job_submission import JobSubmissionClient

from service.records import SweepStore

from .conftest import Bitfront, descendants, kill, wait_for

SPEC = """\
name: s
network: {{name: resnet8}}
data: {{name: digits, image_size: 8, fraction: 0.3}}
reference: {{epochs: 2, batch_size: 64}}
method: {{name: gmpq, epochs: 120, batch_size: 64, eta: 1.0}}
finetune: {{epochs: 1, batch_size: 64}}
space: {{method.zeta: {{loguniform: [0.05, 2.0]}}}}
sampler: {{name: random, seed: 3}}
gallery: {{random: false}}
trials: 2
storage: {{path: {path}}}
"""


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def head() -> Iterator[str]:
    """The address of a cluster's dashboard; the cluster is killed at the end, each process by its id."""
    # Ray's sockets are below it, and a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="bf"))
    port, dashboard, agent, client = free_ports(4)
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        ["ray", "start", "--head", "--block", "--num-cpus", "2", "--node-ip-address", "127.0.0.1",
         "--port", str(port), "--include-dashboard", "true", "--dashboard-host", "127.0.0.1",
         "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent),
         "--ray-client-server-port", str(client), "--temp-dir", str(folder), "--disable-usage-stats"],
        env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=2).close()
        except OSError:
            return False
        return True

    try:
        wait_for(answers, seconds=120)
        yield address
    finally:
        left = [process.pid, *descendants(process.pid)]
        # The first would otherwise start what it misses, or tell of it.
        os.kill(process.pid, signal.SIGSTOP)
        for pid in reversed(left):
            kill(pid)
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def status(bitfront: Bitfront, address: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(bitfront("status", "s", "--address", address, "--json"))
    return found


def results(store: SweepStore) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.folder.glob("trials/*/result.json")}


@pytest.mark.long
def test_a_sweep_is_sent_to_a_cluster_followed_stopped_and_sent_again(bitfront: Bitfront, head: str) -> None:
    spec = bitfront.folder / "s.yaml"
    spec.write_text(SPEC.format(path="st"))
    refused = bitfront("submit", "s.yaml", "--address", head, status=2)
    assert "s.yaml:11:17: storage.path: 'st' would lie in the job's own folder" in refused
    assert "knows no job of a sweep 's'; send it there with: bitfront submit" in bitfront(
        "status", "s", "--address", head, status=2
    )

    spec.write_text(SPEC.format(path=bitfront.folder / "st"))
    store = SweepStore(bitfront.folder / "st" / "s")
    began = time.monotonic()
    output = bitfront("submit", "s.yaml", "--address", head)
    assert time.monotonic() - began < 30
    assert f"Submitted as bitfront-s-1. Follow it with:  bitfront logs s --address {head} --follow" in output
    assert not (store.folder / "front.json").exists()
    wait_for(lambda: (store.folder / "trials" / "t0000").exists() and len(store.history("t0000")) >= 2)
    assert f"s is running on {head} already, as bitfront-s-1" in bitfront(
        "submit", "s.yaml", "--address", head, status=2
    )
    assert status(bitfront, head) == {
        "job": "bitfront-s-1",
        "status": "RUNNING",
        "message": "Job is currently running.",
    }
    assert "reference: training" in bitfront("logs", "s", "--address", head)

    assert "bitfront-s-1 was told to stop." in bitfront("stop", "s", "--address", head)
    wait_for(lambda: status(bitfront, head)["status"] == "STOPPED", seconds=60)
    # It had the time to say that it was stopped, here and in MLflow.
    assert store.sweep().end == "stopped on request"
    assert [trial.state for trial in store.trials()] == ["pending"]
    client = MlflowClient(f"sqlite:///{store.folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("bitfront").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 2
    first = store.history("t0000")

    # Sent again it goes on; a client may follow it to its end.
    assert "Submitted as bitfront-s-2." in bitfront("submit", "s.yaml", "--address", head)
    log = bitfront("logs", "s", "--address", head, "--follow")
    assert "reference: found" in log
    assert "2/2 done" in log
    assert "s: Pareto front of 2 policies" in log
    assert status(bitfront, head)["status"] == "SUCCEEDED"
    assert "bitfront-s-2: SUCCEEDED" in bitfront("status", "s", "--address", head)
    store = SweepStore(store.folder)
    assert [(t.state, t.attempts) for t in store.trials()] == [("done", 2), ("done", 1)]
    assert store.history("t0000")[: len(first)] == first
    before = results(store)

    # Finished, it only says so; the number of a job that was deleted is not given again.
    JobSubmissionClient(head).delete_job("bitfront-s-1")
    assert "Submitted as bitfront-s-3." in bitfront("submit", "s.yaml", "--address", head)
    log = bitfront("logs", "s", "--address", head, "--follow")
    assert "s: Pareto front of 2 policies" in log
    assert "reference" not in log
    assert results(store) == before


def test_a_dashboard_that_does_not_answer_is_named_within_seconds(bitfront: Bitfront) -> None:
    (bitfront.folder / "s.yaml").write_text(SPEC.format(path=bitfront.folder / "st"))
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    began = time.monotonic()
    for command in (("submit", "s.yaml"), ("status", "s"), ("logs", "s"), ("stop", "s")):
        output = bitfront(*command, "--address", address, status=2)
        assert f"--address {address}: no Ray dashboard answers there" in output
        assert "Traceback" not in output
    assert time.monotonic() - began < 60
    assert not (bitfront.folder / "st").exists()
