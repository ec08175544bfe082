"""Bits under a budget by greedy upgrades, the multiple-choice knapsack's classic heuristic, then improved. No torch.

Every owner (a layer's weights, or a group's activation) starts at its smallest width. Of all upgrades that fit the
most efficient one is taken, until none fits:

    efficiency = score gained / price,   price = Σ_limits (what the upgrade adds) / (what is left of the limit)

Taking the best of all wider widths walks along each owner's lower convex hull (Sinha and Zoltners 1979). Of several
limits the one that is nearly used up is dear; with one limit its unit does not matter.

An upgrade that does not fit is skipped, which can leave much of a limit unused where layers are large.

DEVIATION: MPQCO ends there. Here each single step up and down is tried in the end, so that limits are used: it is
taken, what no longer fits is given back where that costs least, the rest is filled again, and the best outcome is kept,
until none is better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainables.allocate import ceilings, solve_within
from trainables.bops import CostModel
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.knapsack.problem import Floats, Ints, Knapsack, tabulate
from trainables.policy import BitPolicy

_LEAST_GAIN = 1e-12
"""Of the worst loss: smaller differences are rounding."""
_FREE = 1e-300
"""Price of what adds to no limit: it comes first."""


def allocate_greedily(choices: Choices, costs: CostModel, budget: BudgetConfig) -> BitPolicy:
    """A good policy within `budget`, not always the best; without a limit the best width of everything.

    Raises as `allocate.allocate`.
    """
    best = choices.best
    if not budget.broken(costs.of(best)):
        return best
    limits = ceilings(choices, costs, budget)
    table = tabulate(choices, costs, limits)
    if table is None:
        return solve_within(choices, costs, limits)
    found = _improved(table.problem, _filled(table.problem, _smallest(table.problem)))
    return table.policy(choices, found.acts, found.weights)


@dataclass(frozen=True, slots=True)
class _State:
    """Places of all widths, and what they leave."""

    acts: Ints
    """[G]"""
    weights: Ints
    """[L]"""
    left: Ints
    """[D] of each limit; below 0 where it is broken."""
    loss: float


@dataclass(frozen=True, slots=True)
class _Moves:
    """Every other width for every owner: layers first, [L·W], then groups, [G·A]."""

    losses: Floats
    """What each adds to the loss; infinite where there is no such width."""
    counts: Ints
    """[D, moves] what each adds to the counts."""
    owners: Ints
    """Layers, then groups, numbered through."""


def _smallest(problem: Knapsack) -> _State:
    left = problem.left - problem.counts[:, :, 0, 0].sum(axis=1)
    loss = problem.loss[:, 0, 0].sum() + problem.group_loss[:, 0].sum()
    return _State(np.zeros(len(problem.starts), np.int64), np.zeros(len(problem.loss), np.int64), left, float(loss))


def _moves(problem: Knapsack, state: _State) -> _Moves:
    layers, acts_on_offer, weights_on_offer = problem.loss.shape
    rows, own = np.arange(layers), state.acts[problem.group_of]
    now_loss, now_counts = problem.loss[rows, own, state.weights], problem.counts[:, rows, own, state.weights]
    # Of a group's other widths: all of its layers keep their weights.
    by_act = problem.loss[rows, :, state.weights] - now_loss[:, None]
    group_losses = np.add.reduceat(by_act, problem.starts, axis=0) + problem.group_loss
    group_losses -= problem.group_loss[np.arange(len(state.acts)), state.acts][:, None]
    counts_by_act = problem.counts[:, rows, :, state.weights].transpose(1, 0, 2) - now_counts[:, :, None]
    limits = len(problem.left)
    return _Moves(
        np.concatenate([(problem.loss[rows, own] - now_loss[:, None]).ravel(), group_losses.ravel()]),
        np.concatenate(
            [
                (problem.counts[:, rows, own] - now_counts[:, :, None]).reshape(limits, -1),
                np.add.reduceat(counts_by_act, problem.starts, axis=1).reshape(limits, -1),
            ],
            axis=1,
        ),
        np.concatenate(
            [np.repeat(rows, weights_on_offer), np.repeat(layers + np.arange(len(state.acts)), acts_on_offer)]
        ),
    )


def _moved(problem: Knapsack, state: _State, moves: _Moves, move: int) -> _State:
    layers, acts_on_offer, weights_on_offer = problem.loss.shape
    acts, weights = state.acts.copy(), state.weights.copy()
    if move < layers * weights_on_offer:
        weights[move // weights_on_offer] = move % weights_on_offer
    else:
        group, act = divmod(move - layers * weights_on_offer, acts_on_offer)
        acts[group] = act
    return _State(acts, weights, state.left - moves.counts[:, move], state.loss + float(moves.losses[move]))


def _filled(problem: Knapsack, state: _State) -> _State:
    """Upgrades, the most efficient first, while any fits."""
    while True:
        moves = _moves(problem, state)
        fitting = np.flatnonzero((moves.losses < -_LEAST_GAIN) & (moves.counts <= state.left[:, None]).all(axis=0))
        if not len(fitting):
            return state
        prices = (moves.counts[:, fitting] / np.maximum(state.left, 1)[:, None]).sum(axis=0)
        efficiencies = moves.losses[fitting] / np.maximum(prices, _FREE)
        state = _moved(problem, state, moves, int(fitting[efficiencies.argmin()]))


def _given_back(problem: Knapsack, state: _State, forced: int) -> _State | None:
    """Downgrades of other owners than the forced one until every limit is kept, least loss for what they free first."""
    while (state.left < 0).any():
        moves, broken = _moves(problem, state), state.left < 0
        freed = np.minimum(-moves.counts[broken] / -state.left[broken][:, None], 1.0).sum(axis=0)
        usable = np.flatnonzero((freed > 0) & (moves.owners != forced) & np.isfinite(moves.losses))
        if not len(usable):
            return None
        state = _moved(problem, state, moves, int(usable[(moves.losses[usable] / freed[usable]).argmin()]))
    return state


def _neighbours(problem: Knapsack, state: _State) -> Iterator[_State]:
    """The outcomes of each owner's next wider and next narrower width."""
    moves = _moves(problem, state)
    layers, acts_on_offer, weights_on_offer = problem.loss.shape
    firsts = np.concatenate(
        [
            np.arange(layers) * weights_on_offer + state.weights,
            layers * weights_on_offer + np.arange(len(state.acts)) * acts_on_offer + state.acts,
        ]
    )
    most = np.concatenate([np.full(layers, weights_on_offer), np.full(len(state.acts), acts_on_offer)])
    places = np.concatenate([state.weights, state.acts])
    for owner, (move, place) in enumerate(zip(firsts.tolist(), places.tolist(), strict=True)):
        for step in (-1, 1):
            if 0 <= place + step < most[owner] and np.isfinite(moves.losses[move + step]):
                kept = _given_back(problem, _moved(problem, state, moves, move + step), owner)
                if kept is not None:
                    yield _filled(problem, kept)


def _improved(problem: Knapsack, state: _State) -> _State:
    while True:
        best = min(_neighbours(problem, state), key=lambda found: found.loss, default=state)
        if best.loss >= state.loss - _LEAST_GAIN:
            return state
        state = best
