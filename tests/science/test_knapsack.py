"""The exact solver against all policies, against HiGHS, and on networks of ResNet's size."""

import itertools
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from tests.science.resnets import between, choices_of, indicator_like, loss_like, resnet
from tests.science.test_allocate import COSTS, all_policies, random_budget, random_problem, value
from trainables.allocate import allocate, ceilings, solve_within
from trainables.bops import CostModel
from trainables.choices import Choices, Scores
from trainables.config import BudgetConfig
from trainables.errors import InfeasibleBudgetError
from trainables.integer_program import IntegerProgram
from trainables.knapsack import exact
from trainables.knapsack.dual import solve_dual
from trainables.knapsack.problem import Knapsack, tabulate
from trainables.policy import BitPolicy


def solved(choices: Choices, costs: CostModel, budget: BudgetConfig) -> BitPolicy:
    """By the knapsack alone."""
    table = tabulate(choices, costs, ceilings(choices, costs, budget))
    assert table
    found = exact.solve(table.problem)
    assert found
    return table.policy(choices, *found)


def stepped(choices: Choices, rng: random.Random) -> Choices:
    """Scores of a few multiples of a half, so that many sums are equal, exactly."""

    def scores(old: Scores) -> Scores:
        return Scores(old.widths, tuple(rng.randrange(4) / 2 for _ in old.widths))

    weights = {name: scores(old) for name, old in choices.weights.items()}
    return replace(choices, weights=weights, acts={group: scores(old) for group, old in choices.acts.items()})


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_all_policies_within_the_limits_it_finds_the_best_and_of_equals_the_one_with_the_fewest_bops(
    count: int,
) -> None:
    rng = random.Random(count)
    compared = 0
    for seed in range(40):
        choices, costs = random_problem(seed, layers=rng.choice([1, 2, 3]), largest=rng.choice([3, 40, 10**7]))
        choices = stepped(choices, rng)
        policies = all_policies(choices)
        of = {policy.hash: costs.of(policy) for policy in policies}
        budget = random_budget(rng, list(of.values()), count)
        kept = [policy for policy in policies if not budget.broken(of[policy.hash])]
        if not kept or not budget.broken(costs.of(choices.best)):
            continue
        found = solved(choices, costs, budget)
        assert found in kept
        assert choices.score(found) == max(choices.score(policy) for policy in kept)
        equals = [policy for policy in kept if choices.score(policy) == choices.score(found)]
        assert costs.counts(found).bops == min(costs.counts(policy).bops for policy in equals)
        compared += 1
    assert compared >= 10


def test_it_agrees_with_highs_on_larger_problems() -> None:
    rng = random.Random(7)
    compared = 0
    for seed in range(60):
        layers, widths = rng.choice([(6, (2, 3, 4, 5)), (10, (2, 3, 4)), (14, (1, 2, 4, 8))])
        choices, costs = random_problem(seed, layers=layers, widths=widths, largest=rng.choice([30, 10**8]))
        low, high = costs.of(choices.smallest), costs.of(choices.best)
        share = rng.uniform(0.1, 0.9)
        names = rng.sample(COSTS, rng.choice([1, 2, 3]))
        budget = BudgetConfig(**{name: low[name] + (high[name] - low[name]) * share for name in names})
        if not budget.broken(high) or budget.broken(low):
            continue
        found = solved(choices, costs, budget)
        program = IntegerProgram(choices, costs, ceilings(choices, costs, budget)).solve()
        assert budget.broken(costs.of(found)) == []
        assert value(found, choices, costs) == pytest.approx(value(program, choices, costs), abs=1e-9)
        compared += 1
    assert compared >= 25


@pytest.mark.parametrize("limits", [("bops_g",), ("storage_mb",), ("bops_g", "storage_mb")])
@pytest.mark.parametrize("scores", [indicator_like, loss_like])
def test_a_resnet50_is_solved_without_highs_in_a_fraction_of_a_second(limits: tuple[str, ...], scores: object) -> None:
    costs = resnet("resnet50")
    for seed in range(3):
        choices = choices_of(costs, "resnet50", seed, scores)
        budget = BudgetConfig(**between(choices, costs, limits, 0.2 + 0.2 * seed))
        began = time.process_time()
        found = solved(choices, costs, budget)
        assert time.process_time() - began < 0.5
        assert budget.broken(costs.of(found)) == []
        spent = costs.of(found)
        assert max(spent[name] / getattr(budget, name) for name in limits) > 0.999


def test_a_resnet50_has_the_score_that_highs_finds() -> None:
    costs = resnet("resnet50")
    choices = choices_of(costs, "resnet50", 3, loss_like)
    for limits in (("storage_mb",), ("bops_g", "storage_mb")):
        budget = BudgetConfig(**between(choices, costs, limits, 0.5))
        program = IntegerProgram(choices, costs, ceilings(choices, costs, budget)).solve()
        assert value(solved(choices, costs, budget), choices, costs) == pytest.approx(
            value(program, choices, costs), rel=1e-9
        )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_dual_is_the_bound_of_the_linear_relaxation(count: int) -> None:
    """Over shares of all ways to choose a group's widths: the relaxation that the multipliers are the dual of."""
    compared = 0
    for seed in range(12):
        choices, costs = random_problem(seed, layers=4)
        low, high = costs.of(choices.smallest), costs.of(choices.best)
        limits = {name: (low[name] + high[name]) / 2 for name in ("bops_g", "storage_mb", "mean_act_bits")[:count]}
        budget = BudgetConfig(**limits)
        if not budget.broken(high) or budget.broken(low):
            continue
        table = tabulate(choices, costs, ceilings(choices, costs, budget))
        assert table
        dual = solve_dual(table.problem)
        assert dual.bound == pytest.approx(relaxed(table.problem), abs=1e-7)
        assert (dual.multipliers >= 0).all()
        assert np.nanmin(dual.reduced) >= 0
        compared += 1
    assert compared >= 6


def relaxed(problem: Knapsack) -> float:
    """The linear relaxation's loss, by HiGHS."""
    rows, losses, counts = [], [], []
    for group, (start, size) in enumerate(zip(problem.starts, problem.sizes, strict=True)):
        for act in np.flatnonzero(np.isfinite(problem.group_loss[group])):
            offered = [np.flatnonzero(np.isfinite(problem.loss[start + place, act])) for place in range(size)]
            for weights in itertools.product(*offered):
                cells = [(start + place, act, weight) for place, weight in enumerate(weights)]
                rows.append(group)
                losses.append(problem.group_loss[group, act] + sum(problem.loss[cell] for cell in cells))
                counts.append([sum(limit[cell] for cell in cells) for limit in problem.counts])
    one_each = np.eye(len(problem.starts))[rows].T
    shares = (np.array(counts) / problem.left).T
    found = linprog(losses, A_ub=shares, b_ub=np.ones(len(shares)), A_eq=one_each, b_eq=np.ones(len(one_each)))
    return float(found.fun)


def test_one_operation_less_than_a_policy_takes_is_another_policy() -> None:
    costs = resnet("resnet50")
    choices = choices_of(costs, "resnet50", 1, indicator_like)
    first = allocate(choices, costs, BudgetConfig(**between(choices, costs, ("bops_g",), 0.4)))
    bops = costs.counts(first).bops
    assert solve_within(choices, costs, {"bops_g": bops}) == first
    below = solve_within(choices, costs, {"bops_g": bops - 1})
    assert costs.counts(below).bops < bops
    assert choices.score(below) < choices.score(first)


def test_what_has_too_many_states_or_too_large_counts_is_left_to_highs(monkeypatch: pytest.MonkeyPatch) -> None:
    choices, costs = random_problem(5, layers=6)
    low, high = costs.of(choices.smallest), costs.of(choices.best)
    budget = BudgetConfig(**{name: (low[name] + high[name]) / 2 for name in ("bops_g", "storage_mb", "mean_act_bits")})
    found = allocate(choices, costs, budget)
    table = tabulate(choices, costs, ceilings(choices, costs, budget))
    assert table
    monkeypatch.setattr(exact, "_QUICK", 1)
    monkeypatch.setattr(exact, "_FULL", 1)
    assert exact.solve(table.problem) is None
    assert value(allocate(choices, costs, budget), choices, costs) == pytest.approx(value(found, choices, costs))
    huge = CostModel({name: replace(work, macs=work.macs * 10**12) for name, work in costs.work.items()}, 0)
    assert tabulate(choices, huge, {"bops_g": 10**30}) is None
    same = allocate(choices, huge, replace(budget, bops_g=budget.bops_g * 1e12))
    assert value(same, choices, costs) == pytest.approx(value(found, choices, costs))


def test_a_limit_below_the_floor_is_an_error_that_names_it() -> None:
    costs = resnet("resnet18")
    choices = choices_of(costs, "resnet18", 0, loss_like)
    with pytest.raises(InfeasibleBudgetError, match=r"budget\.bops_g is 1, but with the smallest widths everywhere"):
        allocate(choices, costs, BudgetConfig(bops_g=1.0))


def test_the_tables_of_the_resnets_are_those_of_the_networks() -> None:
    assert resnet("resnet18").macs == 1_814_073_344
    assert resnet("resnet50").macs == 4_089_184_256
