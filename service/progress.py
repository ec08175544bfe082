"""A sweep's progress in the terminal: trials by state, the front so far, time left.

A terminal gets one table that is drawn anew in place; a file or a pipe gets a line for each thing that happened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dashboards.front import as_table
from service.front import find_front
from service.pareto import ACCURACIES, METRICS
from service.records import SweepStore, TrialRecord
from service.standing import clock

SHOWN = 6
"""Front points in the table while the sweep runs."""


class Progress:
    """Told of trials by the runner; use as a context manager."""

    def __init__(self, console: Console, store: SweepStore, *, epochs_per_trial: int) -> None:
        self._console, self._store, self._sweep = console, store, store.sweep()
        self._trials, self._epochs_per_trial = self._sweep.total_trials, epochs_per_trial
        self._running: dict[str, str] = {}
        self._finished = {record.trial_id: record for record in store.trials() if record.final}
        self._epochs = dict.fromkeys(self._finished, epochs_per_trial)
        self._known = sum(self._epochs.values())
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def note(self, line: str) -> None:
        """Something worth a line of its own, here and in the sweep's log."""
        self._store.log(line)
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def started(self, trial_id: str) -> None:
        """A trial has begun."""
        self._running[trial_id] = f"{trial_id} starting"
        self._draw()

    def epoch(self, trial_id: str, numbers: Mapping[str, Any]) -> None:
        """A trial has finished an epoch."""
        self._epochs[trial_id] = self._epochs.get(trial_id, 0) + 1
        self._running[trial_id] = f"{trial_id} {numbers['stage']} {numbers['epoch']}/{numbers['epochs']}"
        self._draw()

    def finished(self, record: TrialRecord) -> None:
        """A trial has come to its end."""
        self._running.pop(record.trial_id, None)
        self._epochs[record.trial_id] = self._epochs_per_trial
        self._finished[record.trial_id] = record
        line = f"{self._counts()} | {describe(record)}"
        if self._live:
            self._store.log(line)
        else:
            self.note(line)
        self._draw()

    def _counts(self) -> str:
        states = [record.state for record in self._finished.values()]
        counts = [f"{states.count('done')}/{self._trials} done", f"{len(self._running)} running"]
        counts += [f"{states.count(state)} {state}" for state in ("pruned", "diverged", "failed") if state in states]
        return ", ".join([*counts, f"{self._time_left()} left"])

    def _time_left(self) -> str:
        done = sum(self._epochs.values())
        if done == self._known:
            return "unknown time"
        remaining = max(0, self._trials * self._epochs_per_trial - done)
        return clock((time.monotonic() - self._began) / (done - self._known) * remaining)

    def _draw(self) -> None:
        if not self._live:
            return
        head = Text(f"{self._sweep.name}: {self._counts()}", style="bold")
        parts: list[Any] = [head, Text("  ".join(self._running.values()), style="dim")]
        found = find_front(list(self._finished.values()), self._sweep)
        if found.members:
            parts.append(as_table(found, f"front so far ({len(found.members)})", rows_shown=SHOWN))
        self._live.update(Group(*parts), refresh=True)


def describe(record: TrialRecord) -> str:
    """One line about a finished trial."""
    if record.state != "done":
        return f"{record.trial_id} {record.state}: {record.error.splitlines()[0] if record.error else 'no message'}"
    found = record.metrics
    worth = [METRICS[name].told(found[name]) for name in ACCURACIES if name in found]
    costs = f"{found['bops_g']:.4g} G BOPs (×{found['compression']:.0f} smaller)"
    ard = [f"ARD {found['ard']:.3f}"] if "ard" in found else []
    return f"{record.trial_id} {', '.join([*worth, costs, *ard])}"
