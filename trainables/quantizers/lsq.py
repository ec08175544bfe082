"""LSQ (Esser et al. 2020): one learned step for each tensor and width.

    v̂ = s · round(clip(v / s, lo, hi))                                                  (eqs 1, 2)
    ∂v̂/∂s = round(v/s) − v/s  where lo < v/s < hi,  lo below,  hi above                 (eq. 3)
    ∂v̂/∂v = 1                 where lo < v/s < hi,  0 elsewhere                         (eq. 5)

with lo, hi = −2^(b−1), 2^(b−1) − 1 for weights and signed activations, 0, 2^b − 1 for unsigned activations. The
gradient of the loss to s is multiplied by 1/√(n·hi), n the weights of the layer or the features that it reads of one
image.

Of several widths b_j, each with a step s_j of its own, a supernet mixes all, y = Σ_j π_j·v̂_j with ∂y/∂π_j = v̂_j and the
gradients above times π_j; LIMPQ chooses one (`choose`), and no other is computed or has a gradient.

DEVIATION: weights start with max|μ ± 3σ| / 2^(b−1), as in LSQ+ (Bhalgat et al. 2020), instead of 2·mean|v|/√hi: the
range then holds nearly all weights at any width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.quantizers.affine import AffineGrid
from trainables.quantizers.grid import Grid
from trainables.quantizers.layout import lying_like, without_gaps
from trainables.quantizers.learned_passes import fused

MIN_STEP = 1e-8


class _Stepped(torch.autograd.Function):
    """Eqs 1 to 5 with a scalar positive step. Keeps v alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, step: Tensor, grid: Grid, gradient_scale: float) -> Tensor:
        ctx.save_for_backward(v, step)
        ctx.grid, ctx.gradient_scale = grid, gradient_scale
        passes = fused(v, step)
        if passes:
            y: Tensor = passes.lsq_mixed(v, _ones(step), step[None], (grid,))
            return y
        return (grid.codes(_exact(v), step) * step).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # Detached, so that a second derivative sees a straight-through estimator: constant almost everywhere in v.
        v, step = (saved.detach() for saved in ctx.saved_tensors)
        grid: Grid = ctx.grid
        passes = None if torch.is_grad_enabled() else fused(v, step)
        if passes:
            upstream, wants = lying_like(grad_outputs[0], v), ctx.needs_input_grad
            found = passes.lsq_slopes(upstream, v, _ones(step), step[None], (grid,), wants_codes=False)
            by_step = (found.steps[0] * ctx.gradient_scale).to(step.dtype)
            return found.x if wants[0] else None, by_step if wants[1] else None, None, None
        grad, places = grad_outputs[0], _exact(v) / step
        inside = (places > grid.lo) & (places < grid.hi)
        grad_v, grad_step = grad * inside if ctx.needs_input_grad[0] else None, None
        if ctx.needs_input_grad[1]:
            slope = grid.codes(_exact(v), step) - places * inside
            grad_step = (grad * slope).sum() * ctx.gradient_scale
        return grad_v, grad_step, None, None


class _SteppedMixture(torch.autograd.Function):
    """Σ_j π_j·v̂_j of n widths, with positive steps [n]. Keeps v alone of what is large: v̂_j are computed again."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, probs: Tensor, steps: Tensor, grids: tuple[Grid, ...], gradient_scales: tuple[float, ...]
    ) -> Tensor:
        ctx.save_for_backward(v, probs, steps)
        ctx.grids, ctx.gradient_scales = grids, gradient_scales
        passes = fused(v, probs, steps)
        if passes:
            y: Tensor = passes.lsq_mixed(v, probs, steps, grids)
            return y
        exact, factors = _exact(v), probs * steps
        mixed = grids[0].codes(exact, steps[0]) * factors[0]
        for j in range(1, len(grids)):
            mixed.addcmul_(grids[j].codes(exact, steps[j]), factors[j])
        return mixed.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        # As above; `probs` stay, as the gradients depend on them smoothly.
        v, probs, steps = ctx.saved_tensors
        passes = None if torch.is_grad_enabled() else fused(v, probs, steps)
        if passes:
            upstream = lying_like(grad_outputs[0], v)
            found = passes.lsq_slopes(upstream, v, probs, steps, ctx.grids, wants_codes=ctx.needs_input_grad[1])
            scales = probs * probs.new_tensor(ctx.gradient_scales)
            grads = (found.codes * steps).to(probs.dtype), (found.steps * scales).to(steps.dtype)
            return found.x if ctx.needs_input_grad[0] else None, *grads, None, None
        exact, steps, grad = _exact(v.detach()), steps.detach(), grad_outputs[0]
        passed = torch.zeros_like(exact)
        by_prob, by_step = [], []
        for j, grid in enumerate(ctx.grids):
            places, codes = exact / steps[j], grid.codes(exact, steps[j])
            inside = (places > grid.lo) & (places < grid.hi)
            passed = passed + probs[j] * inside
            by_prob.append((grad * codes).sum() * steps[j])
            by_step.append((grad * (codes - places * inside)).sum() * (probs[j] * ctx.gradient_scales[j]))
        grad_v = (grad * passed).to(v.dtype) if ctx.needs_input_grad[0] else None
        return grad_v, torch.stack(by_prob).to(probs.dtype), torch.stack(by_step).to(steps.dtype), None, None


def _ones(step: Tensor) -> Tensor:
    return torch.ones_like(step)[None]


def _exact(v: Tensor) -> Tensor:
    """Half-precision numbers as float32: their own 8 or 11 digits would move codes of 8 bits."""
    return v.to(torch.promote_types(v.dtype, torch.float32))


def _positive(step: Tensor) -> Tensor:
    # Training can carry a step across zero; its size counts, so that the codes keep their order and it can come back.
    return step.abs().clamp_min(MIN_STEP)


def _signed_grid(bits: int) -> Grid:
    return Grid(lo=-(2 ** (bits - 1)), hi=2 ** (bits - 1) - 1, windowed=True)


class _Lsq(nn.Module):
    """What weights and activations share: a step for each width, all of them mixed or one chosen."""

    def __init__(self, bits: tuple[int, ...], grids: tuple[Grid, ...]) -> None:
        super().__init__()
        self.bits, self.grids = bits, grids
        # A deployed layer's step is a scalar: so it is written in all kept networks.
        self.step = nn.Parameter(torch.ones(len(bits)) if len(bits) > 1 else torch.tensor(1.0))
        self.chosen: int | None = None
        """Place of the one width that is computed; None: all are mixed."""

    def choose(self, width: int) -> None:
        """From now on this one of the widths is computed, calibrated and trained alone."""
        self.chosen = self.bits.index(width)

    def steps(self) -> dict[int, float]:
        """The step of each width, in units of what is quantised."""
        return dict(zip(self.bits, _positive(self.step.detach()).reshape(-1).tolist(), strict=True))

    def _quantized(self, v: Tensor, probs: Tensor, *, features: int) -> Tensor:
        quantized: Tensor
        v = without_gaps(v)
        scales = tuple(1 / math.sqrt(features * grid.hi) for grid in self.grids)
        if len(self.grids) == 1:
            quantized = _Stepped.apply(v, _positive(self.step), self.grids[0], scales[0])
        elif self.chosen is not None:
            j = self.chosen
            quantized = _Stepped.apply(v, _positive(self.step[j]), self.grids[j], scales[j])
        else:
            quantized = _SteppedMixture.apply(v, probs, _positive(self.step), self.grids, scales)
        return quantized

    def _start(self, starts: list[Tensor]) -> None:
        """Sets the steps that are computed to their `starts`, one for each width; to 1 where a start is zero."""
        steps = torch.stack(starts).to(self.step)
        steps = torch.where(steps > MIN_STEP, steps, 1.0).reshape(self.step.shape)
        if self.chosen is None or self.step.dim() == 0:
            self.step.copy_(steps)
        else:
            self.step[self.chosen] = steps[self.chosen]

    def _affine(self) -> AffineGrid:
        (grid,) = self.grids
        return grid.affine(float(_positive(self.step.detach())))


class LsqWeights(_Lsq):
    """Weights; the steps start from the layer's weight when it is calibrated."""

    def __init__(self, bits: tuple[int, ...]) -> None:
        if min(bits) < 2:
            raise ConfigError("lsq: 1-bit weights do not exist (the codes -1 and 0 have no positive one); use 2 bits.")
        super().__init__(bits, tuple(_signed_grid(b) for b in bits))

    def forward(self, weight: Tensor, probs: Tensor) -> Tensor:
        """Quantised weight, shape of `weight`; probs [n] have no part where a width is chosen or the only one."""
        return self._quantized(weight, probs, features=weight.numel())

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Sets the steps from the weights' mean and standard deviation."""
        mean, spread = weight.mean(), weight.std(correction=0)
        self._start([(mean.abs() + 3 * spread) / -grid.lo for grid in self.grids])

    def affine(self, weight: Tensor) -> AffineGrid:
        """The grid in plain numbers, of a quantiser of one width; `weight` has no part in it."""
        return self._affine()


class LsqActivations(_Lsq):
    """Activations; signed codes where the layer reads negative values."""

    def __init__(self, bits: tuple[int, ...], *, signed: bool) -> None:
        if signed and min(bits) < 2:
            raise ConfigError("lsq: a signed activation needs at least 2 bits; this layer reads negative values.")
        super().__init__(bits, tuple(_signed_grid(b) if signed else Grid(0, 2**b - 1, windowed=True) for b in bits))

    def forward(self, x: Tensor, probs: Tensor) -> Tensor:
        """Quantised activation, shape of `x` [N, ...]; probs [n] as in `LsqWeights`."""
        # Features of one image: a gradient that is a mean over images then does not depend on how a batch is cut.
        return self._quantized(x, probs, features=max(1, x.numel() // max(1, x.shape[0])))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Sets the steps to 2·mean|x|/√hi."""
        size = x.abs().mean()
        self._start([2 * size / math.sqrt(grid.hi) for grid in self.grids])

    def affine(self) -> AffineGrid:
        """The grid in plain numbers, of a quantiser of one width."""
        return self._affine()
