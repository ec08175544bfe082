"""Pareto fronts: which points no other point beats. Plain numbers, no framework.

Notation: a point is a mapping from objective name to a finite number. a dominates b when a is nowhere worse and
somewhere better. Equal points do not dominate each other, so duplicates of a front point are all on the front.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from trainables.errors import ConfigError, did_you_mean

Point = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric and the direction in which it improves."""

    name: str
    direction: Literal["max", "min"]
    label: str
    """As people read it, with its unit."""

    @property
    def name_alone(self) -> str:
        """As people read it, without its unit."""
        return self.label.partition(" (")[0]

    def told(self, value: float) -> str:
        """A value as people read it, behind what it is: top-1 91.25 %."""
        unit = self.label.partition(" (")[2].removesuffix(")")
        return f"{self.name_alone} {value:.2f} %" if unit == "%" else f"{self.name_alone} {value:.4g} {unit}".rstrip()


METRICS = {
    metric.name: metric
    for metric in (
        Objective("top1", "max", "top-1 (%)"),
        Objective("bops_g", "min", "BOPs (G)"),
        Objective("ard", "min", "ARD (ranks)"),
        Objective("ard_normalised", "min", "ARD / random"),
        Objective("entropy", "min", "attribution entropy (nats)"),
        Objective("bops_paper_g", "min", "BOPs as the paper counts (G)"),
        Objective("compression", "max", "× fewer BOPs"),
        Objective("storage_mb", "min", "weights (MB)"),
        Objective("storage_mib", "min", "weights (MiB)"),
        Objective("mean_weight_bits", "min", "bits of a weight"),
        Objective("mean_act_bits", "min", "bits of an activation"),
        Objective("device_hours", "min", "device-hours"),
        Objective("top5", "max", "top-5 (%)"),
        Objective("map", "max", "mAP, VOC 07 (%)"),
        Objective("ap", "max", "AP, COCO (%)"),
        Objective("ap50", "max", "AP at IoU 0.5 (%)"),
        Objective("ap75", "max", "AP at IoU 0.75 (%)"),
        Objective("aps", "max", "AP of small objects (%)"),
        Objective("apm", "max", "AP of medium objects (%)"),
        Objective("apl", "max", "AP of large objects (%)"),
        Objective("backbone_bops_g", "min", "BOPs of the backbone (G)"),
        Objective("backbone_bops_paper_g", "min", "BOPs of the backbone as the paper counts (G)"),
        Objective("images_per_s", "max", "images per second"),
    )
}
"""What can be measured of a policy, and which way is better."""
FINETUNED_ALONE = (
    "top5", "map", "ap", "ap50", "ap75", "aps", "apm", "apl", "backbone_bops_g", "backbone_bops_paper_g", "images_per_s"
)  # fmt: skip
"""Those that a promotion measures, and the trials of a search do not."""
SEARCHED = {name: metric for name, metric in METRICS.items() if name not in FINETUNED_ALONE}
"""Those that every trial of a search measures."""
ACCURACIES = ("top1", "map", "ap")
"""What a policy is worth: every sweep measures one of them at least."""
OBJECTIVES = (METRICS["top1"], METRICS["bops_g"], METRICS["ard"])
"""What a sweep trades off that says nothing else."""
MAX_OBJECTIVES = 3
"""The front of more has no order to find it in quickly, and nobody has a picture of it."""


def accuracy_among(names: Iterable[str], default: str = ACCURACIES[0]) -> Objective:
    """The first of the metrics that is an accuracy, else the default one."""
    return METRICS[next((name for name in names if name in ACCURACIES), default)]


def check_objectives(names: Sequence[str], known: Mapping[str, Objective] = METRICS) -> tuple[Objective, ...]:
    """The objectives of these names. Raises ConfigError for unknown, repeated, missing or too many."""
    for name in names:
        if name not in known:
            raise ConfigError(f"objectives: {_unknown(name, known)}")
    if not 1 <= len(names) <= MAX_OBJECTIVES or len(set(names)) != len(names):
        raise ConfigError(f"objectives is {list(names)}; give one to {MAX_OBJECTIVES} different metrics.")
    return tuple(METRICS[name] for name in names)


@dataclass(frozen=True, slots=True)
class Constraint:
    """An upper or a lower bound of a metric."""

    metric: str
    relation: Literal["<=", ">="]
    bound: float

    def violation(self, point: Point) -> float:
        """How far the point is beyond the bound, in the metric's unit; zero or less where it is kept."""
        beyond = point[self.metric] - self.bound
        return beyond if self.relation == "<=" else -beyond

    def __str__(self) -> str:
        return f"{self.metric} {self.relation} {self.bound:g}"


def _unknown(name: str, known: Mapping[str, Objective]) -> str:
    if name in METRICS:
        return f"{name!r} is measured by promotions alone; give one of {', '.join(known)}"
    return f"unknown metric {name!r}{did_you_mean(name, known)}"


def parse_constraint(text: str, known: Mapping[str, Objective] = METRICS) -> Constraint:
    """Reads `bops_g <= 7.5`. Raises ConfigError with what would be right."""
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*", text)
    try:
        bound = float(match[3]) if match else math.nan
    except ValueError:
        bound = math.nan
    if not match or not math.isfinite(bound):
        raise ConfigError(f"constraints: found {text!r}; expected a metric, <= or >=, and a number: bops_g <= 7.5")
    if match[1] not in known:
        raise ConfigError(f"constraints: {_unknown(match[1], known)}")
    return Constraint(match[1], "<=" if match[2] == "<=" else ">=", bound)


def feasible(point: Point, constraints: Sequence[Constraint]) -> bool:
    """Whether the point keeps every constraint."""
    return all(constraint.violation(point) <= 0 for constraint in constraints)


def losses(point: Point, objectives: Sequence[Objective] = OBJECTIVES) -> tuple[float, ...]:
    """The point with every objective turned so that less is better. Raises ValueError for NaN and infinities."""
    values = tuple(-point[o.name] if o.direction == "max" else point[o.name] for o in objectives)
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"a point of a front needs finite numbers; found {dict(point)}")
    return values


def dominates(a: Point, b: Point, objectives: Sequence[Objective] = OBJECTIVES) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    ours, theirs = losses(a, objectives), losses(b, objectives)
    return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))


def front(points: Sequence[Point], objectives: Sequence[Objective] = OBJECTIVES) -> list[int]:
    """Places of the points that no other dominates, ascending. O(n log n) comparisons for up to three objectives."""
    return non_dominated([losses(point, objectives) for point in points])


def non_dominated(values: Sequence[tuple[float, ...]]) -> list[int]:
    """As `front`, of finite losses of one length."""
    if values and len(values[0]) > 3:
        return [
            i
            for i, ours in enumerate(values)
            if not any(o != ours and all(x <= y for x, y in zip(o, ours, strict=True)) for o in values)
        ]
    # Fewer objectives are three with constants.
    padded = [value + (0.0,) * (3 - len(value)) for value in values]
    kept: list[int] = []
    stairs = _Stairs()
    for _, group in groupby(sorted(range(len(padded)), key=padded.__getitem__), key=padded.__getitem__):
        equal = list(group)
        _, second, third = padded[equal[0]]
        # Everything seen before is no worse in the first objective and comes before in the order: never equal.
        if not stairs.reaches(second, third):
            kept += equal
            stairs.add(second, third)
    return sorted(kept)


def non_dominated_ranks(values: Sequence[tuple[float, ...]]) -> list[int]:
    """Rank of each point of finite losses: 0 on the front, 1 on the front of the rest, and so on. Equal ones share it.

    In lexicographic order a point is dominated by earlier ones only, and where a rank has one that dominates it, so has
    every better rank: its own is found by bisection, as in ENS-BS (Zhang et al. 2015, doi:10.1109/TEVC.2014.2308305),
    with stairs instead of comparisons: O(n log² n) for up to three objectives.
    """
    if values and len(values[0]) > 3:
        return _peeled_ranks(values)
    padded = [value + (0.0,) * (3 - len(value)) for value in values]
    ranks = [0] * len(padded)
    steps: list[_Stairs] = []
    for (_, second, third), group in groupby(
        sorted(range(len(padded)), key=padded.__getitem__), key=padded.__getitem__
    ):
        rank = bisect_left(steps, True, key=lambda stairs: not stairs.reaches(second, third))
        if rank == len(steps):
            steps.append(_Stairs())
        steps[rank].add(second, third)
        for place in group:
            ranks[place] = rank
    return ranks


def _peeled_ranks(values: Sequence[tuple[float, ...]]) -> list[int]:
    ranks, left, rank = [0] * len(values), list(range(len(values))), 0
    while left:
        first = {left[i] for i in non_dominated([values[i] for i in left])}
        for place in first:
            ranks[place] = rank
        left, rank = [place for place in left if place not in first], rank + 1
    return ranks


class _Stairs:
    """Non-dominated (second, third) pairs: second ascending, third descending."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.thirds: list[float] = []

    def reaches(self, second: float, third: float) -> bool:
        """Whether a pair in here is no worse in both."""
        place = bisect_left(self.seconds, math.nextafter(second, math.inf))
        return place > 0 and self.thirds[place - 1] <= third

    def add(self, second: float, third: float) -> None:
        """Adds a pair that nothing in here reaches, and drops those that it reaches."""
        start = stop = bisect_left(self.seconds, second)
        while stop < len(self.seconds) and self.thirds[stop] >= third:
            stop += 1
        self.seconds[start:stop] = [second]
        self.thirds[start:stop] = [third]


def knee(points: Sequence[Point], objectives: Sequence[Objective] = OBJECTIVES) -> int | None:
    """Place of the front point nearest to the ideal one, each objective scaled to 0..1 over the front.

    The ideal point has the best value of each objective. Of points equally near the one that is better in the first
    objective, then in the next ones; of points with equal values the first. None where there are no points.
    """
    chosen = front(points, objectives)
    if not chosen:
        return None
    values = [losses(points[i], objectives) for i in chosen]
    spans = [(min(column), max(column)) for column in zip(*values, strict=True)]

    def distance(value: tuple[float, ...]) -> float:
        return sum(((v - low) / (high - low)) ** 2 for v, (low, high) in zip(value, spans, strict=True) if high > low)

    return chosen[min(range(len(chosen)), key=lambda i: (distance(values[i]), values[i]))]
