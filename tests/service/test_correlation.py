"""Spearman's correlation against SciPy, and its interval against closed forms and simulation."""

import math
import random

import pytest
from scipy.stats import rankdata, spearmanr

from service.correlation import average_ranks, rank_correlation


def test_it_is_scipys_with_and_without_ties() -> None:
    draw = random.Random(0)
    for count in (4, 5, 12, 60):
        for values in (None, 3, 6):
            xs, ys = ([float(draw.randrange(values)) if values else draw.random() for _ in range(count)] for _ in "xy")
            found = rank_correlation(xs, ys)
            assert average_ranks(xs) == pytest.approx(rankdata(xs))
            if len(set(xs)) == 1 or len(set(ys)) == 1:
                assert found is None
                continue
            assert found is not None
            assert found.rho == pytest.approx(spearmanr(xs, ys).statistic, abs=1e-12)
            assert found.low <= found.rho <= found.high
            assert found.count == count


def test_the_interval_has_a_closed_form() -> None:
    xs, ys = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 5.0, 3.0, 1.0, 4.0]
    found = rank_correlation(xs, ys)
    assert found is not None
    assert found.rho == pytest.approx(0.0, abs=1e-15)
    assert found.high == pytest.approx(math.tanh(1.959964 / math.sqrt(2)))
    assert found.low == pytest.approx(-found.high)
    half = rank_correlation(xs, [3.0, 2.0, 1.0, 5.0, 4.0])
    assert half is not None
    assert half.rho == pytest.approx(0.5)
    reach = 1.959964 * math.sqrt((1 + 0.5**2 / 2) / 2)
    ends = (math.tanh(math.atanh(0.5) - reach), math.tanh(math.atanh(0.5) + reach))
    assert (half.low, half.high) == pytest.approx(ends)


def test_the_same_order_is_one_and_the_opposite_minus_one_with_intervals_that_stay_wide_for_few_points() -> None:
    up = [1.0, 2.0, 3.0, 4.0]
    same, opposite = rank_correlation(up, [x**3 for x in up]), rank_correlation(up, up[::-1])
    assert same is not None
    assert opposite is not None
    assert (same.rho, same.high) == (1.0, 1.0)
    assert (opposite.rho, opposite.low) == (-1.0, -1.0)
    assert same.low < 0 < opposite.high
    many = rank_correlation(list(map(float, range(200))), list(map(float, range(200))))
    assert many is not None
    assert many.low > 0.999


def test_nineteen_of_twenty_intervals_hold_the_true_value() -> None:
    draw = random.Random(1)
    slope = 0.6
    true = 6 / math.pi * math.asin(slope / 2)  # Spearman's rho of a normal pair: Kruskal 1958
    held = 0
    for _ in range(400):
        xs = [draw.gauss(0, 1) for _ in range(40)]
        ys = [slope * x + math.sqrt(1 - slope**2) * draw.gauss(0, 1) for x in xs]
        found = rank_correlation(xs, ys)
        assert found is not None
        held += found.low <= true <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_where_it_means_nothing_there_is_none() -> None:
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None
    assert rank_correlation([1.0] * 9, [float(n) for n in range(9)]) is None
    assert rank_correlation([float(n) for n in range(9)], [1.0] * 9) is None
    with pytest.raises(ValueError, match="pairs of finite numbers"):
        rank_correlation([1.0, math.nan, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="found 2 and 3 values"):
        rank_correlation([1.0, 2.0], [1.0, 2.0, 3.0])
