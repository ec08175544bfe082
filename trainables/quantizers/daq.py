"""DAQ (Kim, Lee and Ham 2021): hard rounding forward, the derivative of a distance-aware soft rounding backward.

With t = n·clip((x − l)/(u − l), 0, 1), n + 1 the number of levels, r = t − ⌊t⌋:

    y = round(t), ties down
    ∂y/∂t = C·(s_0 + s_1)/|s_0 − s_1|,  s_i = exp(−|r − i|)·exp(−(i − i*)²/σ²),  i* the nearer of 0 and 1
    C = coth(γ/2)·sig(γ)·(1 − sig(γ))·γ,  γ = 2,  σ = 1 for weights, 2 for activations

and ∂t/∂x, ∂t/∂l, ∂t/∂u by the chain rule inside of [l, u], 0 outside. This is the derivative of a soft argmax over the
two neighbouring levels with temperature γ/|s_0 − s_1|, held constant, whose value is the hard one exactly.

Weights, b bits:      (w − mean)/std, both detached, l and u learned from −3 and 3; levels −1 … 1, 2^b of them
Activations, b bits:  l = 0, u learned from 3·std of the first batch; levels 0 … 1, 2^b of them
Layer:                |β|·conv(Qa(x), Qw(w)) + bias, β learned from mean|conv(x, w)| / mean|conv(Qa(x), Qw(w))|

β multiplies the quantised weight, which is the same as the output: there are fewer weights than outputs.

DEVIATION: the release multiplies the bias by β too; none of its quantised layers has one. A trained bias must stay
what it is when β starts away from 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.quantizers.affine import AffineGrid, only_width
from trainables.quantizers.staircase import Grid

GAMMA = 2.0
WEIGHT_SIGMA, ACT_SIGMA = 1.0, 2.0
INTERVAL_START = 3.0
"""Standard deviations."""
MIN_WIDTH = 1e-6


def rounding_slope(r: Tensor, *, sigma: float) -> Tensor:
    """∂y/∂t at the fractional part r, of any shape; symmetric about 1/2."""
    sigmoid = 1 / (1 + math.exp(-GAMMA))
    factor = sigmoid * (1 - sigmoid) * GAMMA / math.tanh(GAMMA / 2)
    near = torch.minimum(r, 1 - r)
    near_score, far_score = (-near).exp(), (near - 1 - sigma**-2).exp()
    return factor * (near_score + far_score) / (near_score - far_score)


class _DistanceAware(torch.autograd.Function):
    """x -> bottom + (1 − bottom)·y/n: the levels lie evenly from `bottom` to 1. Keeps x alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, steps: int, bottom: float, sigma: float) -> Tensor:
        ctx.save_for_backward(x, low, high)
        ctx.steps, ctx.bottom, ctx.sigma = steps, bottom, sigma
        places = _places(x, low, high, steps).clamp_(0, steps)
        return places.sub_(0.5).ceil_().mul_((1 - bottom) / steps).add_(bottom).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # Detached: a second derivative takes the slope for a constant, as it takes windows and codes elsewhere.
        x, low, high = (saved.detach() for saved in ctx.saved_tensors)
        steps: int = ctx.steps
        places = _places(x, low, high, steps)
        inside = (places >= 0) & (places <= steps)
        slope = rounding_slope(places - places.floor(), sigma=ctx.sigma) * inside
        by_place = grad_outputs[0] * slope * ((1 - ctx.bottom) / steps)
        width = _width(low, high)
        needs_x, needs_low, needs_high = ctx.needs_input_grad[:3]
        return (
            (by_place * (steps / width)).to(x.dtype) if needs_x else None,
            -(by_place * (steps - places)).sum() / width if needs_low else None,
            -(by_place * places).sum() / width if needs_high else None,
            None,
            None,
            None,
        )


def _width(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(MIN_WIDTH)


def _places(x: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    """n·(x − l)/(u − l), not clipped; half-precision x as float32, for the fractional part's sake."""
    return (x.to(torch.promote_types(x.dtype, torch.float32)) - low) * (steps / _width(low, high))


class DaqWeights(nn.Module):
    """Weights of one width, times the layer's gain |β|."""

    def __init__(self, bits: tuple[int, ...]) -> None:
        super().__init__()
        width = only_width("daq", bits)
        self.grids = (Grid(lo=-(2 ** (width - 1)), hi=2 ** (width - 1) - 1, offset=0.5, windowed=True),)
        self.steps = 2**width - 1
        self.low = nn.Parameter(torch.tensor(-INTERVAL_START))
        self.high = nn.Parameter(torch.tensor(INTERVAL_START))
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, weight: Tensor, probs: Tensor) -> Tensor:
        """Quantised weight with β, shape of `weight`; probs [1] is 1."""
        fixed = weight.detach()
        standardised = (weight - fixed.mean()) / fixed.std(correction=0).clamp_min(1e-12)
        # Ends that training has carried across each other change places: the codes keep their order.
        low, high = torch.minimum(self.low, self.high), torch.maximum(self.low, self.high)
        levels: Tensor = _DistanceAware.apply(standardised, low, high, self.steps, -1.0, WEIGHT_SIGMA)
        return levels * self.gain.abs()

    def calibrate(self, weight: Tensor) -> None:
        """Nothing to set: the interval is one of standardised weights."""

    @torch.no_grad()
    def match(self, exact: Tensor, quantized: Tensor) -> None:
        """Sets β such that the layer's `quantized` output, made with the present β, has the mean size of `exact`."""
        wanted, found = exact.abs().mean(), quantized.abs().mean()
        ratio = wanted / found
        self.gain.mul_(torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0))

    def affine(self, weight: Tensor) -> AffineGrid:
        """The grid of the values in plain numbers; codes follow from these, not from `weight` on this scale."""
        return self.grids[0].affine(2 / self.steps, gain=float(self.gain.detach().abs()))


class DaqActivations(nn.Module):
    """Activations of one width, 0 … 1 after quantisation.

    DEVIATION: an activation that can be negative has the interval ±u with levels −1 … 1, one less than 2^b so that zero
    is one of them: DAQ reads ReLU outputs alone, and a convolution's padding is zero.
    """

    def __init__(self, bits: tuple[int, ...], *, signed: bool) -> None:
        super().__init__()
        width = only_width("daq", bits)
        if signed and width < 2:
            raise ConfigError("daq: a signed activation needs at least 2 bits; this layer reads negative values.")
        self.signed = signed
        self.top = 2 ** (width - 1) - 1 if signed else 2**width - 1
        self.grids = (Grid(lo=-self.top if signed else 0, hi=self.top, windowed=True),)
        self.high = nn.Parameter(torch.tensor(INTERVAL_START))

    def forward(self, x: Tensor, probs: Tensor) -> Tensor:
        """Quantised activation, shape of `x`; probs [1] is 1."""
        high = self.high.abs()
        low, steps, bottom = (-high, 2 * self.top, -1.0) if self.signed else (torch.zeros_like(high), self.top, 0.0)
        levels: Tensor = _DistanceAware.apply(x, low, high, steps, bottom, ACT_SIGMA)
        return levels

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Sets u to three standard deviations of `x`."""
        spread = x.std(correction=0)
        self.high.copy_(torch.where(spread > MIN_WIDTH, INTERVAL_START * spread, INTERVAL_START))

    def affine(self) -> AffineGrid:
        """The grid in plain numbers; its gain 1/u makes the largest level 1."""
        high = max(float(self.high.detach().abs()), MIN_WIDTH / 2 if self.signed else MIN_WIDTH)
        return self.grids[0].affine(high / self.top, gain=1 / high, rounding="half_down")
