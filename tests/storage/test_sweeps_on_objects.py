"""Whole sweeps in a real S3-compatible store: killed, resumed on another machine, on nodes that share no folder."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.cluster_utils import Cluster

from service import driver, lease
from service.records import SweepStore
from service.replica import Replica

from ..orchestrate.conftest import Bitfront, descendants, kill, wait_for
from ..orchestrate.test_faults import SPEC, epochs_told, outcome
from .conftest import Proxy

Machine = Callable[[str], Replica]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[[str], Bitfront]]:
    """The command, as on a machine of this name."""
    made: list[Bitfront] = []

    def on(name: str) -> Bitfront:
        (tmp_path / f"home-{name}").mkdir(exist_ok=True)
        found = Bitfront(tmp_path / f"home-{name}")
        found.environment |= {**os.environ, "BITFRONT_CACHE": str(tmp_path / name)}
        found.environment["PYTHONPATH"] = made[0].environment["PYTHONPATH"] if made else found.environment["PYTHONPATH"]
        made.append(found)
        return found

    yield on
    for one in made:
        one.close()


def write_spec(folder: Path, storage: str, **changes: object) -> None:
    filled = {"epochs": 4, "trials": 3, "resources": "{}", "limits": "{}", **changes}
    text = SPEC.format(**filled).replace("storage: {path: st}", f"storage: {{path: '{storage}'}}")
    (folder / "s.yaml").write_text(text + "tracking: {uri: 'sqlite:///" + str(folder / "mlflow.db") + "'}\n")


def seen(replica: Replica) -> SweepStore:
    replica.fetch_sweep("s")
    return SweepStore(replica.root / "s")


def check_is_whole(store: SweepStore, *, epochs: int) -> None:
    """Every trial is done and has each epoch once, and the study knows of it."""
    for trial in store.trials():
        assert trial.state == "done"
        told = [(line["stage"], line["epoch"]) for line in store.history(trial.trial_id)]
        assert told == [(stage, epoch) for stage in ("search", "finetune") for epoch in range(1, epochs + 1)]
        assert not store.checkpoint(trial.trial_id).exists()
    journal = JournalStorage(JournalFileBackend(str(store.folder / "study.journal")))
    study = optuna.load_study(study_name="s", storage=journal)
    known = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert sorted(t.user_attrs["trial"] for t in known) == [trial.trial_id for trial in store.trials()]


def kill_all(process: subprocess.Popen[str]) -> None:
    """As when the machine loses its power."""
    for pid in [*descendants(process.pid), process.pid]:
        kill(pid)
    process.wait()


@pytest.mark.long
def test_a_sweep_whose_machine_is_lost_goes_on_on_another_one_to_the_same_end(
    command: Callable[[str], Bitfront], machine: Machine, url: str, proxy: Proxy
) -> None:
    alone = command("alone")
    write_spec(alone.folder, "st")
    alone("run", "s.yaml")
    one, watching = command("one"), machine("watching")
    write_spec(one.folder, url)
    process = one.start("run", "s.yaml")
    wait_for(lambda: watching.store.get("s/sweep.json") and epochs_told(seen(watching)) >= 2, seconds=180)
    proxy.down()
    time.sleep(8)
    proxy.up()
    wait_for(lambda: epochs_told(seen(watching)) >= 10)
    kill_all(process)
    assert driver.alive(seen(watching).folder)
    two = command("two")
    refused = two("resume", "s", "--storage", url, status=1)
    assert f"s is run by process {process.pid} on" in refused
    time.sleep(lease.SILENCE_S)
    assert "its driver is gone" in two("status", "s", "--storage", url).lower()
    told = two("resume", "s", "--storage", url)
    assert f"Stored in {url}/s" in told
    store = seen(watching)
    check_is_whole(store, epochs=4)
    assert outcome(store) == outcome(SweepStore(alone.folder / "st" / "s"))
    assert store.sweep().end == "finished"
    three = command("three")
    for arguments in (
        ("list",),
        ("front", "s"),
        ("table", "s"),
        ("logs", "s"),
        ("logs", "s", "t0001"),
        ("policy", "show", "s/0"),
    ):
        assert three(*arguments, "--storage", url)
    three("clean", "s", "--storage", url)
    three("clean", "s", "--all", "--yes", "--storage", url)
    assert "holds no sweep" in two("list", "--storage", url)


@pytest.mark.long
def test_a_stop_from_another_machine_ends_the_sweep_in_order(
    command: Callable[[str], Bitfront], machine: Machine, url: str
) -> None:
    one, watching = command("one"), machine("watching")
    write_spec(one.folder, url, epochs=60)
    process = one.start("run", "s.yaml")
    wait_for(lambda: watching.store.get("s/sweep.json") and epochs_told(seen(watching)) >= 2, seconds=180)
    assert "s has ended" in command("two")("stop", "s", "--storage", url)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert f"resume s --storage {url}" in output
    assert seen(watching).sweep().end == "stopped on request"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield found
    found.shutdown()


def nodes(cluster: Cluster, tmp_path: Path) -> list[Any]:
    """Two nodes of one processor each, that share nothing but the store."""
    places: list[Mapping[str, str]] = [{"BITFRONT_CACHE": str(tmp_path / name)} for name in ("left", "right")]
    return [cluster.add_node(num_cpus=1, env_vars=place) for place in places]


@pytest.mark.long
@pytest.mark.parametrize("resources", ["{concurrency: 2}", "{workers: 2}"])
def test_nodes_that_share_no_folder_run_one_sweep(
    command: Callable[[str], Bitfront],
    machine: Machine,
    url: str,
    cluster: Cluster,
    tmp_path: Path,
    resources: str,
) -> None:
    nodes(cluster, tmp_path)
    driving = command("driver")
    write_spec(driving.folder, url, resources=resources, trials=2)
    driving("run", "s.yaml", "--address", cluster.address, timeout=900)
    store = seen(machine("watching"))
    check_is_whole(store, epochs=4)
    assert len(store.trials()) == 2
    worked = {
        name: {path.parent.name for path in (tmp_path / name).rglob("trials/*/trial.json")}
        for name in ("left", "right")
    }
    assert worked["left"]
    assert worked["right"]
    assert worked["left"] | worked["right"] == {"t0000", "t0001"}


@pytest.mark.long
def test_a_trial_whose_node_is_lost_goes_on_on_one_that_shares_no_folder(
    command: Callable[[str], Bitfront], machine: Machine, url: str, cluster: Cluster, tmp_path: Path
) -> None:
    lost = cluster.add_node(num_cpus=1, env_vars={"BITFRONT_CACHE": str(tmp_path / "left")})
    driving, watching = command("driver"), machine("watching")
    write_spec(driving.folder, url, epochs=20, trials=1)
    process = driving.start("run", "s.yaml", "--address", cluster.address)
    wait_for(lambda: watching.store.get("s/sweep.json") and epochs_told(seen(watching)) >= 5, seconds=180)
    before = seen(watching).history("t0000")
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(num_cpus=1, env_vars={"BITFRONT_CACHE": str(tmp_path / "right")})
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    store = seen(watching)
    (trial,) = store.trials()
    assert (trial.state, trial.attempts) == ("done", 2)
    assert store.history("t0000")[: len(before)] == before
    check_is_whole(store, epochs=20)
