"""A finished search solved again for other budgets: the storage has what it ended with. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from service.policies import FoundPolicy, derived, trial_of, work_of
from trainables.allocate import allocate
from trainables.bops import CostModel
from trainables.choices import Choices
from trainables.config import AT_LEAST, BudgetConfig, named_floor
from trainables.errors import InfeasibleBudgetError, StorageError
from trainables.policy import BitPolicy
from trainables.policy_file import PolicyRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """A policy of the search for one budget."""

    record: PolicyRecord
    nats_lost: float
    """How much less probable its bits are than the most probable ones: the difference of Σ log π."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What a search ended with, and the policy that was made of it."""

    own: PolicyRecord
    choices: Choices
    work: CostModel

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
        return cls(own=found.record, choices=choices, work=work_of(found.record))

    def solve(self, budget: BudgetConfig) -> Solved:
        """The most probable policy within `budget`. Raises InfeasibleBudgetError with the floor."""
        policy = self._within(budget)
        limits = (f"solve {name}={limit:.10g}" for name, limit in budget.limits.items())
        return self._solved(policy, tuple(limits))

    def tradeoff(self, budget: BudgetConfig, points: int) -> list[Solved]:
        """The most probable policies within `budget` for `points` limits of the BOPs, fewest first, each once.

        The limits lie between the BOPs of the smallest widths and those of the most probable policy, each the same
        factor above the one before.
        """
        most = self.work.bops_g(self._within(budget))
        least = self.work.bops_g(self.choices.smallest)
        # Rounding must put no limit below the floor.
        limits = [max(least, least * (most / least) ** (place / (points - 1))) for place in range(points - 1)]
        found = [self.solve(dataclasses.replace(budget, bops_g=limit)) for limit in [*limits, most]]
        return list({one.record.policy.hash: one for one in found}.values())

    def _within(self, budget: BudgetConfig) -> BitPolicy:
        """The most probable policy. What the search offered is settled, so only another limit can help."""
        costs = self.work.of(self.choices.smallest)
        problems = {name: _infeasible(name, budget.limits[name], costs[name]) for name in budget.broken(costs)}
        if problems:
            raise InfeasibleBudgetError(problems)
        return allocate(self.choices, self.work, budget)

    def _solved(self, policy: BitPolicy, changes: tuple[str, ...]) -> Solved:
        record = derived(dataclasses.replace(self.own, changes=()), policy, changes)
        return Solved(record=record, nats_lost=self.choices.score(self.choices.best) - self.choices.score(policy))


def _infeasible(name: str, limit: float, reached: float) -> str:
    floor = named_floor(name, reached)
    return (
        f"{name}: the limit is {limit:.10g}, but with the smallest widths that the search offered it is still {floor}; "
        f"give {'at most' if name in AT_LEAST else 'at least'} {floor}."
    )
