"""DAQ's and LSQ's passes over float32 tensors on the CPU, each reading x once for all widths.

Letters as in `daq` and `lsq`. Sums do not depend on how many threads there are: each chunk of a tensor has its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainables.quantizers import learned_loops
from trainables.quantizers.compiled_loops import Floats
from trainables.quantizers.fused_cpu import CHUNK, as_array, as_vector, in_chunks, table_of
from trainables.quantizers.fused_cpu import mixed as lsq_mixed
from trainables.quantizers.grid import Grid

__all__ = ["DaqSlopes", "LsqSlopes", "Places", "daq_mixed", "daq_slopes", "lsq_mixed", "lsq_slopes"]


class Places(NamedTuple):
    """Where the levels of DAQ's widths lie."""

    low: Tensor
    """l, a scalar."""
    width: Tensor
    """u − l, a positive scalar."""
    steps: tuple[int, ...]
    """n_j."""
    bottom: float
    """The lowest level; the highest is 1."""

    @property
    def arrays(self) -> tuple[Floats, Floats, Floats, float, float]:
        """n_j/(u − l), n_j, (1 − bottom)/n_j, l and bottom, rounded as torch rounds them."""
        scales = [(n / self.width).item() for n in self.steps]
        units = [(1 - self.bottom) / n for n in self.steps]
        tables = (np.array(values, dtype=np.float32) for values in (scales, self.steps, units))
        return (*tables, self.low.item(), self.bottom)  # type: ignore[return-value]


class DaqSlopes(NamedTuple):
    """Gradients of a mixture of DAQ's widths."""

    x: Tensor
    dots: Tensor
    """Of π [n]."""
    low: Tensor
    high: Tensor


def daq_mixed(x: Tensor, probs: Tensor, places: Places) -> Tensor:
    """Σ_j π_j·Q_j(x), as operations on whole tensors give it bit for bit."""
    y = torch.empty_like(x)
    values, results, mix = as_array(x), as_array(y), (as_vector(probs), *places.arrays)
    in_chunks(x.numel(), lambda _, part: learned_loops.daq_mix(values[part], results[part], *mix))
    return y


def daq_slopes(
    grad: Tensor, x: Tensor, probs: Tensor, places: Places, *, factor: float, sigma: float, wants_dots: bool
) -> DaqSlopes:
    """Gradients of `daq_mixed`; `factor` is C."""
    grad_x = torch.empty_like(x)
    values, upstream, results, mix = as_array(x), as_array(grad), as_array(grad_x), (as_vector(probs), *places.arrays)
    rest = math.exp(-0.5 - sigma**-2)
    sums = np.zeros((-(-x.numel() // CHUNK), len(places.steps) + 2))

    def differentiate(number: int, part: slice) -> None:
        learned_loops.daq_differentiate(
            values[part], upstream[part], results[part], *mix, factor, rest, wants_dots, sums[number]
        )

    in_chunks(x.numel(), differentiate)
    totals = torch.from_numpy(sums.sum(axis=0))
    return DaqSlopes(grad_x, totals[:-2], -totals[-2] / places.width, -totals[-1] / places.width)


class LsqSlopes(NamedTuple):
    """What gradients of a mixture of LSQ's widths are made of."""

    x: Tensor
    codes: Tensor
    """⟨code_j, grad⟩ [n]."""
    steps: Tensor
    """⟨∂v̂_j/∂s_j, grad⟩ [n]."""


def lsq_slopes(
    grad: Tensor, x: Tensor, probs: Tensor, steps: Tensor, grids: tuple[Grid, ...], *, wants_codes: bool
) -> LsqSlopes:
    """Of Σ_j π_j·v̂_j with steps [n]."""
    grad_x = torch.empty_like(x)
    values, upstream, results = as_array(x), as_array(grad), as_array(grad_x)
    mix = (as_vector(probs), as_vector(steps), table_of(grids))
    sums = np.zeros((-(-x.numel() // CHUNK), 2, len(grids)))

    def differentiate(number: int, part: slice) -> None:
        learned_loops.lsq_differentiate(values[part], upstream[part], results[part], *mix, wants_codes, sums[number])

    in_chunks(x.numel(), differentiate)
    codes, by_step = torch.from_numpy(sums.sum(axis=0))
    return LsqSlopes(grad_x, codes, by_step)
