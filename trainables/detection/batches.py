"""Batches of images with boxes; order, flips and crops are functions of (seed, epoch, place) alone (`data.splits`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from trainables.data.images import IMAGENET_MEAN, IMAGENET_STD, decoded
from trainables.data.splits import Batch, ImageSet, Normalisation, loader
from trainables.detection.annotations import DetectionSet, Objects
from trainables.distributed import Workers

FILL = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
"""Around images that are zoomed out of."""


class DetectionBatch(NamedTuple):
    """N images, each of its own size, with the objects that a detector is trained on."""

    images: list[Tensor]
    """[3, H, W] each: uint8 as decoded, and 0 to 1 after `to`."""
    boxes: list[Tensor]
    """[n, 4] each, clipped to the image."""
    labels: list[Tensor]
    """[n] each, from 1."""
    places: Tensor
    """Places in the data set [N]."""

    def to(self, device: torch.device) -> DetectionBatch:
        """With images, boxes and labels on `device`, and images as floating point numbers."""
        images, boxes, labels = (
            [values.to(device, non_blocking=True) for values in part] for part in (self.images, self.boxes, self.labels)
        )
        return self._replace(images=[image.float() / 255 for image in images], boxes=boxes, labels=labels)

    @property
    def targets(self) -> list[dict[str, Tensor]]:
        """What torchvision's detectors are trained on."""
        return [{"boxes": b, "labels": n} for b, n in zip(self.boxes, self.labels, strict=True)]


class _Targets(NamedTuple):
    boxes: list[Tensor]
    labels: list[Tensor]


@dataclass(slots=True)
class DetectionImages:
    """A data set's images, decoded for each batch."""

    found: DetectionSet
    flip: bool = False
    zoom_crop: bool = False

    def __len__(self) -> int:
        return len(self.found)

    @property
    def labels(self) -> Tensor:
        """Places stand for labels: an image has many of these, or none."""
        return torch.arange(len(self.found))

    @property
    def normalisation(self) -> Normalisation:
        """Of the images as the detector itself normalises them."""
        return Normalisation(IMAGENET_MEAN, IMAGENET_STD)

    def batch(self, places: Tensor, draws: Tensor | None) -> tuple[list[Tensor], _Targets]:
        """Images at `places` [N] with their targets; changed as `draws` [N, DRAWS] say, where there are any."""
        examples = [self._example(place) for place in places.tolist()]
        if draws is not None:
            examples = [self._changed(*example, row) for example, row in zip(examples, draws, strict=True)]
        images, boxes, labels = zip(*examples, strict=True)
        return list(images), _Targets(list(boxes), list(labels))

    def _example(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        image, objects = decoded(self.found.paths[place]), self.found.of(place)
        return image, *_trained_on(objects, height=image.shape[1], width=image.shape[2])

    def _changed(self, image: Tensor, boxes: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.zoom_crop:
            image, boxes, labels = zoomed_or_cropped(image, boxes, labels, seed=_seed(draws[1:3]))
        if self.flip and draws[0] < 0.5:
            image, boxes = flipped(image, boxes)
        return image, boxes, labels


def _trained_on(objects: Objects, *, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes within the image, and labels, of the objects that are not ignored."""
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = torch.minimum(objects.boxes.clamp_min(0), limits)
    kept = ~objects.ignored & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[kept], objects.labels[kept]


def flipped(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right exchanged."""
    width, (x0, y0, x1, y1) = image.shape[2], boxes.unbind(1)
    return image.flip(2), torch.stack([width - x1, y0, width - x0, y1], dim=1)


def zoomed_or_cropped(image: Tensor, boxes: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """SSD's own changes (Liu et al. 2016, sections 2.2 and 3.6): half of the images become a part of a canvas of up to
    16 times their area, then a part is cut out that overlaps some box by a drawn least."""
    wrapped = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[1:])
    changes = v2.Compose([v2.RandomZoomOut(fill=FILL), v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()])
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which seeds the GPUs, too.
        torch.default_generator.manual_seed(seed)
        changed, found = changes(tv_tensors.Image(image), {"boxes": wrapped, "labels": labels})
    return changed.as_subclass(Tensor), found["boxes"].as_subclass(Tensor), found["labels"]


def _seed(draws: Tensor) -> int:
    """One seed of two random numbers of 24 bits."""
    high, low = (draws.double() * 2**24).long().tolist()
    return int(high << 24 | low)


class DetectionBatches:
    """Batches of an epoch, as the training loop takes them."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[DetectionBatch]:
        return map(_as_detection, self._batches)

    def after(self, steps: int) -> Iterator[DetectionBatch]:
        """Those that follow the first `steps`, without these being made."""
        return map(_as_detection, self._batches.after(steps))


def _as_detection(batch: Batch) -> DetectionBatch:
    images, targets = cast("tuple[list[Tensor], _Targets]", (batch.images, batch.labels))
    return DetectionBatch(images, targets.boxes, targets.labels, batch.places)


def batches(
    images: DetectionImages,
    workers: Workers,
    *,
    batch_size: int,
    training: bool,
    seed: int = 0,
    epoch: int = 0,
    loader_workers: int = 0,
) -> DetectionBatches:
    """This worker's share of an epoch's batches; see `data.splits.loader`."""
    # A loader does not look into what it passes on.
    found = loader(
        cast(ImageSet, images),
        batch_size=batch_size,
        shuffle=training,
        seed=seed,
        epoch=epoch,
        rank=workers.rank,
        world_size=workers.size,
        workers=loader_workers,
    )
    return DetectionBatches(found)
