"""A finished search solved again for other budgets: what it ended with lies beside its policy. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from service.policies import FoundPolicy, derived, work_of
from trainables.allocate import allocate
from trainables.bops import CostModel
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.errors import StorageError
from trainables.policy import BitPolicy
from trainables.policy_file import PolicyRecord

CHOICES_FILE = "choices.json"


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
    def beside(cls, found: FoundPolicy) -> Search:
        """The search whose choices lie in the folder of a policy. Raises StorageError where there are none."""
        path = found.path.parent / CHOICES_FILE
        if not path.exists():
            raise StorageError(
                f"{found.name} has no {CHOICES_FILE} beside its policy to solve again: give SWEEP/TRIAL "
                f"of a finished trial; one of an earlier version has to be searched again, under another name."
            )
        choices = Choices.load(path)
        found.record.policy.check_covers(choices.layers)
        return cls(own=found.record, choices=choices, work=work_of(found.record))

    def solve(self, budget: BudgetConfig) -> Solved:
        """The most probable policy within `budget`. Raises InfeasibleBudgetError with the floor."""
        policy = allocate(self.choices, self.work, budget)
        limits = (f"solve {name}={limit:.10g}" for name, limit in budget.limits.items())
        return self._solved(policy, tuple(limits))

    def tradeoff(self, budget: BudgetConfig, points: int) -> list[Solved]:
        """The most probable policies within `budget` for `points` limits of the BOPs, fewest first, each once.

        The limits lie between the BOPs of the smallest widths and those of the most probable policy, each the same
        factor above the one before.
        """
        most = self.work.bops_g(allocate(self.choices, self.work, budget))
        least = self.work.bops_g(self.choices.smallest)
        # Rounding must put no limit below the floor.
        limits = [max(least, least * (most / least) ** (place / (points - 1))) for place in range(points - 1)]
        found = [self.solve(dataclasses.replace(budget, bops_g=limit)) for limit in [*limits, most]]
        return list({one.record.policy.hash: one for one in found}.values())

    def _solved(self, policy: BitPolicy, changes: tuple[str, ...]) -> Solved:
        record = derived(dataclasses.replace(self.own, changes=()), policy, changes)
        return Solved(record=record, nats_lost=self.choices.score(self.choices.best) - self.choices.score(policy))
