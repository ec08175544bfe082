import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.quantizers.daq import DaqActivations, DaqWeights, rounding_slope
from trainables.quantizers.layers import BitMixture, calibrate, quantize_layers

ONE = torch.ones(1)
SLOPES = {
    1.0: {0.0: 0.36203, 0.3: 0.45621, 0.49: 0.58671, 0.5: 0.59665},
    2.0: {0.0: 0.49715, 0.3: 0.87803, 0.49: 2.05477, 0.5: 2.21724},
}


def soft_rounding(places: Tensor, *, sigma: float, gamma: float = 2.0) -> Tensor:
    """The paper's soft argmax over the two levels next to each place, by autograd, with the temperature held."""
    floor = places.detach().floor()
    r = places - floor
    distances = torch.stack([r, 1 - r])
    nearer = (r.detach() > 0.5).double()
    kernel = torch.stack([(-((i - nearer) ** 2) / sigma**2).exp() for i in (0, 1)])
    scores = (-distances).exp() * kernel
    temperature = gamma / (scores[0] - scores[1]).abs().detach()
    share = torch.softmax(temperature * scores, dim=0)[1]
    # The shares are sig(∓γ) everywhere: stretched about the middle they are 0 and 1.
    return floor + 0.5 + (share - 0.5) / math.tanh(gamma / 2)


def smoothed(places: Tensor, *, sigma: float) -> Tensor:
    """∫ rounding_slope, in closed form: d ln(s_near − s_far) is −(s_near + s_far)/(s_near − s_far) dr."""
    sigmoid = 1 / (1 + math.exp(-2.0))
    factor = sigmoid * (1 - sigmoid) * 2.0 / math.tanh(1.0)

    def rise(near: Tensor) -> Tensor:
        difference = (-near).exp() - (near - 1 - sigma**-2).exp()
        return factor * (math.log(1 - math.exp(-1 - sigma**-2)) - difference.log())

    half = rise(torch.tensor(0.5).double())
    floor = places.detach().floor()
    r = places - floor
    return 2 * half * floor + torch.where(r <= 0.5, rise(r.clamp(max=0.5)), 2 * half - rise((1 - r).clamp(max=0.5)))


@pytest.mark.parametrize("sigma", SLOPES)
def test_the_slope_has_the_papers_values_and_is_symmetric(sigma: float) -> None:
    for r, slope in SLOPES[sigma].items():
        found = rounding_slope(torch.tensor([r, 1 - r]).double(), sigma=sigma)
        assert found.tolist() == pytest.approx([slope, slope], abs=5e-6)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_the_slope_is_that_of_the_soft_argmax_whose_value_is_hard_rounding(sigma: float) -> None:
    torch.manual_seed(0)
    places = (torch.rand(500).double() * 6).requires_grad_()
    soft = soft_rounding(places, sigma=sigma)
    torch.testing.assert_close(soft, places.detach().round(), atol=1e-9, rtol=0)
    (grad,) = torch.autograd.grad(soft.sum(), places)
    with torch.no_grad():
        torch.testing.assert_close(grad, rounding_slope(places - places.floor(), sigma=sigma))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_activations_are_rounded_hard_and_ties_go_down(bits: int) -> None:
    quantizer, top = DaqActivations((bits,), signed=False), 2**bits - 1
    quantizer.high.data.fill_(float(top))
    ties = torch.arange(top) + 0.5
    torch.testing.assert_close(quantizer(ties, ONE), torch.arange(top) / top)
    x = torch.tensor([-1.0, 0.0, 0.51, top - 0.49, float(top), top + 5.0])
    expected = [0.0, 0.0, 1.0, float(top), float(top), float(top)]
    torch.testing.assert_close(quantizer(x, ONE), torch.tensor(expected) / top)


def test_signed_activations_keep_their_sign_and_have_a_zero() -> None:
    quantizer = DaqActivations((3,), signed=True)
    x = torch.tensor([-9.0, -3.0, -1.6, -0.4, 0.0, 0.4, 1.6, 3.0])
    torch.testing.assert_close(quantizer(x, ONE), torch.tensor([-3.0, -3.0, -2.0, 0.0, 0.0, 0.0, 2.0, 3.0]) / 3)


def test_weights_are_standardised_and_have_two_to_the_bits_levels_times_the_gain() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4000).double() * 0.02 + 0.7
    quantizer = DaqWeights((2,)).double()
    quantizer.gain.data.fill_(-0.5)
    unit = (weight - weight.mean()) / weight.std(correction=0)
    # Levels −1, −1/3, 1/3, 1 of the interval ±3: borders at −2, 0 and 2.
    levels = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0]).double()
    expected = 0.5 * levels[torch.bucketize(unit, torch.tensor([-2.0, 0.0, 2.0]).double())]
    torch.testing.assert_close(quantizer(weight, ONE).detach(), expected)
    assert sorted(DaqWeights((1,))(weight.float(), ONE).unique().tolist()) == [-1.0, 1.0]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_gradients_of_the_interval_are_the_numerical_ones_of_the_smooth_rounding(bits: int) -> None:
    """Finite differences of the smooth function with the same slope, in x, l, u and β."""
    torch.manual_seed(bits)
    quantizer = DaqWeights((bits,)).double()
    quantizer.low.data.fill_(-1.3)
    quantizer.high.data.fill_(1.7)
    quantizer.gain.data.fill_(0.6)
    weight, upstream = torch.randn(60).double().requires_grad_(), torch.randn(60).double()
    learned = [quantizer.low, quantizer.high]
    y = quantizer(weight, ONE)
    grads = torch.autograd.grad(y, [*learned, weight, quantizer.gain], upstream)
    mean, spread, steps = weight.detach().mean(), weight.detach().std(correction=0), 2**bits - 1

    def loss(values: Tensor, low: float, high: float) -> float:
        places = (((values - mean) / spread - low) / (high - low)).clamp(0, 1) * steps
        return float(((2 * smoothed(places, sigma=1.0) / steps - 1) * 0.6 * upstream).sum())

    fixed, e = weight.detach(), 1e-6
    assert float(grads[0]) == pytest.approx((loss(fixed, -1.3 + e, 1.7) - loss(fixed, -1.3 - e, 1.7)) / (2 * e), 1e-5)
    assert float(grads[1]) == pytest.approx((loss(fixed, -1.3, 1.7 + e) - loss(fixed, -1.3, 1.7 - e)) / (2 * e), 1e-5)
    for place in range(0, 60, 7):
        moved = torch.zeros(60).double()
        moved[place] = e
        numerical = (loss(fixed + moved, -1.3, 1.7) - loss(fixed - moved, -1.3, 1.7)) / (2 * e)
        assert float(grads[2][place]) == pytest.approx(numerical, rel=1e-4, abs=1e-7)
    assert float(grads[3]) == pytest.approx(float((y.detach() / 0.6 * upstream).sum()))


@pytest.mark.parametrize("signed", [False, True])
def test_the_gradient_of_the_activation_end_is_the_numerical_one_of_the_smooth_rounding(signed: bool) -> None:
    torch.manual_seed(3)
    quantizer = DaqActivations((3,), signed=signed).double()
    quantizer.high.data.fill_(1.1)
    x, upstream = torch.randn(80).double(), torch.randn(80).double()
    (grad,) = torch.autograd.grad(quantizer(x, ONE), quantizer.high, upstream)

    def loss(high: float) -> float:
        if signed:
            return float(((smoothed(((x / high + 1) / 2).clamp(0, 1) * 6, sigma=2.0) / 3 - 1) * upstream).sum())
        return float((smoothed((x / high).clamp(0, 1) * 7, sigma=2.0) / 7 * upstream).sum())

    assert float(grad) == pytest.approx((loss(1.1 + 1e-6) - loss(1.1 - 1e-6)) / 2e-6, rel=1e-5)


def test_the_interval_passes_no_gradient_outside_and_ends_that_cross_keep_the_order_of_codes() -> None:
    quantizer = DaqActivations((2,), signed=False)
    x = torch.tensor([-0.5, 0.2, 2.9, 3.1], requires_grad=True)
    (grad,) = torch.autograd.grad(quantizer(x, ONE).sum(), x)
    assert [bool(g > 0) for g in grad] == [False, True, True, False]
    quantizer.high.data.fill_(-3.0)
    torch.testing.assert_close(quantizer(x, ONE), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    weights, weight = DaqWeights((3,)), torch.randn(100)
    before = weights(weight, ONE)
    weights.low.data.fill_(3.0)
    weights.high.data.fill_(-3.0)
    torch.testing.assert_close(weights(weight, ONE), before)
    weights.low.data.fill_(-3.0)
    assert bool(weights(weight, ONE).isfinite().all())
    assert torch.equal(weights(torch.full((9,), 0.3), ONE).isfinite(), torch.ones(9, dtype=torch.bool))


def test_calibration_gives_each_layers_output_its_float_size_and_leaves_the_bias_alone() -> None:
    """|β| multiplies what a convolution or a linear layer makes of codes; to the bias nothing is done."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(6, 5)
    with torch.no_grad():
        conv.bias.fill_(7.0)
        linear.bias.fill_(-3.0)
    images, rows = torch.rand(9, 3, 6, 6), torch.randn(9, 6)
    exact = {"conv": F.conv2d(images, conv.weight, None, padding=1), "linear": F.linear(rows, linear.weight)}
    net = nn.ModuleDict({"conv": conv, "linear": linear})
    for name, inputs in (("conv", images), ("linear", rows)):
        signed = name == "linear"
        mixture = BitMixture("daq", weight_bits=(2,), act_bits=(3,), signed=signed)
        single = nn.Sequential(net[name])
        quantize_layers(single, {"0": mixture})
        calibrate(single, inputs)
        assert float(mixture.activations.high.detach()) == pytest.approx(3 * float(inputs.std(correction=0)), rel=1e-5)
        with torch.no_grad():
            made = single(inputs) - (7.0 if name == "conv" else -3.0)
        assert float(made.abs().mean()) == pytest.approx(float(exact[name].abs().mean().detach()), rel=1e-4)
        gain = float(mixture.weights.gain.detach())
        calibrate(single, inputs)
        assert float(mixture.weights.gain.detach()) == pytest.approx(gain, rel=1e-4)
        gain, unit = float(mixture.weights.gain.detach()), mixture.weights
        unit.gain.data.fill_(1.0)
        with torch.no_grad():
            unscaled = single(inputs) - (7.0 if name == "conv" else -3.0)
        torch.testing.assert_close(made, gain * unscaled, rtol=1e-4, atol=1e-5)


def test_half_precision_activations_get_the_codes_and_the_slopes_of_their_exact_values() -> None:
    torch.manual_seed(0)
    quantizer, rough = DaqActivations((8,), signed=False), (torch.rand(3000) * 4).bfloat16()
    upstream = torch.randn(3000).bfloat16()
    results = []
    for x in (rough.requires_grad_(), rough.detach().float().requires_grad_()):
        y = quantizer(x, ONE)
        results.append((y, *torch.autograd.grad(y, [x, quantizer.high], upstream.to(y.dtype))))
    assert [part.dtype for part in results[0]] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for half, whole in zip(*results, strict=True):
        torch.testing.assert_close(half, whole.to(half.dtype))
