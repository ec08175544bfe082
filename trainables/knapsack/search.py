"""The best policy of some ways for each group: dynamic programming, states cut by bounds and by dominance.

A state is a choice for the first groups: its loss and its counts. For any μ >= 0 what it can still become loses at
least

    loss + μ·counts + Σ_later groups min_way (loss + μ·counts) − μ·C

and the largest of these over several μ around the dual's is taken: a state that has spent more of one limit and less of
another than planned is judged at other prices. N states, n ways, D limits, K vectors of multipliers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainables.knapsack.candidates import Ways
from trainables.knapsack.dual import Dual
from trainables.knapsack.problem import UNIT, Floats, Ints, Knapsack

_TILTS = (0.7, 1.0, 1.4)
"""Multipliers around the dual's, in two dimensions all pairs of them."""
_RIVALS = 48
"""States that all others are compared with, where dominance is not sorted out in full."""
_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search."""

    chosen: tuple[int, ...] | None
    """The way of each group; None where no policy was within the limits and the gap."""
    loss: int
    """In 1/UNIT."""
    cut: bool
    """Whether states were dropped because they were too many: then a better policy may have been missed."""


def search(problem: Knapsack, dual: Dual, ways: Sequence[Ways], *, gap: float, most: int) -> Found:
    """The policy of least loss among those that lose at most `gap` more than the bound; `most` states at once."""
    multipliers = _tilted(dual.multipliers) / problem.left
    # Those that matter most come first, so that the last ones fill what is left.
    order = sorted(range(len(ways)), key=lambda group: -float(np.ptp(ways[group].counts @ multipliers[0])))
    parts = [ways[group] for group in order]
    least, largest, ahead = _ahead(parts, multipliers)
    ceiling, price_of_limits = dual.bound + gap + dual.tolerance, multipliers @ problem.left
    losses, counts = np.zeros(1, np.int64), np.zeros((1, len(problem.left)), np.int64)
    steps: list[tuple[Ints, Ints]] = []
    cut = False
    for place, part in enumerate(parts):
        sums = (counts[:, None] + part.counts).reshape(-1, counts.shape[1])
        totals = (losses[:, None] + part.losses).ravel()
        # What has no way to stay within the limits goes first: bounds take longer.
        within = np.flatnonzero((sums <= problem.left - least[place + 1]).all(axis=1))
        prices = multipliers @ sums[within].T + (ahead[place + 1] - price_of_limits)[:, None]
        bounds = totals[within] / UNIT + prices.max(axis=0)
        near = np.flatnonzero(bounds <= ceiling)
        kept, bounds = within[near], bounds[near]
        if not len(kept):
            return Found(None, 0, cut)
        counts, losses = sums[kept], totals[kept]
        if len(kept) > 1:
            # A limit that nothing ahead can break any more tells no state from another.
            live = np.flatnonzero((counts > problem.left - largest[place + 1]).any(axis=0))
            front = _front(losses, counts[:, live], bounds)
            if len(front) > most:
                front, cut = front[np.argpartition(bounds[front], most)[:most]], True
            counts, losses, kept = counts[front], losses[front], kept[front]
        steps.append((kept // len(part), kept % len(part)))
    state = int(losses.argmin())
    return Found(_traced(order, steps, state), int(losses[state]), cut)


def _traced(order: Sequence[int], steps: Sequence[tuple[Ints, Ints]], state: int) -> tuple[int, ...]:
    """The ways that led to a state: each step has the states before it and the ways taken."""
    chosen = [0] * len(order)
    for group, (before, taken) in zip(reversed(order), reversed(steps), strict=True):
        chosen[group], state = int(taken[state]), int(before[state])
    return tuple(chosen)


def _tilted(multipliers: Floats) -> Floats:
    """[K, D], the first the dual's own."""
    limits = len(multipliers)
    if limits <= 2:
        tilts = [tilt for tilt in itertools.product(_TILTS, repeat=limits) if tilt != (1.0,) * limits]
    else:
        tilts = [
            tuple(tilt if place == limit else 1.0 for place in range(limits))
            for limit in range(limits)
            for tilt in _TILTS
            if tilt != 1.0
        ]
    return np.array([(1.0,) * limits, *tilts]) * multipliers


def _ahead(parts: Sequence[Ways], multipliers: Floats) -> tuple[Ints, Ints, Floats]:
    """After each place: the least and the largest counts to come, [places + 1, D], the least priced loss, […, K]."""
    rows = [
        (part.counts.min(axis=0), part.counts.max(axis=0), _least_priced(part, multipliers)) for part in reversed(parts)
    ]
    sums = []
    for column in zip(*rows, strict=True):
        values = np.array(column)
        sums.append(np.concatenate([np.cumsum(values, axis=0)[::-1], np.zeros_like(values[:1])]))
    return sums[0], sums[1], sums[2]


def _least_priced(part: Ways, multipliers: Floats) -> Floats:
    priced: Floats = (part.losses[:, None] / UNIT + part.counts @ multipliers.T).min(axis=0)
    return priced


def _front(losses: Ints, counts: Ints, bounds: Floats) -> Ints:
    """Places of the states that no other one beats or equals in everything; from two limits on, a few that one does."""
    if counts.shape[1] == 0:
        return np.array([losses.argmin()])
    if counts.shape[1] == 1:
        order = np.lexsort((losses, counts[:, 0]))
        ordered = losses[order]
        better = np.ones(len(order), dtype=bool)
        better[1:] = ordered[1:] < np.minimum.accumulate(ordered)[:-1]
        return order[better]
    if counts.shape[1] == 2:
        order = np.lexsort((counts[:, 1], counts[:, 0], losses))
        return order[~_beaten(counts[order, 0], counts[order, 1])]
    order = np.lexsort((losses, *counts.T))
    differs = np.ones(len(order), dtype=bool)
    differs[1:] = (counts[order][1:] != counts[order][:-1]).any(axis=1)
    return _unrivalled(order[differs], losses, counts, bounds)


def _beaten(x: Ints, y: Ints) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Of states in order of their loss: whether an earlier one has no more of x and of y.

    As far as a grid of x tells, the least y so far below each of its edges; copies of one state are all found.
    """
    size = len(x)
    edges = np.sort(x)[np.linspace(0, size - 1, 8 + min(size // 16, 24)).astype(int)]
    below = np.minimum.accumulate(np.where(x[:, None] <= edges, y[:, None], _FAR), axis=0)
    edge = np.searchsorted(edges, x, side="right") - 1
    beaten = np.zeros(size, dtype=bool)
    beaten[1:] = (below[np.arange(size - 1), edge[1:]] <= y[1:]) | (x[1:] == x[:-1]) & (y[1:] >= y[:-1])
    return beaten


def _unrivalled(places: Ints, losses: Ints, counts: Ints, bounds: Floats) -> Ints:
    """Without the states that one of the most promising beats or equals."""
    rivals = places[np.argsort(bounds[places], kind="stable")[:_RIVALS]]
    no_worse = (counts[rivals][:, None] <= counts[places]).all(axis=2) & (losses[rivals][:, None] <= losses[places])
    return places[~(no_worse & (rivals[:, None] != places)).any(axis=0)]
