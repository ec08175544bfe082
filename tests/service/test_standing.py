import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from service import driver
from service.records import STATES, SweepRecord, SweepStore
from service.standing import Standing, age, as_json, as_text, clock, spent_hours, standing
from trainables.report import EpochReport

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from service import driver
with driver.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
FAILURES = ("out of memory", "user error", "out of memory", "")


def metrics(top1: float, bops_g: float) -> dict[str, float]:
    return {"top1": top1, "bops_g": bops_g, "ard": 1.0}


def create(folder: Path, **changes: Any) -> SweepStore:
    sweep = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=20, created_ms=1000, owner="ada", workers=2)
    return SweepStore.create(folder, dataclasses.replace(sweep, **changes), spec_text="name: s\n")


def add(store: SweepStore, state: str, *, seconds: float = 0.0, **changes: Any) -> None:
    """A trial that ran from second 10 to second 14 and reported one epoch."""
    number = len(store.trials())
    trial_id = f"t{number:04d}"
    store.plan_trial(trial_id, number=number, settings={})
    if state == "pending":
        return
    begun = store.start_trial(trial_id, now_ms=10_000)
    store.append_epoch(
        trial_id, EpochReport(stage="search", epoch=1, epochs=2, metrics={}), seconds=seconds, now_ms=12_000
    )
    if state != "running":
        store.finish_trial(dataclasses.replace(begun, state=state, ended_ms=14_000, **changes))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    """Every state, in different numbers."""
    store = create(tmp_path, constraints=("bops_g <= 5",))
    for values in (metrics(80, 1), metrics(90, 4), metrics(85, 4.5), metrics(99, 9)):
        add(store, "done", metrics=values, seconds=900.0)
    for _ in range(2):
        add(store, "running", seconds=1800.0)
    for failure in FAILURES:
        add(store, "failed", failure=failure, error="it went wrong")
    for _ in range(3):
        add(store, "pruned")
    add(store, "diverged", failure="nan", error="no longer finite")
    add(store, "pending")
    return store


def test_a_sweep_whose_driver_runs_is_counted_by_state(store: SweepStore) -> None:
    with driver.hold(store.folder):
        found = standing(store)
    assert (found.name, found.state, found.owner, found.created_ms) == ("s", "running", "ada", 1000)
    # One trial waits to be run again, five were not suggested yet.
    assert found.trials_by_state == {
        "pending": 6, "running": 2, "done": 4, "pruned": 3, "diverged": 1, "failed": 4, "stale": 0
    }  # fmt: skip
    assert set(found.trials_by_state) == {*STATES, "stale"}
    assert sum(found.trials_by_state.values()) == found.trials_planned == 20
    assert found.failures == {"error": 1, "out of memory": 2, "user error": 1}
    # 85 % for 4.5 G is beaten, 99 % for 9 G breaks the constraint.
    assert found.front_size == 2
    # Four done and two running trials, each on two devices.
    assert found.device_hours == pytest.approx((4 * 900 + 2 * 1800) * 2 / 3600)
    # Of 20 trials 12 have ended, after 4 s each, and two run at once.
    assert found.seconds_left == pytest.approx(4 * 8 / 2)


def test_the_best_accuracy_is_that_of_a_policy_within_the_constraints(store: SweepStore) -> None:
    assert standing(store).best_top1 == 90


def test_trials_that_a_lost_driver_left_running_are_stale(store: SweepStore) -> None:
    folder = str(store.folder)
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert standing(store).state == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = standing(store)
    assert found.state == "stale"
    assert (found.trials_by_state["running"], found.trials_by_state["stale"]) == (0, 2)
    assert found.seconds_left is None
    assert "Its driver is gone; go on with: bitfront resume s" in as_text(found)


@pytest.mark.parametrize(
    ("end", "state"),
    [("finished", "finished"), ("stopped on request", "stopped"), ("reached limits.wall_time", "stopped")],
)
def test_a_sweep_that_was_closed_says_why(store: SweepStore, end: str, state: str) -> None:
    ended = sum(trial.final for trial in store.trials())
    store.save_sweep(dataclasses.replace(store.sweep(), ended_ms=99_000, end=end, total_trials=ended))
    found = standing(store)
    assert (found.state, found.end, found.seconds_left) == (state, end, None)
    text = as_text(found)
    assert text.splitlines()[0] == ("s: finished" if state == "finished" else f"s: stopped ({end})")
    assert ("bitfront resume s" in text) == (end == "stopped on request")
    assert ("bitfront extend s --wall-time" in text) == (end == "reached limits.wall_time")
    with driver.hold(store.folder):
        assert standing(store).state == "running"


def test_a_sweep_that_was_extended_after_its_end_is_not_finished(tmp_path: Path) -> None:
    store = create(tmp_path, total_trials=1)
    add(store, "done", metrics=metrics(80, 1))
    closed = dataclasses.replace(store.sweep(), ended_ms=99_000, end="finished")
    store.save_sweep(closed)
    assert standing(store).state == "finished"
    store.save_sweep(dataclasses.replace(closed, total_trials=2))
    assert standing(store).state == "stopped"
    assert as_text(standing(store)).splitlines()[0] == "s: stopped"
    assert "Go on with: bitfront resume s" in as_text(standing(store))


def test_a_sweep_with_nothing_in_it_yet(tmp_path: Path) -> None:
    found = standing(create(tmp_path))
    assert found.trials_by_state["pending"] == 20
    assert (found.front_size, found.best_top1, found.device_hours, found.seconds_left) == (0, None, 0.0, None)
    assert as_text(found).splitlines()[2:4] == ["  front    0 policies", "  spent    0 device-hours"]


def test_what_an_attempt_that_was_cut_off_has_spent_counts(tmp_path: Path) -> None:
    store = create(tmp_path, workers=1)
    add(store, "running", seconds=1800.0)
    store.interrupt_trial("t0000")
    assert spent_hours(store) == 0.5
    store.start_trial("t0000", now_ms=20_000)
    second = EpochReport(stage="search", epoch=2, epochs=2, metrics={})
    store.append_epoch("t0000", second, seconds=900.0, now_ms=21_000)
    assert spent_hours(store) == 0.75


def test_the_sweeps_own_record_is_not_read_again_for_each_of_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(trials: int) -> int:
        store = create(tmp_path / str(trials), total_trials=trials)
        for _ in range(trials):
            add(store, "done", seconds=36.0, metrics=metrics(90.0, 0.02))
        counted: list[str] = []
        read = Path.read_text

        def counting(path: Path, *args: Any, **kwargs: Any) -> str:
            counted.append(path.name)
            return read(path, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", counting)
            assert standing(SweepStore(store.folder)).device_hours == pytest.approx(0.02 * trials)
        return counted.count("sweep.json")

    assert reads(12) == reads(2)


def test_json_has_everything_and_comes_back(store: SweepStore) -> None:
    found = standing(store)
    text = json.dumps(as_json(found), allow_nan=False)
    assert Standing(**json.loads(text)) == found


def test_text_for_people(store: SweepStore) -> None:
    with driver.hold(store.folder):
        text = as_text(standing(store))
    assert text.splitlines() == [
        "s: running",
        "  trials   6 pending, 2 running, 4 done, 3 pruned, 1 diverged, 4 failed of 20",
        "  failed   1 error, 2 out of memory, 1 user error",
        "  front    2 policies, best top-1 90.00 %",
        "  spent    4 device-hours, about 0:16 left",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (3599.6, "1:00:00"), (7420, "2:03:40"), (90_000, "25:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "just now"), (61, "1 min ago"), (7300, "2 h ago"), (3 * 86400, "3 d ago"), (-9, "just now")],
)
def test_age(seconds: float, text: str) -> None:
    assert age(round(1000 * (time.time() - seconds))) == text
