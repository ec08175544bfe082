"""How much a front dominates: the exact hypervolume of up to three objectives. Plain numbers, no framework."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from service.pareto import MAX_OBJECTIVES, OBJECTIVES, Objective, Point, losses

MARGIN = 0.1
"""Of an objective's range, that its corner lies beyond its worst value, so that the worst points count as well."""
Values = tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """Between the best and a little more than the worst of each objective: the scale on which fronts are compared."""

    objectives: tuple[Objective, ...]
    ideal: Values
    """The best of each objective, as a loss: less is better."""
    corner: Values
    """Losses that every point beats: the reference point of hypervolumes."""

    @classmethod
    def around(cls, points: Sequence[Point], objectives: Sequence[Objective] = OBJECTIVES) -> Box:
        """The box of these points: corner = worst + MARGIN·(worst − best), of each objective.

        Where all points have the same value, a tenth of it takes the place of the range's tenth, or 1 where that is
        zero too. Raises ValueError where there are no points.
        """
        if not points:
            raise ValueError("a box needs at least one point.")
        ideal, corner = [], []
        for column in zip(*(losses(point, objectives) for point in points), strict=True):
            best, worst = min(column), max(column)
            beyond = worst + MARGIN * (worst - best)
            if not beyond > worst:
                beyond = worst + (MARGIN * abs(worst) or 1.0)
            ideal.append(best)
            corner.append(beyond)
        return cls(objectives=tuple(objectives), ideal=tuple(ideal), corner=tuple(corner))

    def scaled(self, point: Point) -> Values:
        """The point's losses, each 0 at the ideal and 1 at the corner."""
        ours = losses(point, self.objectives)
        return tuple((x - best) / (far - best) for x, best, far in zip(ours, self.ideal, self.corner, strict=True))

    def share(self, points: Sequence[Point]) -> float:
        """The share of the box that the points dominate: their hypervolume, 0 to 1, without a unit."""
        return dominated_volume([self.scaled(point) for point in points], (1.0,) * len(self.objectives))

    @property
    def reference_point(self) -> dict[str, float]:
        """The corner in the objectives' units and directions."""
        return _as_point(self.corner, self.objectives)

    @property
    def ideal_point(self) -> dict[str, float]:
        """The best of each objective, in its unit."""
        return _as_point(self.ideal, self.objectives)

    @property
    def volume(self) -> float:
        """In the product of the objectives' units: a share times this is the hypervolume in them."""
        return math.prod(far - best for best, far in zip(self.ideal, self.corner, strict=True))


def _as_point(values: Values, objectives: Sequence[Objective]) -> dict[str, float]:
    return {o.name: -value if o.direction == "max" else value for value, o in zip(values, objectives, strict=True)}


def hypervolume(points: Sequence[Point], reference: Point, objectives: Sequence[Objective] = OBJECTIVES) -> float:
    """Volume of what the points dominate and the reference does not: of ∪ᵢ [pᵢ, r], in the objectives' units.

    A point that does not beat the reference in every objective adds nothing.
    """
    return dominated_volume([losses(point, objectives) for point in points], losses(reference, objectives))


def dominated_volume(values: Sequence[Values], corner: Values) -> float:
    """As `hypervolume`, of losses of one to three objectives: O(n log n).

    The points are taken by their third objective; between two of them the cut through the union is one staircase,
    whose area each step enlarges by what it alone covers (Fonseca, Paquete and López-Ibáñez 2006).
    """
    if not 1 <= len(corner) <= MAX_OBJECTIVES:
        raise ValueError(f"a hypervolume has 1 to {MAX_OBJECTIVES} objectives; found {len(corner)}.")
    # Fewer objectives are three of which the others reach from 0 to 1.
    missing = 3 - len(corner)
    right, top, end = corner + (1.0,) * missing
    padded = (value + (0.0,) * missing for value in values)
    inside = sorted((v for v in padded if v[0] < right and v[1] < top and v[2] < end), key=lambda v: v[2])
    stairs = _Staircase(right, top)
    volume = 0.0
    for place, (first, second, third) in enumerate(inside):
        stairs.add(first, second)
        upper = inside[place + 1][2] if place + 1 < len(inside) else end
        volume += stairs.area * (upper - third)
    return volume


class _Staircase:
    """What pairs of losses dominate below the corner (right, top): steps with ascending firsts, descending seconds."""

    def __init__(self, right: float, top: float) -> None:
        self.right, self.top = right, top
        self.firsts: list[float] = []
        self.seconds: list[float] = []
        self.area = 0.0

    def add(self, first: float, second: float) -> None:
        """Adds a step, unless one reaches it, and drops those that it reaches."""
        before = bisect_right(self.firsts, first) - 1
        if before >= 0 and self.seconds[before] <= second:
            return
        start = stop = bisect_left(self.firsts, first)
        left, ceiling = first, self.seconds[start - 1] if start else self.top
        while stop < len(self.firsts) and self.seconds[stop] >= second:
            self.area += (self.firsts[stop] - left) * (ceiling - second)
            left, ceiling = self.firsts[stop], self.seconds[stop]
            stop += 1
        until = self.firsts[stop] if stop < len(self.firsts) else self.right
        self.area += (until - left) * (ceiling - second)
        self.firsts[start:stop] = [first]
        self.seconds[start:stop] = [second]
