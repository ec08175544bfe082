"""The mixture of uniform quantisers: one staircase, straight-through.

Notation: x any shape; n candidate widths b_1..b_n; π [n] their probabilities; s [n] their steps (units of x).

    y = Σ_j π_j · s_j · (clip(round(x / s_j − o), lo_j, hi_j) + o)

with offset o = 0 (mid-tread, zero is a level) or o = 1/2 (mid-rise, it is not). A single width with π = 1 is the plain
quantiser, so that supernet and deployed network run the same code.

Gradients: `round` is passed straight through (Bengio et al. 2013). ∂y/∂π_j = Q_j(x) exactly. Nothing but x itself is
kept for the backward pass: the levels are computed again, which costs less than the memory of one tensor per branch.

On the CPU both passes walk over x in pieces that stay in the cache with their scratch space: the temporaries of
whole-tensor operations would be new pages of memory each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainables.quantizers.affine import AffineGrid

_CPU_PIECE = 1 << 16
"""Elements of a piece: 256 KiB of float32; a piece of x, of y and the scratch fit a core's second-level cache."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Integer codes of one width: value = step · (code + offset), lo ≤ code ≤ hi."""

    lo: int
    hi: int
    offset: float = 0.0
    half_wave: bool = False
    """Negative x and zero give 0, outside of the codes."""
    windowed: bool = False
    """No gradient outside of the outermost levels; else it passes everywhere."""

    def codes(self, x: Tensor, step: Tensor, out: Tensor | None = None) -> Tensor:
        """code + offset of every element, in x's dtype; multiplied by `step` it is the quantised value."""
        codes = torch.mul(x, step.reciprocal(), out=out)
        if self.offset:
            codes.sub_(self.offset)
        codes.round_().clamp_(self.lo, self.hi)
        if self.offset:
            codes.add_(self.offset)
        if self.half_wave:
            codes.mul_(x > 0)
        return codes

    def window(self, x: Tensor, step: Tensor) -> Tensor:
        """Where the gradient passes."""
        low = 0.0 if self.half_wave else (self.lo + self.offset) * step
        return (x > low) & (x <= (self.hi + self.offset) * step)

    def affine(
        self, scale: float, *, gain: float = 1.0, rounding: Literal["half_even", "half_down"] = "half_even"
    ) -> AffineGrid:
        """These codes with their scale, in plain numbers."""
        return AffineGrid(
            scale=scale,
            lo=self.lo,
            hi=self.hi,
            offset=self.offset,
            gain=gain,
            half_wave=self.half_wave,
            rounding=rounding,
        )


class _Staircase(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, probs: Tensor, steps: Tensor, clip: Tensor | None, grids: tuple[Grid, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, probs, steps, clip)
        ctx.grids = grids
        y = torch.empty_like(x)
        weights = (probs * steps).to(x.dtype)
        for x_piece, y_piece, scratch in _pieces(x, y):
            # A softmax over one width is 1, up to nothing.
            torch.mul(grids[0].codes(x_piece, steps[0], scratch), weights[0], out=y_piece)
            for j in range(1, len(grids)):
                y_piece.addcmul_(grids[j].codes(x_piece, steps[j], scratch), weights[j])
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        x, probs, steps, clip = ctx.saved_tensors
        grids: tuple[Grid, ...] = ctx.grids
        if torch.is_grad_enabled():
            return _differentiable_backward(grad_outputs[0], x, probs, steps, clip, grids)
        # Pieces pair elements by their place in memory, so both must lie alike.
        grad = torch.empty_like(x).copy_(grad_outputs[0]) if not _lies_like(grad_outputs[0], x) else grad_outputs[0]
        needs_x, needs_probs, _, needs_clip, _ = ctx.needs_input_grad
        masked = needs_x and (clip is not None or grids[0].windowed)
        grad_x = torch.empty_like(x) if masked else grad
        # Sums over pieces: in bfloat16 one stops growing after 256 equal terms.
        wide = torch.promote_types(x.dtype, torch.float32)
        dots = torch.zeros(len(grids), dtype=wide, device=x.device)
        grad_clip = torch.zeros((), dtype=wide, device=x.device)
        for x_piece, grad_piece, out_piece, scratch in _pieces(x, grad, grad_x):
            if masked:
                torch.mul(grad_piece, _passes(x_piece, probs, steps, clip, grids), out=out_piece)
            if needs_clip:
                grad_clip += torch.dot(_beyond(x_piece, clip, signed=grids[0].lo < 0), grad_piece)
            if needs_probs and len(grids) > 1:
                for j, grid in enumerate(grids):
                    dots[j] += torch.dot(grid.codes(x_piece, steps[j], scratch), grad_piece)
        return (
            grad_x if needs_x else None,
            (dots * steps).to(probs.dtype) if needs_probs else None,
            None,
            grad_clip if needs_clip else None,
            None,
        )


def _differentiable_backward(
    grad: Tensor, x: Tensor, probs: Tensor, steps: Tensor, clip: Tensor | None, grids: tuple[Grid, ...]
) -> tuple[Tensor, Tensor, None, Tensor | None, None]:
    """The same gradients by operations that can be differentiated again, in `grad` and `probs`.

    Attribution of a network whose head is quantised needs that. Codes and windows are constant almost everywhere in x.
    """
    x, steps = x.detach(), steps.detach()
    grad_x = grad
    if clip is not None or grids[0].windowed:
        grad_x = grad * _passes(x, probs, steps, None if clip is None else clip.detach(), grids)
    dots = [(grid.codes(x, steps[j]) * steps[j] * grad).sum() for j, grid in enumerate(grids)]
    grad_clip = None if clip is None else (_beyond(x, clip.detach(), signed=grids[0].lo < 0) * grad).sum()
    return grad_x, torch.stack(dots), None, grad_clip, None


def _passes(x: Tensor, probs: Tensor, steps: Tensor, clip: Tensor | None, grids: tuple[Grid, ...]) -> Tensor:
    """∂y/∂x: 1 or 0 under a shared clip, else Σ_j π_j over the widths whose window holds x."""
    if clip is not None:
        # At the clip itself, where calibration often puts the largest input, the gradient is x's, not α's.
        return (x <= clip).logical_and_(x >= -clip if grids[0].lo < 0 else x > 0)
    passed = torch.zeros_like(x)
    for j, grid in enumerate(grids):
        passed = passed.addcmul(grid.window(x, steps[j]).to(x.dtype), probs[j].to(x.dtype))
    return passed


def _beyond(x: Tensor, clip: Tensor, *, signed: bool) -> Tensor:
    """∂y/∂α: 1 above the clip, and −1 below −α where the range has two ends."""
    beyond = (x > clip).to(x.dtype)
    return beyond - (x < -clip).to(x.dtype) if signed else beyond


def _lies_like(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride()


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat pieces of tensors that lie alike in memory, each time with a scratch piece of the same size at the end."""
    flats = [_flat(tensor) for tensor in tensors]
    size = flats[0].numel()
    piece = min(size, _CPU_PIECE) if flats[0].device.type == "cpu" else size
    scratch = torch.empty(piece, dtype=flats[0].dtype, device=flats[0].device)
    for start in range(0, size, max(1, piece)):
        parts = [flat[start : start + piece] for flat in flats]
        yield (*parts, scratch[: parts[0].numel()])


def _flat(tensor: Tensor) -> Tensor:
    """One dimension, in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def staircase(
    x: Tensor, probs: Tensor, steps: Tensor, grids: tuple[Grid, ...], *, clip: Tensor | None = None
) -> Tensor:
    """Σ_j π_j·Q_j(x) as the module's docstring defines it; shape and dtype of x.

    Args:
        x: any shape.
        probs: [n], non-negative, summing to 1: the gradient to x relies on the sum.
        steps: [n], positive, detached.
        grids: n grids, one for each width; all windowed or none.
        clip: scalar α that all grids end at (hi_j·s_j = α). Then ∂y/∂α = 1[x > α] (−1 below −α), and nothing passes
            to x outside of (0, α), or (−α, α) where codes are signed.
    """
    # The flat pieces need elements without gaps: `empty_like` keeps the strides of such tensors and of no others.
    dense = x if torch.empty_like(x).stride() == x.stride() else x.contiguous()
    result: Tensor = _Staircase.apply(dense, probs, steps, clip, grids)
    return result
