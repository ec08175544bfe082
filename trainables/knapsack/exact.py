"""The best policy of a knapsack, proven: searches that drop states find a gap, one that drops none searches it all."""

from __future__ import annotations

import numpy as np

from trainables.knapsack.candidates import Ways, ways_within
from trainables.knapsack.dual import Dual, solve_dual
from trainables.knapsack.problem import UNIT, Ints, Knapsack
from trainables.knapsack.search import search

_QUICK, _MORE, _FULL = 48, 8, 20_000
"""States at once: at first, times more while some are dropped, at most."""
_OPTIONS = 40
"""So many options for each limit, beside one for each layer, make the first gap."""
_LEAST, _WIDER = 1e-6, 2.5
"""First gap at least, share of the worst loss; what it is multiplied by while nothing is found."""
_ROUNDS = 24


def solve(problem: Knapsack) -> tuple[Ints, Ints] | None:
    """Places of the groups' widths, [G], and the layers', [L], in the best policy; None where that takes too long."""
    dual = solve_dual(problem)
    gap, most = _first_gap(problem, dual), _QUICK
    for _ in range(_ROUNDS):
        ways = ways_within(problem, dual, gap)
        if ways is None:
            return None
        found = search(problem, dual, ways, gap=gap, most=most)
        if found.cut and most == _FULL:
            return None
        reached = found.loss / UNIT - dual.bound
        if found.chosen is not None and not found.cut and reached <= gap + dual.tolerance:
            return _places(ways, found.chosen)
        if found.chosen is not None:
            gap = reached
        elif not found.cut:
            gap *= _WIDER
        if found.cut:
            most = min(_MORE * most, _FULL)
    return None


def _first_gap(problem: Knapsack, dual: Dual) -> float:
    reduced = (dual.group_reduced[problem.group_of][:, :, None] + dual.reduced).ravel()
    offered = np.sort(reduced[np.isfinite(reduced)])
    place = len(problem.loss) + _OPTIONS * len(problem.left)
    return max(float(offered[min(place, len(offered) - 1)]), _LEAST)


def _places(ways: list[Ways], chosen: tuple[int, ...]) -> tuple[Ints, Ints]:
    acts = [part.acts[way] for part, way in zip(ways, chosen, strict=True)]
    weights = [part.weights[way] for part, way in zip(ways, chosen, strict=True)]
    return np.array(acts), np.concatenate(weights)
