"""All of a sweep that tables and pages show, read from its storage once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.front import Front, find_front
from service.records import SweepRecord, SweepStore, TrialRecord
from trainables.policy_file import PolicyRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepView:
    """A sweep at one moment."""

    folder: Path
    """Where it is stored."""
    sweep: SweepRecord
    trials: tuple[TrialRecord, ...]
    """All that were planned, by number."""
    found: Front
    policies: Mapping[str, PolicyRecord]
    """Of the front's members, by trial."""
    hours: Mapping[str, float]
    """Device-hours of each trial's epochs so far, those of attempts that were cut off included; the references' not."""


def read_view(store: SweepStore) -> SweepView:
    """The sweep in `store` as it stands."""
    sweep, trials = store.sweep(), store.trials()
    found = find_front(trials, sweep)
    members = [trial.trial_id for trial in found.members]
    return SweepView(
        folder=store.folder,
        sweep=sweep,
        trials=tuple(trials),
        found=found,
        policies={trial_id: store.policy(trial_id) for trial_id in members if store.has_policy(trial_id)},
        hours={trial.trial_id: store.spent_hours(trial.trial_id) for trial in trials},
    )
