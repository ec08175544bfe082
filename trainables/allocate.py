"""Bits under a budget: the policy of the highest score that keeps every limit, found exactly. No torch.

Notation: l searched layers, g groups of layers that share an activation, g(l) the group of l; w, a widths on offer.

    maximise    Σ_l s_l(w_l) + Σ_g s_g(a_g)                        s: log π of a search, or any other scores
    subject to  for each limit   Σ_l c_l(w_l, a_g(l)) ≤ C          c: BOPs, weight bits, activation bits

a multiple-choice knapsack with several limits. `knapsack` solves it in hundredths of a second; where its states become
too many, as three limits and more can make them, `integer_program` does. Both prove that nothing is better.

Limits are whole numbers (`bops.Counts`) and compared as such: what is returned keeps every limit to the last bit, and
of what keeps them nothing is better.

Ties: a width that is worth no more than a smaller one is never chosen. `knapsack.problem.tie` times the share of the
full-precision BOPs is taken off the score, so that of policies of equal score one with fewer BOPs is: 1e-6, or that
share of the scores' range where it is below 1. Scores that differ by less than 1e-12 of their range may count as equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trainables.bops import COUNT_OF, CostModel, Counts
from trainables.choices import Choices
from trainables.config import AT_LEAST, BudgetConfig
from trainables.integer_program import IntegerProgram
from trainables.knapsack.exact import solve
from trainables.knapsack.problem import tabulate
from trainables.policy import BitPolicy


def allocate(choices: Choices, costs: CostModel, budget: BudgetConfig) -> BitPolicy:
    """The policy of the highest score within `budget`; without a limit the best width of everything, `choices.best`.

    Raises InfeasibleBudgetError naming every limit that no policy keeps, with its floor; ConfigError where `costs` are
    those of another network.
    """
    best = choices.best
    if not budget.broken(costs.of(best)):
        return best
    return solve_within(choices, costs, ceilings(choices, costs, budget))


def solve_within(choices: Choices, costs: CostModel, limits: Mapping[str, int]) -> BitPolicy:
    """The policy of the highest score within the ceilings of some limits, which the smallest widths keep."""
    table = tabulate(choices, costs, limits)
    found = table and solve(table.problem)
    if table and found:
        return table.policy(choices, *found)
    return IntegerProgram(choices, costs, limits).solve()


def ceilings(choices: Choices, costs: CostModel, budget: BudgetConfig) -> dict[str, int]:
    """Limit -> the largest value of its count (`bops.COUNT_OF`) with which the cost, as reported, keeps the limit.

    Raises as `allocate`.
    """
    smallest = costs.counts(choices.smallest)
    floor = costs.costs(smallest)
    # Every cost grows (compression falls) with every width: a limit that the smallest widths break is out of reach.
    budget.check_floor(floor)
    found = {}
    for name, limit in budget.limits.items():
        count = getattr(smallest, COUNT_OF[name])
        # Costs are proportional to their counts, but for rounding.
        guess = count * (floor[name] / limit if name in AT_LEAST else limit / floor[name])
        found[name] = _ceiling(name, limit, smallest, costs, int(guess))
    return found


def _ceiling(name: str, limit: float, smallest: Counts, costs: CostModel, guess: int) -> int:
    def breaks(value: int) -> bool:
        cost = costs.costs(replace(smallest, **{COUNT_OF[name]: value}))[name]
        return cost < limit if name in AT_LEAST else cost > limit

    least = getattr(smallest, COUNT_OF[name])
    # More than 32 bits for everything is not to be had, whatever the limit.
    most = 32 * 32 * max(least, 1)
    low = high = min(max(guess, least), most)
    step = 1
    while low > least and breaks(low):
        low, high, step = max(least, low - step), low, 2 * step
    while high < most and not breaks(high):
        low, high, step = high, min(most, high + step), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if breaks(middle) else (middle, high)
    return low
