"""LSQ (Esser et al. 2020): one learned step for each tensor.

    v̂ = s · round(clip(v / s, lo, hi))                                                  (eqs 1, 2)
    ∂v̂/∂s = round(v/s) − v/s  where lo < v/s < hi,  lo below,  hi above                 (eq. 3)
    ∂v̂/∂v = 1                 where lo < v/s < hi,  0 elsewhere                         (eq. 5)

with lo, hi = −2^(b−1), 2^(b−1) − 1 for weights and signed activations, 0, 2^b − 1 for unsigned activations. The
gradient of the loss to s is multiplied by 1/√(n·hi), n the weights of the layer or the features that it reads of one
image.

DEVIATION: weights start with max|μ ± 3σ| / 2^(b−1), as in LSQ+ (Bhalgat et al. 2020), instead of 2·mean|v|/√hi: the
range then holds nearly all weights at any width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.quantizers.affine import AffineGrid, only_width
from trainables.quantizers.staircase import Grid

MIN_STEP = 1e-8


class _Stepped(torch.autograd.Function):
    """Eqs 1 to 5 with a scalar positive step. Keeps v alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, step: Tensor, grid: Grid, gradient_scale: float) -> Tensor:
        ctx.save_for_backward(v, step)
        ctx.grid, ctx.gradient_scale = grid, gradient_scale
        return (grid.codes(_exact(v), step) * step).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # Detached, so that a second derivative sees a straight-through estimator: constant almost everywhere in v.
        v, step = (saved.detach() for saved in ctx.saved_tensors)
        grid: Grid = ctx.grid
        grad, places = grad_outputs[0], _exact(v) / step
        inside = (places > grid.lo) & (places < grid.hi)
        grad_v, grad_step = grad * inside if ctx.needs_input_grad[0] else None, None
        if ctx.needs_input_grad[1]:
            slope = grid.codes(_exact(v), step) - places * inside
            grad_step = (grad * slope).sum() * ctx.gradient_scale
        return grad_v, grad_step, None, None


def _exact(v: Tensor) -> Tensor:
    """Half-precision numbers as float32: their own 8 or 11 digits would move codes of 8 bits."""
    return v.to(torch.promote_types(v.dtype, torch.float32))


def _positive(step: Tensor) -> Tensor:
    # Training can carry a step across zero; its size counts, so that the codes keep their order and it can come back.
    return step.abs().clamp_min(MIN_STEP)


def _signed_grid(bits: int) -> Grid:
    return Grid(lo=-(2 ** (bits - 1)), hi=2 ** (bits - 1) - 1, windowed=True)


class LsqWeights(nn.Module):
    """Weights of one width; the step starts from the layer's weight when it is calibrated."""

    def __init__(self, bits: tuple[int, ...]) -> None:
        super().__init__()
        width = only_width("lsq", bits)
        if width < 2:
            raise ConfigError("lsq: 1-bit weights do not exist (the codes -1 and 0 have no positive one); use 2 bits.")
        self.grids = (_signed_grid(width),)
        self.step = nn.Parameter(torch.tensor(1.0))

    def forward(self, weight: Tensor, probs: Tensor) -> Tensor:
        """Quantised weight, shape of `weight`; probs [1] is 1."""
        (grid,) = self.grids
        quantized: Tensor = _Stepped.apply(weight, _positive(self.step), grid, 1 / math.sqrt(weight.numel() * grid.hi))
        return quantized

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Sets the step from the weights' mean and standard deviation."""
        mean, spread = weight.mean(), weight.std(correction=0)
        start = (mean.abs() + 3 * spread) / -self.grids[0].lo
        self.step.copy_(torch.where(start > MIN_STEP, start, 1.0))

    def affine(self, weight: Tensor) -> AffineGrid:
        """The grid in plain numbers; `weight` has no part in it."""
        return self.grids[0].affine(float(_positive(self.step.detach())))


class LsqActivations(nn.Module):
    """Activations of one width; signed codes where the layer reads negative values."""

    def __init__(self, bits: tuple[int, ...], *, signed: bool) -> None:
        super().__init__()
        width = only_width("lsq", bits)
        if signed and width < 2:
            raise ConfigError("lsq: a signed activation needs at least 2 bits; this layer reads negative values.")
        self.grids = (_signed_grid(width) if signed else Grid(lo=0, hi=2**width - 1, windowed=True),)
        self.step = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, probs: Tensor) -> Tensor:
        """Quantised activation, shape of `x` [N, ...]; probs [1] is 1."""
        (grid,) = self.grids
        # Features of one image: a gradient that is a mean over images then does not depend on how a batch is cut.
        features = max(1, x.numel() // max(1, x.shape[0]))
        quantized: Tensor = _Stepped.apply(x, _positive(self.step), grid, 1 / math.sqrt(features * grid.hi))
        return quantized

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Sets the step to 2·mean|x|/√hi."""
        start = 2 * x.abs().mean() / math.sqrt(self.grids[0].hi)
        self.step.copy_(torch.where(start > MIN_STEP, start, 1.0))

    def affine(self) -> AffineGrid:
        """The grid in plain numbers."""
        return self.grids[0].affine(float(_positive(self.step.detach())))
