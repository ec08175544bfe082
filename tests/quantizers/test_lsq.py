import math

import pytest
import torch
from torch import Tensor

from trainables.errors import ConfigError
from trainables.quantizers.lsq import LsqActivations, LsqWeights

ONE = torch.ones(1)


def by_hand(values: list[float], upstream: list[float], step: float, lo: int, hi: int) -> tuple[list[float], float]:
    """Eq. 3 of LSQ and the straight-through gradient, number by number: ∂L/∂v and the unscaled ∂L/∂s."""
    grads, total = [], 0.0
    for v, up in zip(values, upstream, strict=True):
        place = v / step
        if place <= lo:
            slope, passes = float(lo), 0.0
        elif place >= hi:
            slope, passes = float(hi), 0.0
        else:
            slope, passes = round(place) - place, 1.0
        grads.append(up * passes)
        total += up * slope
    return grads, total


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_gradients_are_equation_3_scaled_by_the_number_of_weights_and_the_largest_code(bits: int) -> None:
    torch.manual_seed(bits)
    lo, hi, step = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0.25
    weight = torch.randn(300).double() * step * hi
    # At the ends themselves eq. 3 has the slope of the outside.
    weight[:4] = torch.tensor([lo, hi, lo - 2, hi + 2]) * step
    weight.requires_grad_()
    upstream = torch.randn(300).double()
    quantizer = LsqWeights((bits,)).double()
    quantizer.step.data.fill_(step)
    y = quantizer(weight, ONE)
    assert set((y.detach() / step).tolist()) <= {float(code) for code in range(lo, hi + 1)}
    grad_weight, grad_step = torch.autograd.grad(y, [weight, quantizer.step], upstream)
    expected_weight, expected_step = by_hand(weight.tolist(), upstream.tolist(), step, lo, hi)
    assert grad_weight.tolist() == expected_weight
    assert float(grad_step) == pytest.approx(expected_step / math.sqrt(300 * hi), rel=1e-9)


def test_the_gradient_of_the_step_is_the_numerical_one_with_the_rounding_errors_held() -> None:
    """v̂ = s·(clip(v/s) + e) with e = round − clip as it is now: what straight-through means."""
    torch.manual_seed(0)
    quantizer = LsqActivations((3,), signed=True).double()
    quantizer.step.data.fill_(0.4)
    x, upstream = torch.randn(5, 40).double(), torch.randn(5, 40).double()
    (grad,) = torch.autograd.grad(quantizer(x, ONE), quantizer.step, upstream)
    errors = (x / 0.4).clamp(-4, 3).round() - (x / 0.4).clamp(-4, 3)

    def loss(step: float) -> float:
        return float((step * ((x / step).clamp(-4, 3) + errors) * upstream).sum())

    numerical = (loss(0.4 + 1e-6) - loss(0.4 - 1e-6)) / 2e-6
    # Features of one image, not of the batch of five.
    assert float(grad) == pytest.approx(numerical / math.sqrt(40 * 3), rel=1e-6)


def test_cutting_a_batch_into_parts_leaves_the_gradient_of_the_step_as_it_is() -> None:
    torch.manual_seed(0)
    quantizer, x = LsqActivations((2,), signed=False), torch.rand(8, 3, 4, 4) * 9
    (whole,) = torch.autograd.grad(quantizer(x, ONE).square().mean(), quantizer.step)
    parts = sum(quantizer(part, ONE).square().mean() / 4 for part in x.split(2))
    torch.testing.assert_close(torch.autograd.grad(parts, quantizer.step)[0], whole)


def test_steps_start_from_the_weights_and_from_the_first_batch() -> None:
    weight = torch.tensor([-0.3, 0.1, 0.2, 0.8])
    mean, spread = 0.2, math.sqrt((0.25 + 0.01 + 0 + 0.36) / 4)
    weights = LsqWeights((4,))
    weights.calibrate(weight)
    assert float(weights.step.detach()) == pytest.approx((mean + 3 * spread) / 8)
    weights.calibrate(-weight)
    assert float(weights.step.detach()) == pytest.approx((mean + 3 * spread) / 8)
    x = torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    for signed, top in ((False, 15), (True, 7)):
        activations = LsqActivations((4,), signed=signed)
        activations.calibrate(-x if signed else x)
        assert float(activations.step.detach()) == pytest.approx(2 * 2.0 / math.sqrt(top))


def test_nothing_but_zeros_leaves_a_step_that_quantises_zeros_to_zeros() -> None:
    weights, activations = LsqWeights((2,)), LsqActivations((2,), signed=False)
    weights.calibrate(torch.zeros(9))
    activations.calibrate(torch.zeros(2, 9))
    assert float(weights.step.detach()) == float(activations.step.detach()) == 1.0
    assert torch.equal(weights(torch.zeros(9), ONE), torch.zeros(9))


def test_a_step_that_training_drives_below_zero_turns_nothing_inside_out_and_comes_back() -> None:
    x = torch.tensor([[0.2, 0.9, 2.2, 40.0]])
    quantizer = LsqActivations((2,), signed=False)
    gradients: dict[float, Tensor] = {}
    values: dict[float, Tensor] = {}
    for step in (0.7, -0.7):
        quantizer.step.data.fill_(step)
        values[step] = quantizer(x, ONE)
        (gradients[step],) = torch.autograd.grad(values[step].sum(), quantizer.step)
    torch.testing.assert_close(values[-0.7], values[0.7])
    torch.testing.assert_close(gradients[-0.7], -gradients[0.7])
    quantizer.step.data.fill_(0.0)
    assert bool(quantizer(x, ONE).isfinite().all())


def test_one_bit_weights_are_an_error() -> None:
    with pytest.raises(ConfigError, match="lsq: 1-bit weights do not exist"):
        LsqWeights((1,))
    assert LsqActivations((1,), signed=False)(torch.tensor([[0.2, 0.7, 9.0]]), ONE).tolist() == [[0.0, 1.0, 1.0]]


def test_half_precision_activations_get_the_codes_of_their_exact_values() -> None:
    torch.manual_seed(0)
    x = (torch.rand(1, 5000) * 20).bfloat16()
    quantizer = LsqActivations((8,), signed=False)
    quantizer.step.data.fill_(0.0731)
    y = quantizer(x, ONE)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, quantizer(x.float(), ONE).bfloat16(), rtol=0, atol=0)
