import importlib.util
import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.halving import COSTS, Halving, Losses, best, rung_values, spread_order
from service.hypervolume import hypervolume
from service.pareto import METRICS, Objective, check_objectives, non_dominated_ranks

ROOT = Path(__file__).parents[2]

# Few levels, so that ties and duplicates are common.
LEVELS = st.integers(0, 4).map(float)
POINT_SETS = st.integers(1, 4).flatmap(lambda axes: st.lists(st.tuples(*[LEVELS] * axes), max_size=25))


def beats(a: Losses, b: Losses) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


@given(POINT_SETS)
def test_a_rank_is_the_longest_chain_of_points_each_beaten_by_the_one_before(points: list[Losses]) -> None:
    def chain(point: Losses) -> int:
        return max((1 + chain(other) for other in set(points) if beats(other, point)), default=0)

    assert non_dominated_ranks(points) == [chain(point) for point in points]


@given(POINT_SETS)
def test_the_ranks_are_fronts_taken_away_one_by_one(points: list[Losses]) -> None:
    ranks = non_dominated_ranks(points)
    for rank in range(max(ranks, default=-1) + 1):
        left = [point for point, r in zip(points, ranks, strict=True) if r >= rank]
        on_front = [point for point in left if not any(beats(other, point) for other in left)]
        assert on_front == [point for point, r in zip(points, ranks, strict=True) if r == rank]


def test_ranks_by_hand() -> None:
    assert non_dominated_ranks([(2.0, 2.0), (0.0, 3.0), (1.0, 1.0), (3.0, 3.0), (1.0, 1.0)]) == [1, 0, 0, 2, 0]
    assert non_dominated_ranks([(3.0,), (1.0,), (2.0,), (1.0,)]) == [2, 0, 1, 0]
    assert non_dominated_ranks([]) == []


def test_spread_takes_the_ends_first_then_the_middle_then_the_gaps() -> None:
    line = [(float(i), 8.0 - i) for i in range(9)]
    assert spread_order(line) == [0, 8, 4, 2, 6, 1, 3, 5, 7]


def test_spread_does_not_depend_on_the_objectives_units() -> None:
    draw = random.Random(0)
    for _ in range(50):
        points = [(draw.random(), draw.random(), draw.random()) for _ in range(12)]
        assert spread_order(points) == spread_order([(1024 * x + 4096, y / 1024, z) for x, y, z in points])


@given(POINT_SETS)
def test_spread_orders_all_points_and_duplicates_last(points: list[Losses]) -> None:
    order = spread_order(points)
    assert sorted(order) == list(range(len(points)))
    seen = [points[i] for i in order]
    assert len(set(seen[: len(set(points))])) == len(set(points))


@given(POINT_SETS, st.integers(0, 30))
def test_the_best_are_whole_ranks_and_the_beginning_of_the_next(points: list[Losses], count: int) -> None:
    ranks = non_dominated_ranks(points)
    by_rank = [[i for i, r in enumerate(ranks) if r == rank] for rank in range(max(ranks, default=-1) + 1)]
    order = [places[i] for places in by_rank for i in spread_order([points[j] for j in places])]
    assert best(points, count) == set(order[:count])


def classic(reports: Sequence[float], *, reduction: int) -> list[bool]:
    """ASHA's rule for one loss: among the best ⌈n/reduction⌉ so far; of equals the first."""
    answers = []
    for n in range(1, len(reports) + 1):
        order = sorted(range(n), key=reports.__getitem__)
        answers.append(n - 1 in order[: math.ceil(n / reduction)])
    return answers


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_one_objective_is_classic_successive_halving(reduction: int) -> None:
    draw = random.Random(reduction)
    for _ in range(100):
        reports = [float(draw.randint(0, 30)) for _ in range(40)]
        halving = Halving(reduction=reduction, min_epochs=1, epochs=2)
        answers = [halving.report(f"t{i}", 1, (loss,)) for i, loss in enumerate(reports)]
        assert answers == classic(reports, reduction=reduction)


def test_rungs_lie_below_the_last_epoch() -> None:
    assert Halving(reduction=3, min_epochs=1, epochs=14).rungs == [1, 3, 9]
    assert Halving(reduction=3, min_epochs=1, epochs=9).rungs == [1, 3]
    assert Halving(reduction=2, min_epochs=3, epochs=25).rungs == [3, 6, 12, 24]
    assert Halving(reduction=2, min_epochs=5, epochs=5).rungs == []
    with pytest.raises(ValueError, match="reduction is 1"):
        Halving(reduction=1, min_epochs=1, epochs=9)


def test_two_objectives_by_hand() -> None:
    halving = Halving(reduction=4, min_epochs=1, epochs=4)
    told = [
        ((5.0, 5.0), True),  # nothing there yet
        ((6.0, 6.0), False),  # beaten, and 1 of 2 goes on by its rank: (5, 5)
        ((1.0, 9.0), True),  # nothing there is as good in both
        ((3.0, 7.0), True),  # so here, though 1 of 4 goes on by its rank
        ((3.0, 7.0), False),  # something there is as good in both; 2 of 5 by rank: the ends of the front
        ((2.0, 6.0), True),  # beats (3, 7)
        ((0.5, 9.5), True),
        ((5.0, 9.0), False),  # 2 of 8 by rank
        ((6.0, 5.0), False),  # 3 of 9 by rank, and the front has four: (5, 5), (1, 9), (2, 6), (0.5, 9.5)
    ]
    assert [halving.report(f"t{i}", 1, values) for i, (values, _) in enumerate(told)] == [on for _, on in told]


def test_a_beaten_trial_goes_on_while_its_rung_has_room() -> None:
    halving = Halving(reduction=2, min_epochs=1, epochs=4)
    told = [
        ((1.0, 1.0), True),
        ((9.0, 9.0), False),  # 1 of 2
        ((2.0, 5.0), True),  # 2 of 3: rank 0 has one, and this is the first of rank 1
        ((5.0, 2.0), False),  # 2 of 4: of rank 1, (2, 5) is the end that came first
        ((3.0, 3.0), False),  # 3 of 5: rank 1 has its two ends ahead of its middle
    ]
    assert [halving.report(f"t{i}", 1, values) for i, (values, _) in enumerate(told)] == [on for _, on in told]


@given(POINT_SETS.filter(bool), st.integers(2, 4))
def test_what_is_new_on_the_front_goes_on_and_others_by_the_quota(points: list[Losses], reduction: int) -> None:
    halving = Halving(reduction=reduction, min_epochs=1, epochs=2)
    for n, point in enumerate(points, start=1):
        so_far = points[:n]
        new_on_front = point not in points[: n - 1] and not any(beats(other, point) for other in so_far)
        expected = new_on_front or n - 1 in best(so_far, math.ceil(n / reduction))
        assert halving.report(f"t{n}", 1, point) == expected


def test_between_rungs_trials_go_on_and_what_was_stopped_stays_stopped() -> None:
    halving = Halving(reduction=2, min_epochs=2, epochs=8)
    assert halving.report("a", 1, (9.0,))
    assert halving.report("a", 2, (1.0,))
    assert halving.report("b", 1, (0.0,))
    assert not halving.report("b", 2, (2.0,))
    assert not halving.report("b", 3, (0.0,))
    assert not halving.report("b", 4, (0.0,))
    # Nothing was recorded of b at epoch 4: c is the first there.
    assert halving.report("c", 4, (5.0,))


def test_a_report_that_comes_again_gets_the_same_answer_and_changes_nothing() -> None:
    draw = random.Random(1)
    once, often = (Halving(reduction=3, min_epochs=1, epochs=30) for _ in range(2))
    told: list[tuple[str, int, bool]] = []
    for i in range(60):
        values = (draw.random(), draw.random())
        goes_on = once.report(f"t{i}", 1, values)
        assert often.report(f"t{i}", 1, values) == goes_on
        told.append((f"t{i}", 1, goes_on))
        # An attempt that starts anew may measure something else: the first report counts.
        for trial, epoch, answer in draw.sample(told, min(5, len(told))):
            assert often.report(trial, epoch, (draw.random(), math.nan)) == answer


@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(1, 3))
def test_replaying_the_reports_gives_the_same_answers_and_the_same_state(seed: int, reduction: int, first: int) -> None:
    draw = random.Random(seed)
    # Asynchronous: four trials run, each as fast as it likes.
    log: list[tuple[str, int, Losses]] = []
    answers: list[bool] = []
    halving = Halving(reduction=reduction, min_epochs=first, epochs=12)
    names = (f"t{i}" for i in itertools.count())
    running = {next(names): 0 for _ in range(4)}
    while len(log) < 120:
        trial = draw.choice(sorted(running))
        running[trial] += 1
        log.append((trial, running[trial], (float(draw.randint(0, 5)), float(draw.randint(0, 5)))))
        answers.append(halving.report(*log[-1]))
        if not answers[-1] or running[trial] == 12:
            del running[trial]
            running[next(names)] = 0
    again = Halving(reduction=reduction, min_epochs=first, epochs=12)
    assert [again.report(*report) for report in log] == answers
    coming = (1.0, 2.0)
    assert again.report("new", first, coming) == halving.report("new", first, coming)


def test_a_loss_that_is_not_finite_never_goes_on_yet_counts_as_arrived() -> None:
    halving = Halving(reduction=2, min_epochs=1, epochs=4)
    assert not halving.report("nan", 1, (math.nan, 0.0))
    assert not halving.report("inf", 1, (0.0, math.inf))
    # Three of the six that arrive go on.
    assert [halving.report(f"t{i}", 1, (float(i), float(i))) for i in range(4)] == [True, True, True, False]
    assert not halving.report("minus", 1, (-math.inf, 0.0))


def test_trials_are_compared_within_their_stage_and_with_those_that_tell_as_much() -> None:
    halving = Halving(reduction=2, min_epochs=4, epochs=9)
    assert halving.report("searching", 4, (0.1, 0.1), stage="search")
    assert halving.report("finetuning", 4, (9.0, 9.0), stage="finetune")
    assert not halving.report("worse", 4, (9.5, 9.5), stage="finetune")
    assert halving.report("tells more", 4, (9.5, 9.5, 9.5), stage="finetune")
    assert all(halving.report(f"tells nothing {i}", 4, (), stage="finetune") for i in range(5))


def test_rung_values_are_losses_of_what_is_known() -> None:
    objectives = check_objectives(["top1", "bops_g", "ard"])
    searching = {"task_risk": 0.5, "generalisation_risk": 0.1, "policy_bops_g": 2.0, "certainty": 0.4}
    assert rung_values("search", searching, objectives) == (0.5, 2.0)
    assert rung_values("search", {**searching, "ard": 1.5}, objectives) == (0.5, 2.0, 1.5)
    assert rung_values("search", {**searching, "top1": 90.0}, objectives) == (-90.0, 2.0)
    finetuning = {"loss": 0.2, "top1": 91.0, "bops_g": 3.0}
    assert rung_values("finetune", finetuning, objectives) == (-91.0, 3.0)
    assert rung_values("finetune", {"loss": 0.2, "top1": 91.0}, objectives) == (-91.0,)


def test_costs_share_one_value_at_a_rung() -> None:
    costs = check_objectives(["compression", "storage_mb", "top1"])
    assert rung_values("search", {"task_risk": 0.5, "policy_bops_g": 2.0}, costs) == (2.0, 0.5)
    assert rung_values("finetune", {"top1": 91.0, "bops_g": 2.0}, costs) == (2.0, -91.0)
    assert rung_values("search", {"task_risk": 0.5}, check_objectives(["ard", "device_hours"])) == ()


def test_importing_takes_no_framework() -> None:
    code = "import sys, json, service.halving, service.hypervolume; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert not {"torch", "numpy", "ray", "optuna", "mlflow", "pydantic"} & set(loaded)


def boxes(points: Sequence[Losses], reference: Losses) -> float:
    """Inclusion and exclusion: the volume of a union of boxes from all their intersections."""
    volume = 0.0
    for size in range(1, len(points) + 1):
        for some in itertools.combinations(points, size):
            sides = [max(0.0, r - max(column)) for r, column in zip(reference, zip(*some, strict=True), strict=True)]
            volume -= (-1.0) ** size * math.prod(sides)
    return volume


def axes(count: int) -> tuple[Objective, ...]:
    return tuple(Objective(f"o{i}", "max" if i == 1 else "min", "") for i in range(count))


def point(value: Losses) -> dict[str, float]:
    """In the units of `axes`, where o1 is maximised."""
    return {f"o{i}": -x if i == 1 else x for i, x in enumerate(value)}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_hypervolume_is_that_of_a_union_of_boxes(count: int) -> None:
    draw = random.Random(count)
    for _ in range(150):
        levels = draw.choice([3, 1000])
        points = [tuple(draw.randint(0, levels) / levels for _ in range(count)) for _ in range(draw.randint(0, 8))]
        reference = tuple(draw.uniform(0.4, 1.2) for _ in range(count))
        found = hypervolume([point(p) for p in points], point(reference), axes(count))
        assert found == pytest.approx(boxes(points, reference), abs=1e-12)


def test_hypervolume_in_closed_form() -> None:
    assert hypervolume([point((1.0, 2.0, 3.0))], point((2.0, 4.0, 6.0)), axes(3)) == 1.0 * 2.0 * 3.0
    assert hypervolume([], point((2.0, 4.0, 6.0)), axes(3)) == 0.0
    # On the reference's face there is no volume.
    assert hypervolume([point((2.0, 0.0, 0.0))], point((2.0, 4.0, 6.0)), axes(3)) == 0.0
    # A staircase of unit cubes: of n³ those are missing whose place (i, j, k) has i + j + k < n - 1.
    n = 6
    steps = [point((float(i), float(j), float(n - 1 - i - j))) for i in range(n) for j in range(n - i)]
    assert hypervolume(steps, point((float(n),) * 3), axes(3)) == n**3 - (n - 1) * n * (n + 1) / 6


def test_hypervolume_refuses_what_it_cannot_sum() -> None:
    with pytest.raises(ValueError, match="1 to 3 objectives; found 4"):
        hypervolume([], point((1.0,) * 4), axes(4))
    with pytest.raises(ValueError, match="finite"):
        hypervolume([{**point((1.0, 1.0)), "o0": math.nan}], point((2.0, 2.0)), axes(2))


def test_every_cost_has_its_metric() -> None:
    assert set(METRICS) >= COSTS


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """benchmarks/early_stopping.py, which replays recorded sweeps."""
    spec = importlib.util.spec_from_file_location("early_stopping", ROOT / "benchmarks" / "early_stopping.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("at_once", [2, 4])
def test_half_the_epochs_of_a_recorded_sweep_keep_95_percent_of_its_hypervolume(
    bench: ModuleType, at_once: int
) -> None:
    trials = bench.load(ROOT / "tests" / "golden" / "recorded_tuning.json", ard=True)
    rule = bench.partial(bench.by_halving, reduction=3, min_epochs=3)
    row = bench.compare(trials, rule, at_once=at_once, orders=20)
    assert row.recorded_epochs <= 0.5
    assert row.recorded_volume >= 0.95
    # Neither luck of the order, nor what as many stops at random keep.
    assert row.epochs <= 0.5
    assert row.volume >= 0.95
    assert row.volume > row.volume_by_chance + 0.02


def test_a_replay_without_stops_is_the_whole_sweep(bench: ModuleType) -> None:
    trials = bench.load(ROOT / "tests" / "golden" / "recorded_sweep.json", ard=True)
    whole = bench.replay(trials, lambda place, epoch: True, at_once=3)
    scale = bench.Scale(trials)
    assert sorted(whole.finished) == list(range(64))
    assert scale.epochs(whole) == 1.0
    assert scale.volume(whole.finished, range(64)) == pytest.approx(1.0)
    none = bench.replay(trials, lambda place, epoch: False, at_once=3)
    assert (none.finished, none.epochs) == ([], 64)


def test_a_replay_runs_trials_at_once_an_epoch_of_each_in_turn(bench: ModuleType) -> None:
    trials = [bench.Trial([("finetune", {})] * 3, {}) for _ in range(4)]
    told: list[tuple[int, int]] = []

    def goes_on(place: int, epoch: int) -> bool:
        told.append((place, epoch))
        return place != 1

    result = bench.replay(trials, goes_on, at_once=2)
    # The third epoch is the last and is asked of nobody; trial 1 leaves its place to trial 2.
    assert told == [(0, 1), (1, 1), (0, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
    assert (result.finished, result.epochs) == ([0, 2, 3], 10)
