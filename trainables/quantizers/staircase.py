"""The mixture of uniform quantisers: one staircase, straight-through.

Notation: x any shape; n candidate widths b_1..b_n; π [n] their probabilities; s [n] their steps (units of x).

    y = Σ_j π_j · s_j · (clip(round(x / s_j − o), lo_j, hi_j) + o)

with offset o = 0 (mid-tread, zero is a level) or o = 1/2 (mid-rise, it is not). A single width with π = 1 is the plain
quantiser, so that supernet and deployed network run the same code.

Gradients: `round` is passed straight through (Bengio et al. 2013). ∂y/∂π_j = Q_j(x) exactly. Nothing but x itself is
kept for the backward pass: the levels are computed again, which costs less than the memory of one tensor per branch.

Forward and backward are each one pass over memory in which all widths are computed: `fused_cpu` for float32 on the CPU,
`fused_cuda` on NVIDIA's GPUs, elsewhere `piecewise`, whose numbers the others reproduce.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from trainables.quantizers import piecewise
from trainables.quantizers.gpu_passes import passes_on
from trainables.quantizers.grid import Asked, Grid
from trainables.quantizers.layout import floats_of_the_cpu, has_memory, lying_like, without_gaps


class _Staircase(torch.autograd.Function):
    """The mixture as a node of autograd's graph; `recomputed` lets it compute its result again from what it saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, probs: Tensor, steps: Tensor, clip: Tensor | None, grids: tuple[Grid, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, probs, steps, clip)
        ctx.grids, ctx.again = grids, _mixed_again
        return _mixed(x, probs, steps, grids)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        # What `_mixed_again` has unpacked: checkpointing unpacks what is saved only once in a backward pass.
        x, probs, steps, clip = getattr(ctx, "unpacked", None) or ctx.saved_tensors
        ctx.unpacked = None
        grids: tuple[Grid, ...] = ctx.grids
        if torch.is_grad_enabled():
            return _differentiable_backward(grad_outputs[0], x, probs, steps, clip, grids)
        needs_x, needs_probs, _, needs_clip, _ = ctx.needs_input_grad
        # Elements are paired by their place in memory, so both must lie alike.
        grad = lying_like(grad_outputs[0], x)
        # Over one width the softmax is 1, whatever the logit.
        asked = Asked(x=needs_x, dots=needs_probs and len(grids) > 1, clip=needs_clip)
        found = _passes(x, probs, steps).slopes(grad, x, probs, steps, clip, grids, asked)
        grad_probs = (found.dots * steps).to(probs.dtype) if asked.dots else torch.zeros_like(probs)
        return (
            found.x if needs_x else None,
            grad_probs if needs_probs else None,
            None,
            found.clip.to(clip.dtype) if needs_clip else None,
            None,
        )


def _mixed_again(ctx: Any) -> Tensor:
    """What this node gave; raises RuntimeError where its inputs have changed since."""
    ctx.unpacked = ctx.saved_tensors
    x, probs, steps, _ = ctx.unpacked
    return _mixed(x, probs, steps, ctx.grids)


def _mixed(x: Tensor, probs: Tensor, steps: Tensor, grids: tuple[Grid, ...]) -> Tensor:
    y: Tensor = _passes(x, probs, steps).mixed(x, probs, steps, grids)
    return y


def _differentiable_backward(
    grad: Tensor, x: Tensor, probs: Tensor, steps: Tensor, clip: Tensor | None, grids: tuple[Grid, ...]
) -> tuple[Tensor, Tensor, None, Tensor | None, None]:
    """The same gradients by operations that can be differentiated again, in `grad` and `probs`.

    Attribution of a network whose head is quantised needs that. Codes and windows are constant almost everywhere in x.
    """
    x, steps = x.detach(), steps.detach()
    grad_x = grad
    if clip is not None or grids[0].windowed:
        grad_x = grad * piecewise.passes(x, probs, steps, None if clip is None else clip.detach(), grids)
    # Sums of half-precision numbers would stop growing, or end at 65504.
    wide_grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
    dots = [(grid.codes(x, steps[j]) * steps[j] * wide_grad).sum() for j, grid in enumerate(grids)]
    grad_clip = None
    if clip is not None:
        grad_clip = (piecewise.beyond(x, clip.detach(), signed=grids[0].lo < 0) * wide_grad).sum().to(clip.dtype)
    return grad_x, torch.stack(dots).to(probs.dtype), None, grad_clip, None


def _passes(*tensors: Tensor) -> ModuleType:
    """The module whose functions serve tensors of this kind."""
    if floats_of_the_cpu(*tensors):
        # numba takes a quarter of a second to import.
        from trainables.quantizers import fused_cpu

        return fused_cpu
    if has_memory(*tensors) and tensors[0].device.type == "cuda":
        return passes_on(tensors[0].device, tensors[0].dtype)
    return piecewise


def staircase(
    x: Tensor, probs: Tensor, steps: Tensor, grids: tuple[Grid, ...], *, clip: Tensor | None = None
) -> Tensor:
    """Σ_j π_j·Q_j(x) as the module's docstring defines it; shape and dtype of x.

    Args:
        x: any shape.
        probs: [n], non-negative, summing to 1: the gradient to x relies on the sum.
        steps: [n], positive, detached.
        grids: n grids, one for each width; all windowed or none, and all half-wave or none.
        clip: scalar α that all grids end at (hi_j·s_j = α). Then ∂y/∂α = 1[x > α] (−1 below −α), and nothing passes
            to x outside of (0, α), or (−α, α) where codes are signed.
    """
    result: Tensor = _Staircase.apply(without_gaps(x), probs, steps, clip, grids)
    return result


@torch.no_grad()
def deviation(x: Tensor) -> Tensor:
    """Standard deviation of all elements, divided by their number; a scalar without gradient."""
    deviation: Tensor = _passes(x).deviation(without_gaps(x))
    return deviation
