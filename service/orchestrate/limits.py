"""When a sweep, or an attempt at a trial, has had enough."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import math
import os
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from ray.tune import Stopper

from service import driver
from service.launched import Launched
from service.object_store import patience
from service.records import SweepStore, TrialRecord, now_ms
from service.settings import LimitsConfig, parse_duration
from service.standing import spent_hours
from trainables.errors import StorageError, StorageUnavailableError

STOPPED = "stopped on request"
CHECK_EVERY_S = 0.5
NOTE_EVERY_S = 10.0
"""How much of limits.wall_time a driver that is killed has had for nothing."""
HUNG_FILE = "hung.txt"
"""Of a trial: empty while it is watched; where it was, if the system had to end it."""
LOOK_EVERY_S, BEHIND_S = 1.0, 10.0
ASK_S = 2.0
"""How long a store that does not answer is asked whether a trial has told of an epoch."""
UNAVAILABLE = "unavailable"
"""Of what an attempt reports: why the storage cannot be used any more."""


class SweepStopper(Stopper):  # type: ignore[misc]  # Ray is not typed
    """Ends the sweep, with running trials to be gone on with, at a limit or when somebody asks."""

    def __init__(self, spec: Launched, store: SweepStore, *, before_s: float, began: float) -> None:
        """`before_s`: what earlier runs took; `began`: when this one did, on the monotonic clock."""
        self._store, self._workers = store, spec.resources.workers
        self._hours_limit = spec.limits.device_hours
        self._hours = spent_hours(store)
        self._wall_time = parse_duration(spec.limits.wall_time) or float("inf")
        self._before_s, self._began = before_s, began
        self._next_check, self._next_note = 0.0, NOTE_EVERY_S
        self.reason = ""
        """Why the sweep is being stopped; empty while it is not."""
        self.unavailable = ""
        """Why the storage cannot be used any more, if that is the reason."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune keeps its stopper with the experiment's state; ours is made from the sweep's storage.
        from ray.tune.stopper import NoopStopper

        return NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Counts what an epoch took; never stops a single trial."""
        if UNAVAILABLE in result:
            self.lose_storage(result[UNAVAILABLE])
        self._hours += result.get("seconds", 0.0) * self._workers / 3600
        return False

    def lose_storage(self, why: str) -> None:
        """Ends the sweep: what it does could not be kept."""
        self.reason = self.unavailable = why

    def check_storage(self) -> None:
        """Raises StorageUnavailableError where that has ended the sweep."""
        if self.unavailable:
            raise StorageUnavailableError(self.unavailable)

    @property
    def running_s(self) -> float:
        """What all runs of the sweep have taken."""
        return self._before_s + time.monotonic() - self._began

    @property
    def seconds_left(self) -> float:
        """Until the limit of wall time; infinite without one."""
        return self._wall_time - self.running_s

    def stop_all(self) -> bool:
        """Whether the whole sweep ends now."""
        if self.reason or time.monotonic() < self._next_check:
            return bool(self.reason)
        self._next_check = time.monotonic() + CHECK_EVERY_S
        running_s = self.running_s
        if running_s - self._before_s >= self._next_note:
            self._next_note += NOTE_EVERY_S
            try:
                self._store.save_sweep(dataclasses.replace(self._store.sweep(), running_s=running_s))
            except StorageUnavailableError as error:
                self.lose_storage(str(error))
                return True
        if driver.stop_requested(self._store.folder):
            self.reason = STOPPED
        elif self._hours_limit and self._hours >= self._hours_limit:
            self.reason = f"reached limits.device_hours ({self._hours_limit:g})"
        elif running_s >= self._wall_time:
            self.reason = "reached limits.wall_time"
        return bool(self.reason)


@contextlib.contextmanager
def watched(store: SweepStore, begun: TrialRecord, limits: LimitsConfig) -> Iterator[None]:
    """Meanwhile the trial fails, and this process is ended by force, where a limit on an attempt's time is reached."""
    watch = _Watch(store, begun, limits)
    watch.begin()
    try:
        yield
    finally:
        watch.end()


class _Watch:
    """A thread that looks at the clock, and behind it the system's own, should nothing of Python run any more."""

    def __init__(self, store: SweepStore, begun: TrialRecord, limits: LimitsConfig) -> None:
        self._store, self._begun, self._limits = store, begun, limits
        self._folder = store.trial_folder(begun.trial_id)
        self._whole, self._still = (parse_duration(text) or math.inf for text in (limits.trial_time, limits.stall))
        self._began = self._told_at = time.monotonic()
        self._told, self._done = self._history_bytes(), threading.Event()
        self._hung: IO[str] | None = None

    def begin(self) -> None:
        """Begins to watch, where there is a limit."""
        if min(self._whole, self._still) < math.inf:
            self._hung = (self._folder / HUNG_FILE).open("w")
            # Here, too: the trial may not let the thread run even once.
            faulthandler.dump_traceback_later(min(self._whole, self._still) + BEHIND_S, exit=True, file=self._hung)
            threading.Thread(target=self._run, args=(self._hung,), name="bitfront-watch", daemon=True).start()

    def end(self) -> None:
        """The attempt is over."""
        self._done.set()
        if self._hung is not None:
            faulthandler.cancel_dump_traceback_later()
            self._hung.close()
            with contextlib.suppress(OSError):
                (self._folder / HUNG_FILE).unlink(missing_ok=True)

    def _run(self, hung: IO[str]) -> None:
        while True:
            now = time.monotonic()
            if (told := self._history_bytes()) != self._told:
                self._told, self._told_at = told, now
            if self._told_at + self._still <= now < self._began + self._whole and self._told_elsewhere():
                self._told_at = now
            left = min(self._began + self._whole, self._told_at + self._still) - now
            if left <= 0:
                self._fail(now)
            # The trial may be in code that never lets another thread run.
            faulthandler.dump_traceback_later(left + BEHIND_S, exit=True, file=hung)
            if self._done.wait(min(left, LOOK_EVERY_S)):
                faulthandler.cancel_dump_traceback_later()
                return

    def _fail(self, now: float) -> None:
        if now - self._began >= self._whole:
            error = f"ran longer than limits.trial_time ({self._limits.trial_time})"
        else:
            error = f"told of no epoch for longer than limits.stall ({self._limits.stall})"
        try:
            # Where it was, for whoever wonders.
            with contextlib.suppress(OSError), (self._folder / "error.txt").open("w") as file:
                faulthandler.dump_traceback(file=file)
            _time_out(self._store, self._begun, error)
            faulthandler.cancel_dump_traceback_later()
            (self._folder / HUNG_FILE).unlink(missing_ok=True)
        finally:
            os._exit(1)

    def _told_elsewhere(self) -> bool:
        """Whether its workers, on machines that share no folder with this one, have told of an epoch."""
        if self._store.replica is None:
            return False
        try:
            with patience(ASK_S):
                self._store.refresh(self._begun.trial_id)
        except StorageError:
            # Nobody knows; they wait for the store as well.
            return True
        before, self._told = self._told, self._history_bytes()
        return self._told != before

    def _history_bytes(self) -> int:
        with contextlib.suppress(OSError):
            return (self._folder / "history.jsonl").stat().st_size
        return 0


def settle_hung(store: SweepStore, trial_id: str) -> None:
    """Fails a trial whose last attempt hung so that only the system could end it; what it was in becomes its error."""
    hung = store.trial_folder(trial_id) / HUNG_FILE
    if hung.exists() and hung.stat().st_size:
        hung.replace(hung.with_name("error.txt"))
        _time_out(store, store.trial(trial_id), "hung where nothing but the system could end it, beyond its limits")


def _time_out(store: SweepStore, begun: TrialRecord, error: str) -> None:
    if store.trial(begun.trial_id).attempts == begun.attempts:
        store.finish_trial(
            dataclasses.replace(begun, state="failed", ended_ms=now_ms(), failure="timed out", error=error)
        )
