"""Images in memory or in files, and the batches made of them.

Order and augmentation are functions of (seed, epoch, place in the data set) alone: the same seed gives the same batches
bit for bit, with any number of loader processes, and the global random state is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainables.errors import ConfigError

Batch = tuple[Tensor, Tensor]


class ImageSet(Protocol):
    """A data set that makes whole batches."""

    def __len__(self) -> int: ...

    def batch(self, places: Sequence[int], random: torch.Generator | None) -> Batch:
        """Images [N, 3, S, S] normalised, labels [N]; augmented where a generator is given."""
        ...


@dataclass(frozen=True, slots=True)
class DataSplits:
    """A data set as search and finetune see it."""

    train: ImageSet
    validation: ImageSet
    num_classes: int
    fingerprint: str
    """SHA-256 of images and labels; for a folder of files, of their paths and sizes."""


class _Batches(Sampler[tuple[int, list[int]]]):
    """(number of the batch, this worker's places in it), one for each global batch."""

    def __init__(self, order: Tensor, *, batch_size: int, rank: int, world_size: int, drop_last: bool) -> None:
        whole = len(order) // batch_size if drop_last else -(-len(order) // batch_size)
        self.chunks = [order[i * batch_size : (i + 1) * batch_size] for i in range(whole)]
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for number, chunk in enumerate(self.chunks):
            yield number, torch.tensor_split(chunk, self.world_size)[self.rank].tolist()


class _ByBatch(Dataset[Batch]):
    """Fetches one whole batch for each item of the sampler."""

    def __init__(self, images: ImageSet, *, seed: int | None, rank: int) -> None:
        self.images, self.seed, self.rank = images, seed, rank

    def __getitem__(self, item: tuple[int, list[int]]) -> Batch:
        number, places = item
        random = None
        if self.seed is not None:
            random = torch.Generator().manual_seed(_mix(self.seed, number, self.rank))
        return self.images.batch(places, random)


def loader(
    images: ImageSet,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> DataLoader[Batch]:
    """Batches of one epoch for one worker; `batch_size` counts the images of all workers together.

    Training (`shuffle`): new order each epoch, augmented, a last incomplete batch is dropped, and every worker gets the
    same number of images. Evaluation: in order, nothing dropped, each image with exactly one worker.
    """
    if shuffle and batch_size % world_size:
        raise ConfigError(f"batch_size is {batch_size}, which {world_size} workers cannot share equally.")
    if shuffle and len(images) < batch_size:
        raise ConfigError(f"batch_size is {batch_size}, but there are only {len(images)} training images.")
    mixed = _mix(seed, epoch)
    order = torch.arange(len(images))
    if shuffle:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(mixed))
    batches = _Batches(order, batch_size=batch_size, rank=rank, world_size=world_size, drop_last=shuffle)
    return DataLoader(
        _ByBatch(images, seed=mixed if shuffle else None, rank=rank),
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        # A generator of its own: the loader would otherwise draw from the global random state.
        generator=torch.Generator().manual_seed(mixed),
    )


def _mix(*numbers: int) -> int:
    """One seed of several numbers, such that neighbours have nothing in common."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ (number + 0x632BE59BD9B4E019)) * 0xBF58476D1CE4E5B9) % 2**64
        state ^= state >> 31
    return state % 2**63


def stratified(labels: Tensor, fraction: float, *, seed: int) -> Tensor:
    """Ascending places of `fraction` of each class, at least one of each."""
    random = torch.Generator().manual_seed(_mix(seed))
    chosen = []
    for label in labels.unique():
        places = (labels == label).nonzero().flatten()
        count = max(1, round(len(places) * fraction))
        chosen.append(places[torch.randperm(len(places), generator=random)[:count]])
    return torch.cat(chosen).sort().values
