"""Greedy allocation: always within the limits, next to the best on ResNets, the textbook's order on small problems."""

import random

import pytest

from tests.science.resnets import between, choices_of, convex, indicator_like, loss_like, resnet
from tests.science.test_allocate import COSTS, all_policies, random_budget, random_problem
from trainables.allocate import allocate
from trainables.bops import CostModel, LayerWork
from trainables.choices import Choices, Scores
from trainables.config import BudgetConfig
from trainables.errors import InfeasibleBudgetError
from trainables.greedy import allocate_greedily

WITHIN = 0.01
"""Of the loss of the best policy."""


def excess(choices: Choices, costs: CostModel, budget: BudgetConfig) -> float:
    """How much more the greedy policy loses than the best one, as a share. Scores are minus losses."""
    found, best = allocate_greedily(choices, costs, budget), allocate(choices, costs, budget)
    assert budget.broken(costs.of(found)) == []
    return choices.score(found) / choices.score(best) - 1


@pytest.mark.parametrize("limits", [("bops_g",), ("storage_mb",), ("bops_g", "storage_mb")])
@pytest.mark.parametrize("scores", [indicator_like, loss_like])
@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_on_resnets_it_loses_at_most_a_hundredth_more_than_the_best(
    network: str, scores: object, limits: tuple[str, ...]
) -> None:
    costs = resnet(network)
    for seed in range(2):
        choices = choices_of(costs, network, seed, scores)
        budget = BudgetConfig(**between(choices, costs, limits, 0.25 + 0.3 * seed))
        assert -1e-6 <= excess(choices, costs, budget) <= WITHIN


@pytest.mark.parametrize("scores", [indicator_like, loss_like, convex])
def test_with_one_width_for_all_activations_it_is_as_close(scores: object) -> None:
    """As MPQCO and HAWQ have it."""
    costs = resnet("resnet50")
    for seed in range(3):
        choices = choices_of(costs, "resnet50", seed, scores, act_widths=(4,))
        budget = BudgetConfig(**between(choices, costs, ("storage_mb",), 0.2 + 0.2 * seed))
        assert -1e-6 <= excess(choices, costs, budget) <= WITHIN


def test_every_limit_is_kept_and_the_smallest_widths_are_found_where_nothing_else_fits() -> None:
    rng = random.Random(0)
    for seed in range(40):
        choices, costs = random_problem(seed, layers=3)
        policies = all_policies(choices)
        budget = random_budget(rng, [costs.of(policy) for policy in policies], rng.choice([1, 2, 4]))
        if budget.broken(costs.of(choices.smallest)):
            with pytest.raises(InfeasibleBudgetError, match="with the smallest widths everywhere"):
                allocate_greedily(choices, costs, budget)
            continue
        found = allocate_greedily(choices, costs, budget)
        assert budget.broken(costs.of(found)) == []
        assert all(found.bits[name].act == found.bits[group].act for name, group in choices.group_of.items())
        assert allocate_greedily(choices, costs, BudgetConfig()) == choices.best
    floor = {name: costs.of(choices.smallest)[name] for name in COSTS[:1]}
    assert allocate_greedily(choices, costs, BudgetConfig(**floor)) == allocate(choices, costs, BudgetConfig(**floor))


def layers(*weights: int, scores: tuple[Scores, ...]) -> tuple[Choices, CostModel]:
    """Layers of so many weights, between a stem and a head of one."""
    names = ["s", *(f"l{place}" for place in range(len(weights))), "h"]
    sizes = dict(zip(names, (1, *weights, 1), strict=True))
    work = {
        name: LayerWork(kind="conv", macs=1, weights=n, inputs=1, reads_negative=False, reads=name, stream=name)
        for name, n in sizes.items()
    }
    searched = names[1:-1]
    choices = Choices(
        network="net",
        layers=tuple(names),
        weights=dict(zip(searched, scores, strict=True)),
        acts=dict.fromkeys(searched, Scores((8,), (0.0,))),
        group_of={name: name for name in searched},
        pinned={"s": 8, "h": 8},
    )
    return choices, CostModel(work, 0)


def test_the_best_gain_for_its_price_comes_first_and_what_does_not_fit_is_skipped() -> None:
    """Efficiencies 3/100, 2/100, 1/10 per weight and bit; room for 120 weight bits, then for 20."""
    two_to_three = [Scores((2, 3), (-gain, 0.0)) for gain in (3.0, 2.0, 1.0)]
    choices, costs = layers(100, 100, 10, scores=tuple(two_to_three))

    def bits(room: int) -> list[int]:
        floor = costs.counts(choices.smallest).weight_bits
        found = allocate_greedily(choices, costs, BudgetConfig(storage_mb=(floor + room) / 8e6))
        return [found.bits[name].weight for name in choices.weights]

    assert [bits(room) for room in (0, 9, 10, 109, 110, 199, 200, 209)] == [
        [2, 2, 2],
        [2, 2, 2],
        [2, 2, 3],
        [3, 2, 2],
        [3, 2, 3],
        [3, 2, 3],
        [3, 3, 2],
        [3, 3, 2],
    ]


def test_widths_above_the_convex_hull_are_passed_over() -> None:
    """3 bits gain next to nothing, 4 bits all: the hull goes from 2 to 4."""
    choices, costs = layers(10, 10, scores=(Scores((2, 3, 4), (-4.0, -3.9, 0.0)), Scores((2, 3, 4), (-3.0, -1.5, 0.0))))
    floor = costs.counts(choices.smallest).weight_bits
    found = allocate_greedily(choices, costs, BudgetConfig(storage_mb=(floor + 30) / 8e6))
    assert [found.bits[name].weight for name in choices.weights] == [4, 3]
