"""Uniform bits, the plainest baseline: one width for all searched weights, one for all searched activations.

Of the pairs of widths that keep the budget the one with the largest min(w, a), of these the one with the most BOPs, of
these the one with the wider activations.
"""

from __future__ import annotations

from itertools import product

from trainables.allocate import ceilings
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.method_config import UniformConfig
from trainables.methods.offered import offered, only
from trainables.reference import Bench


def search(bench: Bench, config: UniformConfig, budget: BudgetConfig) -> Choices:
    """The pair as the one choice of every layer; where a pinned layer fixes an activation, that stays.

    Raises InfeasibleBudgetError where no policy keeps the budget.
    """
    choices, costs = offered(bench, config), bench.costs
    ceilings(choices, costs, budget)
    pairs = []
    for weight_bits, act_bits in product(config.weight_bits, config.act_bits):
        found = only(choices, weight_bits=weight_bits, act_bits=act_bits)
        spent = costs.of(found.best)
        if not budget.broken(spent):
            pairs.append((min(weight_bits, act_bits), spent["bops_g"], act_bits, weight_bits))
    _, _, act_bits, weight_bits = max(pairs)
    return only(choices, weight_bits=weight_bits, act_bits=act_bits)
