"""Time of the attribution partition, against comparing all pairs of pixels.

First at 224x224 from 7x7x512 activations, in milliseconds an image on one thread; then at 56x56, next to all pairs
compared by matrix products, the two taken in turn. Run: python benchmarks/partition.py [--images 8] [--rounds 5]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from trainables.partition import partition

GAMMAS = (0.05, 0.5)
LADDERS = ((1, 2), (2, 2), (2, 4), (3, 2), (3, 4), (5, 2))
"""Levels and ratio."""


def activations(kind: str, count: int) -> Tensor:
    """[N, 512, 7, 7], half of them zero as behind a ReLU: pixels that have nothing in common, or much."""
    drawn = torch.randn(count, 512, 9, 9, generator=torch.Generator().manual_seed(0))
    return (drawn[:, :, 1:8, 1:8] if kind == "unlike" else F.avg_pool2d(drawn, 3, 1)).relu()


def all_pairs(features: Tensor, *, size: int, levels: int, ratio: int, gamma: float) -> Tensor:
    """The partition by its definition: a matrix of all distances for each level."""
    found = []
    for image in F.interpolate(features, size=(size, size), mode="bilinear", align_corners=False):
        parents, step = np.zeros((1, 1), dtype=np.int64), size
        for level in range(1, levels + 1):
            pooled = F.avg_pool2d(image[None], ratio ** (levels - level), ceil_mode=True)[0]
            height, width = pooled.shape[1:]
            pixels = pooled.flatten(1).T
            norms = pixels.norm(dim=1)
            similar = (torch.cdist(pixels, pixels) <= gamma * norms.std(unbiased=False)).numpy()
            owner = parents[np.arange(height)[:, None] // step, np.arange(width) // step].ravel()
            _, labels = connected_components(similar & (owner[:, None] == owner), directed=False)
            parents, step = labels.reshape(height, width), ratio
        found.append(torch.from_numpy(parents))
    return torch.stack(found)


def milliseconds(compute: Callable[[], Tensor], images: int) -> float:
    """Wall time an image."""
    started = time.perf_counter()
    compute()
    return 1000 * (time.perf_counter() - started) / images


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"1 CPU thread ({platform.machine()}), torch {torch.__version__}, medians of {args.rounds} rounds")
    print("\n| activations | levels | ratio | gamma | groups | ms an image |\n|---|---|---|---|---|---|")
    for kind in ("unlike", "alike"):
        features = activations(kind, args.images)
        for levels, ratio in LADDERS:
            for gamma in GAMMAS:

                def ours() -> Tensor:
                    return partition(features, size=224, levels=levels, ratio=ratio, gamma=gamma)  # noqa: B023

                groups = ours().flatten(1).amax(1).float().mean() + 1
                middle = statistics.median(milliseconds(ours, args.images) for _ in range(args.rounds))
                print(f"| {kind} | {levels} | {ratio} | {gamma} | {groups:.0f} | {middle:.1f} |")
    print("\n| 56x56: levels | ratio | ms an image | all pairs, ms | ratio of times |\n|---|---|---|---|---|")
    features = activations("alike", args.images)
    for levels, ratio in LADDERS:
        settings = {"size": 56, "levels": levels, "ratio": ratio, "gamma": 0.05}
        pairs = [
            (
                milliseconds(lambda: partition(features, **settings), args.images),  # noqa: B023
                milliseconds(lambda: all_pairs(features, **settings), args.images),  # noqa: B023
            )
            for _ in range(args.rounds)
        ]
        fast, slow = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"| {levels} | {ratio} | {fast:.1f} | {slow:.0f} | {slow / fast:.0f} |")


if __name__ == "__main__":
    main()
