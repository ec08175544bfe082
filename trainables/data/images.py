"""The two kinds of image sets: tensors in memory, and files that are decoded as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from trainables.config import Augment
from trainables.data.splits import Batch
from trainables.errors import DataMissingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZE_RATIO = 256 / 224
"""Shorter side before the centre crop, over the crop's side."""
CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)


def to_rgb(images: Tensor, size: int) -> Tensor:
    """uint8 [N, C, H, W], C 1 or 3 -> uint8 [N, 3, size, size]; grey is repeated, resizing bilinear."""
    if images.shape[2:] != (size, size):
        images = tv.resize(images, [size, size], antialias=True)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@dataclass(slots=True)
class MemoryImages:
    """uint8 images [N, 3, S, S] in memory, with the statistics that normalise them, in units of 0..255."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    augment: Augment = "none"

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, places: Sequence[int], random: torch.Generator | None) -> Batch:
        """See ImageSet.batch."""
        chosen = torch.tensor(places, dtype=torch.int64)
        images = self.images[chosen]
        if random is not None:
            images = augmented(images, self.augment, random)
        return (images.float() - self.mean) / self.std, self.labels[chosen]


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images, [1, 3, 1, 1] each, in units of 0..255."""
    values = images.to(torch.float64)
    mean = values.mean(dim=(0, 2, 3), keepdim=True)
    std = (values - mean).square().mean(dim=(0, 2, 3), keepdim=True).sqrt().clamp_min(1.0)
    return mean.float(), std.float()


def augmented(images: Tensor, augment: Augment, random: torch.Generator) -> Tensor:
    """uint8 [N, 3, S, S] -> the same shape, each image changed on its own."""
    if augment == "none":
        return images
    if augment == "crop-flip":
        images = _shifted(images, random)
    elif augment == "resized-crop-flip":
        images = torch.stack([_resized_crop(image, image.shape[-1], random) for image in images])
    flip = torch.rand(len(images), generator=random) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def _shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Random crops of the images with S/8 black pixels on every side."""
    count, _, size, _ = images.shape
    margin = max(1, size // 8)
    padded = torch.nn.functional.pad(images, (margin,) * 4)
    offsets = torch.randint(0, 2 * margin + 1, (2, count), generator=random)
    rows = (offsets[0][:, None] + torch.arange(size))[:, None, :, None]
    columns = (offsets[1][:, None] + torch.arange(size))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]


def _resized_crop(image: Tensor, size: int, random: torch.Generator) -> Tensor:
    """A random part of CROP_AREA and CROP_ASPECT, resized; uint8 [3, H, W] -> [3, size, size]."""
    height, width = image.shape[1:]
    share, aspect, row, column = torch.rand(4, generator=random).tolist()
    area = height * width * (CROP_AREA[0] + share * (CROP_AREA[1] - CROP_AREA[0]))
    ratio = CROP_ASPECT[0] * (CROP_ASPECT[1] / CROP_ASPECT[0]) ** aspect
    crop_width = min(width, max(1, round((area * ratio) ** 0.5)))
    crop_height = min(height, max(1, round((area / ratio) ** 0.5)))
    top, left = int(row * (height - crop_height + 1)), int(column * (width - crop_width + 1))
    return tv.resized_crop(image, top, left, crop_height, crop_width, [size, size], antialias=True)


@dataclass(slots=True)
class FileImages:
    """Image files with labels, decoded for each batch, normalised with ImageNet's statistics."""

    paths: list[Path]
    labels: Tensor
    size: int
    augment: Augment = "none"

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, places: Sequence[int], random: torch.Generator | None) -> Batch:
        """See ImageSet.batch."""
        images = torch.stack([self._one(self.paths[place], random) for place in places]) if places else torch.empty(0)
        if random is not None and self.augment in ("flip", "crop-flip"):
            images = augmented(images, self.augment, random)
        elif random is not None and self.augment == "resized-crop-flip":
            images = augmented(images, "flip", random)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
        labels = self.labels[torch.tensor(places, dtype=torch.int64)]
        return (images.float().view(-1, 3, self.size, self.size) - mean) / std, labels

    def _one(self, path: Path, random: torch.Generator | None) -> Tensor:
        image = _decoded(path)
        if random is not None and self.augment == "resized-crop-flip":
            return _resized_crop(image, self.size, random)
        shorter = round(self.size * RESIZE_RATIO)
        return v2.functional.center_crop(tv.resize(image, [shorter], antialias=True), [self.size, self.size])


def _decoded(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return tv.pil_to_tensor(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataMissingError(f"{path}: cannot be read as an image ({error}); replace or remove the file.") from None
