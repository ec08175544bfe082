"""Uniform and random policies, and BP-NAS's barrier, on a real network: brute force, windows and expected costs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from trainables.allocate import allocate
from trainables.choices import Choices
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.data import load_data
from trainables.distributed import Workers
from trainables.errors import ConfigError, InfeasibleBudgetError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import BpnasConfig, EdmipsConfig, RandomConfig, UniformConfig
from trainables.methods import drawn, edmips, search, uniform
from trainables.policy import BitPolicy, LayerBits
from trainables.reference import Bench, untrained_bench
from trainables.survey import survey
from trainables.survey_report import check_budget

LIMITS = tuple(field.name for field in dataclasses.fields(BudgetConfig))
PLAIN = NetworkConfig(name="resnet8")
PINNED = NetworkConfig(
    name="resnet8", stem_bits=6, pinned={"layer2.*.downsample.*": 5, "layer3.0.conv2": 3}, tie_residuals=True
)


def config(network: NetworkConfig, *, seed: int = 0) -> TrialConfig:
    return TrialConfig(
        network=network,
        data=DataConfig(name="digits", image_size=8, fraction=0.3),
        reference=ReferenceConfig(epochs=1),
        method=UniformConfig(),
        finetune=FinetuneConfig(epochs=1, batch_size=128),
        seed=seed,
    )


def bench_of(network: NetworkConfig) -> Bench:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trial = config(network)
    return untrained_bench(trial, load_data(trial.data), Workers(0, 1, torch.device("cpu")))


@pytest.fixture(scope="module", params=[PLAIN, PINNED], ids=["plain", "pinned and tied"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return bench_of(request.param)


def everywhere(bench: Bench, weight: int, act: int) -> BitPolicy:
    """The policy of one pair, built by hand from the roles of the layers."""
    bits = {name: LayerBits(b, b) for name, b in bench.roles.pinned.items()}
    for name in bench.roles.searched:
        bits[name] = LayerBits(weight, bench.roles.fixed_acts.get(bench.roles.group_of[name], act))
    return BitPolicy(
        network="resnet8", bits={name: bits[name] for name in bench.costs.layers}, pinned=frozenset(bench.roles.pinned)
    )


def budgets(bench: Bench, widths: tuple[int, ...]) -> list[BudgetConfig]:
    """Each limit alone, and several together, at random between the ends of what the pairs cost."""
    draw = random.Random(0)
    ends = [bench.costs.of(everywhere(bench, end(widths), end(widths))) for end in (min, max)]
    found = []
    for names in [(name,) for name in LIMITS] * 6 + [LIMITS] * 6 + [("storage_mb", "mean_act_bits")] * 6:
        values = {}
        for name in names:
            (low, high), share = sorted(end[name] for end in ends), draw.random()
            values[name] = low + share * (high - low)
        found.append(BudgetConfig(**values))
    # Limits that one pair meets exactly.
    exact = [bench.costs.of(everywhere(bench, *pair)) for pair in itertools.product(widths, repeat=2)]
    return found + [BudgetConfig(bops_g=cost["bops_g"], compression=cost["compression"]) for cost in exact]


def test_uniform_bits_are_those_that_brute_force_over_all_pairs_finds(bench: Bench) -> None:
    weights, acts = (2, 3, 4, 6, 8), (8, 2, 5, 3)
    settings = UniformConfig(weight_bits=weights, act_bits=acts)
    chosen = set()
    for budget in [BudgetConfig(), *budgets(bench, weights)]:
        kept = []
        for weight, act in itertools.product(weights, acts):
            policy = everywhere(bench, weight, act)
            if not budget.broken(bench.costs.of(policy)):
                kept.append((min(weight, act), bench.costs.bops_g(policy), act, policy))
        if not kept:
            with pytest.raises(InfeasibleBudgetError, match="with the smallest widths everywhere"):
                uniform.search(bench, settings, budget)
            continue
        best = max(kept, key=lambda entry: entry[:3])[3]
        found = allocate(uniform.search(bench, settings, budget), bench.costs, budget)
        assert found == best
        chosen.add(found.hash)
    assert len(chosen) > 8


def test_a_uniform_budget_below_the_floor_names_the_floor(bench: Bench) -> None:
    floor = bench.costs.bops_g(everywhere(bench, 2, 2))
    with pytest.raises(InfeasibleBudgetError, match=r"budget\.bops_g is .* give at least"):
        uniform.search(bench, UniformConfig(), BudgetConfig(bops_g=0.9 * floor))


def random_policy(bench: Bench, budget: BudgetConfig, *, seed: int = 0, draw: int = 0) -> BitPolicy:
    bench = replace(bench, config=replace(bench.config, seed=seed))
    return allocate(drawn.search(bench, RandomConfig(draw=draw), budget), bench.costs, budget)


def midway(bench: Bench, share: float = 0.5) -> float:
    low, high = (bench.costs.bops_g(everywhere(bench, b, b)) for b in (2, 4))
    return low + share * (high - low)


def test_random_policies_repeat_and_differ_by_seed_and_by_draw(bench: Bench) -> None:
    budget = BudgetConfig(bops_g=midway(bench))
    found = {(seed, draw): random_policy(bench, budget, seed=seed, draw=draw) for seed in (0, 1) for draw in range(4)}
    assert found[1, 2] == random_policy(bench, budget, seed=1, draw=2)
    assert len({policy.hash for policy in found.values()}) >= 7
    for policy in found.values():
        assert 0.97 * budget.bops_g <= bench.costs.bops_g(policy) <= budget.bops_g
        assert {name: policy.bits[name] for name in policy.pinned} == {
            name: LayerBits(b, b) for name, b in bench.roles.pinned.items()
        }
        for group, members in bench.roles.groups.items():
            acts = {policy.bits[name].act for name in members}
            assert acts == {bench.roles.fixed_acts[group]} if group in bench.roles.fixed_acts else len(acts) == 1


@pytest.mark.parametrize("name", ["bops_g", "bops_paper_g", "compression"])
def test_a_random_policy_takes_nearly_all_bops_whichever_limit_names_them(bench: Bench, name: str) -> None:
    low, high = (bench.costs.of(everywhere(bench, b, b))[name] for b in (2, 4))
    # Of compression the middle of costs, not of ratios.
    limit = 2 / (1 / low + 1 / high) if name == "compression" else (low + high) / 2
    unsearched = bench.costs.counts(everywhere(bench, 2, 2))
    for draw in range(3):
        policy = random_policy(bench, BudgetConfig(**{name: limit}), draw=draw)
        spent = bench.costs.of(policy)[name]
        used = limit / spent if name == "compression" else spent / limit
        # What is not searched takes part in the window, and not in the paper's BOPs.
        slack = 0.03 * (1 + (unsearched.bops - unsearched.searched_bops) / unsearched.searched_bops)
        assert 1 - slack <= used <= 1


def test_several_limits_are_kept_together(bench: Bench) -> None:
    middle = bench.costs.of(everywhere(bench, 3, 3))
    budget = BudgetConfig(
        bops_g=middle["bops_g"],
        storage_mb=1.02 * middle["storage_mb"],
        mean_act_bits=1.05 * middle["mean_act_bits"],
    )
    policies = [random_policy(bench, budget, draw=draw) for draw in range(6)]
    for policy in policies:
        spent = bench.costs.of(policy)
        assert budget.broken(spent) == []
        assert spent["bops_g"] >= 0.97 * budget.bops_g
    # Without the other limits some of the draws would break them.
    free = [random_policy(bench, BudgetConfig(bops_g=budget.bops_g), draw=draw) for draw in range(12)]
    assert any(budget.broken(bench.costs.of(policy)) for policy in free)


def test_random_policies_that_cannot_be_are_told_with_what_to_give(bench: Bench) -> None:
    most, floor = bench.costs.of(everywhere(bench, 4, 4)), bench.costs.of(everywhere(bench, 2, 2))
    with pytest.raises(ConfigError, match=r"all cost between .*; give BOPs within that"):
        random_policy(bench, BudgetConfig(bops_g=2 * most["bops_g"]))
    with pytest.raises(InfeasibleBudgetError, match=r"budget\.bops_g is .* give at least"):
        random_policy(bench, BudgetConfig(bops_g=0.5 * floor["bops_g"]))
    loose = BudgetConfig(compression=0.5 * most["compression"])
    with pytest.raises(
        ConfigError, match=r"budget\.compression is .*, which leaves .* G BOPs, .*; give BOPs within that"
    ):
        random_policy(bench, loose)
    # Nearly all BOPs with the smallest weights: no policy has both.
    both = BudgetConfig(bops_g=0.99 * most["bops_g"], storage_mb=floor["storage_mb"])
    told = r"of 256 random policies .* none keeps budget\.storage_mb as well; allow more of it, or fewer BOPs"
    with pytest.raises(ConfigError, match=told):
        random_policy(bench, both)


def expected_bops(bench: Bench, choices: Choices) -> float:
    """Of a network whose widths are drawn with their probabilities, each layer's own; BOPs, 10^9."""
    means: dict[str, Callable[[str], float]] = {
        "weight": lambda name: mean_of(choices.weights[name].widths, choices.weights[name].values),
        "act": lambda name: mean_of(*_of_group(choices, name)),
    }
    total = bench.costs.counts(choices.smallest).bops - bench.costs.counts(choices.smallest).searched_bops
    return (
        total + sum(bench.costs.work[n].macs * means["weight"](n) * means["act"](n) for n in bench.roles.searched)
    ) / 1e9


def _of_group(choices: Choices, name: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    scores = choices.acts[choices.group_of[name]]
    return scores.widths, scores.values


def mean_of(widths: tuple[int, ...], log_probs: tuple[float, ...]) -> float:
    return math.fsum(width * math.exp(value) for width, value in zip(widths, log_probs, strict=True))


def test_bpnas_ends_with_an_expected_cost_within_the_budget_where_edmips_does_not() -> None:
    bench = bench_of(PLAIN)
    budget = BudgetConfig(bops_g=midway(bench, 0.2))
    shared = {"zeta": 0.0, "epochs": 3, "batch_size": 64, "bit_lr": 0.05}
    free = edmips.search(bench, EdmipsConfig(**shared), budget, lambda epoch: None)
    trial = replace(config(PLAIN), method=BpnasConfig(**shared, barrier=1.0), budget=budget)
    kept = search(bench, trial, lambda epoch: None)
    assert expected_bops(bench, free) > budget.bops_g >= expected_bops(bench, kept)
    for choices in (free, kept):
        assert budget.broken(bench.costs.of(allocate(choices, bench.costs, budget))) == []
    with pytest.raises(ConfigError, match="bpnas chooses bits for a budget, and there is none"):
        replace(trial, budget=BudgetConfig())
    with pytest.raises(ConfigError, match=r"method\.barrier is 0\.0"):
        BpnasConfig(zeta=0.0, barrier=0.0)


def test_a_random_policy_needs_a_limit_on_bit_operations() -> None:
    trial = replace(config(PLAIN), method=RandomConfig(), budget=BudgetConfig(bops_g=1.0))
    with pytest.raises(ConfigError, match=r"random chooses bits for a budget, .* give one of bops_g, bops_paper_g"):
        replace(trial, budget=BudgetConfig(storage_mb=1.0))


def test_a_budget_that_random_cannot_draw_a_policy_of_is_known_before_anything_is_trained() -> None:
    """Above the dearest policy; and in a gap, with two widths for the activations alone of few layers."""
    bench, data = bench_of(PLAIN), load_data(config(PLAIN).data)
    trial = replace(config(PLAIN), method=RandomConfig(), budget=BudgetConfig(bops_g=midway(bench)))
    assert survey(trial, data).search_steps == 1
    with pytest.raises(ConfigError, match=r"budget\.bops_g is .* all cost between .*; give BOPs within that"):
        survey(replace(trial, budget=BudgetConfig(bops_g=midway(bench, 1.2))), data)
    network = NetworkConfig(name="resnet8", pinned={"layer[12].*": 4, "layer3.0.conv1": 4, "layer3.*.downsample.*": 4})
    apart = replace(trial, network=network, method=RandomConfig(weight_bits=(2, 8), act_bits=(8,)))
    low, high = survey(replace(apart, method=UniformConfig(weight_bits=(2, 8), act_bits=(8,))), data).reach["bops_g"]
    assert low < 0.9 * high
    with pytest.raises(ConfigError, match=r"budget\.bops_g is .* those nearest to it cost .*; give the BOPs of one of"):
        survey(replace(apart, budget=BudgetConfig(bops_g=(low + high) / 2)), data)
    # What is below the floor is told by `check_budget`, with all limits.
    below = replace(trial, budget=BudgetConfig(bops_g=0.5 * midway(bench, 0.0)))
    with pytest.raises(InfeasibleBudgetError, match=r"budget\.bops_g is"):
        check_budget(below, survey(below, data))
