"""What a sweep's device-hours went to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.records import State
from service.view import SweepView

CUT_OFF: tuple[State, ...] = ("pruned", "diverged", "failed")
"""States of trials that ended without a policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpend:
    """Device-hours of one trial."""

    trial_id: str
    number: int
    state: State
    search: float
    finetune: float

    @property
    def hours(self) -> float:
        """Of both stages."""
        return self.search + self.finetune

    @property
    def cut_off(self) -> float:
        """All its hours where it ended without a policy, and else none."""
        return self.hours if self.state in CUT_OFF else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Spend:
    """Device-hours of a sweep: of all epochs that its trials have told of.

    What an attempt did after its last epoch before it was killed is told by nobody, and not among them.
    """

    trials: tuple[TrialSpend, ...]
    """All that were begun, by number."""
    cut_off: float
    """Of both stages, in trials that were stopped early, diverged or failed."""
    total: float
    """Of the trials."""
    references: float
    """For the full-precision references, which other sweeps may share; not in the total."""
    per_front_point: float | None
    """The total over the members of the front; None where it has none."""
    by_state: Mapping[str, float]
    """Share of the total that went to trials of each state, largest first; empty where nothing was spent."""


def spend(view: SweepView) -> Spend:
    """What the sweep has spent so far."""
    trials = tuple(
        TrialSpend(
            trial_id=trial.trial_id,
            number=trial.number,
            state=trial.state,
            search=view.stage_hours.get(trial.trial_id, {}).get("search", 0.0),
            finetune=view.stage_hours.get(trial.trial_id, {}).get("finetune", 0.0),
        )
        for trial in view.trials
        if trial.attempts or trial.final  # earlier versions did not count attempts
    )
    total = sum(one.hours for one in trials)
    of_state: dict[str, float] = {}
    for one in trials:
        of_state[one.state] = of_state.get(one.state, 0.0) + one.hours
    members = len(view.found.members)
    return Spend(
        trials=trials,
        cut_off=sum(one.cut_off for one in trials),
        total=total,
        references=sum(record.get("device_hours", 0.0) for record in view.sweep.references.values()),
        per_front_point=total / members if members else None,
        by_state={s: h / total for s, h in sorted(of_state.items(), key=lambda item: -item[1])} if total else {},
    )
