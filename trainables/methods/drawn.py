"""Random policies of a budget: what a search has to be better than."""

from __future__ import annotations

from dataclasses import replace

from trainables.allocate import ceilings
from trainables.bops import GIGA
from trainables.choices import Choices, Scores
from trainables.config import BudgetConfig
from trainables.errors import ConfigError
from trainables.method_config import BOPS_LIMITS, RandomConfig
from trainables.methods.offered import offered
from trainables.policy import BitPolicy
from trainables.random_policy import random_policies
from trainables.reference import Bench

MOST_DRAWS = 256
"""Policies of the wanted BOPs that are drawn until one keeps the other limits."""


def search(bench: Bench, config: RandomConfig, budget: BudgetConfig) -> Choices:
    """The drawn policy as the one choice of every layer: a function of the trial's seed and of `draw`.

    Raises InfeasibleBudgetError where no policy keeps the budget, ConfigError where none is found.
    """
    choices = offered(bench, config)
    bops_g = _bops_g(bench, choices, budget)
    for tried in range(MOST_DRAWS):
        seed = (bench.config.seed, config.draw, tried)
        (policy,) = random_policies(choices, bench.costs, bops_g=bops_g, count=1, seed=seed)
        if not budget.broken(bench.costs.of(policy)):
            return _fixed(choices, policy)
    others = ", ".join(name for name in budget.limits if name not in BOPS_LIMITS)
    raise ConfigError(
        f"budget: of {MOST_DRAWS} random policies with up to {bops_g:.4g} G BOPs none keeps {others} as well; allow "
        "more of it, or fewer BOPs."
    )


def _bops_g(bench: Bench, choices: Choices, budget: BudgetConfig) -> float:
    """BOPs that the tightest of the limits on them leaves, pinned layers included."""
    costs, found = bench.costs, []
    smallest = costs.counts(choices.smallest)
    unsearched = smallest.bops - smallest.searched_bops
    for name, most in ceilings(choices, costs, budget).items():
        if name in BOPS_LIMITS:
            found.append(most + unsearched if name == "bops_paper_g" else most)
    return min(found) / GIGA


def _fixed(choices: Choices, policy: BitPolicy) -> Choices:
    member = {group: name for name, group in choices.group_of.items()}
    return replace(
        choices,
        weights={name: Scores((policy.bits[name].weight,), (0.0,)) for name in choices.weights},
        acts={group: Scores((policy.bits[member[group]].act,), (0.0,)) for group in choices.acts},
    )
