"""Rounding of weights against closed forms and against every range that could be tried."""

import pytest
import torch
from torch import Tensor

from trainables.quantizers.rounding import Rounding, rounded


def weights(count: int, seed: int, *, heavy: bool) -> Tensor:
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn**3 if heavy else drawn


def least_error(weight: Tensor, bits: int, ranges: int = 4000) -> float:
    """Of so many ranges up to max|w|, each with its nearest codes, and with the step that suits these codes best."""
    top = 2 ** (bits - 1) - 1
    steps = float(weight.abs().max()) / top * torch.arange(1, ranges + 1, dtype=torch.float64) / ranges
    codes = (weight / steps[:, None]).round().clamp(-top, top)
    suited = (codes @ weight) / codes.square().sum(1).clamp_min(1)
    errors = [((codes * each[:, None] - weight) ** 2).sum(1).min() for each in (steps, suited)]
    return float(min(errors))


@pytest.mark.parametrize("rounding", ["minmax", "mse"])
def test_one_bit_is_the_sign_times_the_mean_magnitude(rounding: Rounding) -> None:
    weight = torch.tensor([[0.5, -1.0], [-3.0, 0.0]])
    assert rounded(weight, (1,), rounding)[0].tolist() == [[1.125, -1.125], [-1.125, 1.125]]
    # No other magnitude is nearer.
    weight = weights(100, 0, heavy=False)
    (found,) = rounded(weight, (1,), rounding)
    errors = [float((weight.sign() * alpha - weight).square().sum()) for alpha in torch.linspace(0, 3, 301)]
    assert float((found - weight).square().sum()) <= min(errors)


def test_minmax_ends_at_the_largest_weight() -> None:
    weight = torch.tensor([-1.5, -0.76, -0.2, 0.24, 0.7, 1.2])
    found = rounded(weight, (2, 3), "minmax")
    torch.testing.assert_close(found[0], torch.tensor([-1.5, -1.5, 0.0, 0.0, 0.0, 1.5]))
    torch.testing.assert_close(found[1], torch.tensor([-1.5, -1.0, 0.0, 0.0, 0.5, 1.0]))


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_range_has_a_smaller_error_than_mse(bits: int, heavy: bool) -> None:
    for seed, count in enumerate((40, 300, 700)):
        weight = weights(count, seed, heavy=heavy)
        error = float((rounded(weight, (bits,), "mse")[0] - weight).square().sum())
        assert error <= 1.001 * least_error(weight, bits)
        assert error < float((rounded(weight, (bits,), "minmax")[0] - weight).square().sum())


def test_a_code_is_the_nearest_and_within_the_width() -> None:
    weight = weights(500, 3, heavy=True)
    for bits, found in zip((2, 3, 5), rounded(weight, (2, 3, 5), "mse"), strict=True):
        levels = found.unique()
        top = 2 ** (bits - 1) - 1
        step = float(levels[levels > 0].min())
        assert len(levels) <= 2 * top + 1
        grid = step * torch.arange(-top, top + 1, dtype=torch.float64)
        assert torch.equal((weight[:, None] - grid).abs().argmin(1), (found[:, None] - grid).abs().argmin(1))


def test_for_a_normal_variable_mse_is_the_published_quantiser() -> None:
    """Three levels of least error for N(0, 1): a step of 1.2240 and an error of 0.1902 (Max 1960)."""
    weight = weights(200_000, 4, heavy=False)
    (found,) = rounded(weight, (2,), "mse")
    assert float(found.max()) == pytest.approx(1.2240, abs=0.01)
    assert float((found - weight).square().mean()) == pytest.approx(0.1902, abs=0.002)


def test_many_widths_at_once_are_those_of_each_alone() -> None:
    weight = weights(60, 5, heavy=False).float().reshape(3, 5, 2, 2)
    both = rounded(weight, (6, 1, 3), "mse")
    assert both.shape == (3, 3, 5, 2, 2)
    assert both.dtype == torch.float32
    for bits, found in zip((6, 1, 3), both, strict=True):
        assert torch.equal(found, rounded(weight, (bits,), "mse")[0])


@pytest.mark.parametrize("rounding", ["minmax", "mse"])
def test_zeros_stay_zeros(rounding: Rounding) -> None:
    assert not rounded(torch.zeros(4), (1, 2, 8), rounding).any()
