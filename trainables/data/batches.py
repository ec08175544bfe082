"""Batches of one epoch, and where they are made.

Images that lie in memory are taken, changed and normalised by the process that trains: where it trains on a GPU, and
they fit, they are kept there, and a batch waits for nothing. Files are decoded by loader processes, which stay from
epoch to epoch. Either way a batch is a function of its images' places and draws alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from trainables.data import processes
from trainables.errors import BitfrontError

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


@runtime_checkable
class HeldImages(Protocol):
    """What an ImageSet can do whose images lie in memory."""

    def on(self, device: torch.device) -> ImageSet | None:
        """The same images on `device`, which takes places and draws that are there; None where they do not fit."""
        ...


def held(images: ImageSet, device: torch.device) -> ImageSet | None:
    """The images in the memory of `device`; None where they have to come from elsewhere."""
    return images.on(device) if isinstance(images, HeldImages) else None


class Epoch:
    """This worker's shares of the batches of an epoch, each made when it is asked for."""

    def __init__(
        self,
        images: ImageSet,
        shares: Sequence[Tensor],
        draws: Tensor | None,
        *,
        workers: int,
        device: torch.device,
    ) -> None:
        """`shares`: places of each batch's images; `draws` of all images of the set [N, DRAWS], where they change."""
        self.images, self.shares, self.draws = images, shares, draws
        self._workers, self._device = workers, device

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        return self.after(0)

    def after(self, steps: int) -> Iterator[Batch]:
        """The batches that follow the first `steps`, which are not made."""
        shares = self.shares[steps:]
        there = held(self.images, self._device)
        if there is not None:
            return self._held(there, shares)
        requests = [(places, None if self.draws is None else self.draws[places]) for places in shares]
        if self._workers:
            made = processes.made(self.images, requests, workers=self._workers, pinned=self._device.type == "cuda")
            return (_batch(found, *request) for found, request in zip(made, requests, strict=True))
        return (Batch(*self.images.batch(*request), *request) for request in requests)

    def _held(self, there: ImageSet, shares: Sequence[Tensor]) -> Iterator[Batch]:
        """Places and draws go to the device once, so that no batch waits for a copy."""
        if not shares:
            return
        places = torch.cat(list(shares))
        draws = None if self.draws is None else self.draws[places]
        sizes = [len(share) for share in shares]
        nothing = [None] * len(sizes)
        here = (places.split(sizes), nothing if draws is None else draws.split(sizes))
        moved = places.to(self._device), None if draws is None else draws.to(self._device)
        asked = (moved[0].split(sizes), nothing if moved[1] is None else moved[1].split(sizes))
        for own_places, own_draws, *request in zip(*here, *asked, strict=True):
            yield Batch(*there.batch(*request), own_places, own_draws)


def _batch(found: LabelledImages | BitfrontError, places: Tensor, draws: Tensor | None) -> Batch:
    """Raises what a loader process found wrong, in the words it was found with."""
    if isinstance(found, BitfrontError):
        raise found
    return Batch(*found, places, draws)
