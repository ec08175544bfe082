"""Random policies of a budget: what a search has to be better than."""

from __future__ import annotations

from itertools import islice

from trainables.allocate import ceilings
from trainables.bops import GIGA, CostModel
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.errors import ConfigError, InfeasibleBudgetError
from trainables.method_config import BOPS_LIMITS, RandomConfig
from trainables.methods.offered import fixed, offered
from trainables.random_policy import WINDOW, random_draws
from trainables.reference import Bench

MOST_DRAWS = 256
"""Policies of the wanted BOPs that are drawn until one keeps the other limits as well."""


def search(bench: Bench, config: RandomConfig, budget: BudgetConfig) -> Choices:
    """The drawn policy as the one choice of every layer: a function of the trial's seed and of `draw`.

    Of the policies within the window of BOPs that keep the other limits too, each is as likely as every other. Raises
    InfeasibleBudgetError where no policy keeps the budget, ConfigError where none is found.
    """
    choices, costs = offered(bench, config), bench.costs
    name, bops_g = _tightest(choices, costs, budget)
    drawn = random_draws(choices, costs, bops_g=bops_g, seed=(bench.config.seed, config.draw))
    try:
        for policy in islice(drawn, MOST_DRAWS):
            if not budget.broken(costs.of(policy)):
                return fixed(choices, policy)
    except ConfigError as error:
        raise ConfigError(
            f"budget.{name} is {budget.limits[name]:g}, which leaves {bops_g:.6g} G BOPs, and random takes "
            f"{100 * WINDOW:g} to 100 % of them: {error}"
        ) from None
    others = ", ".join(f"budget.{name}" for name in budget.limits if name not in BOPS_LIMITS)
    raise ConfigError(
        f"budget.{name} is {budget.limits[name]:g}: of {MOST_DRAWS} random policies with {100 * WINDOW:g} to 100 % of "
        f"its {bops_g:.4g} G BOPs none keeps {others} as well; allow more of it, or fewer BOPs."
    )


def check(bench: Bench, config: RandomConfig, budget: BudgetConfig) -> None:
    """Raises ConfigError where `search` would find no policy though some keep the budget."""
    try:
        search(bench, config, budget)
    except InfeasibleBudgetError:
        # `check_budget` names every limit that is out of reach.
        return


def _tightest(choices: Choices, costs: CostModel, budget: BudgetConfig) -> tuple[str, float]:
    """The tightest of the limits on BOPs, and the BOPs that it leaves, G, pinned layers included."""
    smallest = costs.counts(choices.smallest)
    unsearched = smallest.bops - smallest.searched_bops
    most = {name: limit for name, limit in ceilings(choices, costs, budget).items() if name in BOPS_LIMITS}
    left = {name: (limit + (unsearched if name == "bops_paper_g" else 0)) / GIGA for name, limit in most.items()}
    name = min(left, key=left.__getitem__)
    return name, left[name]
