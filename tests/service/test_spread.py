"""Means, spreads, pairs, and what is told apart: against closed forms."""

import math
import random

import pytest

from service.spread import TOLD_APART, Spread, leaders, paired, spread_of


def test_mean_and_deviation_of_three_values_are_those_of_the_closed_form() -> None:
    found = spread_of([1.0, 4.0, 7.0])
    assert found == Spread(count=3, mean=4.0, deviation=3.0, least=1.0, most=7.0)
    assert found.squared_error == 3.0


def test_one_value_has_no_spread_and_none_is_nothing() -> None:
    found = spread_of([2.5])
    assert found == Spread(count=1, mean=2.5, deviation=None, least=2.5, most=2.5)
    assert found.squared_error is None
    assert spread_of([]) is None


def test_pairs_take_out_what_both_share_and_only_common_keys_count() -> None:
    shared = {0: 10.0, 1: -20.0, 2: 30.0}
    ours = {seed: value + 1.0 for seed, value in shared.items()} | {7: 1e6}
    assert paired(ours, shared | {8: 1e6}) == Spread(count=3, mean=1.0, deviation=0.0, least=1.0, most=1.0)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_the_variance_of_paired_differences_is_that_of_the_sum_less_twice_the_covariance() -> None:
    draw = random.Random(0)
    ours, theirs = ({seed: draw.gauss(0, 1) for seed in range(9)} for _ in range(2))
    a, b, d = spread_of(list(ours.values())), spread_of(list(theirs.values())), paired(ours, theirs)
    for found in (a, b, d):
        assert found is not None
    covariance = sum((ours[s] - a.mean) * (theirs[s] - b.mean) for s in ours) / 8
    assert d.deviation**2 == pytest.approx(a.deviation**2 + b.deviation**2 - 2 * covariance)
    assert d.mean == pytest.approx(a.mean - b.mean)


def around(mean: float, deviation: float, count: int = 3) -> Spread:
    return Spread(count=count, mean=mean, deviation=deviation, least=mean - deviation, most=mean + deviation)


def test_the_best_leads_with_all_that_two_standard_errors_do_not_tell_apart() -> None:
    # Two rows of deviation 3 over 3 values: the difference's standard error is √(3 + 3).
    reach = TOLD_APART * math.sqrt(6)
    best = around(90.0, 3.0)
    assert leaders([around(90.0 - reach - 1e-9, 3.0), best]) == {1}
    assert leaders([around(90.0 - reach + 1e-9, 3.0), best, around(50.0, 3.0)]) == {0, 1}


def test_nobody_leads_where_none_is_told_apart_or_too_few_have_a_spread() -> None:
    assert leaders([around(90.0, 3.0), around(89.0, 3.0)]) == frozenset()
    assert leaders([around(90.0, 3.0)]) == frozenset()
    assert leaders([around(90.0, 0.1), spread_of([10.0]), None]) == frozenset()
    assert leaders([]) == frozenset()


def test_a_single_value_neither_leads_nor_keeps_others_from_it() -> None:
    assert leaders([spread_of([85.0]), around(90.0, 0.1), around(80.0, 0.1)]) == {1}
    # What is above all others may be better than the one that would be marked.
    assert leaders([spread_of([99.0]), around(90.0, 0.1), around(80.0, 0.1)]) == frozenset()


def test_equal_means_without_any_spread_lead_together() -> None:
    assert leaders([around(90.0, 0.0), around(90.0, 0.0), around(80.0, 0.1)]) == {0, 1}
    assert leaders([around(90.0, 0.0), around(89.9, 0.0)]) == frozenset()
