"""Which policies a rule promotes: against closed cases and brute force."""

import math
import random
from itertools import combinations

import pytest

from service import promotion_rules
from service.front import Front, find_front
from service.hypervolume import Box
from service.promotion_rules import select
from service.records import SweepRecord, TrialRecord
from service.rules import Gates, parse_rule
from trainables.errors import ConfigError

ALL_PASS = Gates()
SWEEP = SweepRecord(name="s", spec_hash="", facts={}, total_trials=9, created_ms=1)


def front_of(points: list[tuple[float, float, float]], hashes: list[str] | None = None) -> Front:
    """Of trials with top-1, BOPs and ARD."""
    trials = [
        TrialRecord(
            trial_id=f"t{n:04d}",
            number=n,
            state="done",
            settings={},
            metrics={"top1": top1, "bops_g": bops, "ard": ard},
            policy_hash=hashes[n] if hashes else f"{n:064d}",
        )
        for n, (top1, bops, ard) in enumerate(points)
    ]
    return find_front(trials, SWEEP)


def random_front(seed: int, count: int = 40) -> Front:
    draw = random.Random(seed)
    return front_of([(draw.uniform(50, 100), draw.uniform(1, 9), draw.uniform(0, 3)) for _ in range(count)])


def chosen(rule: str, found: Front, gates: Gates = ALL_PASS) -> list[int]:
    return [trial.number for trial in select(parse_rule(rule), gates, found)]


CORNER = front_of([(90.0, 1.0, 3.0), (99.0, 2.0, 2.0), (99.5, 9.0, 1.0), (80.0, 9.5, 3.5)])


def test_a_dominated_policy_is_never_chosen_by_a_rule() -> None:
    for rule in ("knee", "all", "top 9 by top1", "within bops_g <= 100", "hypervolume 9"):
        assert 3 not in chosen(rule, CORNER)


def test_all_is_the_front_and_knee_its_knee() -> None:
    for seed in range(20):
        found = random_front(seed)
        assert chosen("all", found) == [trial.number for trial in found.members]
        assert found.knee is not None
        assert chosen("knee", found) == [found.knee.number]


def test_top_follows_the_direction_of_its_metric() -> None:
    assert chosen("top 1 by top1", CORNER) == [2]
    assert chosen("top 1 by bops_g", CORNER) == [0]
    assert chosen("top 2 by ard", CORNER) == [1, 2]


def test_within_keeps_what_is_exactly_at_its_budget() -> None:
    assert chosen("within bops_g <= 2", CORNER) == [0, 1]
    assert chosen("within top1 >= 99", CORNER) == [1, 2]


def test_gates_come_before_the_rule() -> None:
    assert chosen("top 1 by bops_g", CORNER, Gates(min_top1=95.0)) == [1]
    assert chosen("top 1 by top1", CORNER, Gates(max_ard=0.5)) == []
    assert chosen("knee", CORNER, Gates(min_top1=99.2)) == [2]
    assert chosen("all", CORNER, Gates(max_ard=2.0)) == [1, 2]


def test_a_policy_that_two_trials_found_counts_once() -> None:
    found = front_of([(99.0, 1.0, 1.0), (99.0, 1.0, 1.0), (98.0, 0.5, 1.0)], ["a", "a", "b"])
    assert chosen("top 2 by top1", found) == [2, 0]
    assert chosen("hypervolume 2", found) == [2, 0]


def test_the_hypervolume_subset_is_the_best_of_all_subsets() -> None:
    for seed in range(10):
        found = random_front(seed, count=25)
        box = Box.around([trial.metrics for trial in found.kept], found.objectives)
        for count in (1, 2, 3):
            best = max(box.share([trial.metrics for trial in subset]) for subset in combinations(found.members, count))
            picked = select(parse_rule(f"hypervolume {count}"), Gates(), found)
            assert len(picked) == min(count, len(found.members))
            assert box.share([trial.metrics for trial in picked]) == pytest.approx(best, rel=1e-12)


def test_step_by_step_the_subset_reaches_its_guarantee(monkeypatch: pytest.MonkeyPatch) -> None:
    found = random_front(3, count=60)
    box = Box.around([trial.metrics for trial in found.kept], found.objectives)
    exact = box.share([trial.metrics for trial in select(parse_rule("hypervolume 3"), Gates(), found)])
    monkeypatch.setattr(promotion_rules, "SUBSETS", 1)
    greedy = box.share([trial.metrics for trial in select(parse_rule("hypervolume 3"), Gates(), found)])
    assert (1 - 1 / math.e) * exact <= greedy <= exact


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("best", "expected knee, all"),
        ("top three by top1", "expected knee, all"),
        ("top 0 by top1", "expected knee, all"),
        ("top 3 by topl", "unknown metric 'topl'.*top1"),
        ("within bops_g < 3", "expected a metric, <= or >="),
        ("within bops <= 3", "unknown metric 'bops'"),
        ("hypervolume", "expected knee, all"),
    ],
)
def test_a_rule_that_is_none_tells_what_would_be_right(rule: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_rule(rule)


def test_a_metric_that_was_not_measured_is_named() -> None:
    with pytest.raises(ConfigError, match="t0000 has no storage_mb; it was measured: ard, bops_g, top1"):
        chosen("top 1 by storage_mb", CORNER)
