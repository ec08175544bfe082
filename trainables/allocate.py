"""Bits under a budget: the policy of the highest score that keeps every limit, found exactly. No torch.

Notation: l searched layers, g groups of layers that share an activation, g(l) the group of l; w, a widths on offer.

    maximise    Σ_l s_l(w_l) + Σ_g s_g(a_g)                        s: log π of a search, or any other scores
    subject to  for each limit   Σ_l c_l(w_l, a_g(l)) ≤ C          c: BOPs, weight bits, activation bits

a multiple-choice knapsack with several limits. As a linear program in 0/1: y[g,a] chooses the width of a group,
z[l,w,a] those of a layer, Σ_a y[g,a] = 1 and Σ_w z[l,w,a] = y[g(l),a]. HiGHS (Huangfu and Hall 2018) closes its gap.

HiGHS works in floating point and lets a solution exceed a limit by 1e-6. So limits are whole numbers (`bops.Counts`), a
solution is checked in whole numbers, and one that exceeds any of them is cut off and the rest solved again: what is
returned keeps every limit to the last bit, and of what keeps them nothing is better.

Ties: a width that is worth no more than a smaller one is never chosen. `TIE` times the share of the full-precision BOPs
is taken off the score, so that of policies of equal score one with fewer BOPs is; shares that differ by less than the
solver's tolerance count as equal.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from trainables.bops import COUNT_OF, CostModel, Counts
from trainables.choices import Choices, Scores
from trainables.config import BudgetConfig
from trainables.policy import BitPolicy, LayerBits

TIE = 1e-6
"""A score is worth so much less in full precision than without any BOPs."""
_LARGEST_LOSS = 1e6
_LIMIT = 100.0
"""HiGHS ignores differences below 1e-6, in the objective and in the limits: both are scaled up to these."""


def allocate(choices: Choices, costs: CostModel, budget: BudgetConfig) -> BitPolicy:
    """The policy of the highest score within `budget`; without a limit the best width of everything, `choices.best`.

    Raises InfeasibleBudgetError naming every limit that no policy keeps, with its floor; ConfigError where `costs` are
    those of another network.
    """
    best = choices.best
    if not budget.broken(costs.of(best)):
        return best
    return _Program(choices, costs, ceilings(choices, costs, budget)).solve()


def ceilings(choices: Choices, costs: CostModel, budget: BudgetConfig) -> dict[str, int]:
    """Limit -> the largest value of its count (`bops.COUNT_OF`) with which the cost, as reported, keeps the limit.

    Raises as `allocate`.
    """
    smallest = costs.counts(choices.smallest)
    # Every cost grows (compression falls) with every width: a limit that the smallest widths break is out of reach.
    budget.check_floor(costs.costs(smallest))
    return {name: _ceiling(name, smallest, costs, budget) for name in budget.limits}


def _ceiling(name: str, smallest: Counts, costs: CostModel, budget: BudgetConfig) -> int:
    def breaks(value: int) -> bool:
        return name in budget.broken(costs.costs(replace(smallest, **{COUNT_OF[name]: value})))

    low = getattr(smallest, COUNT_OF[name])
    # More than 32 bits for everything is not to be had, whatever the limit.
    high, enough = max(2 * low, 1), 32 * 32 * max(low, 1)
    while not breaks(high) and high < enough:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if breaks(middle) else (middle, high)
    return low


@dataclass(frozen=True, slots=True)
class _Option:
    """A 0/1 variable: the activation width of a group, or both widths of a layer."""

    owner: str
    weight: int
    """0 where the owner is a group."""
    act: int
    score: float
    counts: Counts
    """What choosing it adds; nothing for a group."""


class _Program:
    """The 0/1 program of one allocation."""

    def __init__(self, choices: Choices, costs: CostModel, limits: Mapping[str, int]) -> None:
        self._choices, self._costs, self._limits = choices, costs, limits
        self._options = [*self._group_options(), *self._layer_options()]
        self._constraints = [self._one_each(), self._coupled(), *self._within()]

    def solve(self) -> BitPolicy:
        """The best policy within the limits."""
        loss = self._loss()
        while True:
            with _quiet():
                found = milp(
                    loss,
                    constraints=self._constraints,
                    integrality=np.ones(len(self._options)),
                    bounds=Bounds(0, 1),
                    options={"mip_rel_gap": 0.0},
                )
            if found.x is None:
                raise RuntimeError(f"allocation ended without a policy: {found.message}")
            chosen = found.x > 0.5
            policy = self._policy(chosen)
            counts = self._costs.counts(policy)
            if all(getattr(counts, COUNT_OF[name]) <= most for name, most in self._limits.items()):
                return policy
            self._constraints.append(LinearConstraint(chosen.astype(float), ub=chosen.sum() - 1))

    def _loss(self) -> NDArray[np.float64]:
        full_bops = self._costs.full_bops_g * 1e9
        values = np.array([o.score - TIE * o.counts.bops / full_bops for o in self._options])
        # Scores of one owner may all be raised alike: each owner has exactly one option.
        lost: NDArray[np.float64] = values.max() - values
        return lost * (_LARGEST_LOSS / lost.max())

    def _policy(self, chosen: NDArray[np.bool_]) -> BitPolicy:
        picked = [option for option, is_chosen in zip(self._options, chosen, strict=True) if is_chosen]
        return self._choices.policy(
            {option.owner: option.weight for option in picked if option.weight},
            {option.owner: option.act for option in picked if not option.weight},
        )

    def _group_options(self) -> Iterator[_Option]:
        for group, scores in self._choices.acts.items():
            for act in _worthwhile(scores):
                yield _Option(group, 0, act, scores.of(act), Counts())

    def _layer_options(self) -> Iterator[_Option]:
        for layer, scores in self._choices.weights.items():
            for act in _worthwhile(self._choices.acts[self._choices.group_of[layer]]):
                for weight in _worthwhile(scores):
                    counts = self._costs.work[layer].counts(LayerBits(weight, act), searched=True)
                    yield _Option(layer, weight, act, scores.of(weight), counts)

    def _one_each(self) -> LinearConstraint:
        groups = {group: row for row, group in enumerate(self._choices.acts)}
        entries = [(groups[o.owner], column, 1.0) for column, o in enumerate(self._options) if not o.weight]
        return LinearConstraint(self._matrix(entries, len(groups)), 1, 1)

    def _coupled(self) -> LinearConstraint:
        columns = {(o.owner, o.act): column for column, o in enumerate(self._options) if not o.weight}
        rows: dict[tuple[str, int], int] = {}
        entries = []
        for column, option in enumerate(self._options):
            if option.weight:
                row = rows.setdefault((option.owner, option.act), len(rows))
                entries.append((row, column, 1.0))
        for (layer, act), row in rows.items():
            entries.append((row, columns[self._choices.group_of[layer], act], -1.0))
        return LinearConstraint(self._matrix(entries, len(rows)), 0, 0)

    def _within(self) -> Iterator[LinearConstraint]:
        """Each limit, less what pinned layers and products of activations take."""
        unsearched = self._costs.unsearched({layer: LayerBits(b, b) for layer, b in self._choices.pinned.items()})
        for name, most in self._limits.items():
            count = COUNT_OF[name]
            left = most - getattr(unsearched, count)
            row = np.array([getattr(option.counts, count) * _LIMIT / left for option in self._options])
            yield LinearConstraint(row, ub=_LIMIT)

    def _matrix(self, entries: list[tuple[int, int, float]], rows: int) -> csr_array:
        row, column, value = zip(*entries, strict=True)
        return csr_array((value, (row, column)), shape=(rows, len(self._options)))


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS now and then prints a line of its debugging from C, which must not end up in what a command prints."""
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        libc.fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)


def _worthwhile(scores: Scores) -> list[int]:
    """Widths that are worth more than every smaller one, ascending: the others cost more for nothing."""
    kept: list[int] = []
    for width in sorted(scores.widths):
        if not kept or scores.of(width) > scores.of(kept[-1]):
            kept.append(width)
    return kept
