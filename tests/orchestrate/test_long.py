"""Longer proofs: `make test-long`. Everything that can be killed is killed, again and again."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from service import driver
from service.records import SweepStore

from .conftest import Bitfront, descendants, kill, named, wait_for
from .test_faults import check_all_is_true, epochs_told, outcome, trials_of, write_spec

pytestmark = pytest.mark.long
MAX_KILLS = 60


def undisturbed_outcome(folder: Path, **changes: object) -> list[object]:
    folder.mkdir()
    write_spec(folder, **changes)
    command = Bitfront(folder)
    try:
        command("run", "s.yaml", timeout=600)
    finally:
        command.close()
    return outcome(SweepStore(folder / "st" / "s"))


def begin_and_kill(bitfront: Bitfront, store: SweepStore, moment: float, victim: Callable[[int], list[int]]) -> bool:
    """Starts the sweep's driver and, after a new epoch and a moment, kills; whether the sweep was done before that."""
    process, known = bitfront.start("run", "s.yaml"), epochs_told(store)
    wait_for(lambda: epochs_told(store) > known or process.poll() is not None, seconds=180)
    time.sleep(moment)
    if process.poll() is not None:
        return process.returncode == 0
    for pid in victim(process.pid):
        kill(pid)
    if process.pid not in victim(process.pid):
        # A driver that has lost only a worker may well end the sweep; one that has lost Ray gives up.
        wait_for(lambda: epochs_told(store) > known + 1 or process.poll() is not None, seconds=240)
        kill(process.pid)
    process.wait()
    return False


def test_drivers_killed_until_the_sweep_is_done_change_nothing(bitfront: Bitfront, tmp_path: Path) -> None:
    expected = undisturbed_outcome(tmp_path / "undisturbed", trials=6)
    write_spec(bitfront.folder, trials=6)
    store, moments = SweepStore(bitfront.folder / "st" / "s"), random.Random(1)
    kills = 0
    while not begin_and_kill(bitfront, store, moments.uniform(0.0, 1.5), lambda pid: [pid]):
        kills += 1
        assert kills < MAX_KILLS
    assert kills > 3
    assert outcome(store) == expected
    check_all_is_true(store, epochs=8)


def test_whatever_is_killed_in_turn_the_sweep_ends_with_each_trial_once(bitfront: Bitfront) -> None:
    """Two trials at once: the driver, one trial, both trials, the raylet, everything."""
    write_spec(bitfront.folder, trials=6, resources="{concurrency: 2}", epochs=12)
    store, moments = SweepStore(bitfront.folder / "st" / "s"), random.Random(2)
    victims: list[Callable[[int], list[int]]] = [
        lambda pid: [pid],
        lambda pid: named(descendants(pid), "ray::ImplicitFunc")[:1],
        lambda pid: named(descendants(pid), "ray::ImplicitFunc"),
        lambda pid: named(descendants(pid), "raylet/raylet"),
        descendants,
        lambda pid: [*descendants(pid), pid],
    ]
    finished: dict[str, int] = {}
    for kills in range(MAX_KILLS):
        done = begin_and_kill(bitfront, store, moments.uniform(0.0, 2.0), victims[kills % len(victims)])
        again = {t.trial_id: t.ended_ms for t in trials_of(store) if t.final}
        assert finished.items() <= again.items(), "a finished trial was lost or run again"
        finished = again
        if done:
            break
    assert kills < MAX_KILLS - 1
    assert [trial.state for trial in store.trials()] == ["done"] * 6
    check_all_is_true(store, epochs=12)
    assert not driver.alive(store.folder)
    client = MlflowClient(f"sqlite:///{store.folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("bitfront").experiment_id])
    assert len(runs) == 7


def test_a_trial_on_two_workers_ends_the_same_whichever_of_them_is_killed(bitfront: Bitfront, tmp_path: Path) -> None:
    changes = {"resources": "{workers: 2}", "epochs": 10}
    expected = undisturbed_outcome(tmp_path / "undisturbed", **changes)
    write_spec(bitfront.folder, **changes)
    store = SweepStore(bitfront.folder / "st" / "s")
    process = bitfront.start("run", "s.yaml")
    for place, after in ((0, 3), (1, 8)):
        wait_for(lambda after=after: epochs_told(store) >= after, seconds=180)
        workers = named(descendants(process.pid), "ray::RayTrainWorker")
        kill(workers[place])
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert outcome(store) == expected
    check_all_is_true(store, epochs=10)
