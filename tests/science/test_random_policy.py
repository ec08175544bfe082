"""Random policies of a given cost: uniform on their window, as brute force counts it, and fast."""

import itertools
import re
import time
from collections import Counter

import pytest
from scipy.stats import chi2

from trainables import random_policy
from trainables.api import count, random_policies
from trainables.bops import CostModel, LayerWork
from trainables.choices import Choices, Scores
from trainables.config import NetworkConfig
from trainables.errors import ConfigError
from trainables.policy import BitPolicy
from trainables.supernet import Roles, assign_roles

SMALL = (2, 3, 4)


def work(macs: int, reads: str) -> LayerWork:
    return LayerWork(kind="conv", macs=macs, weights=macs, inputs=macs, reads_negative=False, reads=reads, stream=reads)


COSTS = CostModel(
    {
        "stem": work(7, "stem"),
        "a": work(11, "a"),
        "b": work(3, "a"),
        "c": work(5, "c"),
        "d": work(17, "d"),
        "head": work(2, "head"),
    },
    0,
)
"""Between stem and head four layers, of which the first two share an activation."""


def choices_of(costs: CostModel, roles: Roles, widths: tuple[int, ...], fixed: dict[str, int] | None = None) -> Choices:
    """With scores that a random draw must not heed."""
    acts = {group: (roles.fixed_acts.get(group) or (fixed or {}).get(group),) for group in roles.groups}
    scores = Scores(widths, tuple(10.0 * width for width in widths))
    return Choices(
        network="net",
        layers=tuple(costs.layers),
        weights=dict.fromkeys(roles.searched, scores),
        acts={group: Scores((a,), (0.0,)) if a else scores for group, (a,) in acts.items()},
        group_of={name: roles.group_of[name] for name in roles.searched},
        pinned=roles.pinned,
    )


def small_choices(fixed: dict[str, int] | None = None) -> Choices:
    return choices_of(COSTS, assign_roles(COSTS, NetworkConfig(name="net")), SMALL, fixed)


def all_policies(choices: Choices) -> list[BitPolicy]:
    weights = itertools.product(*(scores.widths for scores in choices.weights.values()))
    acts = list(itertools.product(*(scores.widths for scores in choices.acts.values())))
    return [
        choices.policy(dict(zip(choices.weights, w, strict=True)), dict(zip(choices.acts, a, strict=True)))
        for w in weights
        for a in acts
    ]


def window(choices: Choices, bops_g: float) -> list[BitPolicy]:
    return [p for p in all_policies(choices) if 0.97 * bops_g <= COSTS.bops_g(p) <= bops_g]


@pytest.mark.parametrize("fixed", [None, {"a": 3}], ids=["searched", "an activation fixed"])
@pytest.mark.parametrize("share", [0.12, 0.4, 0.6, 0.9])
def test_every_policy_of_the_window_is_drawn_as_often_as_every_other(
    share: float, fixed: dict[str, int] | None
) -> None:
    """Chi-square against the enumeration: costs far below the mean, at it, and far above it."""
    choices = small_choices(fixed)
    costs = sorted(COSTS.bops_g(policy) for policy in all_policies(choices))
    bops_g = costs[0] + share * (costs[-1] - costs[0])
    inside = [policy.hash for policy in window(choices, bops_g)]
    assert len(inside) >= 5
    draws = 40 * len(inside)
    drawn = Counter(p.hash for p in random_policies(choices, COSTS, bops_g=bops_g, count=draws, seed=1))
    assert set(drawn) <= set(inside)
    expected = draws / len(inside)
    statistic = sum((drawn[name] - expected) ** 2 / expected for name in inside)
    low, high = chi2.ppf([0.001, 0.999], len(inside) - 1)
    assert low < statistic < high


def test_the_cheapest_and_the_dearest_policy_are_found_where_they_are_alone() -> None:
    choices = small_choices()
    policies = sorted(all_policies(choices), key=COSTS.bops_g)
    for one, bops_g in ((policies[0], COSTS.bops_g(policies[0])), (policies[-1], COSTS.bops_g(policies[-1]) / 0.9701)):
        assert window(choices, bops_g) == [one]
        assert random_policies(choices, COSTS, bops_g=bops_g, count=3, seed=0) == (one,) * 3


def test_the_same_seed_draws_the_same_and_fewer_are_the_first_of_more() -> None:
    choices = small_choices()
    many = random_policies(choices, COSTS, bops_g=8e-7, count=20, seed=5)
    assert random_policies(choices, COSTS, bops_g=8e-7, count=3, seed=5) == many[:3]
    assert random_policies(choices, COSTS, bops_g=8e-7, count=20, seed=(5, 1)) != many


def test_costs_that_no_policy_has_are_told_with_those_that_there_are() -> None:
    choices = small_choices()
    ends = [COSTS.bops_g(policy) for policy in (choices.smallest, choices.best)]
    told = rf"no policy of these widths .* all cost between {ends[0]:g} and {ends[1]:g} G; give BOPs within that"
    for beyond in (0.9 * ends[0], 1.1 * ends[1]):
        with pytest.raises(ConfigError, match=told):
            random_policies(choices, COSTS, bops_g=beyond, count=1, seed=0)


def test_a_gap_between_costs_is_told_with_its_two_sides() -> None:
    """One layer has nearly all the work: costs come in steps."""
    costs = CostModel({**COSTS.work, "d": work(100_000, "d")}, 0)
    choices = choices_of(costs, assign_roles(costs, NetworkConfig(name="net")), SMALL)
    near = [costs.bops_g(p) for p in all_policies(choices)]
    below, above = max(c for c in near if c < 0.0007 * 0.97), min(c for c in near if c > 0.0007)
    with pytest.raises(ConfigError, match=f"nearest to it cost {below:g} G and {above:g} G; give the BOPs of one"):
        random_policies(choices, costs, bops_g=0.0007, count=1, seed=0)


def test_fewer_than_are_wanted_are_told_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = small_choices()
    monkeypatch.setattr(random_policy, "MOST_DRAWS", 1)
    with pytest.raises(
        ConfigError, match=r"^of 1024 policies drawn .* only (\d+) of the 1000 that are wanted"
    ) as error:
        random_policies(choices, COSTS, bops_g=8e-7, count=1000, seed=5)
    found = int(re.search(r"only (\d+) of", str(error.value))[1])  # type: ignore[index]
    assert 0 < found < 1000
    assert len(random_policies(choices, COSTS, bops_g=8e-7, count=found, seed=5)) == found


@pytest.mark.parametrize(("network", "widths"), [("resnet18", SMALL), ("mobilenet_v2", tuple(range(2, 9)))])
@pytest.mark.parametrize("share", [0.02, 0.15, 0.9])
def test_a_policy_of_a_large_network_is_drawn_within_a_second(
    network: str, widths: tuple[int, ...], share: float
) -> None:
    """Where uniform draws would hit the window next to never."""
    costs = count(network, image_size=64, num_classes=10)
    roles = assign_roles(costs, NetworkConfig(name=network, tie_residuals=network == "resnet18"))
    choices = choices_of(costs, roles, widths)
    low, high = costs.bops_g(choices.smallest), costs.bops_g(choices.best)
    bops_g = low + share * (high - low)
    began = time.process_time()
    first, second = random_policies(choices, costs, bops_g=bops_g, count=2, seed=0)
    assert time.process_time() - began < 1
    assert first != second
    assert all(0.97 * bops_g <= costs.bops_g(policy) <= bops_g for policy in (first, second))
