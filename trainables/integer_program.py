"""An allocation as a 0/1 program, solved by HiGHS (Huangfu and Hall 2018): slower than `knapsack`, for any numbers.

    y[g,a] chooses the width of a group, z[l,w,a] those of a layer; Σ_a y[g,a] = 1 and Σ_w z[l,w,a] = y[g(l),a]

HiGHS closes its gap, but works in floating point and lets a solution exceed a limit by 1e-6. So a solution is checked
in whole numbers, and one that exceeds any limit is cut off and the rest solved again.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from trainables.bops import COUNT_OF, CostModel, Counts
from trainables.choices import Choices
from trainables.knapsack.problem import tie
from trainables.policy import BitPolicy, LayerBits

_LARGEST_LOSS = 1e6
_LIMIT = 100.0
"""HiGHS ignores differences below 1e-6, in the objective and in the limits: both are scaled up to these."""


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


class IntegerProgram:
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
        taken = tie(self._choices) / (self._costs.full_bops_g * 1e9)
        values = np.array([o.score - taken * o.counts.bops for o in self._options])
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
            for act in scores.worthwhile:
                yield _Option(group, 0, act, scores.of(act), Counts())

    def _layer_options(self) -> Iterator[_Option]:
        for layer, scores in self._choices.weights.items():
            for act in self._choices.acts[self._choices.group_of[layer]].worthwhile:
                for weight in scores.worthwhile:
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
