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

In a supernet all candidate widths b_1..b_n of a layer share l and u, and β, which is matched to the mixture:

    Qw(w) = Σ_j π_j·Q_j(w),   ∂/∂π_j = Q_j exactly,   ∂/∂w, ∂/∂l, ∂/∂u = Σ_j π_j·(those of Q_j)

and activations likewise. Every width's levels end at the same −1 (or 0) and 1, so that a mixture has the scale of each
of its widths. With π = 1 a single width is the deployed quantiser: both run the same code.

DEVIATION: the release multiplies the bias by β too; none of its quantised layers has one. A trained bias must stay
what it is when β starts away from 1.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.quantizers.affine import AffineGrid
from trainables.quantizers.grid import Grid
from trainables.quantizers.layout import lying_like, without_gaps
from trainables.quantizers.learned_passes import fused
from trainables.quantizers.staircase import deviation

GAMMA = 2.0
WEIGHT_SIGMA, ACT_SIGMA = 1.0, 2.0
INTERVAL_START = 3.0
"""Standard deviations."""
MIN_WIDTH = 1e-6


def _slope_factor() -> float:
    """C."""
    sigmoid = 1 / (1 + math.exp(-GAMMA))
    return sigmoid * (1 - sigmoid) * GAMMA / math.tanh(GAMMA / 2)


def rounding_slope(r: Tensor, *, sigma: float) -> Tensor:
    """∂y/∂t at the fractional part r, of any shape; symmetric about 1/2."""
    near = torch.minimum(r, 1 - r)
    near_score, far_score = (-near).exp(), (near - 1 - sigma**-2).exp()
    return _slope_factor() * (near_score + far_score) / (near_score - far_score)


class _DistanceAware(torch.autograd.Function):
    """x -> Σ_j π_j·(bottom + (1 − bottom)·y_j/n_j): each width's levels lie evenly from `bottom` to 1.

    Keeps x alone for the backward pass, whatever the number of widths. On the CPU each pass reads x once for all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        low: Tensor,
        high: Tensor,
        probs: Tensor,
        steps: tuple[int, ...],
        bottom: float,
        sigma: float,
    ) -> Tensor:
        ctx.save_for_backward(x, low, high, probs)
        ctx.steps, ctx.bottom, ctx.sigma = steps, bottom, sigma
        passes = fused(x, low, high, probs)
        if passes:
            y: Tensor = passes.daq_mixed(x, probs, passes.Places(low, _width(low, high), steps, bottom))
            return y
        mixed = _levels(x, low, high, steps[0], bottom)
        if len(steps) > 1:
            mixed.mul_(probs[0])
            for n, prob in zip(steps[1:], probs[1:], strict=True):
                mixed.add_(_levels(x, low, high, n, bottom).mul_(prob))
        return mixed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # Detached: a second derivative takes slopes and codes for constants, as it does elsewhere, but not π.
        # Read once: checkpointing unpacks what is saved only once.
        *kept, probs = ctx.saved_tensors
        x, low, high = (saved.detach() for saved in kept)
        steps, (grad,) = ctx.steps, grad_outputs
        passes = None if torch.is_grad_enabled() else fused(x, low, high, probs)
        if passes:
            return _fused_gradients(ctx, passes, grad, (x, low, high, probs))
        needs_x, needs_low, needs_high, needs_probs = ctx.needs_input_grad[:4]
        width = _width(low, high)
        sums: list[Tensor | None] = [None, None, None]
        dots: list[Tensor] = []
        for j, n in enumerate(steps):
            places = _places(x, low, high, n)
            inside = (places >= 0) & (places <= n)
            slope = rounding_slope(places - places.floor(), sigma=ctx.sigma) * inside
            by_place = grad * slope * ((1 - ctx.bottom) / n)
            if len(steps) > 1:
                by_place = by_place * probs[j]
            parts = (
                by_place * (n / width) if needs_x else None,
                -(by_place * (n - places)).sum() / width if needs_low else None,
                -(by_place * places).sum() / width if needs_high else None,
            )
            sums = [
                part if known is None or part is None else known + part for known, part in zip(sums, parts, strict=True)
            ]
            if needs_probs:
                dots.append((_levels(x, low, high, n, ctx.bottom) * grad).sum())
        grad_x, grad_low, grad_high = sums
        grad_x = None if grad_x is None else grad_x.to(x.dtype)
        grad_probs = torch.stack(dots).to(probs.dtype) if needs_probs else None
        return grad_x, grad_low, grad_high, grad_probs, None, None, None


def _fused_gradients(
    ctx: Any, passes: ModuleType, grad: Tensor, saved: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor | None, ...]:
    """The same in one pass over x, which second derivatives cannot follow."""
    x, low, high, probs = saved
    found = passes.daq_slopes(
        lying_like(grad, x),
        x,
        probs,
        passes.Places(low, _width(low, high), ctx.steps, ctx.bottom),
        factor=_slope_factor(),
        sigma=ctx.sigma,
        wants_dots=ctx.needs_input_grad[3],
    )
    inputs = zip(saved, (found.x, found.low, found.high, found.dots), strict=True)
    grads = (slope.to(of.dtype) for of, slope in inputs)
    needed = ctx.needs_input_grad[:4]
    return (*(each if needs else None for each, needs in zip(grads, needed, strict=True)), None, None, None)


def _width(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(MIN_WIDTH)


def _places(x: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    """n·(x − l)/(u − l), not clipped; half-precision x as float32, for the fractional part's sake."""
    return (x.to(torch.promote_types(x.dtype, torch.float32)) - low) * (steps / _width(low, high))


def _levels(x: Tensor, low: Tensor, high: Tensor, steps: int, bottom: float) -> Tensor:
    """Q(x) of one width, levels from `bottom` to 1, in the precision of places."""
    places = _places(x, low, high, steps).clamp_(0, steps)
    return places.sub_(0.5).ceil_().mul_((1 - bottom) / steps).add_(bottom)


class DaqWeights(nn.Module):
    """Mixture of widths that share an interval, times the layer's gain |β|."""

    def __init__(self, bits: tuple[int, ...]) -> None:
        super().__init__()
        self.grids = tuple(Grid(lo=-(2 ** (b - 1)), hi=2 ** (b - 1) - 1, offset=0.5, windowed=True) for b in bits)
        self.steps = tuple(2**b - 1 for b in bits)
        self.low = nn.Parameter(torch.tensor(-INTERVAL_START))
        self.high = nn.Parameter(torch.tensor(INTERVAL_START))
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, weight: Tensor, probs: Tensor) -> Tensor:
        """Mixed weight with β, shape of `weight`; probs [n]."""
        fixed = weight.detach()
        standardised = (weight - fixed.mean()) / deviation(fixed).clamp_min(1e-12)
        # Ends that training has carried across each other change places: the codes keep their order.
        low, high = torch.minimum(self.low, self.high), torch.maximum(self.low, self.high)
        levels: Tensor = _DistanceAware.apply(
            without_gaps(standardised), low, high, probs, self.steps, -1.0, WEIGHT_SIGMA
        )
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
        """The grid of the values in plain numbers, of a quantiser of one width; codes follow from these, not from
        `weight` on this scale."""
        (grid,), (steps,) = self.grids, self.steps
        return grid.affine(2 / steps, gain=float(self.gain.detach().abs()))


class DaqActivations(nn.Module):
    """Mixture of widths that share the interval's end u; 0 … 1 after quantisation.

    DEVIATION: an activation that can be negative has the interval ±u with levels −1 … 1, one less than 2^b so that zero
    is one of them: DAQ reads ReLU outputs alone, and a convolution's padding is zero.
    """

    def __init__(self, bits: tuple[int, ...], *, signed: bool) -> None:
        super().__init__()
        if signed and min(bits) < 2:
            raise ConfigError("daq: a signed activation needs at least 2 bits; this layer reads negative values.")
        self.signed = signed
        tops = [2 ** (b - 1) - 1 if signed else 2**b - 1 for b in bits]
        self.grids = tuple(Grid(lo=-top if signed else 0, hi=top, windowed=True) for top in tops)
        self.steps = tuple(grid.hi - grid.lo for grid in self.grids)
        self.high = nn.Parameter(torch.tensor(INTERVAL_START))

    def forward(self, x: Tensor, probs: Tensor) -> Tensor:
        """Mixed activation, shape of `x`; probs [n]."""
        high = self.high.abs()
        low, bottom = (-high, -1.0) if self.signed else (torch.zeros_like(high), 0.0)
        levels: Tensor = _DistanceAware.apply(without_gaps(x), low, high, probs, self.steps, bottom, ACT_SIGMA)
        return levels

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Sets u to three standard deviations of `x`."""
        spread = x.std(correction=0)
        self.high.copy_(torch.where(spread > MIN_WIDTH, INTERVAL_START * spread, INTERVAL_START))

    def affine(self) -> AffineGrid:
        """The grid in plain numbers, of a quantiser of one width; its gain 1/u makes the largest level 1."""
        (grid,) = self.grids
        high = max(float(self.high.detach().abs()), MIN_WIDTH / 2 if self.signed else MIN_WIDTH)
        return grid.affine(high / grid.hi, gain=1 / high, rounding="half_down")
