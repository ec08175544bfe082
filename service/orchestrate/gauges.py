"""Where a sweep stands, as Prometheus metrics that Ray exports with its own, for a cluster's dashboards.

Ray puts `ray_` before each name. A thread reads the sweep's storage every few seconds, twice as often as Ray exports;
so a trial's start and end are seen as they are, whoever runs it, and nothing of this can hold up a sweep. When the
driver's process ends Ray exports what it was told last, and drops the gauges after 20 seconds; its counters stay.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from ray.util.metrics import Counter, Gauge

from service.front import Front, find_front
from service.hypervolume import Box
from service.records import STATES, SweepStore, TrialRecord
from service.tracking import first_line

log = logging.getLogger("bitfront.gauges")

INTERVAL_S = 5.0
"""Ray exports every 10 seconds unless its `metrics_report_interval_ms` says otherwise."""
BOX_TRIALS = 4
"""Done trials whose box the hypervolume is a share of. Fixed, for a gauge against a corner that moves with the trials
would fall where the front grew."""
SECONDS_PER_HOUR = 3600.0
Labels = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A metric; all have the labels sweep and owner."""

    name: str
    """As Prometheus has it after `ray_`."""
    kind: Literal["gauge", "counter"]
    about: str
    label: str = ""
    """One more."""


TRIALS = Exported(
    name="bitfront_sweep_trials",
    kind="gauge",
    about="Trials of a sweep by state; pending are all not begun.",
    label="state",
)
PLANNED = Exported(name="bitfront_sweep_trials_planned", kind="gauge", about="Trials that a sweep has in all.")
FAILURES = Exported(
    name="bitfront_sweep_trials_failed", kind="gauge", about="Failed trials by class of failure.", label="failure"
)
FRONT = Exported(name="bitfront_sweep_front_policies", kind="gauge", about="Policies on the sweep's Pareto front.")
HYPERVOLUME = Exported(
    name="bitfront_sweep_hypervolume",
    kind="gauge",
    about=f"Front's hypervolume over that of the box of its first {BOX_TRIALS} done trials; above 1 beyond that box.",
)
BEST = Exported(name="bitfront_sweep_best_top1_ratio", kind="gauge", about="Best top-1 within the constraints, of 1.")
DEVICE_SECONDS = Exported(
    name="bitfront_sweep_device_seconds_total",
    kind="counter",
    about="Device time of all epochs that the trials have reported, seconds.",
)
EXPORTED = (TRIALS, PLANNED, FAILURES, FRONT, HYPERVOLUME, BEST, DEVICE_SECONDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A value of a metric."""

    metric: Exported
    value: float
    label: str = ""


@dataclass(slots=True)
class Sampler:
    """Reads a sweep's storage, final trials once."""

    store: SweepStore
    _seconds: dict[str, float] = field(default_factory=dict)
    """Device-seconds of the final trials."""
    _failures: set[str] = field(default_factory=set)
    """Classes seen so far: one that is gone is zero."""

    def read(self, *, ended: bool) -> list[Sample]:
        """Every metric that has a value, as the storage has it now; once the sweep has `ended` nothing is running."""
        sweep, trials = self.store.sweep(), self.store.trials()
        states = ["pending" if ended and trial.state == "running" else trial.state for trial in trials]
        states += ["pending"] * (sweep.total_trials - len(trials))
        found = find_front(trials, sweep)
        best, volume = found.best_top1, hypervolume(found)
        return [
            *(Sample(metric=TRIALS, value=states.count(state), label=state) for state in STATES),
            *self._failed(trials),
            Sample(metric=PLANNED, value=sweep.total_trials),
            Sample(metric=FRONT, value=len(found.members)),
            *([] if volume is None else [Sample(metric=HYPERVOLUME, value=volume)]),
            *([] if best is None else [Sample(metric=BEST, value=best / 100)]),
            Sample(metric=DEVICE_SECONDS, value=self._device_seconds(trials)),
        ]

    def _failed(self, trials: Sequence[TrialRecord]) -> list[Sample]:
        classes: list[str] = [trial.failure or "error" for trial in trials if trial.state == "failed"]
        self._failures.update(classes)
        return [Sample(metric=FAILURES, value=classes.count(kind), label=kind) for kind in sorted(self._failures)]

    def _device_seconds(self, trials: Sequence[TrialRecord]) -> float:
        total = 0.0
        for trial in trials:
            seconds = self._seconds.get(trial.trial_id)
            if seconds is None:
                seconds = self.store.spent_hours(trial.trial_id) * SECONDS_PER_HOUR
                if trial.final:
                    self._seconds[trial.trial_id] = seconds
            total += seconds
        return total


def hypervolume(found: Front) -> float | None:
    """The front's share of the box of the first trials that were done; None until there are BOX_TRIALS.

    A smaller sweep has none: a box of fewer trials would be another one once it is extended, and the share fall. What
    the first trials were follows from the storage, so that another driver measures in the same box.
    """
    kept = sorted(found.kept, key=lambda trial: (trial.ended_ms, trial.number))
    if len(kept) < BOX_TRIALS:
        return None
    box = Box.around([trial.metrics for trial in kept[:BOX_TRIALS]], found.objectives)
    return box.share([trial.metrics for trial in found.members])


class _Exporter:
    """Tells Ray what the samples are."""

    def __init__(self, labels: Labels) -> None:
        self._labels = dict(labels)
        self._gauges = {m.name: Gauge(m.name, m.about, _keys(m)) for m in EXPORTED if m.kind == "gauge"}
        self._counters = {m.name: Counter(m.name, m.about, _keys(m)) for m in EXPORTED if m.kind == "counter"}
        self._counted = dict.fromkeys(self._counters, 0.0)

    def tell(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            name, metric = sample.metric.name, sample.metric
            labels = self._labels | ({metric.label: sample.label} if metric.label else {})
            if metric.kind == "gauge":
                self._gauges[name].set(sample.value, labels)
            elif sample.value > self._counted[name]:
                # A driver that goes on with a sweep begins with all that was spent before.
                self._counters[name].inc(sample.value - self._counted[name], labels)
                self._counted[name] = sample.value


def _keys(metric: Exported) -> tuple[str, ...]:
    return ("sweep", "owner", *((metric.label,) if metric.label else ()))


@contextmanager
def exported(store: SweepStore) -> Iterator[None]:
    """Exports the sweep's metrics through the Ray that this process is connected to, until the block ends."""
    ended = threading.Event()
    thread = threading.Thread(
        target=_export, args=(SweepStore(store.folder), ended), name="bitfront-gauges", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # Whatever it waits for, the sweep does not.
        thread.join(INTERVAL_S)


def _export(store: SweepStore, ended: threading.Event) -> None:
    try:
        sweep = store.sweep()
        sampler, exporter = Sampler(store), _Exporter({"sweep": sweep.name, "owner": sweep.owner})
        warned = False
        while True:
            last = ended.is_set()
            try:
                exporter.tell(sampler.read(ended=last))
            except Exception as error:  # a file that is just written, a Ray that is just lost: the next time tells
                if not warned:
                    log.warning("the sweep's metrics are behind: %s", first_line(error))
                warned = True
            if last:
                return
            ended.wait(INTERVAL_S)
    except Exception as error:
        log.warning("the sweep has no metrics: %s", first_line(error))
