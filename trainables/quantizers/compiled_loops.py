"""The staircase's two passes over float32 numbers in the CPU's memory, as compiled loops.

`fused_cpu` calls them; letters are those of `staircase`. Numbers are taken in blocks that stay in the first-level cache
while all widths walk over them. Values are rounded as torch's own kernels round them, operation by operation, and NaN
passes through as it does there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from trainables.quantizers.grid import EVERYWHERE, SIGNED_RANGE, WINDOWS

Decorator = Callable[[Callable[..., Any]], Any]
Floats = NDArray[np.float32]
Sums = NDArray[np.float64]

BLOCK = 1024
"""Elements: 4 KiB each of x, y and gradients."""
FLOAT, FLOATS, TABLE, SUMS = types.float32, types.float32[::1], types.float32[:, ::1], types.float64[::1]


def compiled(signature: Any, **options: Any) -> Decorator:
    """For one signature, kept on disk; compiled in each process where no folder for that can be written."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(signature, nogil=True, cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            return numba.njit(signature, nogil=True, **options)(function)

    return decorate


@intrinsic  # type: ignore[untyped-decorator]
def _fused_multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once: what torch's addcmul computes on processors of the last ten years."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return FLOAT(FLOAT, FLOAT, FLOAT), generate


_inner: Decorator = numba.njit(nogil=True)
summing: Decorator = numba.njit(nogil=True, fastmath={"reassoc"})
"""Additions may be regrouped, so that a processor adds several numbers at once; nothing else is relaxed."""


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def code_of(x: Any, inverse: Any, lo: Any, hi: Any, offset: Any) -> Any:
    """code + offset of one number; `inverse` is 1/s."""
    code = np.rint(x * inverse - offset)
    # Both comparisons are false for NaN.
    code = lo if code < lo else code
    code = hi if code > hi else code
    return code + offset


@_inner
def _add_width(x: Any, y: Any, inverse: Any, weight: Any, lo: Any, hi: Any, offset: Any, half_wave: Any) -> None:
    """y += weight·(code + offset)."""
    if half_wave:
        for i in range(x.size):
            code = code_of(x[i], inverse, lo, hi, offset) * np.float32(x[i] > 0)
            y[i] = _fused_multiply_add(code, weight, y[i])
    else:
        for i in range(x.size):
            y[i] = _fused_multiply_add(code_of(x[i], inverse, lo, hi, offset), weight, y[i])


@compiled(types.void(FLOATS, FLOATS, FLOATS, FLOATS, TABLE, types.boolean))
def mix(x: Floats, y: Floats, probs: Floats, steps: Floats, table: Floats, half_wave: bool) -> None:
    """Writes Σ_j π_j·Q_j(x) to `y`. table [n, 3]: lo, hi and offset of each width."""
    for start in range(0, x.size, BLOCK):
        part, mixed = x[start : start + BLOCK], y[start : start + BLOCK]
        mixed[:] = 0
        for j in range(steps.size):
            inverse, weight = np.float32(1) / steps[j], probs[j] * steps[j]
            _add_width(part, mixed, inverse, weight, table[j, 0], table[j, 1], table[j, 2], half_wave)


@summing
def dot_of_codes(x: Any, grad: Any, inverse: Any, lo: Any, hi: Any, offset: Any, half_wave: Any) -> Any:
    """⟨code + offset, grad⟩."""
    total = np.float32(0)
    if half_wave:
        for i in range(x.size):
            total += code_of(x[i], inverse, lo, hi, offset) * np.float32(x[i] > 0) * grad[i]
    else:
        for i in range(x.size):
            total += code_of(x[i], inverse, lo, hi, offset) * grad[i]
    return total


@summing
def _beyond(x: Any, grad: Any, clip: Any, signed: Any) -> Any:
    """Σ grad·∂y/∂α: 1 above α, and −1 below −α where codes are signed."""
    low = -clip if signed else -np.float32(np.inf)
    total = np.float32(0)
    for i in range(x.size):
        total += (np.float32(x[i] > clip) - np.float32(x[i] < low)) * grad[i]
    return total


@_inner
def _pass_range(x: Any, grad: Any, out: Any, clip: Any, signed: Any) -> None:
    """grad where x is in [−α, α], or (0, α] where codes are not signed."""
    if signed:
        for i in range(x.size):
            out[i] = grad[i] * (np.float32(x[i] <= clip) * np.float32(x[i] >= -clip))
    else:
        for i in range(x.size):
            out[i] = grad[i] * (np.float32(x[i] <= clip) * np.float32(x[i] > 0))


@_inner
def _pass_windows(x: Any, grad: Any, out: Any, probs: Any, steps: Any, table: Any, half_wave: Any) -> None:
    """grad·Σ_j π_j over the widths whose outermost levels hold x."""
    out[:] = 0
    for j in range(steps.size):
        prob, high = probs[j], (table[j, 1] + table[j, 2]) * steps[j]
        low = np.float32(0) if half_wave else (table[j, 0] + table[j, 2]) * steps[j]
        for i in range(x.size):
            out[i] += prob * (np.float32(x[i] > low) * np.float32(x[i] <= high))
    for i in range(x.size):
        out[i] *= grad[i]


@compiled(
    types.void(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, TABLE, types.boolean, types.int64, FLOAT, types.boolean, SUMS)
)
def differentiate(
    x: Floats,
    grad: Floats,
    grad_x: Floats,
    probs: Floats,
    steps: Floats,
    table: Floats,
    half_wave: bool,
    passing: int,
    clip: float,
    wants_dots: bool,
    sums: Sums,
) -> None:
    """Writes grad·∂y/∂x to `grad_x`, and ⟨code_j + offset, grad⟩ of each width, then Σ grad·∂y/∂α, to sums [n + 1].

    `grad_x` is not touched where `passing` is EVERYWHERE. Sums are float32 within a block, float64 over blocks.
    """
    sums[:] = 0
    for start in range(0, x.size, BLOCK):
        part, upstream = x[start : start + BLOCK], grad[start : start + BLOCK]
        if wants_dots:
            for j in range(steps.size):
                inverse = np.float32(1) / steps[j]
                sums[j] += dot_of_codes(part, upstream, inverse, table[j, 0], table[j, 1], table[j, 2], half_wave)
        if passing == WINDOWS:
            _pass_windows(part, upstream, grad_x[start : start + BLOCK], probs, steps, table, half_wave)
        elif passing != EVERYWHERE:
            signed = passing == SIGNED_RANGE
            sums[-1] += _beyond(part, upstream, clip, signed)
            _pass_range(part, upstream, grad_x[start : start + BLOCK], clip, signed)


@summing
def _sum_of(x: Any) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        total += x[i]
    return total


@summing
def _sum_of_squares(x: Any, mean: Any) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        total += (x[i] - mean) * (x[i] - mean)
    return total


@compiled(types.UniTuple(types.float64, 2)(FLOATS))
def moments(x: Floats) -> tuple[float, float]:
    """Mean and variance (divided by the number of elements)."""
    total = 0.0
    for start in range(0, x.size, BLOCK):
        total += _sum_of(x[start : start + BLOCK])
    mean, square = total / x.size, 0.0
    for start in range(0, x.size, BLOCK):
        square += _sum_of_squares(x[start : start + BLOCK], np.float32(mean))
    return mean, square / x.size
