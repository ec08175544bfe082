"""Widths that indicators exclude come back where no policy keeps the budget without them. No torch.

Only widths below the smallest that is left on offer can help. They come back one by one, least regret first, until the
smallest widths keep the budget; what then turns out not to be needed is left out again. A width that came back is as
dear as the smallest that was left, its own indicator being no guide: between the two allocation takes the one of fewer
BOPs, and in layers whose widths did not come back nothing changes. The regret is the score that this takes off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainables.bops import CostModel
from trainables.choices import Choices, Scores
from trainables.config import BudgetConfig
from trainables.indicators import Excluded, Indicators


@dataclass(frozen=True, slots=True)
class Offered:
    """What indicators leave to choose from within a budget."""

    choices: Choices
    excluded: tuple[Excluded, ...]
    """What is not on offer."""
    back: tuple[Excluded, ...]
    """What the indicators exclude, but the budget needs."""


def offered_within(
    indicators: Indicators, template: Choices, costs: CostModel, *, alpha: float, budget: BudgetConfig
) -> Offered:
    """The widths of `template` with their scores, less those that are excluded and not needed.

    Where no widths keep the budget all that could help are back, so that the floor is the network's. Raises ConfigError
    as `Indicators.choices`.
    """
    plain, excluded = indicators.choices(template, alpha=alpha), indicators.excluded(template)

    def kept(back: Sequence[Excluded]) -> bool:
        return not budget.broken(costs.of(_with(plain, back).smallest))

    helpful = [one for one in excluded if one.width < min(_scores(plain, one).widths)]
    back: list[Excluded] = []
    for one in sorted(helpful, key=lambda one: _regret(plain, one, alpha)):
        if kept(back):
            break
        back.append(one)
    if kept(back):
        for one in reversed(tuple(back)):
            without = [other for other in back if other is not one]
            back = without if kept(without) else back
    return Offered(_with(plain, back), tuple(one for one in excluded if one not in back), tuple(back))


def _scores(choices: Choices, one: Excluded) -> Scores:
    return choices.weights[one.owner] if one.kind == "weight" else choices.acts[one.owner]


def _regret(plain: Choices, one: Excluded, alpha: float) -> float:
    scores = _scores(plain, one)
    own = -one.values[0] * (alpha if one.kind == "weight" else 1.0)
    return own - scores.of(min(scores.widths))


def _with(plain: Choices, back: Sequence[Excluded]) -> Choices:
    weights, acts = dict(plain.weights), dict(plain.acts)
    for one in back:
        side = weights if one.kind == "weight" else acts
        scores, least = side[one.owner], _scores(plain, one)
        value = least.of(min(least.widths))
        side[one.owner] = Scores((one.width, *scores.widths), (value, *scores.values))
    return replace(plain, weights=weights, acts=acts)
