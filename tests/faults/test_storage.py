"""A sweep's storage that is full, read-only or gone for a while, or for good: nothing is lost, nothing half is left."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service import driver
from service.records import SweepStore
from tests.orchestrate.conftest import Bitfront, descendants, named, wait_for
from tests.orchestrate.test_faults import check_all_is_true, epochs_told, outcome, write_spec

from .conftest import Volume

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_spec(folder, trials=2)
    command = Bitfront(folder)
    try:
        command("run", "s.yaml", timeout=600)
    finally:
        command.close()
    return outcome(SweepStore(folder / "st" / "s"))


def begun(bitfront: Bitfront, *, epochs: int) -> tuple[SweepStore, subprocess.Popen[str]]:
    """The sweep and its driver, once its trials have told of so many epochs."""
    store, process = SweepStore(bitfront.folder / "st" / "s"), bitfront.start("run", "s.yaml")
    wait_for(lambda: epochs_told(store) >= epochs, seconds=300)
    return store, process


def leftovers(storage: Path) -> list[str]:
    """Files that were begun beside and never moved into place."""
    return [path.name for path in storage.rglob(".*.????????")]


def ended(process: subprocess.Popen[str], *, status: int) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def break_full(volume: Volume) -> Callable[[], None]:
    volume.fill()
    return volume.free


def break_read_only(volume: Volume) -> Callable[[], None]:
    volume.read_only()
    return volume.writable


def break_gone(volume: Volume) -> Callable[[], None]:
    sweep, away = volume.path / "s", volume.path / "away"
    sweep.rename(away)
    return lambda: (away.rename(sweep), None)[1]


BREAKS = {"full": break_full, "read-only": break_read_only, "gone": break_gone}


@pytest.mark.parametrize("fault", BREAKS)
def test_a_storage_that_comes_back_in_time_has_cost_nothing(
    bitfront: Bitfront, volume: Volume, undisturbed: list[object], fault: str
) -> None:
    write_spec(bitfront.folder, trials=2)
    store, process = begun(bitfront, epochs=3)
    mend = BREAKS[fault](volume)
    time.sleep(12)
    if fault != "gone":
        known = epochs_told(store)
        time.sleep(3)
        assert epochs_told(store) == known, "the fault has no effect"
    mend()
    output = ended(process, status=0)
    assert "Waiting for up to 300 s." in output or fault == "gone", output
    assert outcome(store) == undisturbed
    assert [trial.attempts for trial in store.trials()] == [1, 1]
    check_all_is_true(store, epochs=8)
    assert not leftovers(volume.path)


WORDS = {"full": "no space left; make room there", "read-only": "read-only", "gone": "it is gone; bring it back"}


@pytest.mark.parametrize("fault", BREAKS)
def test_a_storage_that_stays_away_ends_the_sweep_in_order_and_resume_goes_on(
    bitfront: Bitfront, volume: Volume, undisturbed: list[object], fault: str
) -> None:
    bitfront.environment["BITFRONT_STORAGE_WAIT"] = "3"
    write_spec(bitfront.folder, trials=2)
    store, process = begun(bitfront, epochs=3)
    before = {trial.trial_id: store.history(trial.trial_id) for trial in store.trials()}
    mend = BREAKS[fault](volume)
    output = ended(process, status=1)
    assert WORDS[fault] in output
    assert "resume" in output
    assert "Traceback" not in output
    mend()
    assert not driver.alive(store.folder)
    store = SweepStore(store.folder)
    assert all(store.history(trial_id)[: len(lines)] == lines for trial_id, lines in before.items())
    assert {trial.state for trial in store.trials()} <= {"pending", "running"}
    bitfront("resume", "s", "--storage", "st", timeout=400)
    store = SweepStore(store.folder)
    assert outcome(store) == undisturbed
    check_all_is_true(store, epochs=8)
    assert not leftovers(volume.path)


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_to_go_on_from(
    bitfront: Bitfront, volume: Volume, undisturbed: list[object]
) -> None:
    """Room for history lines and records, but for no whole checkpoint."""
    write_spec(bitfront.folder, trials=2)
    store, process = begun(bitfront, epochs=2)
    volume.fill(leave=200_000)
    time.sleep(10)
    assert process.poll() is None
    volume.free()
    ended(process, status=0)
    assert outcome(store) == undisturbed
    check_all_is_true(store, epochs=8)
    assert not leftovers(volume.path)


def test_a_machine_that_shuts_down_lets_everything_note_where_it_was_and_resume_goes_on(
    bitfront: Bitfront, volume: Volume, undisturbed: list[object]
) -> None:
    """As a spot instance is taken: SIGTERM to driver and trial at once, with little time left."""
    write_spec(bitfront.folder, trials=2)
    store, process = begun(bitfront, epochs=3)
    began = time.monotonic()
    for pid in [process.pid, *named(descendants(process.pid), "ray::ImplicitFunc")]:
        os.kill(pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert time.monotonic() - began < 60
    assert "Ended early: stopped on request" in output
    assert not driver.alive(store.folder)
    assert store.checkpoint("t0000").exists()
    known = store.history("t0000")
    bitfront("resume", "s", "--storage", "st", timeout=400)
    store = SweepStore(store.folder)
    assert store.history("t0000")[: len(known)] == known
    assert outcome(store) == undisturbed
    check_all_is_true(store, epochs=8)
