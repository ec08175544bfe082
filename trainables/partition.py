"""Hierarchical partition of an activation map, and attribution smoothed over it (R-GMPQ, eqs 11-13).

Notation: N images; A [N, C, h, w] the reference's last feature map; S the side of the attribution maps; L levels, of
which l = 1 is the coarsest; R the ratio; a_i ∈ R^C a pixel's activation.

    A is upsampled bilinearly to S×S and averaged in windows of R^(L−l) pixels a side: level l. The last level is S×S.
    Two pixels i, j of a level whose parents are in one group (at level 1: any two) are similar where

        ‖a_i − a_j‖ ≤ γ·σ_l + δ_l,    σ_l = standard deviation of ‖a_i‖ over the level's pixels          (eqs 11-12)

    A level's groups are the connected components of similar pixels within each parent group. Each pixel of an
    attribution map gets its group's mean        (eq. 13)

DEVIATION: δ_l = 10^-6·max ‖a_i‖ is not in the paper: what differs by rounding alone is equal, also where σ is 0.

DEVIATION: Algorithm 1 numbers the levels the other way round and pools by R^l; the text and Fig. 7 of the paper have
the first level coarsest and the last one in full resolution.

A map that was upsampled from h·w pixels has rank h·w at most, so distances are taken in as many dimensions. The groups
are grown by `components`, image by image on CPU threads, wherever A is: union-find is serial.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.errors import ConfigError

NEGLIGIBLE = 1e-13
"""Share of the variance below which a dimension is rounding."""


def partition(features: Tensor, *, size: int, levels: int, ratio: int, gamma: float) -> Tensor:
    """Groups of the last level (eqs 11-12), [N, size, size] int32: 0, 1, … in the order of their first pixels by rows.

    Args:
        features: A [N, C, h, w], on any device; groups are on the CPU.
        size: S, at least h and w.
        levels: L, at least 1.
        ratio: R, at least 2.
        gamma: γ, not negative.
    """
    # numba takes a quarter of a second to import, and most searches need no partition.
    from trainables.components import similar_groups

    if levels < 1 or ratio < 2 or gamma < 0:
        raise ConfigError(f"partition: levels {levels}, ratio {ratio}, gamma {gamma}; give at least 1, 2 and 0.")
    height, width = features.shape[2:]
    if size < max(height, width):
        raise ConfigError(f"partition: the map has {height}x{width} pixels; give a size of at least that, not {size}.")
    points = coordinates(features).numpy()
    windows = [min(size, ratio ** (levels - level)) for level in range(1, levels + 1)]
    ladders = [(_weights(height, size, window), _weights(width, size, window)) for window in windows]
    groups = np.empty((len(points), size, size), dtype=np.int32)

    def some_images(images: NDArray[np.int64]) -> None:
        # New memory costs more than what is done in it.
        scratch = np.empty((size * size, points.shape[3]), dtype=np.float32)
        for image in images:
            parents, step = np.zeros((1, 1), dtype=np.int32), size
            for rows, columns in ladders:
                parents = similar_groups(points[image], rows, columns, parents, step, gamma, scratch)
                step = ratio
            groups[image] = parents

    threads = min(torch.get_num_threads(), len(points))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some_images, np.array_split(np.arange(len(points)), threads)))
    return torch.from_numpy(groups)


def coordinates(features: Tensor) -> Tensor:
    """Features [N, C, h, w] -> [N, h, w, d] float64 on the CPU, d ≤ min(C, h·w), with the same norms and distances.

    The dimensions are the principal axes of the pixels' second moments, sorted by the pixels' variance.
    """
    count, channels, height, width = features.shape
    pixels = features.detach().flatten(2).transpose(1, 2).double()
    # The same axes either way: from the smaller of the two matrices of products.
    by_pixel = height * width < channels
    moments = (pixels @ pixels.transpose(1, 2) if by_pixel else pixels.transpose(1, 2) @ pixels).cpu()
    values, vectors = torch.linalg.eigh(moments)
    values = torch.where(values > NEGLIGIBLE * values[:, -1:], values, 0.0)
    if by_pixel:
        points = vectors * values.clamp_min(0).sqrt()[:, None, :]
    else:
        points = pixels.cpu() @ vectors * (values > 0)[:, None, :]
    order = points.var(dim=1, unbiased=False).argsort(dim=1, descending=True)
    points = points.gather(2, order[:, None, :].expand_as(points))
    rank = max(1, int((values > 0).sum(dim=1).max()))
    return points[:, :, :rank].reshape(count, height, width, rank).contiguous()


@lru_cache(maxsize=64)
def _weights(pixels: int, size: int, window: int) -> NDArray[np.float64]:
    """What each of the `pixels` of a native side adds to each of a level's ⌈size/window⌉, rows sum to 1.

    A window that reaches beyond the side averages what is there.
    """
    upsampled = torch.nn.functional.interpolate(
        torch.eye(pixels, dtype=torch.float64)[:, None], size=size, mode="linear", align_corners=False
    )[:, 0].T
    pooled = [part.mean(dim=0) for part in upsampled.split(window)]
    return torch.stack(pooled).contiguous().numpy()


def smooth(maps: Tensor, groups: Tensor) -> Tensor:
    """Eq. 13: each pixel of `maps` [N, S, S] becomes the mean of its group in `groups` [N, S, S]."""
    flat, places = maps.flatten(1), groups.flatten(1).long()
    count = int(places.max()) + 1
    sums = torch.zeros(len(flat), count, dtype=flat.dtype, device=flat.device).scatter_add_(1, places, flat)
    sizes = torch.zeros_like(sums).scatter_add_(1, places, torch.ones_like(flat))
    return (sums / sizes.clamp_min(1)).gather(1, places).view_as(maps)
