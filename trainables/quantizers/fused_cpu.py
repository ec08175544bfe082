"""The staircase's two passes over float32 tensors on the CPU, each reading x once for all widths.

What is summed does not depend on how many threads there are: each chunk of a tensor has sums of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from trainables.quantizers import compiled_loops
from trainables.quantizers.compiled_loops import Floats
from trainables.quantizers.grid import EVERYWHERE, Asked, Grid, Slopes
from trainables.quantizers.layout import flat

CHUNK = 1 << 18
"""Elements that one thread takes at a time: 1 MiB."""


def mixed(x: Tensor, probs: Tensor, steps: Tensor, grids: tuple[Grid, ...]) -> Tensor:
    """Σ_j π_j·Q_j(x), as `piecewise.mixed` bit for bit."""
    y = torch.empty_like(x)
    values, results = as_array(x), as_array(y)
    mix = (as_vector(probs), as_vector(steps), table_of(grids), grids[0].half_wave)
    in_chunks(x.numel(), lambda _, part: compiled_loops.mix(values[part], results[part], *mix))
    return y


def slopes(
    grad: Tensor, x: Tensor, probs: Tensor, steps: Tensor, clip: Tensor | None, grids: tuple[Grid, ...], asked: Asked
) -> Slopes:
    """Gradients as `piecewise.slopes` has them, sums more exactly than there."""
    passing = grids[0].passing(clipped=clip is not None) if asked.x or asked.clip else EVERYWHERE
    grad_x = torch.empty_like(x) if passing else grad
    sums = np.zeros((-(-x.numel() // CHUNK), len(grids) + 1))
    if passing or asked.dots:
        values, upstream, results = as_array(x), as_array(grad), as_array(grad_x)
        mix = (as_vector(probs), as_vector(steps), table_of(grids), grids[0].half_wave)
        top = 0.0 if clip is None else clip.item()

        def differentiate(number: int, part: slice) -> None:
            compiled_loops.differentiate(
                values[part], upstream[part], results[part], *mix, passing, top, asked.dots, sums[number]
            )

        in_chunks(x.numel(), differentiate)
    totals = torch.from_numpy(sums.sum(axis=0))
    return Slopes(grad_x, totals[:-1], totals[-1])


def deviation(x: Tensor) -> Tensor:
    """Standard deviation (divided by the number of elements) of an x without gaps in memory; a scalar."""
    return x.new_tensor(compiled_loops.moments(as_array(x))[1]).sqrt()


def as_array(tensor: Tensor) -> Floats:
    """The elements of a tensor without gaps, in the order of memory: writing to them writes to it."""
    array: Floats = flat(tensor.detach()).numpy()
    return array


def as_vector(values: Tensor) -> Floats:
    """[n], however these lie in memory."""
    array: Floats = values.detach().contiguous().numpy()
    return array


@cache
def table_of(grids: tuple[Grid, ...]) -> Floats:
    """[n, 3] lo, hi and offset of each width."""
    return np.array([(grid.lo, grid.hi, grid.offset) for grid in grids], dtype=np.float32)


def in_chunks(size: int, work: Callable[[int, slice], None]) -> None:
    """Calls `work` with the number and place of each chunk, in as many threads as torch has."""
    places = [slice(start, start + CHUNK) for start in range(0, size, CHUNK)]
    threads = min(torch.get_num_threads(), len(places))
    if threads > 1:
        list(_pool(threads, os.getpid()).map(work, range(len(places)), places))
    else:
        for number, place in enumerate(places):
            work(number, place)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="staircase")
