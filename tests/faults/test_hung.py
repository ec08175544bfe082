"""An attempt that is watched: its process ends when it hangs, whatever it hangs in, and the trial says why."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import WorkerCrashedError
from ray.tune.experiment import Trial
from rich.console import Console

from service.orchestrate import limits
from service.orchestrate.promote import _Running
from service.orchestrate.sweep import _Watcher
from service.progress import Progress
from service.records import SweepRecord, SweepStore
from service.settings import LimitsConfig
from trainables.errors import ConfigError

ROOT = Path(__file__).parents[2]
SWEEP = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=1, created_ms=1)


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    store = SweepStore.create(tmp_path, SWEEP, spec_text="name: s\n")
    store.plan_trial("t0000", number=0, settings={})
    return store


ATTEMPT = """
import json, sys, time
from pathlib import Path
from service.orchestrate import limits
from service.records import SweepStore
from service.settings import LimitsConfig
from tests.faults import nets
from trainables.report import EpochReport

store, what, given = SweepStore(Path(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3])
limits.BEHIND_S, limits.LOOK_EVERY_S = 1.0, 0.1

def work():
    for number in range(1, 5):
        time.sleep(0.5)
        epoch = EpochReport(stage="search", epoch=number, epochs=4, metrics={})
        store.append_epoch("t0000", epoch, seconds=0.5, now_ms=1)

with limits.watched(store, store.start_trial("t0000", now_ms=1), LimitsConfig(**given)):
    getattr(nets, what, work)()
"""


def attempt(store: SweepStore, what: str, **given: str) -> int:
    """The status of a process of its own that does this within the limits."""
    arguments = [sys.executable, "-c", ATTEMPT, str(store.folder), what, json.dumps(given)]
    return subprocess.run(arguments, cwd=ROOT, check=False, timeout=120).returncode


@pytest.mark.long
@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"stall": "1s"}, "told of no epoch for longer than limits.stall (1s)"),
        ({"trial_time": "1s"}, "ran longer than limits.trial_time (1s)"),
    ],
)
def test_an_attempt_that_waits_for_ever_is_ended_and_says_where_it_was(
    store: SweepStore, given: dict[str, str], error: str
) -> None:
    assert attempt(store, "sleep", **given) == 1
    trial = store.trial("t0000")
    assert (trial.state, trial.failure, trial.error) == ("failed", "timed out", error)
    assert "in sleep" in (store.trial_folder("t0000") / "error.txt").read_text()
    assert not (store.trial_folder("t0000") / limits.HUNG_FILE).exists()


@pytest.mark.long
def test_an_attempt_that_lets_nothing_of_python_run_is_ended_by_the_system_and_the_next_one_settles_it(
    store: SweepStore,
) -> None:
    assert attempt(store, "hold_the_interpreter", stall="1s") == 1
    assert not store.trial("t0000").final
    limits.settle_hung(store, "t0000")
    trial = store.trial("t0000")
    assert (trial.state, trial.failure, trial.attempts) == ("failed", "timed out", 1)
    assert "in hold_the_interpreter" in (store.trial_folder("t0000") / "error.txt").read_text()
    assert not (store.trial_folder("t0000") / limits.HUNG_FILE).exists()


@pytest.mark.long
def test_an_attempt_that_tells_of_its_epochs_in_time_is_left_alone(store: SweepStore) -> None:
    assert attempt(store, "work", stall="8s") == 0
    assert len(store.history("t0000")) == 4
    assert not (store.trial_folder("t0000") / limits.HUNG_FILE).exists()
    limits.settle_hung(store, "t0000")
    assert store.trial("t0000").state == "running"


def is_timed_out(store: SweepStore) -> bool:
    trial = store.trial("t0000")
    error = store.trial_folder("t0000") / "error.txt"
    return (trial.state, trial.failure) == ("failed", "timed out") and error.read_text() == "in forward"


@pytest.mark.parametrize("kind", ["sweep", "promotion"])
def test_a_hang_that_only_the_system_could_end_is_told_where_no_attempt_follows_too(
    store: SweepStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    store.start_trial("t0000", now_ms=1)
    (store.trial_folder("t0000") / limits.HUNG_FILE).write_text("in forward")
    mirror = SimpleNamespace(poke=lambda: None)
    with (tmp_path / "out.txt").open("w") as out:
        progress = Progress(Console(file=out), store, epochs_per_trial=1)
        if kind == "sweep":
            trial = Trial("none", stub=True, config={"trial_id": "t0000"})
            _Watcher(store, progress, mirror).on_trial_error(0, [], trial)  # type: ignore[arg-type]
        else:
            # What Ray says of a task whose process was lost for the last time.
            monkeypatch.setattr(ray, "get", lambda task: (_ for _ in ()).throw(WorkerCrashedError()))
            running = _Running(None, store, progress, mirror, None, None)  # type: ignore[arg-type]
            running.tasks["task"] = "t0000"  # type: ignore[index]
            running._settle("task")  # type: ignore[arg-type]
    assert is_timed_out(store)


def test_a_stall_that_is_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"limits.stall is 'soon'; give a time such as 45s"):
        LimitsConfig(stall="soon")
