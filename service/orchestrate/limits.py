"""When a sweep, or an attempt at a trial, has had enough."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from ray.tune import Stopper

from service import driver
from service.records import SweepStore, TrialRecord
from service.settings import parse_duration
from service.spec import SweepSpec
from service.standing import spent_hours

CHECK_EVERY_S = 0.5


class SweepStopper(Stopper):  # type: ignore[misc]  # Ray is not typed
    """Ends the sweep, with running trials to be gone on with, at a limit or when somebody asks."""

    def __init__(self, spec: SweepSpec, store: SweepStore) -> None:
        self._store, self._workers = store, spec.resources.workers
        self._hours_limit = spec.limits.device_hours
        self._hours = spent_hours(store)
        wall_time = parse_duration(spec.limits.wall_time)
        self._deadline = time.monotonic() + wall_time - store.sweep().running_s if wall_time else float("inf")
        self._next_check = 0.0
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

    def stop_all(self) -> bool:
        """Whether the whole sweep ends now."""
        if self.reason or time.monotonic() < self._next_check:
            return bool(self.reason)
        self._next_check = time.monotonic() + CHECK_EVERY_S
        if driver.stop_requested(self._store.folder):
            self.reason = "stopped on request"
        elif self._hours_limit and self._hours >= self._hours_limit:
            self.reason = f"reached limits.device_hours ({self._hours_limit:g})"
        elif time.monotonic() >= self._deadline:
            self.reason = "reached limits.wall_time"
        return bool(self.reason)


def end_after(store: SweepStore, begun: TrialRecord, trial_time: str) -> threading.Timer:
    """A timer that fails the trial and ends this process by force, whatever it is stuck in; cancel it when done."""

    def end() -> None:
        error = f"ran longer than limits.trial_time ({trial_time})"
        ended_ms = time.time_ns() // 1_000_000
        store.finish_trial(
            TrialRecord(
                trial_id=begun.trial_id,
                number=begun.number,
                state="failed",
                settings=begun.settings,
                started_ms=begun.started_ms,
                ended_ms=ended_ms,
                attempts=begun.attempts,
                failure="timed out",
                error=error,
            )
        )
        os._exit(1)

    timer = threading.Timer(parse_duration(trial_time) or threading.TIMEOUT_MAX, end)
    timer.daemon = True
    timer.start()
    return timer
