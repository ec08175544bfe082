"""Multipliers of the limits: the linear relaxation, solved by generating policies (Dantzig and Wolfe 1960).

    minimise Σ_k m_k·loss(x_k)   over shares m >= 0, Σ m = 1, of policies x_k,   Σ_k m_k·c(x_k) + slack = C

A basis has D + 1 of them, so each step solves systems of D + 1 equations. Its prices say which policy comes next: the
one of least loss(x) + μ·c(x), found for each owner alone. Every μ >= 0 on the way gives a lower bound; the best is
kept, so that it does not matter where rounding ends the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainables.knapsack.problem import Floats, Knapsack

_STEPS = 300
_SETTLED = 1e-13
"""Of losses and counts that are shares."""


@dataclass(frozen=True, slots=True)
class Dual:
    """What one vector of multipliers says."""

    multipliers: Floats
    """[D] loss for a whole limit."""
    bound: float
    """No policy within the limits loses less."""
    reduced: Floats
    """[L, A, W] ρ_l of a layer's weights, given its activation's width."""
    group_reduced: Floats
    """[G, A] ρ_g of a group's activation with the best weights for it."""

    @property
    def tolerance(self) -> float:
        """What rounding can make of a bound, generously."""
        return 1e-12 * (1.0 + float(self.multipliers.sum()))


def solve_dual(problem: Knapsack) -> Dual:
    """The multipliers of the best bound."""
    shares = problem.counts / problem.left[:, None, None, None]
    limits = len(problem.left)
    policies, losses = np.eye(limits + 1), np.zeros(limits + 1)
    # Columns: the slacks, and a policy of the smallest widths, which keeps every limit.
    policies[:limits, limits] = shares[:, :, 0, 0].sum(axis=1)
    losses[limits] = problem.loss[:, 0, 0].sum() + problem.group_loss[:, 0].sum()
    best = -np.inf, np.zeros(limits)
    for _ in range(_STEPS):
        prices = np.linalg.solve(policies.T, losses)
        multipliers = np.maximum(-prices[:limits], 0.0)
        priced, totals = _priced(problem, shares, multipliers)
        least = totals.min(axis=1).sum()
        best = max(best, (least - multipliers.sum(), multipliers), key=lambda found: found[0])
        entering, loss = np.zeros(limits + 1), 0.0
        if prices[:limits].max(initial=0.0) > _SETTLED:
            entering[prices[:limits].argmax()] = 1.0
        elif least - prices[limits] < -_SETTLED:
            entering[:limits], loss = _chosen(problem, shares, priced, totals)
            entering[limits] = 1.0
        else:
            break
        if not _exchange(policies, losses, entering, loss):
            break
    return _dual(problem, shares, best[1])


def _exchange(policies: Floats, losses: Floats, entering: Floats, loss: float) -> bool:
    """Puts the column into the basis, for the one that first reaches zero; False where none does."""
    shares = np.linalg.solve(policies, np.ones(len(losses)))
    change = np.linalg.solve(policies, entering)
    ratios = np.full(len(losses), np.inf)
    np.divide(shares, change, out=ratios, where=change > _SETTLED)
    leaving = int(ratios.argmin())
    if not np.isfinite(ratios[leaving]):
        return False
    policies[:, leaving], losses[leaving] = entering, loss
    return True


def _priced(problem: Knapsack, shares: Floats, multipliers: Floats) -> tuple[Floats, Floats]:
    """Loss and price of every option, [L, A, W], and of a group's activation with the best weights for it, [G, A]."""
    priced = problem.loss + np.tensordot(multipliers, shares, 1)
    return priced, np.add.reduceat(priced.min(axis=2), problem.starts, axis=0) + problem.group_loss


def _chosen(problem: Knapsack, shares: Floats, priced: Floats, totals: Floats) -> tuple[Floats, float]:
    """The policy of the least loss and price: its counts, [D], and its loss."""
    acts = totals.argmin(axis=1)
    rows, own = np.arange(len(priced)), acts[problem.group_of]
    weights = priced[rows, own].argmin(axis=1)
    loss = problem.loss[rows, own, weights].sum() + problem.group_loss[np.arange(len(acts)), acts].sum()
    return shares[:, rows, own, weights].sum(axis=1), float(loss)


def _dual(problem: Knapsack, shares: Floats, multipliers: Floats) -> Dual:
    priced, totals = _priced(problem, shares, multipliers)
    best_weights, best_acts = priced.min(axis=2, keepdims=True), totals.min(axis=1, keepdims=True)
    # Where a group has fewer widths than others both are infinite.
    offered = np.isfinite(priced)
    reduced = np.full(priced.shape, np.inf)
    np.subtract(priced, best_weights, out=reduced, where=offered)
    return Dual(multipliers, float(best_acts.sum() - multipliers.sum()), reduced, totals - best_acts)
