"""A data set's two splits, and the batches made of them.

The order of an epoch and the random changes of its images are functions of (seed, epoch, place in the data set) alone:
batches are the same bit for bit with any number of loader processes, those of several workers put together are those of
one, and the global random state is neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainables.errors import BitfrontError, ConfigError

LabelledImages = tuple[Tensor, Tensor]
"""Images [N, 3, S, S] normalised, labels [N]."""
DRAWS = 5
"""Random numbers per image and epoch: flip, row, column, area and aspect ratio."""


class Batch(NamedTuple):
    """Images with what is needed to find again what is known of each."""

    images: Tensor
    """[N, 3, S, S], normalised."""
    labels: Tensor
    """[N]."""
    places: Tensor
    """Places in the data set [N]."""
    draws: Tensor | None
    """The random numbers that changed the images, [N, DRAWS]; None where none were changed."""

    def to(self, device: torch.device) -> Batch:
        """With images and labels on `device`."""
        images, labels = self.images.to(device, non_blocking=True), self.labels.to(device, non_blocking=True)
        return self._replace(images=images, labels=labels)


class Normalisation(NamedTuple):
    """What makes images of pixels from 0 to 1: of each channel `mean` is subtracted, then divided by `std`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ImageSet(Protocol):
    """A data set that makes whole batches."""

    @property
    def labels(self) -> Tensor:
        """Of all images [N]."""
        ...

    @property
    def normalisation(self) -> Normalisation:
        """Of its batches."""
        ...

    def __len__(self) -> int: ...

    def pixels(self, places: Tensor) -> Tensor:
        """Images at `places` [N] as they are, uint8 [N, 3, S, S]."""
        ...

    def batch(self, places: Tensor, draws: Tensor | None) -> LabelledImages:
        """Images and labels at `places` [N]; augmented where `draws` [N, DRAWS] in [0, 1) are given."""
        ...


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


class _Batches(Dataset["Batch | BitfrontError"]):
    """Whole batches by number: this worker's share of each global batch."""

    def __init__(self, images: ImageSet, shares: Sequence[Tensor], draws: Tensor | None) -> None:
        self.images, self.shares, self.draws = images, shares, draws

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, number: int) -> Batch | BitfrontError:
        places = self.shares[number]
        draws = None if self.draws is None else self.draws[places]
        try:
            return Batch(*self.images.batch(places, draws), places, draws)
        except BitfrontError as error:
            # Raised in a loader process, its message would arrive with a traceback in it.
            return error


class _Loader(DataLoader["Batch | BitfrontError"]):
    """Raises what a loader process found wrong, in the words it was found with."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # any iterator will do for a loop
        for found in super().__iter__():
            if isinstance(found, BitfrontError):
                raise found
            yield found

    def after(self, steps: int) -> Iterator[Batch]:
        """The batches that follow the first `steps`, which are not made."""
        whole = cast(_Batches, self.dataset)
        rest = _Batches(whole.images, whole.shares[steps:], whole.draws)
        return iter(_Loader(rest, batch_size=None, num_workers=self.num_workers, generator=self.generator))


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
) -> _Loader:
    """Batches of one epoch for the worker `rank`; `batch_size` counts the images of all workers together.

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
    return _Loader(
        _Batches(images, [share for share in shares if len(share)], draws),
        batch_size=None,
        num_workers=workers,
        # A generator of its own: the loader would otherwise draw from the global random state.
        generator=random,
    )


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
