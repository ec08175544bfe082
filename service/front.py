"""The front of a sweep's trials: its objectives, among the policies that keep its constraints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.pareto import (
    METRICS,
    Objective,
    accuracy_among,
    check_objectives,
    feasible,
    front,
    knee,
    losses,
    non_dominated_ranks,
    parse_constraint,
)
from service.records import STATES, SweepRecord, TrialRecord


@dataclass(frozen=True, slots=True)
class Front:
    """What a sweep found: its finished trials, and which of them are on the front."""

    objectives: tuple[Objective, ...]
    accuracy: Objective
    """See `accuracy_of`."""
    done: tuple[TrialRecord, ...]
    members: tuple[TrialRecord, ...]
    """On the front, cheapest first."""
    infeasible: tuple[TrialRecord, ...]
    """Done, but beyond a constraint: never on the front."""
    knee: TrialRecord | None
    """The member nearest to the ideal point."""
    unfinished: Mapping[str, int]
    """Number of trials by state, other than done, in the order of `STATES`."""

    @property
    def kept(self) -> tuple[TrialRecord, ...]:
        """Done, within the constraints: those that the front is made of."""
        beyond = {trial.trial_id for trial in self.infeasible}
        return tuple(trial for trial in self.done if trial.trial_id not in beyond)

    @property
    def best_accuracy(self) -> float | None:
        """Of the policies within the constraints, percent; None where there is none."""
        return self._best(self.accuracy)

    @property
    def best_top1(self) -> float | None:
        """The same in top-1, whatever the accuracy; None where no policy has one."""
        return self._best(METRICS["top1"])

    def _best(self, metric: Objective) -> float | None:
        return max((trial.metrics[metric.name] for trial in self.kept if metric.name in trial.metrics), default=None)


def accuracy_of(sweep: SweepRecord) -> Objective:
    """The metric that tells how good the sweep's policies are: the first accuracy that it trades off.

    One that trades off none has top-1, or mAP where its task is detection.
    """
    return accuracy_among(sweep.objectives, "map" if sweep.facts.get("task") == "detection" else "top1")


def find_front(trials: Sequence[TrialRecord], sweep: SweepRecord) -> Front:
    """The front of the trials that are done, in O(n log n)."""
    objectives = check_objectives(sweep.objectives)
    constraints = [parse_constraint(text) for text in sweep.constraints]
    done = tuple(trial for trial in trials if trial.state == "done")
    kept = [trial for trial in done if feasible(trial.metrics, constraints)]
    points = [trial.metrics for trial in kept]
    members = sorted((kept[i] for i in front(points, objectives)), key=lambda t: (t.metrics["bops_g"], t.number))
    best = knee([member.metrics for member in members], objectives)
    states = [trial.state for trial in trials]
    return Front(
        objectives=objectives,
        accuracy=accuracy_of(sweep),
        done=done,
        members=tuple(members),
        infeasible=tuple(trial for trial in done if not feasible(trial.metrics, constraints)),
        knee=None if best is None else members[best],
        unfinished={state: states.count(state) for state in STATES if state != "done" and state in states},
    )


def ranks(found: Front) -> dict[str, int]:
    """Non-dominated rank of each policy within the constraints, by trial: 1 is the front, 2 the front of the rest …"""
    kept = found.kept
    places = non_dominated_ranks([losses(trial.metrics, found.objectives) for trial in kept])
    return {trial.trial_id: place + 1 for trial, place in zip(kept, places, strict=True)}
