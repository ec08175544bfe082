"""The staircase's two passes over float32, bfloat16 and float16 tensors on NVIDIA's GPUs, as Triton kernels.

Each reads x once for all widths and computes in float32 registers, whatever the dtype. Each block of the backward pass
writes sums of its own, which are added up after it: always in the same order. Nothing waits for the device.

Arguments of kernels have no annotations but `constexpr`: Triton compiles annotations as well.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainables.quantizers.grid import EVERYWHERE, SIGNED_RANGE, WINDOWS, Asked, Grid, Slopes
from trainables.quantizers.piecewise import deviation

__all__ = ["deviation", "mixed", "slopes", "usable"]

_BLOCK = 4096
"""Elements of a program: 16 a thread."""
_OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
"""Codes are rounded as torch rounds them, operation by operation; where a sum is fused, it says so."""
# Kernels see of a module's numbers only such.
_EVERYWHERE, _SIGNED, _WINDOWS = tl.constexpr(EVERYWHERE), tl.constexpr(SIGNED_RANGE), tl.constexpr(WINDOWS)


@triton.jit  # type: ignore[untyped-decorator]
def _code(x, step, table, j, HALF_WAVE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """code + offset of width j."""
    lo, hi, offset = tl.load(table + 3 * j), tl.load(table + 3 * j + 1), tl.load(table + 3 * j + 2)
    code = x * tl.div_rn(1.0, step) - offset
    # Comparisons that are false for NaN; the ends are integers, so that it does not matter which comes first.
    code = tl.where(code < lo, lo, code)
    code = tl.where(code > hi, hi, code)
    # Adding 1.5·2^23 rounds numbers below 2^22 to the nearest integer, ties to even; a width has at most 16 bits.
    code = (code + 12582912.0) - 12582912.0 + offset
    if HALF_WAVE:
        code = code * (x > 0).to(tl.float32)
    return code


@triton.jit  # type: ignore[untyped-decorator]
def _mix(  # type: ignore[no-untyped-def]
    x_at,
    y_at,
    probs,
    steps,
    table,
    size,
    N: tl.constexpr,  # noqa: N803
    HALF_WAVE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_at + places, mask=places < size, other=0.0).to(tl.float32)
    y = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(N):
        step = tl.load(steps + j).to(tl.float32)
        weight = tl.load(probs + j).to(tl.float32) * step
        y = tl.fma(_code(x, step, table, j, HALF_WAVE), tl.zeros_like(x) + weight, y)
    tl.store(y_at + places, y.to(y_at.dtype.element_ty), mask=places < size)


@triton.jit  # type: ignore[untyped-decorator]
def _differentiate(  # type: ignore[no-untyped-def]
    x_at,
    grad_at,
    grad_x_at,
    probs,
    steps,
    clip_at,
    table,
    sums,
    size,
    N: tl.constexpr,  # noqa: N803
    HALF_WAVE: tl.constexpr,  # noqa: N803
    PASSING: tl.constexpr,  # noqa: N803
    DOTS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """sums [blocks, n + 1]: ⟨code_j + offset, grad⟩ of each width, then Σ grad·∂y/∂α."""
    block = tl.program_id(0).to(tl.int64)
    places = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_at + places, mask=places < size, other=0.0).to(tl.float32)
    grad = tl.load(grad_at + places, mask=places < size, other=0.0).to(tl.float32)
    if DOTS:
        for j in tl.static_range(N):
            code = _code(x, tl.load(steps + j).to(tl.float32), table, j, HALF_WAVE)
            tl.store(sums + block * (N + 1) + j, tl.sum(code * grad))
    if PASSING == _WINDOWS:
        passed = tl.zeros((BLOCK,), tl.float32)
        for j in tl.static_range(N):
            step = tl.load(steps + j).to(tl.float32)
            offset = tl.load(table + 3 * j + 2)
            low = 0.0 if HALF_WAVE else (tl.load(table + 3 * j) + offset) * step
            high = (tl.load(table + 3 * j + 1) + offset) * step
            passed += ((x > low) & (x <= high)).to(tl.float32) * tl.load(probs + j).to(tl.float32)
        tl.store(grad_x_at + places, (grad * passed).to(grad_x_at.dtype.element_ty), mask=places < size)
    elif PASSING != _EVERYWHERE:
        clip = tl.load(clip_at).to(tl.float32)
        beyond = (x > clip).to(tl.float32)
        if PASSING == _SIGNED:
            beyond -= (x < -clip).to(tl.float32)
            inside = (x <= clip) & (x >= -clip)
        else:
            inside = (x <= clip) & (x > 0)
        tl.store(sums + block * (N + 1) + N, tl.sum(beyond * grad))
        passed = grad * inside.to(tl.float32)
        tl.store(grad_x_at + places, passed.to(grad_x_at.dtype.element_ty), mask=places < size)


def mixed(x: Tensor, probs: Tensor, steps: Tensor, grids: tuple[Grid, ...]) -> Tensor:
    """Σ_j π_j·Q_j(x), as `piecewise.mixed` to rounding: that computes in x's own dtype."""
    y, blocks = torch.empty_like(x), triton.cdiv(x.numel(), _BLOCK)
    if blocks:
        with torch.cuda.device_of(x):
            _mix[(blocks,)](
                x,
                y,
                probs.contiguous(),
                steps.contiguous(),
                _table(grids, x.device),
                x.numel(),
                N=len(grids),
                HALF_WAVE=grids[0].half_wave,
                BLOCK=_BLOCK,
                **_OPTIONS,
            )
    return y


def slopes(
    grad: Tensor, x: Tensor, probs: Tensor, steps: Tensor, clip: Tensor | None, grids: tuple[Grid, ...], asked: Asked
) -> Slopes:
    """Gradients as `piecewise.slopes` has them, to rounding; sums in float32 over a block, float64 over blocks."""
    passing = grids[0].passing(clipped=clip is not None) if asked.x or asked.clip else EVERYWHERE
    grad_x = torch.empty_like(x) if passing else grad
    blocks = triton.cdiv(x.numel(), _BLOCK) if passing or asked.dots else 0
    sums = torch.zeros(blocks, len(grids) + 1, dtype=torch.float32, device=x.device)
    if blocks:
        with torch.cuda.device_of(x):
            _differentiate[(blocks,)](
                x,
                grad,
                grad_x,
                probs.contiguous(),
                steps.contiguous(),
                probs if clip is None else clip,
                _table(grids, x.device),
                sums,
                x.numel(),
                N=len(grids),
                HALF_WAVE=grids[0].half_wave,
                PASSING=passing,
                DOTS=asked.dots,
                BLOCK=_BLOCK,
                **_OPTIONS,
            )
    totals = sums.sum(0, dtype=torch.float64)
    return Slopes(grad_x, totals[:-1], totals[-1])


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels compile for that device and give right numbers of that type there."""
    grids, x = (Grid(lo=-1, hi=1),), torch.tensor([-2.0, 0.4, 0.6], device=device, dtype=dtype)
    one = torch.ones(1, device=device)
    return mixed(x, one, one, grids).tolist() == [-1.0, 0.0, 1.0]


@cache
def _table(grids: tuple[Grid, ...], device: torch.device) -> Tensor:
    """[n, 3] lo, hi and offset of each width; copied to a device once."""
    return torch.tensor([(float(grid.lo), float(grid.hi), grid.offset) for grid in grids], device=device)
