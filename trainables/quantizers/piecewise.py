"""The staircase's two passes by torch's own operations: for any device and dtype, and what the fused ones must equal.

On the CPU both walk over x in pieces that stay in the cache with their scratch space: the temporaries of whole-tensor
operations would be new pages of memory each time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainables.quantizers.grid import Asked, Grid, Slopes
from trainables.quantizers.layout import flat

_CPU_PIECE = 1 << 16
"""Elements of a piece: 256 KiB of float32; a piece of x, of y and the scratch fit a core's second-level cache."""


def mixed(x: Tensor, probs: Tensor, steps: Tensor, grids: tuple[Grid, ...]) -> Tensor:
    """Σ_j π_j·Q_j(x) of an x without gaps in memory."""
    y = torch.empty_like(x)
    weights = (probs * steps).to(x.dtype)
    for x_piece, y_piece, scratch in _pieces(x, y):
        # A softmax over one width is 1, up to nothing.
        torch.mul(grids[0].codes(x_piece, steps[0], scratch), weights[0], out=y_piece)
        for j in range(1, len(grids)):
            y_piece.addcmul_(grids[j].codes(x_piece, steps[j], scratch), weights[j])
    return y


def slopes(
    grad: Tensor,
    x: Tensor,
    probs: Tensor,
    steps: Tensor,
    clip: Tensor | None,
    grids: tuple[Grid, ...],
    asked: Asked,
) -> Slopes:
    """Gradients for a `grad` that lies in memory as x does."""
    masked = asked.x and (clip is not None or grids[0].windowed)
    grad_x = torch.empty_like(x) if masked else grad
    # In bfloat16 a sum stops growing after 256 equal terms, in float16 it ends at 65504.
    wide = torch.promote_types(x.dtype, torch.float32)
    dots = torch.zeros(len(grids), dtype=wide, device=x.device)
    grad_clip = torch.zeros((), dtype=wide, device=x.device)
    for x_piece, grad_piece, out_piece, scratch in _pieces(x, grad, grad_x):
        if masked:
            torch.mul(grad_piece, passes(x_piece, probs, steps, clip, grids), out=out_piece)
        wide_grad = grad_piece.to(wide) if asked.clip or asked.dots else grad_piece
        if asked.clip and clip is not None:
            grad_clip += torch.dot(beyond(x_piece, clip, signed=grids[0].lo < 0).to(wide), wide_grad)
        if asked.dots:
            for j, grid in enumerate(grids):
                dots[j] += torch.dot(grid.codes(x_piece, steps[j], scratch).to(wide), wide_grad)
    return Slopes(grad_x, dots, grad_clip)


def deviation(x: Tensor) -> Tensor:
    """Standard deviation, divided by the number of elements; a scalar."""
    return x.std(correction=0)


def passes(x: Tensor, probs: Tensor, steps: Tensor, clip: Tensor | None, grids: tuple[Grid, ...]) -> Tensor:
    """∂y/∂x: 1 or 0 under a shared clip, else Σ_j π_j over the widths whose window holds x."""
    if clip is not None:
        # At the clip itself, where calibration often puts the largest input, the gradient is x's, not α's.
        return (x <= clip).logical_and_(x >= -clip if grids[0].lo < 0 else x > 0)
    passed = torch.zeros_like(x)
    for j, grid in enumerate(grids):
        passed = passed.addcmul(grid.window(x, steps[j]).to(x.dtype), probs[j].to(x.dtype))
    return passed


def beyond(x: Tensor, clip: Tensor, *, signed: bool) -> Tensor:
    """∂y/∂α: 1 above the clip, and −1 below −α where the range has two ends."""
    beyond = (x > clip).to(x.dtype)
    return beyond - (x < -clip).to(x.dtype) if signed else beyond


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat pieces of tensors that lie alike in memory, each time with a scratch piece of the same size at the end."""
    flats = [flat(tensor) for tensor in tensors]
    size = flats[0].numel()
    piece = min(size, _CPU_PIECE) if flats[0].device.type == "cpu" else size
    scratch = torch.empty(piece, dtype=flats[0].dtype, device=flats[0].device)
    for start in range(0, size, max(1, piece)):
        parts = [flat[start : start + piece] for flat in flats]
        yield (*parts, scratch[: parts[0].numel()])
