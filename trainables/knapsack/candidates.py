"""What is left of each group: its ways to choose an activation width and the weights of its layers, within a gap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainables.knapsack.dual import Dual
from trainables.knapsack.problem import Floats, Ints, Knapsack

_MOST = 20_000
"""Ways of one group."""
_COMPARED = 400
"""Ways of one group that are compared in pairs."""


@dataclass(frozen=True, slots=True)
class Ways:
    """n ways to choose the widths of one group and its layers."""

    losses: Ints
    """[n]"""
    counts: Ints
    """[n, D]"""
    acts: Ints
    """[n] place of the activation's width."""
    weights: Ints
    """[n, layers of the group] places of the weights' widths."""

    def __len__(self) -> int:
        return len(self.losses)

    def taken(self, places: Ints) -> Ways:
        """Those at `places`, or where a mask says."""
        return Ways(self.losses[places], self.counts[places], self.acts[places], self.weights[places])


def ways_within(problem: Knapsack, dual: Dual, gap: float) -> list[Ways] | None:
    """For each group all ways whose ρ is within the gap, but for those that another one beats in everything.

    None where they are too many.
    """
    most = gap + dual.tolerance
    kept = dual.group_reduced[problem.group_of][:, :, None] + dual.reduced <= most
    found = []
    for group, (start, size) in enumerate(zip(problem.starts.tolist(), problem.sizes.tolist(), strict=True)):
        ways = _alone(problem, group, start, kept) if size == 1 else _shared(problem, dual, group, kept, most)
        if ways is None:
            return None
        found.append(_undominated(ways) if 1 < len(ways) <= _COMPARED else ways)
    return found


def _alone(problem: Knapsack, group: int, layer: int, kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Ways:
    acts, weights = np.nonzero(kept[layer])
    losses = problem.whole_group_loss[group, acts] + problem.whole_loss[layer, acts, weights]
    return Ways(losses, problem.counts[:, layer, acts, weights].T, acts, weights[:, None])


def _shared(
    problem: Knapsack, dual: Dual, group: int, kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], most: float
) -> Ways | None:
    parts = []
    for act in np.flatnonzero(dual.group_reduced[group] <= most).tolist():
        part = _of_width(problem, dual, group, act, kept, most)
        if part is None:
            return None
        parts.append(part)
    return Ways(
        np.concatenate([part.losses for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.acts for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )


def _of_width(
    problem: Knapsack,
    dual: Dual,
    group: int,
    act: int,
    kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    most: float,
) -> Ways | None:
    """Of one width of the group's activation, layer by layer."""
    start, size = int(problem.starts[group]), int(problem.sizes[group])
    reduced: Floats = dual.group_reduced[group, act : act + 1]
    losses = problem.whole_group_loss[group, act : act + 1]
    counts, weights = np.zeros((1, len(problem.left)), np.int64), np.zeros((1, 0), np.int64)
    for layer in range(start, start + size):
        offered = np.flatnonzero(kept[layer, act])
        if len(reduced) * len(offered) > _MOST:
            return None
        sums = (reduced[:, None] + dual.reduced[layer, act, offered]).ravel()
        within = np.flatnonzero(sums <= most)
        before, chosen = within // len(offered), offered[within % len(offered)]
        reduced, losses = sums[within], losses[before] + problem.whole_loss[layer, act, chosen]
        counts = counts[before] + problem.counts[:, layer, act, chosen].T
        weights = np.concatenate([weights[before], chosen[:, None]], axis=1)
    return Ways(losses, counts, np.full(len(losses), act), weights)


def _undominated(ways: Ways) -> Ways:
    """Without those that another one beats or equals in everything; of equals the first stays."""
    beats = (ways.counts[:, None] <= ways.counts[None]).all(axis=2) & (ways.losses[:, None] <= ways.losses[None])
    earlier = np.tri(len(ways), k=-1, dtype=bool).T
    return ways.taken(np.flatnonzero(~(beats & (~beats.T | earlier)).any(axis=0)))
