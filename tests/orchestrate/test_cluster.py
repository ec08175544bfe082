"""Sweeps on a Ray cluster of several nodes (processes on loopback) that lose a node, or their driver."""

import time
from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster

from service.records import SweepStore

from .conftest import Bitfront, kill, wait_for
from .test_faults import check_all_is_true, epochs_told, trials_of, write_spec


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without processors, so that all trials run on nodes that can be lost."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield found
    found.shutdown()


@pytest.mark.long
def test_a_trial_whose_node_is_lost_goes_on_on_another_one(bitfront: Bitfront, cluster: Cluster) -> None:
    lost = cluster.add_node(num_cpus=1)
    write_spec(bitfront.folder, trials=2)
    store = SweepStore(bitfront.folder / "st" / "s")
    process = bitfront.start("run", "s.yaml", "--address", cluster.address)
    wait_for(lambda: epochs_told(store) >= 3)
    before = store.history("t0000")
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    first, second = store.trials()
    assert (first.state, first.attempts, second.state, second.attempts) == ("done", 2, "done", 1)
    assert store.history("t0000")[: len(before)] == before
    check_all_is_true(store, epochs=8)


@pytest.mark.long
def test_a_driver_killed_while_workers_wait_for_a_place_leaves_nothing_that_the_next_one_waits_for(
    bitfront: Bitfront, cluster: Cluster
) -> None:
    """The workers of one of two trials have lost their node, and wait for another with what they have reserved."""
    lost, _ = cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)
    write_spec(bitfront.folder, epochs=4, resources="{workers: 2, concurrency: 2}", trials=2)
    store = SweepStore(bitfront.folder / "st" / "s")
    process = bitfront.start("run", "s.yaml", "--address", cluster.address)
    wait_for(lambda: sum(trial.state == "running" for trial in trials_of(store)) == 2, seconds=180)
    cluster.remove_node(lost, allow_graceful=False)
    time.sleep(5)
    kill(process.pid)
    process.wait()
    cluster.add_node(num_cpus=2)
    bitfront("resume", "s", "--storage", "st", "--address", cluster.address, timeout=300)
    assert [trial.state for trial in store.trials()] == ["done", "done"]
    check_all_is_true(store, epochs=4)
