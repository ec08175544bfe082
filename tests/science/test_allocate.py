"""Budgets against all policies of small networks, limits to the last operation, and a network of ResNet50's size."""

import itertools
import math
import pickle
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trainables.allocate import allocate, ceilings
from trainables.bops import CostModel, LayerWork
from trainables.choices import Choices, Scores
from trainables.config import BudgetConfig
from trainables.errors import ConfigError, InfeasibleBudgetError
from trainables.integer_program import IntegerProgram
from trainables.knapsack.problem import TIE, tie
from trainables.policy import BitPolicy

COSTS = ("bops_g", "bops_paper_g", "compression", "storage_mb", "mean_weight_bits", "mean_act_bits")


def log_softmax(logits: list[float]) -> tuple[float, ...]:
    top = math.log(sum(math.exp(logit) for logit in logits))
    return tuple(logit - top for logit in logits)


def random_problem(
    seed: int, *, layers: int = 4, widths: tuple[int, ...] = (2, 3, 4), largest: int = 10**7
) -> tuple[Choices, CostModel]:
    """Stem, searched layers of which some share an activation, a product, head; logits of which some are equal."""
    rng = random.Random(seed)
    names = ["stem", *(f"layer{i}" for i in range(layers)), "head"]
    group_of: dict[str, str] = {}
    work: dict[str, LayerWork] = {}
    for before, name in itertools.pairwise(names):
        group_of[name] = group_of[before] if before in group_of and rng.random() < 0.4 else name
    for name in names:
        shared = group_of.get(name, name)
        work[name] = LayerWork(
            kind="conv",
            macs=rng.randint(1, largest),
            weights=rng.randint(1, largest),
            inputs=rng.randint(1, largest),
            reads_negative=False,
            reads=shared,
            stream=shared,
        )
    work["mix"] = replace(work["head"], kind="product", macs=rng.randint(1, 1000), weights=0, inputs=0, reads="mix")
    del group_of["head"]

    def scores() -> Scores:
        logits = [rng.choice([0.0, 0.5, rng.gauss(0, 1)]) for _ in widths]
        return Scores(tuple(rng.sample(widths, len(widths))), log_softmax(logits))

    acts = {group: scores() for group in dict.fromkeys(group_of.values())}
    if rng.random() < 0.5:
        acts[next(iter(acts))] = Scores((8,), (0.0,))
    choices = Choices(
        network="net",
        layers=tuple(names),
        weights={name: scores() for name in group_of},
        acts=acts,
        group_of=group_of,
        pinned={"stem": 8, "head": 6},
    )
    return choices, CostModel(work, 0)


def all_policies(choices: Choices) -> list[BitPolicy]:
    weights = itertools.product(*(scores.widths for scores in choices.weights.values()))
    acts = list(itertools.product(*(scores.widths for scores in choices.acts.values())))
    return [
        choices.policy(dict(zip(choices.weights, w, strict=True)), dict(zip(choices.acts, a, strict=True)))
        for w in weights
        for a in acts
    ]


def value(policy: BitPolicy, choices: Choices, costs: CostModel) -> float:
    return choices.score(policy) - tie(choices) / costs.of(policy)["compression"]


def random_budget(rng: random.Random, costs: list[dict[str, float]], count: int) -> BudgetConfig:
    """Limits somewhere between what policies cost, some exactly what one costs."""
    limits = {}
    for name in rng.sample(COSTS, count):
        values = sorted(cost[name] for cost in costs)
        limits[name] = rng.choice([rng.choice(values), rng.uniform(values[0], values[-1])])
    return BudgetConfig(**limits)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_policy_is_the_best_of_all_that_keep_every_limit(count: int) -> None:
    rng = random.Random(count)
    infeasible = 0
    for seed in range(25):
        choices, costs = random_problem(seed, layers=3)
        policies = all_policies(choices)
        of = {policy.hash: costs.of(policy) for policy in policies}
        budget = random_budget(rng, list(of.values()), count)
        kept = [policy for policy in policies if not budget.broken(of[policy.hash])]
        if not kept:
            infeasible += 1
            with pytest.raises(InfeasibleBudgetError, match="with the smallest widths everywhere"):
                allocate(choices, costs, budget)
            continue
        found = allocate(choices, costs, budget)
        assert budget.broken(of[found.hash]) == []
        best = max(value(policy, choices, costs) for policy in kept)
        assert value(found, choices, costs) == pytest.approx(best, abs=1e-10)
        assert all(found.bits[name].act == found.bits[group].act for name, group in choices.group_of.items())
    assert infeasible < 5


def test_a_limit_is_kept_to_the_last_operation() -> None:
    """Policies of more than 10^13 BOPs, the limit one BOP below one of them: HiGHS alone takes that for equal."""
    rng = random.Random(0)
    for seed in range(20):
        choices, costs = random_problem(seed, layers=3, widths=(2, 3), largest=10**12)
        ranked = sorted(all_policies(choices), key=choices.score)
        wanted = rng.choice(ranked[len(ranked) // 2 :])
        bops = costs.counts(wanted).bops
        if wanted.hash == choices.smallest.hash:
            continue
        within = [policy for policy in ranked if costs.counts(policy).bops <= bops - 1]
        found = allocate(choices, costs, BudgetConfig(bops_g=(bops - 1) / 1e9))
        assert costs.counts(found).bops <= bops - 1
        assert choices.score(found) == pytest.approx(choices.score(within[-1]), abs=1e-9)
        at = allocate(choices, costs, BudgetConfig(bops_g=bops / 1e9))
        assert choices.score(at) >= choices.score(wanted) - 1e-9


def test_without_a_limit_and_with_one_that_all_keep_the_best_width_of_everything_is_chosen() -> None:
    for seed in range(20):
        choices, costs = random_problem(seed)
        best = choices.best
        assert allocate(choices, costs, BudgetConfig()) == best
        assert allocate(choices, costs, BudgetConfig(bops_g=costs.bops_g(best))) == best
        assert choices.score(best) == max(choices.score(policy) for policy in all_policies(choices))


def test_of_equal_scores_the_fewest_bops_are_chosen() -> None:
    """Two layers alike in everything but their MACs; the budget has room for one of them to have its better width."""

    def work(name: str, macs: int) -> LayerWork:
        return LayerWork(kind="conv", macs=macs, weights=10, inputs=10, reads_negative=False, reads=name, stream=name)

    costs = CostModel({name: work(name, macs) for name, macs in {"s": 1, "a": 40, "b": 30, "h": 1}.items()}, 0)
    scores = Scores((2, 4), log_softmax([0.0, 1.0]))
    for names in (("a", "b"), ("b", "a")):
        choices = Choices(
            network="net",
            layers=tuple(costs.work),
            weights=dict.fromkeys(names, scores),
            acts=dict.fromkeys(names, Scores((2,), (0.0,))),
            group_of={name: name for name in names},
            pinned={"s": 8, "h": 8},
        )
        # 20 weights of 8 bits, 10 of 4 and 10 of 2.
        found = allocate(choices, costs, BudgetConfig(storage_mb=(20 * 8 + 10 * 4 + 10 * 2) / 8e6))
        assert (found.bits["a"].weight, found.bits["b"].weight) == (2, 4)


def scaled(choices: Choices, factor: float) -> Choices:
    """The same with all scores times a factor."""

    def times(scores: Scores) -> Scores:
        return Scores(scores.widths, tuple(factor * value for value in scores.values))

    return replace(
        choices,
        weights={name: times(scores) for name, scores in choices.weights.items()},
        acts={group: times(scores) for group, scores in choices.acts.items()},
    )


def test_scores_may_have_any_scale() -> None:
    for seed in range(12):
        choices, costs = random_problem(seed)
        low, high = costs.of(choices.smallest), costs.of(choices.best)
        budget = BudgetConfig(**{name: 0.6 * low[name] + 0.4 * high[name] for name in ("bops_g", "storage_mb")})
        if not budget.broken(high):
            continue
        found = allocate(choices, costs, budget)
        for factor in (1e-12, 1e-9, 1e-3, 0.3, 10.0, 1e6):
            other = scaled(choices, factor)
            assert allocate(other, costs, budget) == found, factor
            if factor <= 1.0:
                assert IntegerProgram(other, costs, ceilings(other, costs, budget)).solve() == found, factor


def test_what_equal_scores_are_told_apart_by_is_absolute_for_log_probabilities_and_else_a_share_of_the_range() -> None:
    choices, _ = random_problem(0)
    assert tie(choices) == TIE
    small = scaled(choices, 1e-9)
    best, worst = (small.policy(*_widths(small, place)) for place in (-1, 0))
    assert tie(small) == pytest.approx(TIE * (small.score(best) - small.score(worst)), rel=1e-9, abs=0)


def _widths(choices: Choices, place: int) -> tuple[dict[str, int], dict[str, int]]:
    """The cheapest or the best of the widths that are worth their cost."""
    sides = (choices.weights, choices.acts)
    weights, acts = ({name: scores.worthwhile[place] for name, scores in side.items()} for side in sides)
    return weights, acts


def test_a_budget_below_the_floor_names_every_such_limit_and_a_number_that_can_be_kept() -> None:
    choices, costs = random_problem(3)
    floor = costs.of(choices.smallest)
    low = BudgetConfig(
        bops_g=floor["bops_g"] * 0.999,
        compression=floor["compression"] * 1.001,
        mean_act_bits=1.0,
        storage_mb=floor["storage_mb"],
    )
    with pytest.raises(InfeasibleBudgetError, match=r"budget\.mean_act_bits is 1, but with the smallest") as raised:
        allocate(choices, costs, low)
    problems = pickle.loads(pickle.dumps(raised.value)).problems
    assert set(problems) == {"bops_g", "compression", "mean_act_bits"}
    assert "pin fewer layers" in problems["bops_g"]
    named = {name: float(text.split(" is still ")[1].split(":")[0]) for name, text in problems.items()}
    assert all(named[name] == pytest.approx(floor[name], rel=1e-3) for name in named)
    assert allocate(choices, costs, BudgetConfig(**named)) == choices.smallest


def test_a_network_of_resnet50s_size_takes_well_under_a_second() -> None:
    choices, costs = random_problem(0, layers=52, widths=(2, 3, 4, 5, 6, 7, 8), largest=10**9)
    low, high = costs.of(choices.smallest), costs.of(choices.best)
    middle = {name: (low[name] + high[name]) / 2 for name in ("bops_g", "storage_mb")}
    began = time.process_time()
    found = allocate(choices, costs, BudgetConfig(**middle))
    assert time.process_time() - began < 1.0
    assert BudgetConfig(**middle).broken(costs.of(found)) == []
    assert costs.bops_g(found) > 0.98 * middle["bops_g"]


def test_choices_read_back_as_they_were_written(tmp_path: Path) -> None:
    choices, _ = random_problem(1)
    path = tmp_path / "choices.json"
    path.write_text(choices.to_json())
    assert Choices.load(path) == choices
    content = choices.to_content()
    for change, message in (
        ({"bitfront_choices": 2}, r"c\.json: not a file of choices"),
        ({"groups": []}, r"c\.json: expected 'network', a name, and 'layers' and 'groups'"),
        ({"layers": {"stem": {}}}, r"c\.json: layer 'stem': expected 'weight' and 'group', or 'pinned'"),
        ({"groups": {}}, r"c\.json: choices: each searched layer needs a group"),
        ({"groups": {key: {"2": "x"} for key in content["groups"]}}, r"c\.json: expected a number for each width"),
        ({"groups": {key: {"two": 1} for key in content["groups"]}}, r"c\.json: expected scores by width"),
    ):
        with pytest.raises(ConfigError, match=message):
            Choices.from_content({**content, **change}, origin="c.json")


def test_allocation_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; import trainables.allocate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    for seed in range(4):
        choices, costs = random_problem(seed, layers=40, widths=(2, 3, 4, 5, 6, 7, 8))
        low, high = costs.of(choices.smallest), costs.of(choices.best)
        allocate(choices, costs, BudgetConfig(**{name: (low[name] + high[name]) / 2 for name in COSTS[1::2]}))
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_a_limit_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"budget\.bops_g is inf; give a finite number"):
        BudgetConfig(bops_g=math.inf)
