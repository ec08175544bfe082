"""Hypervolumes in a box, and how a sweep's front grows, against the plain definitions."""

import random
import time
from itertools import pairwise
from pathlib import Path

import pytest

from service.front import find_front
from service.growth import growth, reference_point
from service.hypervolume import Box, dominated_volume, hypervolume
from service.pareto import METRICS, OBJECTIVES, front
from service.records import State, SweepRecord, TrialRecord
from service.view import SweepView

SWEEP = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=0, created_ms=1)


def trial(number: int, metrics: dict[str, float], *, state: State = "done", ended_ms: int = 0) -> TrialRecord:
    return TrialRecord(
        trial_id=f"t{number:04}",
        number=number,
        state=state,
        settings={},
        ended_ms=ended_ms or 1_000 + number,
        attempts=1,
        metrics=metrics if state == "done" else {},
    )


def view_of(trials: list[TrialRecord], sweep: SweepRecord = SWEEP) -> SweepView:
    """A trial takes half an hour, and a quarter more for each before it."""
    return SweepView(
        folder=Path("s"),
        sweep=sweep,
        trials=tuple(trials),
        found=find_front(trials, sweep),
        policies={},
        hours={t.trial_id: 0.5 + 0.25 * t.number for t in trials},
    )


def drawn(count: int, *, on_front: int, seed: int) -> list[dict[str, float]]:
    """Points of which `on_front` lie on a surface where none dominates another; the others lie behind it."""
    draw = random.Random(seed)
    points = []
    for place in range(count):
        a, b = draw.random(), draw.random()
        behind = 0.0 if place < on_front else draw.uniform(0.6, 1.0)
        points.append({"top1": 90 + 10 * (a + b - behind), "bops_g": 1 + a + behind, "ard": 2 + b + behind})
    draw.shuffle(points)
    return points


def test_the_corner_lies_a_tenth_of_the_range_beyond_the_worst_of_each_objective() -> None:
    points = [{"top1": 80.0, "bops_g": 1.0, "ard": 4.0}, {"top1": 90.0, "bops_g": 3.0, "ard": 4.0}]
    assert reference_point(points) == pytest.approx({"top1": 79.0, "bops_g": 3.2, "ard": 4.4})
    zero = [{"top1": 0.0, "bops_g": 1.0, "ard": 0.0}]
    assert reference_point(zero) == {"top1": -1.0, "bops_g": 1.1, "ard": 1.0}
    with pytest.raises(ValueError, match="at least one point"):
        reference_point([])


def test_a_point_at_the_ideal_dominates_the_whole_box_and_every_point_some_of_it() -> None:
    points = [{"top1": 80.0, "bops_g": 3.0}, {"top1": 90.0, "bops_g": 1.0}, {"top1": 85.0, "bops_g": 2.0}]
    box = Box.around(points, OBJECTIVES[:2])
    assert box.scaled(points[1]) == (0.0, 0.0)
    assert box.share(points) == 1.0
    assert box.share(points[:1]) == pytest.approx((1 / 11) ** 2)
    assert box.share([points[2]]) == pytest.approx((6 / 11) ** 2)
    assert box.ideal_point == points[1]
    in_units = hypervolume([points[2]], box.reference_point, OBJECTIVES[:2])
    assert box.share([points[2]]) * box.volume == pytest.approx(in_units)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_volume_is_that_of_the_cells_of_a_grid_that_some_point_dominates(dimensions: int) -> None:
    draw = random.Random(dimensions)
    for _ in range(60):
        values = [tuple(float(draw.randint(0, 5)) for _ in range(dimensions)) for _ in range(draw.randint(0, 8))]
        cells = [()]
        for _ in range(dimensions):
            cells = [(*cell, place) for cell in cells for place in range(5)]
        covered = sum(any(all(v <= c for v, c in zip(value, cell, strict=True)) for value in values) for cell in cells)
        assert dominated_volume(values, (5.0,) * dimensions) == covered


def test_growth_is_the_hypervolume_of_the_front_of_all_that_had_ended() -> None:
    trials = [trial(n, point) for n, point in enumerate(drawn(40, on_front=15, seed=1))]
    trials[3:3] = [trial(100, {}, state="failed", ended_ms=1_002), trial(101, {}, state="running")]
    view = view_of(trials)
    points = [t.metrics for t in view.found.kept]
    corner = reference_point(points)
    volume = Box.around(points).volume
    steps = growth(view)
    assert [step.trials for step in steps] == list(range(1, 42))
    ended = sorted((t for t in trials if t.final), key=lambda t: (t.ended_ms, t.number))
    for step in steps:
        assert step.device_hours == sum(0.5 + 0.25 * t.number for t in ended[: step.trials])
        before = [t.metrics for t in ended[: step.trials] if t.state == "done"]
        plain = hypervolume([before[place] for place in front(before)], corner) / volume
        assert step.hypervolume == pytest.approx(plain, abs=1e-12)
    assert all(earlier.hypervolume <= later.hypervolume for earlier, later in pairwise(steps))


def test_trials_come_in_the_order_of_their_ends_and_equal_ends_by_number() -> None:
    worst, best = {"top1": 1.0, "bops_g": 2.0, "ard": 2.0}, {"top1": 2.0, "bops_g": 1.0, "ard": 1.0}
    early, late = trial(1, worst, ended_ms=5), trial(0, best, ended_ms=9)
    assert growth(view_of([late, early]))[0].hypervolume < growth(view_of([late, early]))[1].hypervolume == 1.0
    equal = [trial(0, best, ended_ms=7), trial(1, worst, ended_ms=7)]
    assert [step.hypervolume for step in growth(view_of(equal[::-1]))] == [1.0, 1.0]


def test_trials_beyond_a_constraint_take_hours_and_add_nothing() -> None:
    bounded = SweepRecord(
        name="s", spec_hash="h", facts={}, total_trials=2, created_ms=1, constraints=("bops_g <= 1.5",)
    )
    trials = [
        trial(0, {"top1": 99.0, "bops_g": 2.0, "ard": 1.0}),
        trial(1, {"top1": 80.0, "bops_g": 1.0, "ard": 1.0}),
    ]
    steps = growth(view_of(trials, bounded))
    assert [(s.trials, s.device_hours, s.hypervolume) for s in steps] == [(1, 0.5, 0.0), (2, 1.25, 1.0)]
    assert [s.hypervolume for s in growth(view_of(trials[:1], bounded))] == [0.0]
    assert growth(view_of([])) == ()


def test_a_thousand_trials_with_three_hundred_on_the_front_take_less_than_two_seconds() -> None:
    view = view_of([trial(n, point) for n, point in enumerate(drawn(1_000, on_front=300, seed=0))])
    assert len(view.found.members) == 300
    assert view.found.objectives == (METRICS["top1"], METRICS["bops_g"], METRICS["ard"])
    begun = time.process_time()
    steps = growth(view)
    assert time.process_time() - begun < 2.0
    corner, volume = (
        reference_point([t.metrics for t in view.trials]),
        Box.around([t.metrics for t in view.trials]).volume,
    )
    plain = hypervolume([t.metrics for t in view.found.members], corner) / volume
    assert steps[-1].hypervolume == pytest.approx(plain, rel=1e-12)
