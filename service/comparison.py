"""Sweeps on common axes: how much each front dominates, how far apart they are, and who is ahead where.

Notation: A and B are two fronts, scaled to the box around the points of all sweeps (`Box`), so that every objective
is a loss from 0, the best that any sweep has, to 1, the corner.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import le

from service.comparability import warnings_of
from service.hypervolume import Box, Values
from service.pareto import Objective, Point, accuracy_among, front, knee, losses
from service.records import TrialRecord
from service.view import SweepView
from trainables.errors import ConfigError

Matrix = tuple[tuple[float | None, ...], ...]
"""A row for each sweep, a column for each; None where a side has no policies."""
Measure = Callable[[Sequence[Values], Sequence[Values]], float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """A range of costs in which one side's best policy that costs no more is better than the others' best."""

    low: float
    """Costs from here, in the cost objective's unit."""
    high: float | None
    """Up to here, this one excluded; None: all that is above."""
    leader: int | None
    """Place of the sweep; None where the best ones are equal."""
    least_gap: float | None
    """To the next best, at least and at most, in the quality objective's unit; None where no other has a policy."""
    largest_gap: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two or more sweeps; every list is in their order."""

    labels: tuple[str, ...]
    objectives: tuple[Objective, ...]
    """Those that all of them have."""
    box: Box | None
    """None where no sweep has a policy."""
    fronts: tuple[tuple[TrialRecord, ...], ...]
    """Of each alone, in the common objectives, cheapest first."""
    joint: tuple[tuple[int, TrialRecord], ...]
    """The front of all together: place of the sweep and trial, cheapest first."""
    knee: tuple[int, TrialRecord] | None
    """Of the joint front."""
    hypervolumes: tuple[float, ...]
    """Shares of the box, 0 to 1."""
    joint_hypervolume: float
    epsilon: Matrix
    """I_ε+(A, B): by how much A has to improve in every objective, scaled to the box, to be nowhere behind B; zero or
    less where it is not behind."""
    distance: Matrix
    """IGD+(A, B): mean Euclidean distance, objectives scaled to the box, of B's members from what A dominates. Neither
    1 nor I_ε+ is a bound of it."""
    coverage: Matrix
    """C(A, B): share of B's members that some member of A equals or dominates."""
    cost: Objective | None
    """The axis of `ahead`; None with one objective."""
    quality: Objective
    ahead: tuple[Ahead, ...]
    """Without gaps, by cost; from the cheapest policy on."""
    warnings: tuple[str, ...]
    """Why the numbers may not mean the same, on all sides or within one."""


def compare(views: Sequence[SweepView]) -> Comparison:
    """The sweeps on common axes; raises ConfigError where they have no objective in common."""
    objectives = common_objectives(views)
    points = [view.found.kept for view in views]
    every = [trial.metrics for trials in points for trial in trials]
    box = Box.around(every, objectives) if every else None
    fronts = tuple(_front(trials, objectives) for trials in points)
    scaled = [[box.scaled(trial.metrics) for trial in members] if box else [] for members in fronts]
    joint, best = joint_front(fronts, objectives)
    cost, quality = axes(objectives)
    labels = labels_of(views)
    return Comparison(
        labels=labels,
        objectives=objectives,
        box=box,
        fronts=fronts,
        joint=joint,
        knee=best,
        hypervolumes=tuple(box.share([trial.metrics for trial in members]) if box else 0.0 for members in fronts),
        joint_hypervolume=box.share([trial.metrics for _, trial in joint]) if box else 0.0,
        epsilon=_between(scaled, additive_epsilon, own=0.0),
        distance=_between(scaled, igd_plus, own=0.0),
        coverage=_between(scaled, coverage, own=1.0),
        cost=cost,
        quality=quality,
        ahead=ahead(points, cost, quality) if cost else (),
        warnings=warnings_of(views, labels=labels, objectives=objectives),
    )


def common_objectives(views: Sequence[SweepView]) -> tuple[Objective, ...]:
    """The objectives that all sweeps have, in the first one's order. Raises ConfigError where there is none."""
    common = [o for o in views[0].found.objectives if all(o in view.found.objectives for view in views)]
    if not common:
        stated = "; ".join(f"{view.sweep.name}: {', '.join(view.sweep.objectives)}" for view in views)
        raise ConfigError(f"The sweeps have no objective in common ({stated}); give some with --objectives.")
    return tuple(common)


def labels_of(views: Sequence[SweepView]) -> tuple[str, ...]:
    """The sweeps' names; of several with one name the folders."""
    names = [view.sweep.name for view in views]
    return tuple(name if names.count(name) == 1 else str(view.folder) for name, view in zip(names, views, strict=True))


def axes(objectives: Sequence[Objective]) -> tuple[Objective | None, Objective]:
    """Cost and quality, against which fronts are read: BOPs and the accuracy, where they are objectives.

    Else the cost is the first objective of which less is better, and the quality the first other one of which more is,
    or any other. Without such a pair there is no cost, and the quality is the accuracy, or the first objective.
    """
    named = {o.name: o for o in objectives}
    accuracy = accuracy_among(named).name
    less = [o for o in objectives if o.direction == "min"]
    cost = named.get("bops_g") or (less[0] if less else None)
    others = [o for o in objectives if o is not cost]
    if cost is None or not others:
        return None, named.get(accuracy, objectives[0])
    return cost, named.get(accuracy) or next((o for o in others if o.direction == "max"), others[0])


def _front(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> tuple[TrialRecord, ...]:
    members = [trials[place] for place in front([trial.metrics for trial in trials], objectives)]
    return tuple(sorted(members, key=lambda trial: (trial.metrics["bops_g"], trial.number)))


def joint_front(
    fronts: Sequence[Sequence[TrialRecord]], objectives: Sequence[Objective]
) -> tuple[tuple[tuple[int, TrialRecord], ...], tuple[int, TrialRecord] | None]:
    """The front of several sweeps together, from each one's own: place of the sweep and trial; and its knee."""
    every = [(place, trial) for place, members in enumerate(fronts) for trial in members]
    points = [trial.metrics for _, trial in every]
    kept = [every[place] for place in front(points, objectives)]
    best = knee(points, objectives)
    ordered = sorted(kept, key=lambda one: (one[1].metrics["bops_g"], one[0], one[1].number))
    return tuple(ordered), None if best is None else every[best]


def _between(fronts: Sequence[Sequence[Values]], measure: Measure, *, own: float) -> Matrix:
    """The measure of each front against each; `own` is what it has against itself."""
    return tuple(
        tuple(own if ours is theirs and ours else measure(ours, theirs) for theirs in fronts) for ours in fronts
    )


def additive_epsilon(ours: Sequence[Values], theirs: Sequence[Values]) -> float | None:
    """I_ε+(A, B) = max over b in B of min over a in A of max over objectives of a − b: Zitzler et al. 2003.

    *Performance assessment of multiobjective optimizers*, eq. 2 in its additive form.
    """
    if not ours or not theirs:
        return None
    return max(min(max(x - y for x, y in zip(a, b, strict=True)) for a in ours) for b in theirs)


def igd_plus(ours: Sequence[Values], theirs: Sequence[Values]) -> float | None:
    """IGD+(A, B) = mean over b in B of min over a in A of ‖max(a − b, 0)‖: Ishibuchi et al. 2015.

    *Modified distance calculation in generational distance and inverted generational distance*, with the other front
    in the place of a known true one: 0 just where A is nowhere behind B.
    """
    if not ours or not theirs:
        return None

    def behind(a: Values, b: Values) -> float:
        return sum(max(x - y, 0.0) ** 2 for x, y in zip(a, b, strict=True))

    return sum(math.sqrt(min(behind(a, b) for a in ours)) for b in theirs) / len(theirs)


def coverage(ours: Sequence[Values], theirs: Sequence[Values]) -> float | None:
    """C(A, B) = share of b in B that some a in A equals or dominates: Zitzler and Thiele 1999."""
    if not ours or not theirs:
        return None
    return sum(any(all(map(le, a, b)) for a in ours) for b in theirs) / len(theirs)


def ahead(points: Sequence[Sequence[TrialRecord]], cost: Objective, quality: Objective) -> tuple[Ahead, ...]:
    """Where along the costs each side leads: its attainment curve, the best quality at no more cost, is above.

    Neighbouring ranges with the same leader are one, where both have, or both lack, anybody to be ahead of.
    """
    curves = [_attainment([t.metrics for t in trials], cost, quality) for trials in points]
    steps = sorted({step for costs, _ in curves for step in costs})
    ranges = [_standing(curves, step) for step in steps]
    merged = []
    for (leader, _), group in groupby(enumerate(ranges), key=lambda one: (one[1][0], one[1][1] is not None)):
        run = list(group)
        gaps = [gap for _, (_, gap) in run if gap is not None]
        first, after = run[0][0], run[-1][0] + 1
        merged.append(
            Ahead(
                low=steps[first],
                high=steps[after] if after < len(steps) else None,
                leader=leader,
                least_gap=min(gaps, default=None),
                largest_gap=max(gaps, default=None),
            )
        )
    return tuple(merged)


Curve = tuple[list[float], list[float]]
"""Costs at which a sweep's best quality becomes better, ascending, and what it is from there on, as a loss."""


def _attainment(points: Sequence[Point], cost: Objective, quality: Objective) -> Curve:
    costs: list[float] = []
    best: list[float] = []
    for price, loss in sorted(losses(point, (cost, quality)) for point in points):
        if not best or loss < best[-1]:
            costs.append(price)
            best.append(loss)
    return costs, best


def _standing(curves: Sequence[Curve], price: float) -> tuple[int | None, float | None]:
    """Who leads at this cost, None for several; and by how much, None where nobody else has a policy."""
    reached = [
        (best[at - 1], place) for place, (costs, best) in enumerate(curves) if (at := bisect_right(costs, price))
    ]
    (first, leader), *others = sorted(reached)
    if not others:
        return leader, None
    gap = others[0][0] - first
    return (leader if gap else None), gap
