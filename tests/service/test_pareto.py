import math
import random
import time
from itertools import permutations

import pytest

from service.pareto import (
    ACCURACIES,
    FINETUNED_ALONE,
    METRICS,
    SEARCHED,
    Objective,
    check_objectives,
    dominates,
    front,
    knee,
    non_dominated_ranks,
    parse_constraint,
)
from trainables.errors import ConfigError


def objectives(count: int) -> tuple[Objective, ...]:
    return tuple(Objective(f"o{i}", "max" if i % 2 else "min", f"o{i}") for i in range(count))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_front_equals_the_all_pairs_definition(count: int) -> None:
    draw = random.Random(count)
    axes = objectives(count)
    for _ in range(500):
        size, levels = draw.randint(0, 25), draw.choice([2, 4, 50])
        points = [{o.name: float(draw.randint(0, levels)) for o in axes} for _ in range(size)]
        expected = [i for i, p in enumerate(points) if not any(dominates(q, p, axes) for q in points)]
        assert front(points, axes) == expected


def test_dominance_needs_one_objective_to_be_better() -> None:
    low, high = {"o0": 1.0, "o1": 5.0}, {"o0": 1.0, "o1": 6.0}
    assert dominates(high, low, objectives(2))
    assert not dominates(low, high, objectives(2))
    assert not dominates(low, dict(low), objectives(2))


def test_knee_is_the_front_point_nearest_to_the_ideal() -> None:
    axes = (Objective("x", "min", "x"), Objective("y", "min", "y"))
    points = [{"x": 0.0, "y": 10.0}, {"x": 2.0, "y": 2.0}, {"x": 10.0, "y": 0.0}, {"x": 3.0, "y": 3.0}]
    assert front(points, axes) == [0, 1, 2]
    assert knee(points, axes) == 1
    assert knee([], axes) is None
    assert knee([{"x": 1.0, "y": 1.0}], axes) == 0


def test_the_knee_of_equally_near_points_is_the_best_in_the_first_objective_in_any_order() -> None:
    # Of two members each is the best of one objective and the worst of the other: both are 1 away from the ideal.
    axes = (Objective("o0", "max", "o0"), Objective("o1", "min", "o1"))
    best, cheapest, dominated = {"o0": 9.0, "o1": 3.0}, {"o0": 8.0, "o1": 1.0}, {"o0": 7.0, "o1": 3.0}
    for points in permutations([best, cheapest, dominated]):
        place = knee(points, axes)
        assert place is not None
        assert points[place] is best
    draw = random.Random(0)
    for count in (2, 3):
        for _ in range(100):
            points = [{f"o{i}": float(draw.randint(0, 3)) for i in range(count)} for _ in range(6)]
            chosen = set()
            for _ in range(10):
                draw.shuffle(points)
                place = knee(points, objectives(count))
                assert place is not None
                chosen.add(tuple(points[place].values()))
            assert len(chosen) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        front([{"o0": bad}], objectives(1))


def test_a_thousand_points_of_one_chain_are_ranked_in_a_moment() -> None:
    chain = [(float(i), float(i), float(i)) for i in range(1_000)]
    random.Random(0).shuffle(chain)
    began = time.process_time()
    assert non_dominated_ranks(chain) == [int(point[0]) for point in chain]
    assert time.process_time() - began < 0.5


def test_metrics_of_detectors_are_for_promotions_and_every_accuracy_is_better_the_higher_it_is() -> None:
    assert check_objectives(["map", "backbone_bops_paper_g"])[0].direction == "max"
    assert {METRICS[name].direction for name in ACCURACIES} == {"max"}
    assert set(FINETUNED_ALONE) < set(METRICS)
    with pytest.raises(ConfigError, match="'map' is measured by promotions alone; give one of top1, bops_g, ard"):
        check_objectives(["map"], SEARCHED)
    with pytest.raises(ConfigError, match="constraints: 'ap50' is measured by promotions alone"):
        parse_constraint("ap50 >= 30", SEARCHED)
