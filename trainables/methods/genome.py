"""Policies as a black-box search writes them: a width for each weight and each activation that has a choice.

What a search writes down need not keep the budget. As in HAQ (Wang et al. 2019) it is then made to: widths are lowered
in turn, from the first layer on, until every limit is kept.

DEVIATION: HAQ leaves it at that. Here widths are afterwards raised in turn, as long as all limits are kept, so that
every policy takes what the budget allows: none that is tried has a width that could be raised alone. A policy of that
kind is left as it is, so each of them can be written down.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainables.allocate import ceilings
from trainables.bops import COUNT_OF, CostModel, Counts
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.policy import BitPolicy

Widths = Mapping[str, int]
"""Bits by gene."""


class Genome:
    """The genes of some choices, in order of execution: a group's activation, then the weights of its first layer."""

    def __init__(self, choices: Choices, costs: CostModel, budget: BudgetConfig) -> None:
        """Raises InfeasibleBudgetError where no policy keeps the budget."""
        self._choices, self._costs = choices, costs
        self._limits = ceilings(choices, costs, budget)
        self._fixed: dict[str, int] = {}
        self.genes: dict[str, tuple[int, ...]] = {}
        """Widths on offer, ascending."""
        for layer, group in choices.group_of.items():
            for gene, scores in ((_act(group), choices.acts[group]), (_weight(layer), choices.weights[layer])):
                widths = tuple(sorted(scores.widths))
                if len(widths) == 1:
                    self._fixed[gene] = widths[0]
                else:
                    self.genes[gene] = widths

    def policy(self, widths: Widths) -> BitPolicy:
        """The policy of these widths."""
        found = {**self._fixed, **widths}
        return self._choices.policy(
            {layer: found[_weight(layer)] for layer in self._choices.weights},
            {group: found[_act(group)] for group in self._choices.acts},
        )

    def within(self, wanted: Widths) -> dict[str, int]:
        """`wanted` made to keep every limit and to use what they allow, as the module's text tells."""
        widths = dict(wanted)
        self._lower(widths)
        raised = True
        while raised:
            raised = False
            for gene, offered in self.genes.items():
                place = offered.index(widths[gene]) + 1
                if place < len(offered) and not self._broken(self._counts({**widths, gene: offered[place]})):
                    widths[gene], raised = offered[place], True
        return widths

    def _lower(self, widths: dict[str, int]) -> None:
        counts = self._counts(widths)
        while self._broken(counts):
            for gene, offered in self.genes.items():
                broken, place = self._broken(counts), offered.index(widths[gene])
                if not broken:
                    return
                if place == 0:
                    continue
                fewer = self._counts({**widths, gene: offered[place - 1]})
                # An activation's width does nothing for a limit on the storage.
                if any(getattr(fewer, count) < getattr(counts, count) for count in broken):
                    widths[gene], counts = offered[place - 1], fewer

    def _counts(self, widths: Widths) -> Counts:
        return self._costs.counts(self.policy(widths))

    def _broken(self, counts: Counts) -> list[str]:
        """Counts that are beyond a limit."""
        return [COUNT_OF[name] for name, most in self._limits.items() if getattr(counts, COUNT_OF[name]) > most]


def _act(group: str) -> str:
    return f"activation {group}"


def _weight(layer: str) -> str:
    return f"weight {layer}"
