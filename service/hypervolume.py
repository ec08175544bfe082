"""How much a front dominates: the exact hypervolume of up to three objectives. Plain numbers, no framework."""

from __future__ import annotations

from collections.abc import Sequence

from service.pareto import MAX_OBJECTIVES, OBJECTIVES, Objective, Point, losses

Step = tuple[float, float]


def hypervolume(points: Sequence[Point], reference: Point, objectives: Sequence[Objective] = OBJECTIVES) -> float:
    """Volume of what the points dominate and the reference does not: of ∪ᵢ [pᵢ, r], in the objectives' units.

    A point that does not beat the reference in every objective adds nothing. The points are taken by their third
    objective; between two of them the cut through the union is one staircase, whose area is summed up: O(n²).
    """
    if not 1 <= len(objectives) <= MAX_OBJECTIVES:
        raise ValueError(f"a hypervolume has 1 to {MAX_OBJECTIVES} objectives; found {len(objectives)}.")
    # Fewer objectives are three of which the others reach from 0 to 1.
    missing = 3 - len(objectives)
    corner = losses(reference, objectives) + (1.0,) * missing
    padded = (losses(point, objectives) + (0.0,) * missing for point in points)
    inside = sorted(
        (value for value in padded if all(x < c for x, c in zip(value, corner, strict=True))), key=lambda v: v[2]
    )
    thirds = [third for _, _, third in inside] + [corner[2]]
    stairs: list[Step] = []
    volume = 0.0
    for (first, second, third), end in zip(inside, thirds[1:], strict=True):
        stairs = _with_step(stairs, (first, second))
        volume += _area(stairs, corner) * (end - third)
    return volume


def _with_step(stairs: list[Step], step: Step) -> list[Step]:
    """The staircase (first ascending, second descending) with one more step, less those that it reaches."""
    first, second = step
    if any(x <= first and y <= second for x, y in stairs):
        return stairs
    return sorted([(x, y) for x, y in stairs if x < first or y < second] + [step])


def _area(stairs: Sequence[Step], corner: Sequence[float]) -> float:
    firsts = [first for first, _ in stairs] + [corner[0]]
    return sum((end - first) * (corner[1] - second) for (first, second), end in zip(stairs, firsts[1:], strict=True))
