"""How a sweep's front grew: its hypervolume after each trial that ended, against trials and against device-hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import le

from service.hypervolume import Box, Values, dominated_volume
from service.pareto import OBJECTIVES, Objective, Point
from service.view import SweepView


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """The front when a trial had ended."""

    trials: int
    """That had ended by then, failures included."""
    device_hours: float
    """That these had taken; the references' are not among them."""
    hypervolume: float
    """Of the front so far: the share of the box that it dominates, 0 to 1."""


def reference_point(points: Sequence[Point], objectives: Sequence[Objective] = OBJECTIVES) -> dict[str, float]:
    """The corner against which hypervolumes are measured: a tenth of the range beyond the worst of each objective.

    `Box.around` says more. One corner serves all fronts that are compared: of several sweeps it is that of all their
    points. Raises ValueError where there are no points.
    """
    return Box.around(points, objectives).reference_point


def growth(view: SweepView, *, box: Box | None = None) -> tuple[Growth, ...]:
    """The front's hypervolume after each trial that ended, in the order of their ends (equal ones by number).

    Without a `box`, which several sweeps can share, it is that of all done trials within the constraints, so that the
    corner stays in its place as trials come; trials beyond a constraint take hours and add nothing. Whenever the front
    changes its volume is computed anew over its members alone: O(n·m log m) for n trials and m on the front.
    """
    points = {trial.trial_id: trial.metrics for trial in view.found.kept}
    if box is None and points:
        box = Box.around(list(points.values()), view.found.objectives)
    ended = sorted((trial for trial in view.trials if trial.final), key=lambda trial: (trial.ended_ms, trial.number))
    front: list[Values] = []
    volume, hours, steps = 0.0, 0.0, []
    for count, trial in enumerate(ended, start=1):
        hours += view.hours.get(trial.trial_id, 0.0)
        if box and trial.trial_id in points:
            ours = box.scaled(points[trial.trial_id])
            if not any(all(map(le, theirs, ours)) for theirs in front):
                front = [*(theirs for theirs in front if not all(map(le, ours, theirs))), ours]
                volume = dominated_volume(front, (1.0,) * len(ours))
        steps.append(Growth(trials=count, device_hours=hours, hypervolume=volume))
    return tuple(steps)
