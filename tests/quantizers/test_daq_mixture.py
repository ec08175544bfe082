"""DAQ with several widths: its mixture by brute force, its gradients by each width's and by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.quantizers.test_daq import ONE, smoothed, soft_rounding
from trainables.quantizers.daq import DaqActivations, DaqWeights
from trainables.quantizers.layers import BitMixture, calibrate, quantize_layers

Quantizer = DaqWeights | DaqActivations
KINDS = ["weights", "activations", "signed activations"]


def quantizer_of(kind: str, bits: tuple[int, ...]) -> Quantizer:
    """In double precision, with ends and a gain that are none of the starting ones."""
    if kind == "weights":
        found: Quantizer = DaqWeights(bits).double()
        found.low.data.fill_(-1.3)
        found.gain.data.fill_(-0.6)
    else:
        found = DaqActivations(bits, signed=kind.startswith("signed")).double()
    found.high.data.fill_(1.7)
    return found


def steps_of(kind: str, bits: int) -> int:
    """Distances between the levels of one width."""
    return 2**bits - 2 if kind.startswith("signed") else 2**bits - 1


def mixed(
    kind: str,
    x: Tensor,
    probs: Tensor,
    bits: tuple[int, ...],
    low: Tensor,
    high: Tensor,
    rounding: Callable[..., Tensor],
) -> Tensor:
    """The mixture as the paper defines each of its widths, with any rounding of places."""
    bottom, sigma, gain = (0.0, 2.0, 1.0) if kind == "activations" else (-1.0, 2.0, 1.0)
    if kind == "weights":
        x, sigma, gain = (x - x.detach().mean()) / x.detach().std(correction=0), 1.0, 0.6
    total = torch.zeros_like(x)
    for prob, width in zip(probs, bits, strict=True):
        n = steps_of(kind, width)
        places = ((x - low) * (n / (high - low))).clamp(0, n)
        total = total + prob * (bottom + (1 - bottom) * rounding(places, sigma=sigma) / n)
    return gain * total


def ends(kind: str, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    high = quantizer.high.detach()
    if isinstance(quantizer, DaqWeights):
        return quantizer.low.detach(), high
    return (-high if kind.startswith("signed") else torch.zeros_like(high)), high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [(2, 3, 4), (8, 2), (5,), (2, 3, 4, 5, 6, 7, 8)])
def test_every_width_is_rounded_hard_to_the_nearest_level_and_ties_go_down(kind: str, bits: tuple[int, ...]) -> None:
    """Brute force over all levels, in a mixture and alone."""
    torch.manual_seed(len(bits))
    quantizer = quantizer_of(kind, bits)
    low, high = ends(kind, quantizer)
    n = steps_of(kind, bits[0])
    # Among them all ties of the first width: exact where the interval is a power of two wide.
    if kind != "weights":
        quantizer.high.data.fill_(n / 2 if kind.startswith("signed") else float(n))
        low, high = ends(kind, quantizer)
    x = torch.cat([torch.randn(300).double() * 2, low + (torch.arange(n).double() + 0.5)])

    def nearest(places: Tensor, *, sigma: float) -> Tensor:
        levels = torch.arange(round(float(places.max())) + 2).double()
        # The first of the nearest is the lower one.
        return levels[(places[:, None] - levels).abs().argmin(1)]

    for probs in (torch.softmax(torch.randn(len(bits)).double(), 0), torch.eye(len(bits)).double()[-1]):
        expected = mixed(kind, x, probs, bits, low, high, nearest)
        torch.testing.assert_close(quantizer(x, probs).detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_width_is_its_quantised_value_and_the_others_are_weighted_sums(kind: str) -> None:
    bits = (2, 3, 6)
    torch.manual_seed(0)
    x, upstream = torch.randn(200).double().requires_grad_(), torch.randn(200).double()
    probs = torch.tensor([0.2, 0.5, 0.3]).double().requires_grad_()
    quantizer = quantizer_of(kind, bits)
    learned = [p for name, p in quantizer.named_parameters() if name != "gain"]
    grads = torch.autograd.grad(quantizer(x, probs), [probs, x, *learned], upstream)
    sums = [torch.zeros_like(grad) for grad in grads[1:]]
    for j, width in enumerate(bits):
        alone = quantizer_of(kind, (width,))
        y = alone(x, ONE.double())
        torch.testing.assert_close(grads[0][j], (y.detach() * upstream).sum(), rtol=1e-12, atol=1e-12)
        inputs = [x, *(p for name, p in alone.named_parameters() if name != "gain")]
        for total, grad in zip(sums, torch.autograd.grad(y, inputs, upstream), strict=True):
            total += probs[j].detach() * grad
    for found, expected in zip(grads[1:], sums, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_are_those_of_the_papers_soft_argmax_by_autograd(kind: str) -> None:
    bits = (2, 4)
    torch.manual_seed(1)
    x, upstream = torch.randn(300).double().requires_grad_(), torch.randn(300).double()
    logits = torch.tensor([0.3, -0.4]).double().requires_grad_()
    quantizer = quantizer_of(kind, bits)
    own = [p for name, p in quantizer.named_parameters() if name != "gain"]
    found = torch.autograd.grad(quantizer(x, logits.softmax(0)), [x, logits, *own], upstream)
    low, high = (end.clone().requires_grad_() for end in ends(kind, quantizer))
    bottom = -high if kind.startswith("signed") else low
    soft = mixed(kind, x, logits.softmax(0), bits, bottom, high, soft_rounding)
    expected = torch.autograd.grad(soft, [x, logits, *([low] if kind == "weights" else []), high], upstream)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_ends_and_of_logits_are_the_numerical_ones(kind: str) -> None:
    """Finite differences: of the smooth rounding in the ends, of the quantiser itself in the logits."""
    bits = (2, 3, 4)
    torch.manual_seed(2)
    x, upstream = torch.randn(120).double(), torch.randn(120).double()
    logits = torch.randn(3).double().requires_grad_()
    quantizer = quantizer_of(kind, bits)
    assert torch.autograd.gradcheck(lambda free: quantizer(x, free.softmax(0)), logits)
    probs, (low, high) = logits.detach().softmax(0), ends(kind, quantizer)
    own = [p for name, p in quantizer.named_parameters() if name != "gain"]
    grads = torch.autograd.grad(quantizer(x, probs), own, upstream)

    def loss(low_by: float, high_by: float) -> float:
        bottom = -(high + high_by) if kind.startswith("signed") else low + low_by
        return float((mixed(kind, x, probs, bits, bottom, high + high_by, smoothed) * upstream).sum())

    e = 1e-6
    moves = ([(e, 0.0)] if kind == "weights" else []) + [(0.0, e)]
    for grad, (low_by, high_by) in zip(grads, moves, strict=True):
        numerical = (loss(low_by, high_by) - loss(-low_by, -high_by)) / (2 * e)
        assert float(grad) == pytest.approx(numerical, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_derivative_follows_upstream_and_logits_with_slopes_and_codes_held(kind: str) -> None:
    """As an attribution that is differentiated once more needs it."""
    torch.manual_seed(3)
    x, upstream, along = (torch.randn(60).double() for _ in range(3))
    quantizer = quantizer_of(kind, (2, 3))

    def gradients_along(logits: Tensor, upstream: Tensor) -> Tensor:
        read = x.clone().requires_grad_()
        y = quantizer(read, logits.softmax(0))
        grads = torch.autograd.grad(y, [read, logits], upstream, create_graph=True)
        return (grads[0] * along).sum() + grads[1][0]

    logits = torch.tensor([0.2, -0.3]).double().requires_grad_()
    assert torch.autograd.gradcheck(gradients_along, (logits, upstream.requires_grad_()))


def test_of_an_activation_nothing_but_itself_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []
    x, probs = torch.rand(1000, requires_grad=True), torch.ones(7, requires_grad=True) / 7
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        DaqActivations((2, 3, 4, 5, 6, 7, 8), signed=False)(x, probs)
    assert [size for size in kept if size >= 1000] == [1000]


def test_calibration_matches_the_gain_to_the_mixture() -> None:
    torch.manual_seed(0)
    conv, images = nn.Conv2d(3, 4, 3, padding=1), torch.rand(9, 3, 6, 6)
    exact = F.conv2d(images, conv.weight, None, padding=1)
    mixture = BitMixture("daq", weight_bits=(2, 4, 8), act_bits=(2, 3), signed=False)
    mixture.weight_logits.data.copy_(torch.tensor([1.0, -1.0, 0.5]))
    net = nn.Sequential(conv)
    quantize_layers(net, {"0": mixture})
    calibrate(net, images)
    with torch.no_grad():
        made = net(images) - conv.bias[:, None, None]
    assert float(made.abs().mean()) == pytest.approx(float(exact.abs().mean().detach()), rel=1e-4)
    assert float(mixture.activations.high.detach()) == pytest.approx(3 * float(images.std(correction=0)), rel=1e-5)
    # The same policy alone has another size: the gain is the mixture's own.
    for logits in (mixture.weight_logits, mixture.act_logits):
        logits.data.copy_(torch.tensor([40.0] + [-40.0] * (len(logits) - 1)))
    with torch.no_grad():
        alone = net(images) - conv.bias[:, None, None]
    assert abs(float(alone.abs().mean() / made.abs().mean()) - 1) > 0.02


def test_half_precision_activations_are_mixed_in_full_precision() -> None:
    torch.manual_seed(0)
    quantizer, rough = DaqActivations((2, 8), signed=False), (torch.rand(3000) * 4).bfloat16()
    upstream, results = torch.randn(3000).bfloat16(), []
    for x in (rough.requires_grad_(), rough.detach().float().requires_grad_()):
        probs = torch.tensor([0.3, 0.7], requires_grad=True)
        y = quantizer(x, probs)
        results.append((y, *torch.autograd.grad(y, [x, quantizer.high, probs], upstream.to(y.dtype))))
    assert [part.dtype for part in results[0]] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for half, whole in zip(*results, strict=True):
        torch.testing.assert_close(half, whole.to(half.dtype))
