"""Searches solved for a budget without training: finished ones, of which the storage has what they ended with, and
importance indicators from a file. No torch, but to count the network of indicators."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from service.policies import FoundPolicy, derived, trial_of, work_of
from trainables import api
from trainables.allocate import allocate
from trainables.bops import CostModel
from trainables.choices import Choices
from trainables.config import AT_LEAST, BudgetConfig, NetworkConfig, named_floor
from trainables.errors import ConfigError, InfeasibleBudgetError, StorageError
from trainables.indicators import Indicators
from trainables.method_config import WidthsConfig
from trainables.policy import BitPolicy
from trainables.policy_file import PolicyRecord, all_costs

Macs = Literal["exact", "limpq"]
INDICATOR_METHOD = "limpq"
"""What policies from indicators are said to come from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """A policy of the search for one budget."""

    record: PolicyRecord
    score_lost: float
    """How much less its bits are worth than the best ones: the difference of the sums of their scores, on the search's
    own scale. Of log π it is in nats: how much less probable they are."""
    counted: Mapping[str, float]
    """Its costs as the limits count them, which need not be as the record does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndicatorRequest:
    """Which indicators, of which network, and what may be chosen."""

    path: Path
    network: NetworkConfig
    image_size: int
    num_classes: int
    widths: WidthsConfig
    alpha: float
    macs: Macs


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What a search ended with, and the policy that was made of it."""

    name: str
    """Of its own policy."""
    own: PolicyRecord
    choices: Choices
    work: CostModel
    """What limits are counted with."""
    notes: tuple[str, ...] = ()
    """What the user should know of what was read."""
    from_trial: bool = True
    """Whether its policies are made from its own; else they are the first of their kind."""

    @classmethod
    def of(cls, found: FoundPolicy) -> Search:
        """The search of the trial whose policy was found. Raises StorageError where nothing says what it ended with."""
        trial = trial_of(found.path) if found.path else None
        if trial is None:
            kind = "policy file" if found.path else "registered policy"
            raise StorageError(
                f"{found.name} is a {kind}, which does not say what its search ended with; give SWEEP/TRIAL, such "
                f"as quickstart/t0003."
            )
        store, trial_id = trial
        choices = store.choices(trial_id)
        found.record.policy.check_covers(choices.layers)
        return cls(name=found.name, own=found.record, choices=choices, work=work_of(found.record))

    @classmethod
    def of_indicators(cls, request: IndicatorRequest) -> Search:
        """What LIMPQ's search would choose from: scores from the file, for the layers of the network.

        Its own policy has the best widths whatever they cost. Raises ConfigError for a file that does not fit.
        """
        found = Indicators.load(request.path)
        offer = api.offer(
            request.network, request.widths, image_size=request.image_size, num_classes=request.num_classes
        )
        indicators, prefix = found.without_prefix(offer.choices.layers)
        try:
            choices = indicators.choices(offer.choices, alpha=request.alpha)
            excluded = indicators.excluded(offer.choices)
        except ConfigError as error:
            raise ConfigError(f"{request.path}: {error}") from None
        taken = (f"Layers' names begin with {prefix!r} in {request.path}; that was taken off.",) if prefix else ()
        own = PolicyRecord.measured(
            choices.best,
            offer.work,
            method=INDICATOR_METHOD,
            settings=_settings(request),
            image_size=request.image_size,
            num_classes=request.num_classes,
        )
        return cls(
            name="no limit",
            own=own,
            choices=choices,
            work=offer.work if request.macs == "exact" else offer.limpq_work,
            notes=(*taken, *(f"{one}." for one in excluded)),
            from_trial=False,
        )

    def solve(self, budget: BudgetConfig) -> Solved:
        """The best policy within `budget`. Raises InfeasibleBudgetError with the floor."""
        policy = self._within(budget)
        return Solved(
            record=self._record(policy, budget),
            score_lost=self.choices.score(self.choices.best) - self.choices.score(policy),
            counted=self.work.of(policy),
        )

    def tradeoff(self, budget: BudgetConfig, points: int) -> list[Solved]:
        """The best policies within `budget` for `points` limits of the BOPs, fewest first, each once.

        The limits lie between the BOPs of the smallest widths and those of the best policy, each the same factor above
        the one before.
        """
        most = self.work.bops_g(self._within(budget))
        least = self.work.bops_g(self.choices.smallest)
        # Rounding must put no limit below the floor.
        limits = [max(least, least * (most / least) ** (place / (points - 1))) for place in range(points - 1)]
        found = [self.solve(dataclasses.replace(budget, bops_g=limit)) for limit in [*limits, most]]
        return list({one.record.policy.hash: one for one in found}.values())

    def _within(self, budget: BudgetConfig) -> BitPolicy:
        """The best policy. What the search offered is settled, so only another limit can help."""
        costs = self.work.of(self.choices.smallest)
        problems = {name: _infeasible(name, budget.limits[name], costs[name]) for name in budget.broken(costs)}
        if problems:
            raise InfeasibleBudgetError(problems)
        return allocate(self.choices, self.work, budget)

    def _record(self, policy: BitPolicy, budget: BudgetConfig) -> PolicyRecord:
        if self.from_trial:
            limits = (f"solve {name}={limit:.10g}" for name, limit in budget.limits.items())
            return derived(dataclasses.replace(self.own, changes=()), policy, tuple(limits))
        return dataclasses.replace(
            self.own,
            policy=policy,
            costs=all_costs(policy, work_of(self.own)),
            settings={**self.own.settings, "budget": budget.limits},
        )


def _settings(request: IndicatorRequest) -> dict[str, Any]:
    return {
        "indicators": str(request.path),
        "alpha": request.alpha,
        "macs": request.macs,
        "weight_bits": list(request.widths.weight_bits),
        "act_bits": list(request.widths.act_bits),
    }


def _infeasible(name: str, limit: float, reached: float) -> str:
    floor = named_floor(name, reached)
    return (
        f"{name}: the limit is {limit:.10g}, but with the smallest widths that the search offered it is still {floor}; "
        f"give {'at most' if name in AT_LEAST else 'at least'} {floor}."
    )
