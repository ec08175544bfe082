"""A cluster with everything on it, as compose.yaml describes it: what is lost is done again, and no secret is told."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.records import SweepStore

from ..orchestrate.conftest import wait_for
from .topology import POSTGRES, Topology, running

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not POSTGRES, reason="Debian's postgresql is not installed"),
]
SPEC = """\
name: s
network: {{name: resnet8}}
data: {{name: digits, image_size: 8, fraction: 0.3}}
reference: {{epochs: 2, batch_size: 64}}
method: {{name: gmpq, epochs: {epochs}, batch_size: 64, eta: 1.0}}
finetune: {{epochs: 2, batch_size: 64}}
space: {{method.zeta: {{loguniform: [0.05, 2.0]}}}}
sampler: {{name: random, seed: 3}}
gallery: {{random: false}}
trials: 3
resources: {{concurrency: 2}}
tracking: {{uri: '{uri}'}}
storage: {{path: {path}}}
"""
ASK_MLFLOW = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
experiment = client.get_experiment_by_name("bitfront")
runs = client.search_runs([experiment.experiment_id])
print(json.dumps([{"status": run.info.status, "trial": run.data.tags.get("bitfront.trial", ""),
    "artifacts": sorted(one.path for one in client.list_artifacts(run.info.run_id))} for run in runs]))
"""
ASK_RAY = """
import json, sys, urllib.request
token = {"Authorization": "Bearer " + sys.argv[2]}
print(urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/api/jobs/", headers=token)).read().decode())
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Topology]:
    with running() as found:
        yield found


def write_spec(cluster: Topology, name: str, *, epochs: int = 30, path: Path | None = None) -> Path:
    spec = cluster.folder / f"{name}.yaml"
    text = SPEC.format(epochs=epochs, uri=cluster.mlflow, path=path or cluster.shared)
    spec.write_text(text.replace("name: s\n", f"name: {name}\n", 1))
    return spec


def told(store: SweepStore) -> int:
    """Epochs of all trials so far."""
    if not (store.folder / "trials").exists():
        return 0
    return sum(len(store.history(trial.trial_id)) for trial in SweepStore(store.folder).trials())


def secrets_in(text: str, cluster: Topology) -> list[str]:
    return [name for name, secret in cluster.secrets.items() if secret in text]


def command_lines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def job(cluster: Topology) -> dict[str, str]:
    status, output = cluster.bitfront("status", "s", "--address", cluster.dashboard, "--json")
    assert status == 0, output
    found: dict[str, str] = json.loads(output)
    return found


def test_who_has_no_token_or_a_wrong_one_is_refused_within_seconds(cluster: Topology) -> None:
    write_spec(cluster, "s")
    wrong = "wrong0123456789abcdef"
    for changes in ({"RAY_AUTH_TOKEN": wrong}, {"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "disabled"}):
        for command in (("submit", "s.yaml"), ("status", "s"), ("logs", "s"), ("stop", "s")):
            began = time.monotonic()
            status, output = cluster.bitfront(*command, "--address", cluster.dashboard, **changes)
            assert status == 2, output
            assert f"--address {cluster.dashboard}: the cluster refuses the token, or the lack of one" in output
            assert "Export RAY_AUTH_MODE=token" in output
            assert wrong not in output
            assert "Traceback" not in output
            assert time.monotonic() - began < 60
    status, output = cluster.bitfront("status", "s", "--address", cluster.dashboard, RAY_AUTH_TOKEN="",
                                      RAY_AUTH_TOKEN_PATH="/no/such/file")  # fmt: skip
    assert status == 2
    assert "RAY_AUTH_MODE is token, but /no/such/file cannot be read" in output


def test_a_driver_on_the_cluster_with_a_wrong_token_ends_with_what_mends_it(cluster: Topology) -> None:
    spec = write_spec(cluster, "d", path=cluster.folder / "elsewhere")
    spec.write_text(re.sub("tracking: .*\n", "", spec.read_text()))
    address = f"{cluster.hosts.address['head']}:6379"
    began = time.monotonic()
    status, output = cluster.bitfront(
        "run",
        "d.yaml",
        "--address",
        address,
        on="head",
        RAY_AUTH_TOKEN="wrong0123456789abcdef",
        BITFRONT_TRACKING_URI="",
    )
    # What can be checked without the cluster was in order: it was about to run.
    assert status == 1, output
    assert f"--address {address}: the cluster refuses the token, or the lack of one" in output
    assert "Traceback" not in output
    assert "wrong0123" not in output
    assert time.monotonic() - began < 60


def test_a_wrong_password_of_mlflow_ends_a_sweep_before_anything_is_computed(cluster: Topology) -> None:
    write_spec(cluster, "p", path=cluster.folder / "elsewhere")
    wrong = "wrong0123456789abcdef"
    given = {"MLFLOW_TRACKING_USERNAME": "bitfront", "MLFLOW_TRACKING_PASSWORD": wrong}
    status, output = cluster.bitfront("run", "p.yaml", **given)
    assert status == 2, output
    assert f"tracking.uri: {cluster.mlflow} refuses the credentials (status 401; it was given MLFLOW" in output
    assert wrong not in output
    status, output = cluster.bitfront("run", "p.yaml")
    assert status == 2, output
    assert "it was given nothing in the environment" in output
    assert not list((cluster.folder / "elsewhere").glob("p/trials/*"))


def test_a_submitted_sweep_outlives_a_machine_and_a_restart_of_the_database_and_tells_no_secret(
    cluster: Topology,
) -> None:
    write_spec(cluster, "s")
    status, output = cluster.bitfront("submit", "s.yaml", "--address", cluster.dashboard)
    assert status == 0, output
    outputs = [output]
    store = SweepStore(cluster.shared / "s")
    wait_for(lambda: told(store) >= 6, seconds=400)
    seen = command_lines()

    cluster.hosts.lose("worker-1")
    before = told(store)
    cluster.restart_postgres(away_s=5)
    wait_for(lambda: told(store) >= before + 4, seconds=300)
    wait_for(lambda: job(cluster)["status"] in ("SUCCEEDED", "FAILED", "STOPPED"), seconds=600)
    status, log = cluster.bitfront("logs", "s", "--address", cluster.dashboard)
    outputs.append(log)
    assert job(cluster)["status"] == "SUCCEEDED", log
    assert "3/3 done" in log
    store = SweepStore(store.folder)
    assert [trial.state for trial in store.trials()] == ["done"] * 3
    # One of them was on the machine that was lost.
    assert max(trial.attempts for trial in store.trials()) == 2
    for trial in store.trials():
        epochs = [(line["stage"], line["epoch"]) for line in store.history(trial.trial_id)]
        assert epochs == [("search", n) for n in range(1, 31)] + [("finetune", n) for n in (1, 2)]

    check_mlflow(cluster)
    check_metrics(cluster)
    ask = [sys.executable, "-c", ASK_RAY, cluster.dashboard, cluster.secrets["ray"]]
    status, jobs = cluster.hosts.run("client", ask, environment=cluster.client(), folder=cluster.folder)
    assert status == 0, jobs
    assert json.loads(jobs)[0]["runtime_env"]["env_vars"].keys() >= {"BITFRONT_REVISION"}
    for text in (*outputs, jobs, seen, command_lines()):
        assert secrets_in(text, cluster) == []
    check_files(cluster)


def check_mlflow(cluster: Topology) -> None:
    """Every run is there, with its artifacts, which lie in the bucket."""
    given = {"MLFLOW_TRACKING_USERNAME": "bitfront", "MLFLOW_TRACKING_PASSWORD": cluster.secrets["mlflow"]}
    command = [sys.executable, "-c", ASK_MLFLOW, cluster.mlflow]
    status, output = cluster.hosts.run("client", command, environment=cluster.client(**given), folder=cluster.folder)
    assert status == 0, output
    runs = json.loads(output.splitlines()[-1])
    assert [run["status"] for run in runs] == ["FINISHED"] * 4
    trials = {run["trial"]: run["artifacts"] for run in runs if run["trial"]}
    assert len(trials) == 3
    assert all({"policy.json", "bits.png"} <= set(artifacts) for artifacts in trials.values())


def check_metrics(cluster: Topology) -> None:
    """What Prometheus would read: the list that Ray writes names machines that answer."""
    file = str(cluster.hosts.local / "prom_metrics_service_discovery.json")
    status, text = cluster.hosts.run("head", ["cat", file], environment=cluster.client(), folder=cluster.folder)
    assert status == 0, text
    (listed,) = json.loads(text)
    assert f"{cluster.hosts.address['head']}:8080" in listed["targets"]
    read = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
    target = f"http://{cluster.hosts.address['head']}:8080/metrics"
    status, text = cluster.hosts.run(
        "services", [sys.executable, "-c", read, target], environment=cluster.client(), folder=cluster.folder
    )
    assert status == 0, text
    assert "ray_" in text


def check_files(cluster: Topology) -> None:
    """Logs, records, sessions, tables: no file holds a secret."""
    words = [argument for secret in cluster.secrets.values() for argument in ("-e", secret)]
    found = subprocess.run(
        ["grep", "--recursive", "--text", "--files-with-matches", "--fixed-strings", *words, str(cluster.folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout == ""
