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
from trainables.exclusion import Offered, offered_within
from trainables.indicators import Indicators
from trainables.method_config import METHOD_CONFIGS, SensitivityConfig, WidthsConfig
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
        """The search of the trial whose policy was found.

        Raises StorageError where nothing says what it ended with, ConfigError where that leaves nothing to choose.
        """
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
        if all(len(scores.widths) == 1 for scores in (*choices.weights.values(), *choices.acts.values())):
            raise ConfigError(
                f"{found.name}: its search ({found.record.method}) left a single width everywhere, so that there is "
                f"nothing to choose from; run a trial with the budget that is wanted."
            )
        work = work_of(found.record)
        return cls(
            name=found.name, own=found.record, choices=choices, work=work, notes=_settled(found.record, choices, work)
        )

    @classmethod
    def of_indicators(cls, request: IndicatorRequest, budget: BudgetConfig) -> Search:
        """What LIMPQ's search would choose from within `budget`: scores from the file, for the network's layers.

        Its own policy has the best widths whatever they cost. Raises ConfigError for a file that does not fit.
        """
        found = Indicators.load(request.path)
        offer = api.offer(
            request.network, request.widths, image_size=request.image_size, num_classes=request.num_classes
        )
        indicators, prefix = found.without_prefix(offer.choices.layers)
        work = offer.work if request.macs == "exact" else offer.limpq_work
        try:
            best = indicators.choices(offer.choices, alpha=request.alpha).best
            offered = offered_within(indicators, offer.choices, work, alpha=request.alpha, budget=budget)
        except ConfigError as error:
            raise ConfigError(f"{request.path}: {error}") from None
        taken = (f"Layers' names begin with {prefix!r} in {request.path}; that was taken off.",) if prefix else ()
        own = PolicyRecord.measured(
            best,
            offer.work,
            method=INDICATOR_METHOD,
            settings=_settings(request),
            image_size=request.image_size,
            num_classes=request.num_classes,
        )
        return cls(
            name="no limit",
            own=own,
            choices=offered.choices,
            work=work,
            notes=(*taken, *_left_out(offered, within_reach=not budget.broken(work.of(offered.choices.smallest)))),
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
        """The best policy. What there is to choose from is settled, so only another limit can help."""
        costs = self.work.of(self.choices.smallest)
        smallest = "the smallest widths that " + (
            "the search left to choose from" if self.from_trial else "are offered"
        )
        problems = {
            name: _infeasible(name, budget.limits[name], costs[name], smallest=smallest)
            for name in budget.broken(costs)
        }
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
        "pinned": dict(request.network.pinned),
    }


def _settled(record: PolicyRecord, choices: Choices, work: CostModel) -> tuple[str, ...]:
    """What MPQCO and HAWQ chose of activations before they chose weights."""
    config = METHOD_CONFIGS.get(record.method)
    if not config or not issubclass(config, SensitivityConfig) or len(record.settings.get("act_bits", (2, 3))) == 1:
        return ()
    tied = any(group != work.work[name].reads for name, group in choices.group_of.items())
    pinned = {work.work[name].stream if tied else work.work[name].reads for name in choices.pinned}
    widths = {width for group, scores in choices.acts.items() if group not in pinned for width in scores.widths}
    if len(widths) != 1:
        return ()
    return (f"Activations stay at {widths.pop()} bits, as the search chose for its own budget; a trial chooses anew.",)


def _left_out(offered: Offered, *, within_reach: bool) -> list[str]:
    """What came back is of no interest where the limits are out of reach with it too."""
    back = [f"{one.what} are on offer although excluded: no policy keeps the limits without." for one in offered.back]
    return [*(f"{one}." for one in offered.excluded), *(back if within_reach else [])]


def _infeasible(name: str, limit: float, reached: float, *, smallest: str) -> str:
    floor = named_floor(name, reached)
    return (
        f"{name}: the limit is {limit:.10g}, but with {smallest} it is still {floor}; "
        f"give {'at most' if name in AT_LEAST else 'at least'} {floor}."
    )
