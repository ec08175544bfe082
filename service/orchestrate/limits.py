"""When a sweep, or an attempt at a trial, has had enough."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from typing import Any

from ray.tune import Stopper

from service import driver
from service.launched import Launched
from service.orchestrate.worker import now_ms
from service.records import SweepStore, TrialRecord
from service.settings import parse_duration
from service.standing import spent_hours

STOPPED = "stopped on request"
CHECK_EVERY_S = 0.5
NOTE_EVERY_S = 10.0
"""How much of limits.wall_time a driver that is killed has had for nothing."""


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

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune keeps its stopper with the experiment's state; ours is made from the sweep's storage.
        from ray.tune.stopper import NoopStopper

        return NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Counts what an epoch took; never stops a single trial."""
        self._hours += result.get("seconds", 0.0) * self._workers / 3600
        return False

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
            self._store.save_sweep(dataclasses.replace(self._store.sweep(), running_s=running_s))
        if driver.stop_requested(self._store.folder):
            self.reason = STOPPED
        elif self._hours_limit and self._hours >= self._hours_limit:
            self.reason = f"reached limits.device_hours ({self._hours_limit:g})"
        elif running_s >= self._wall_time:
            self.reason = "reached limits.wall_time"
        return bool(self.reason)


def end_after(store: SweepStore, begun: TrialRecord, trial_time: str) -> threading.Timer:
    """A timer that fails the trial and ends this process by force, whatever it is stuck in; cancel it when done."""

    def end() -> None:
        error = f"ran longer than limits.trial_time ({trial_time})"
        try:
            if store.trial(begun.trial_id).attempts == begun.attempts:
                store.finish_trial(
                    dataclasses.replace(begun, state="failed", ended_ms=now_ms(), failure="timed out", error=error)
                )
        finally:
            os._exit(1)

    timer = threading.Timer(parse_duration(trial_time) or threading.TIMEOUT_MAX, end)
    timer.daemon = True
    timer.start()
    return timer
