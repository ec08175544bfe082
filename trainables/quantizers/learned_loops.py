"""What DAQ and LSQ compute of float32 numbers in the CPU's memory, as compiled loops; letters as in `daq`, `lsq`.

Numbers are taken in blocks that stay in the first-level cache while all widths walk over them. Values are rounded as
torch's own kernels round them, operation by operation, and NaN passes through as it does there; of gradients the sums
are added up in another order, and DAQ's slope is written as a hyperbolic cotangent:

    (s_0 + s_1)/|s_0 − s_1| = (1 + q)/(1 − q),  q = exp(2·near − 1 − 1/σ²),  near the distance to the nearer level
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types

from trainables.quantizers.compiled_loops import (
    BLOCK,
    FLOAT,
    FLOATS,
    SUMS,
    Decorator,
    Floats,
    Sums,
    code_of,
    compiled,
    dot_of_codes,
    summing,
)

_ONE, _HALF, _TWO = np.float32(1), np.float32(0.5), np.float32(2)
_SERIES = tuple(np.float32(1 / math.factorial(n)) for n in range(9))
_inner: Decorator = numba.njit(nogil=True, error_model="numpy")
"""A division by zero is infinite, as in torch; a check for it would keep loops from being computed several at once."""


@_inner
def _rise(x: Any) -> Any:
    """exp(x) to float32's last digit for |x| ≤ 1/2, by its series: of a polynomial, many are computed at once."""
    high = ((_SERIES[8] * x + _SERIES[7]) * x + _SERIES[6]) * x + _SERIES[5]
    return ((((high * x + _SERIES[4]) * x + _SERIES[3]) * x + _SERIES[2]) * x + _ONE) * x + _ONE


@_inner
def _add_daq_width(x: Any, y: Any, prob: Any, scale: Any, top: Any, unit: Any, low: Any, bottom: Any) -> None:
    """y += π·(bottom + unit·code)."""
    for i in range(x.size):
        y[i] += _level((x[i] - low) * scale, top, unit, bottom) * prob


@_inner
def _level(place: Any, top: Any, unit: Any, bottom: Any) -> Any:
    # Both comparisons are false for NaN.
    place = np.float32(0) if place < np.float32(0) else place
    place = top if place > top else place
    return np.ceil(place - _HALF) * unit + bottom


@compiled(types.void(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, FLOAT, FLOAT))
def daq_mix(
    x: Floats, y: Floats, probs: Floats, scales: Floats, tops: Floats, units: Floats, low: float, bottom: float
) -> None:
    """Writes Σ_j π_j·(bottom + unit_j·y_j) to `y`. scales n_j/(u − l), tops n_j, units (1 − bottom)/n_j: [n] each."""
    for start in range(0, x.size, BLOCK):
        part, mixed = x[start : start + BLOCK], y[start : start + BLOCK]
        mixed[:] = 0
        for j in range(scales.size):
            _add_daq_width(part, mixed, probs[j], scales[j], tops[j], units[j], low, bottom)


@_inner
def _places(x: Any, grad: Any, places: Any, by_place: Any, scale: Any, top: Any, low: Any, weight: Any) -> None:
    """Writes t and grad·weight·(1 + q)/(1 − q), weight = (factor·unit_j·π_j, exp(−1/2 − 1/σ²))."""
    factor, rest = weight
    for i in range(x.size):
        place = (x[i] - low) * scale
        r = place - np.floor(place)
        q = rest * _rise(_TWO * min(r, _ONE - r) - _HALF)
        inside = np.float32(place >= np.float32(0)) * np.float32(place <= top)
        places[i] = place
        by_place[i] = grad[i] * factor * ((_ONE + q) / (_ONE - q)) * inside


@summing
def _low_and_high(places: Any, by_place: Any, top: Any) -> Any:
    """Σ by_place·(n − t) and Σ by_place·t."""
    low, high = np.float32(0), np.float32(0)
    for i in range(places.size):
        low += by_place[i] * (top - places[i])
        high += by_place[i] * places[i]
    return low, high


@summing
def _level_dot(places: Any, grad: Any, top: Any, unit: Any, bottom: Any) -> Any:
    """⟨bottom + unit·code, grad⟩."""
    total = np.float32(0)
    for i in range(places.size):
        total += _level(places[i], top, unit, bottom) * grad[i]
    return total


@compiled(
    types.void(
        FLOATS,
        FLOATS,
        FLOATS,
        FLOATS,
        FLOATS,
        FLOATS,
        FLOATS,
        FLOAT,
        FLOAT,
        FLOAT,
        FLOAT,
        types.boolean,
        SUMS,
    )
)
def daq_differentiate(
    x: Floats,
    grad: Floats,
    grad_x: Floats,
    probs: Floats,
    scales: Floats,
    tops: Floats,
    units: Floats,
    low: float,
    bottom: float,
    factor: float,
    rest: float,
    wants_dots: bool,
    sums: Sums,
) -> None:
    """Writes grad·∂y/∂x to `grad_x`, and to sums [n + 2] grad·∂y/∂π_j of each width, then −(u − l) times the gradients
    of l and u, Σ_j Σ_x grad·∂y/∂t_j·(n_j − t_j) and Σ_j Σ_x grad·∂y/∂t_j·t_j.

    factor = C; rest = exp(−1/2 − 1/σ²). Sums are float32 within a block, float64 over blocks.
    """
    sums[:] = 0
    places, by_place = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for start in range(0, x.size, BLOCK):
        part, upstream, out = x[start : start + BLOCK], grad[start : start + BLOCK], grad_x[start : start + BLOCK]
        t, g = places[: part.size], by_place[: part.size]
        out[:] = 0
        for j in range(scales.size):
            _places(part, upstream, t, g, scales[j], tops[j], low, (factor * units[j] * probs[j], rest))
            by_low, by_high = _low_and_high(t, g, tops[j])
            sums[-2] += by_low
            sums[-1] += by_high
            if wants_dots:
                sums[j] += _level_dot(t, upstream, tops[j], units[j], bottom)
            for i in range(part.size):
                out[i] += g[i] * scales[j]


@_inner
def _slopes(x: Any, passed: Any, slopes: Any, prob: Any, step: Any, lo: Any, hi: Any) -> None:
    """Writes ∂v̂/∂s of LSQ's eq. 3, adds π·∂v̂/∂v to `passed`."""
    inverse = _ONE / step
    for i in range(x.size):
        place = x[i] / step
        inside = np.float32(place > lo) * np.float32(place < hi)
        slopes[i] = code_of(x[i], inverse, lo, hi, np.float32(0)) - place * inside
        passed[i] += prob * inside


@summing
def _dot(a: Any, b: Any) -> Any:
    total = np.float32(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@compiled(
    types.void(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, types.float32[:, ::1], types.boolean, types.float64[:, ::1])
)
def lsq_differentiate(
    x: Floats,
    grad: Floats,
    grad_x: Floats,
    probs: Floats,
    steps: Floats,
    table: Floats,
    wants_dots: bool,
    sums: Sums,
) -> None:
    """Writes grad·∂y/∂v to `grad_x`, and ⟨code_j, grad⟩ and ⟨∂v̂_j/∂s_j, grad⟩ of each width to sums [2, n].

    table [n, 3]: lo, hi and offset (zero) of each width. Sums are float32 within a block, float64 over blocks.
    """
    sums[:] = 0
    slopes = np.empty(BLOCK, np.float32)
    for start in range(0, x.size, BLOCK):
        part, upstream, out = x[start : start + BLOCK], grad[start : start + BLOCK], grad_x[start : start + BLOCK]
        here = slopes[: part.size]
        out[:] = 0
        for j in range(steps.size):
            lo, hi = table[j, 0], table[j, 1]
            _slopes(part, out, here, probs[j], steps[j], lo, hi)
            sums[1, j] += _dot(here, upstream)
            if wants_dots:
                sums[0, j] += dot_of_codes(part, upstream, _ONE / steps[j], lo, hi, np.float32(0), False)
        for i in range(part.size):
            out[i] *= upstream[i]
