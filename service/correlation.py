"""Spearman's rank correlation with an interval. Plain numbers, no framework."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

MIN_POINTS = 4
"""Fewer have no interval: its width goes with 1/√(n − 3)."""
NORMAL_975 = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """How far two quantities order the same points alike."""

    rho: float
    """1: in the same order; −1: in the opposite one."""
    low: float
    high: float
    """The ends of the 95 % interval."""
    count: int
    """Points."""


def average_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    ranks = [0.0] * len(values)
    below = 0
    for _, group in groupby(sorted(range(len(values)), key=values.__getitem__), key=values.__getitem__):
        equal = list(group)
        for place in equal:
            ranks[place] = below + (len(equal) + 1) / 2
        below += len(equal)
    return ranks


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> Correlation | None:
    """Spearman's ρ: Pearson's correlation of the ranks, equal values sharing theirs; with a 95 % interval.

    The interval is tanh(atanh ρ ± 1.96 √((1 + ρ²/2) / (n − 3))): Fisher's z with the variance of Bonett and Wright
    2000, *Sample size requirements for estimating Pearson, Kendall and Spearman correlations*. None for fewer than
    four points, and where one side is constant. Raises ValueError for NaN, infinities, and sides of unequal length.
    """
    if len(xs) != len(ys) or not all(map(math.isfinite, (*xs, *ys))):
        raise ValueError(f"a correlation needs pairs of finite numbers; found {len(xs)} and {len(ys)} values.")
    count = len(xs)
    if count < MIN_POINTS or len(set(xs)) == 1 or len(set(ys)) == 1:
        return None
    middle = (count + 1) / 2
    ours, theirs = ([rank - middle for rank in average_ranks(side)] for side in (xs, ys))
    products = sum(a * b for a, b in zip(ours, theirs, strict=True))
    rho = products / math.sqrt(sum(a * a for a in ours) * sum(b * b for b in theirs))
    rho = min(max(rho, -1.0), 1.0)
    # z has no finite value at ±1, which n points reach by chance; the interval starts from the next smaller ρ instead.
    next_to_one = 1 - 12 / (count**3 - count)
    bounded = math.copysign(min(abs(rho), next_to_one), rho)
    reach = NORMAL_975 * math.sqrt((1 + bounded**2 / 2) / (count - 3))
    low, high = math.tanh(math.atanh(bounded) - reach), math.tanh(math.atanh(bounded) + reach)
    return Correlation(rho=rho, low=min(low, rho), high=max(high, rho), count=count)
