"""Widths that indicators exclude: which come back for a budget, against all ways to bring widths back."""

import itertools
import random
from dataclasses import replace

import pytest

from tests.science.test_allocate import random_problem
from trainables.allocate import allocate
from trainables.bops import CostModel
from trainables.choices import Choices, Scores
from trainables.config import BudgetConfig
from trainables.errors import InfeasibleBudgetError
from trainables.exclusion import offered_within
from trainables.indicators import Indicators

WIDTHS = (2, 3, 4)


def problem(seed: int) -> tuple[Indicators, Choices, CostModel]:
    """A small network whose indicators are in any order."""
    rng = random.Random(seed)
    choices, costs = random_problem(seed, layers=3)
    free = Scores(WIDTHS, (0.0,) * 3)
    template = replace(
        choices,
        weights=dict.fromkeys(choices.weights, free),
        acts={group: free if len(scores.widths) > 1 else scores for group, scores in choices.acts.items()},
    )

    def values() -> dict[str, dict[int, float]]:
        return {name: {width: rng.random() for width in WIDTHS} for name in template.weights}

    return Indicators(values(), values()), template, costs


def test_nothing_comes_back_where_the_budget_can_be_kept_without() -> None:
    for seed in range(10):
        indicators, template, costs = problem(seed)
        plain = indicators.choices(template, alpha=3.0)
        for budget in (BudgetConfig(), BudgetConfig(bops_g=costs.bops_g(plain.smallest))):
            found = offered_within(indicators, template, costs, alpha=3.0, budget=budget)
            assert (found.choices, found.excluded, found.back) == (plain, indicators.excluded(template), ())


def test_a_budget_at_the_networks_floor_is_kept_and_one_below_it_names_that_floor() -> None:
    for seed in range(10):
        indicators, template, costs = problem(seed)
        floor = costs.bops_g(template.smallest)
        found = offered_within(indicators, template, costs, alpha=2.0, budget=BudgetConfig(bops_g=floor))
        assert allocate(found.choices, costs, BudgetConfig(bops_g=floor)) == template.smallest
        below = offered_within(indicators, template, costs, alpha=2.0, budget=BudgetConfig(bops_g=floor / 2))
        assert below.choices.smallest == template.smallest
        with pytest.raises(InfeasibleBudgetError, match="with the smallest widths everywhere"):
            allocate(below.choices, costs, BudgetConfig(bops_g=floor / 2))


def test_what_comes_back_is_needed_and_as_dear_as_the_smallest_width_that_was_left() -> None:
    checked = 0
    for seed in range(30):
        indicators, template, costs = problem(seed)
        plain = indicators.choices(template)
        low, high = (costs.of(choices.smallest) for choices in (template, plain))
        if low == high:
            continue
        names = ("bops_g", "storage_mb", "mean_act_bits")
        budget = BudgetConfig(**{name: 0.5 * (low[name] + high[name]) for name in names[: 1 + seed % 3]})
        found = offered_within(indicators, template, costs, alpha=2.0, budget=budget)
        assert {*found.back, *found.excluded} == set(indicators.excluded(template))
        assert bool(found.back) == bool(budget.broken(high))
        assert not budget.broken(costs.of(allocate(found.choices, costs, budget)))
        for before, after in itertools.chain(
            zip(plain.weights.values(), found.choices.weights.values(), strict=True),
            zip(plain.acts.values(), found.choices.acts.values(), strict=True),
        ):
            kept = {width: after.of(width) for width in before.widths}
            assert kept == dict(zip(before.widths, before.values, strict=True))
            again = set(after.widths) - set(before.widths)
            assert all(
                width < min(before.widths) and after.of(width) == before.of(min(before.widths)) for width in again
            )
        for one in found.back:
            side = "weights" if one.kind == "weight" else "acts"
            scores = getattr(found.choices, side)
            fewer = [width for width in scores[one.owner].widths if width != one.width]
            short = Scores(tuple(fewer), tuple(scores[one.owner].of(width) for width in fewer))
            without = replace(found.choices, **{side: {**scores, one.owner: short}})
            assert budget.broken(costs.of(without.smallest))
            checked += 1
    assert checked > 20


def test_layers_that_the_budget_does_not_need_keep_their_wider_widths() -> None:
    """Two layers alike, of which one has to have 2 bits: the one whose indicator is less wrong."""
    _, template, costs = problem(0)
    names = list(template.weights)
    values = {name: {2: 0.1, 3: 0.3, 4: 0.2} for name in names}
    values[names[1]] = {2: 0.29, 3: 0.3, 4: 0.2}
    acts = {name: {2: 0.4, 3: 0.3, 4: 0.2} for name in names}
    indicators = Indicators(values, acts)
    plain = costs.counts(indicators.choices(template).smallest)
    budget = BudgetConfig(storage_mb=(plain.weight_bits - 1) / 8e6)
    found = offered_within(indicators, template, costs, alpha=2.0, budget=budget)
    assert [(one.owner, one.width) for one in found.back] == [(names[1], 2)]
    assert {name: scores.widths for name, scores in found.choices.weights.items()} == {
        name: (2, 3, 4) if name == names[1] else (3, 4) for name in names
    }


def test_what_a_large_layer_makes_needless_is_left_out_again() -> None:
    """Small layers come back first, as their indicators are less wrong, but free too little."""
    _, template, costs = problem(0)
    *small, large = template.weights
    sizes = {**dict.fromkeys(small, 10), large: 100}
    work = {name: replace(of, weights=sizes.get(name, of.weights)) for name, of in costs.work.items()}
    costs = CostModel(work, 0)
    values = {name: {2: 0.2 if name in small else 0.1, 3: 0.3, 4: 0.2} for name in sizes}
    indicators = Indicators(values, {name: {2: 0.4, 3: 0.3, 4: 0.2} for name in sizes})
    plain = costs.counts(indicators.choices(template).smallest)
    budget = BudgetConfig(storage_mb=(plain.weight_bits - 60) / 8e6)
    found = offered_within(indicators, template, costs, alpha=2.0, budget=budget)
    assert [one.owner for one in found.back] == [large]
    assert {one.owner for one in found.excluded} == set(small)
