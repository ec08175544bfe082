"""Repeated measurements of one quantity: mean, spread, and differences of pairs. Plain numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

TOLD_APART = 2.0
"""Standard errors of their difference by which two means are told apart."""
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Of n values, at least one."""

    count: int
    mean: float
    deviation: float | None
    """Sample standard deviation √(Σ(x − mean)²/(n − 1)); None for a single value."""
    least: float
    most: float

    @property
    def squared_error(self) -> float | None:
        """Square of the mean's standard error, deviation²/n."""
        return None if self.deviation is None else self.deviation**2 / self.count


def spread_of(values: Sequence[float]) -> Spread | None:
    """Mean and spread; None of no values."""
    if not values:
        return None
    deviation = stdev(values) if len(values) > 1 else None
    return Spread(count=len(values), mean=fmean(values), deviation=deviation, least=min(values), most=max(values))


def paired(ours: Mapping[K, float], theirs: Mapping[K, float]) -> Spread | None:
    """Mean and spread of ours − theirs over the keys that both have; None where they share none."""
    return spread_of([ours[key] - theirs[key] for key in ours if key in theirs])


def leaders(spreads: Sequence[Spread | None]) -> frozenset[int]:
    """Places of the largest mean, and of all that are not told apart from it.

    Two means are told apart that differ by more than TOLD_APART·√(s₁²/n₁ + s₂²/n₂), and that spread at all. A single
    value tells no spread, so it takes no part, but where it is above all others nobody leads; nor with fewer than two
    others, or where none is told apart.
    """
    known = {
        place: (one.mean, one.squared_error)
        for place, one in enumerate(spreads)
        if one is not None and one.squared_error is not None
    }
    if len(known) < 2 or max(one.mean for one in spreads if one is not None) > max(known.values())[0]:
        return frozenset()
    best, error = max(known.values())
    near = frozenset(
        place
        for place, (mean, own) in known.items()
        if best - mean <= TOLD_APART * math.sqrt((error or 0.0) + (own or 0.0)) or not (error or own)
    )
    return near if len(near) < len(known) else frozenset()
