import math
from functools import partial

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


WIDTHS = (2, 3, 5)
LIMITS = {2: (-2, 1), 3: (-4, 3), 5: (-16, 15)}
STEPS = (0.7, 0.31, 0.06)


def several() -> tuple[LsqWeights, Tensor, Tensor]:
    """A quantiser of three widths, weights with some at the ends of each, and a gradient from above."""
    torch.manual_seed(3)
    weight = torch.randn(200).double()
    ends = [end * step for (lo, hi), step in zip(LIMITS.values(), STEPS, strict=True) for end in (lo, hi, lo - 1)]
    weight[: len(ends)] = torch.tensor(ends).double()
    quantizer = LsqWeights(WIDTHS).double()
    quantizer.step.data.copy_(torch.tensor(STEPS))
    return quantizer, weight.requires_grad_(), torch.randn(200).double()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_chosen_width_alone_is_computed_and_has_the_gradients_of_a_quantiser_of_that_width(width: int) -> None:
    quantizer, weight, upstream = several()
    quantizer.choose(width)
    y = quantizer(weight, ONE)
    lo, hi = LIMITS[width]
    place = WIDTHS.index(width)
    step = quantizer.step.detach()[place]
    assert set((y.detach() / step).round(decimals=6).tolist()) <= {float(code) for code in range(lo, hi + 1)}
    grad_weight, grad_steps = torch.autograd.grad(y, [weight, quantizer.step], upstream)
    expected_weight, expected_step = by_hand(weight.tolist(), upstream.tolist(), float(step), lo, hi)
    assert grad_weight.tolist() == expected_weight
    expected = [0.0, 0.0, 0.0]
    expected[place] = expected_step / math.sqrt(200 * hi)
    assert grad_steps.tolist() == pytest.approx(expected, rel=1e-9)
    alone = LsqWeights((width,)).double()
    alone.step.data.copy_(step)
    assert torch.equal(y, alone(weight, ONE))


def test_a_mixture_is_the_sum_of_its_widths_and_so_are_its_gradients() -> None:
    quantizer, weight, upstream = several()
    probs = torch.tensor([0.2, 0.3, 0.5]).double().requires_grad_()
    mixed = quantizer(weight, probs)
    found = torch.autograd.grad(mixed, [weight, probs, quantizer.step], upstream)
    single = []
    for width in WIDTHS:
        quantizer.choose(width)
        single.append(quantizer(weight, ONE))
    by_hand_mixed = sum(p * one for p, one in zip(probs, single, strict=True))
    assert isinstance(by_hand_mixed, Tensor)
    torch.testing.assert_close(mixed, by_hand_mixed)
    expected = torch.autograd.grad(by_hand_mixed, [weight, probs, quantizer.step], upstream)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_mixtures_gradients_are_the_numerical_ones_with_the_rounding_errors_held() -> None:
    """Of π and of all steps at once; activations of two images, signed."""
    torch.manual_seed(4)
    quantizer = LsqActivations((2, 4), signed=True).double()
    start = torch.tensor([0.6, 0.17]).double()
    quantizer.step.data.copy_(start)
    x, upstream = torch.randn(2, 60).double(), torch.randn(2, 60).double()
    probs = torch.tensor([0.35, 0.65]).double().requires_grad_()
    found = torch.cat(torch.autograd.grad(quantizer(x, probs), [probs, quantizer.step], upstream))
    limits = ((-2, 1), (-8, 7))
    errors = [(x / s).clamp(*ends).round() - (x / s).clamp(*ends) for s, ends in zip(start, limits, strict=True)]

    def loss(values: Tensor) -> Tensor:
        parts = zip(values[:2], values[2:], limits, errors, strict=True)
        return (sum(p * s * ((x / s).clamp(*ends) + error) for p, s, ends, error in parts) * upstream).sum()

    numerical = torch.autograd.functional.jacobian(loss, torch.cat([probs.detach(), start]))
    numerical[2:] /= torch.tensor([math.sqrt(60 * 1), math.sqrt(60 * 7)]).double()
    torch.testing.assert_close(found, numerical)


def test_each_width_starts_for_itself_and_a_chosen_one_leaves_the_others() -> None:
    weight, x = torch.tensor([-0.3, 0.1, 0.2, 0.8]), torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    signed = partial(LsqActivations, signed=True)
    for kind, values in ((LsqWeights, weight), (signed, x)):
        quantizer = kind(WIDTHS)
        quantizer.calibrate(values)
        for width in WIDTHS:
            alone = kind((width,))
            alone.calibrate(values)
            assert quantizer.steps()[width] == pytest.approx(alone.steps()[width])
        before = quantizer.steps()
        quantizer.choose(3)
        quantizer.calibrate(10 * values)
        assert {width: after / before[width] for width, after in quantizer.steps().items()} == pytest.approx(
            {2: 1, 3: 10, 5: 1}
        )


def test_the_only_step_of_a_deployed_layer_is_a_scalar_and_that_of_several_widths_a_vector() -> None:
    assert {name: tuple(p.shape) for name, p in LsqWeights((4,)).named_parameters()} == {"step": ()}
    assert {name: tuple(p.shape) for name, p in LsqWeights((4, 2)).named_parameters()} == {"step": (2,)}


def test_a_mixture_of_half_precision_activations_is_that_of_their_exact_values() -> None:
    torch.manual_seed(0)
    x, probs = (torch.rand(1, 5000) * 20).bfloat16(), torch.tensor([0.4, 0.6])
    quantizer = LsqActivations((3, 8), signed=False)
    quantizer.calibrate(x.float())
    y = quantizer(x.requires_grad_(), probs)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, quantizer(x.detach().float(), probs).bfloat16(), rtol=0, atol=0)
    assert torch.autograd.grad(y.float().sum(), x)[0].dtype == torch.bfloat16
