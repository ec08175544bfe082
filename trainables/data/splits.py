"""A data set's two splits, and the batches made of them.

The order of an epoch and the random changes of its images are functions of (seed, epoch, place in the data set) alone:
batches are the same bit for bit with any number of loader processes, those of several workers put together are those of
one, and the global random state is neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainables.data.batches import DRAWS, Batch, Epoch, ImageSet, LabelledImages, Normalisation, held
from trainables.errors import ConfigError

__all__ = ["DRAWS", "Batch", "ChosenImages", "DataSplits", "ImageSet", "LabelledImages", "Normalisation", "loader"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ChosenImages:
    """Some images of a set, in an order of their own: an ImageSet."""

    whole: ImageSet
    chosen: Tensor
    """Their places in the whole set [K]."""

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels(self) -> Tensor:
        """See `ImageSet.labels`."""
        return self.whole.labels[self.chosen]

    @property
    def normalisation(self) -> Normalisation:
        """See `ImageSet.normalisation`."""
        return self.whole.normalisation

    def pixels(self, places: Tensor) -> Tensor:
        """See `ImageSet.pixels`."""
        return self.whole.pixels(self.chosen[places])

    def batch(self, places: Tensor, draws: Tensor | None) -> LabelledImages:
        """See `ImageSet.batch`."""
        return self.whole.batch(self.chosen[places], draws)

    def on(self, device: torch.device) -> ChosenImages | None:
        """See `HeldImages.on`."""
        there = held(self.whole, device)
        return None if there is None else ChosenImages(there, self.chosen.to(device))


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """A data set as search and finetune see it."""

    name: str
    train: ImageSet
    validation: ImageSet
    num_classes: int
    digest: Callable[[], str]
    class_names: tuple[str, ...] = ()
    """By label; none where the data set does not know them."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images and labels of the data set, hexadecimal, before resizing and subsets.

        A folder's files are read for it when it is first asked for.
        """
        return self.digest()


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
    device: torch.device = _CPU,
) -> Epoch:
    """Batches of one epoch for the worker `rank`; `batch_size` counts the images of all workers together.

    They are made where `Epoch` says: by `workers` loader processes, or for and on `device`.

    Training (`shuffle`): new order each epoch, augmented, a last incomplete batch is dropped, and the workers' shares
    of a batch differ by at most one image. Evaluation: in order, nothing dropped, each image with exactly one worker,
    which may get fewer batches than another.
    """
    _check_shares(len(images), batch_size=batch_size, world_size=world_size, training=shuffle)
    random = torch.Generator().manual_seed(_mix(seed, epoch))
    order, draws = torch.arange(len(images)), None
    if shuffle:
        order = torch.randperm(len(images), generator=random)[: len(images) // batch_size * batch_size]
        draws = torch.rand(len(images), DRAWS, generator=random)
    shares = [chunk.tensor_split(world_size)[rank] for chunk in order.split(batch_size)]
    return Epoch(images, [share for share in shares if len(share)], draws, workers=workers, device=device)


def _check_shares(count: int, *, batch_size: int, world_size: int, training: bool) -> None:
    if training and count < batch_size:
        raise ConfigError(
            f"batch_size is {batch_size}, but there are only {count} training images; give at most {count}."
        )
    if min(batch_size, count) < world_size:
        raise ConfigError(
            f"{world_size} workers cannot share {count} images in batches of {batch_size}: "
            "each needs at least one image."
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
