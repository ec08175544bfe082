"""The two kinds of image sets: tensors in memory, and files (in archives, too) that are decoded as they are needed.

Shapes: N images, C channels, S pixels a side. Draws are random numbers in [0, 1), one row of `splits.DRAWS` per image:
flip, row, column, area, aspect ratio. An image's change is a function of its row alone, not of its batch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from trainables.config import Augment
from trainables.data.listing import Source, content
from trainables.data.splits import LabelledImages, Normalisation
from trainables.errors import DataMissingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZE_RATIO = 256 / 224
"""Shorter side before the centre crop, over the crop's side."""
CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
DEVICE_BYTES = 2**31
"""Of images that are kept on a GPU: what is more comes from the host, batch by batch."""
RESIZED_AT_ONCE = 1024
"""Images per call: resizing takes four bytes for each byte of them."""


def to_rgb(images: Tensor, size: int) -> Tensor:
    """uint8 [N, C, H, W], C 1 or 3 -> uint8 [N, 3, S, S]; resizing is bilinear, antialiased if it shrinks."""
    if images.shape[2:] != (size, size):
        images = torch.cat([tv.resize(part, [size, size], antialias=True) for part in images.split(RESIZED_AT_ONCE)])
    return images.expand(-1, 3, -1, -1)


@dataclass(slots=True)
class MemoryImages:
    """uint8 images [N, 3, S, S] in memory, with the statistics that normalise them, in units of 0..255."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    augment: Augment = "none"
    _there: dict[torch.device, MemoryImages] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: torch.device) -> MemoryImages | None:
        """See HeldImages.on. A device has one copy, and keeps it."""
        if device == self.images.device:
            return self
        # Grey images are one channel that is read three times.
        stored = self.images[:, :1] if self.images.stride(1) == 0 else self.images
        if stored.numel() > DEVICE_BYTES:
            return None
        if device not in self._there:
            images = stored.to(device).expand(-1, self.images.shape[1], -1, -1)
            labels, mean, std = (tensor.to(device) for tensor in (self.labels, self.mean, self.std))
            self._there[device] = MemoryImages(images, labels, mean, std, self.augment)
        return self._there[device]

    @property
    def normalisation(self) -> Normalisation:
        """See ImageSet.normalisation."""
        mean, std = ((values.double().flatten() / 255).tolist() for values in (self.mean, self.std))
        return Normalisation(tuple(mean), tuple(std))

    def pixels(self, places: Tensor) -> Tensor:
        """See ImageSet.pixels."""
        return self.images[places]

    def batch(self, places: Tensor, draws: Tensor | None) -> LabelledImages:
        """See ImageSet.batch."""
        images = self.pixels(places)
        if draws is not None:
            images = augmented(images, self.augment, draws)
        return (images.float() - self.mean) / self.std, self.labels[places]


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images, [1, 3, 1, 1] each, in units of 0..255.

    From counts of the 256 values: exact sums, without a float copy of the images. A channel of one value has std 1.
    """
    values = torch.arange(256, dtype=torch.float64)
    channels = [images[:, channel] for channel in range(images.shape[1])]
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels])
    shares = counts / counts.sum(dim=1, keepdim=True).double()
    mean = shares @ values
    std = (shares * (values - mean[:, None]).square()).sum(dim=1).sqrt()
    std = torch.where(std > 0, std, 1.0)
    return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)


def augmented(images: Tensor, augment: Augment, draws: Tensor) -> Tensor:
    """uint8 [N, 3, S, S] -> the same shape, each image changed as its row of `draws` [N, DRAWS] says."""
    if augment == "none":
        return images
    if augment == "crop-flip":
        images = _shifted(images, draws)
    elif augment == "resized-crop-flip":
        images = _resized_crops(images, draws)
    return torch.where((draws[:, 0] < 0.5)[:, None, None, None], images.flip(3), images)


def _shifted(images: Tensor, draws: Tensor) -> Tensor:
    """Crops of the images with S/8 black pixels on every side."""
    size = images.shape[3]
    margin = max(1, size // 8)
    padded = torch.nn.functional.pad(images, (margin,) * 4)
    offsets = (draws[:, 1:3] * (2 * margin + 1)).long()
    rows, columns = (offsets[:, axis, None] + torch.arange(size, device=images.device) for axis in (0, 1))
    return _taken(padded, rows, columns)


def _taken(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[N, 3, H, W] at rows [N, S] and columns [N, S], different for each image -> [N, 3, S, S]."""
    count, channels, height, width = images.shape
    places = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    taken = images.reshape(count, channels, height * width).gather(2, places)
    return taken.view(count, channels, rows.shape[1], columns.shape[1])


def crop_boxes(draws: Tensor, *, height: int, width: int) -> Tensor:
    """Top, left, height and width of random crops [N, 4], whole pixels.

    Area uniform in CROP_AREA, aspect ratio log-uniform in CROP_ASPECT. A crop that is wider or higher than the image is
    cut to it; torchvision draws such a crop anew, with a number of draws that is not known beforehand.
    """
    _, row, column, share, aspect = draws.double().unbind(dim=1)
    area = height * width * (CROP_AREA[0] + share * (CROP_AREA[1] - CROP_AREA[0]))
    ratio = CROP_ASPECT[0] * (CROP_ASPECT[1] / CROP_ASPECT[0]) ** aspect
    heights = (area / ratio).sqrt().round().clamp(1, height)
    widths = (area * ratio).sqrt().round().clamp(1, width)
    tops, lefts = (row * (height - heights + 1)).floor(), (column * (width - widths + 1)).floor()
    return torch.stack((tops, lefts, heights, widths), dim=1).long()


def _resized_crops(images: Tensor, draws: Tensor) -> Tensor:
    """Random crops [N, 3, S, S], enlarged bilinearly: they are never larger, so nothing is smoothed."""
    size = images.shape[3]
    tops, lefts, heights, widths = crop_boxes(draws, height=size, width=size).unbind(dim=1)
    (top, bottom, down), (left, right, across) = (_between(o, e, size) for o, e in ((tops, heights), (lefts, widths)))
    down, across = down[:, None, :, None], across[:, None, None, :]
    upper = torch.lerp(_taken(images, top, left).float(), _taken(images, top, right).float(), across)
    lower = torch.lerp(_taken(images, bottom, left).float(), _taken(images, bottom, right).float(), across)
    return torch.lerp(upper, lower, down).round().to(torch.uint8)


def _between(origins: Tensor, extents: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For S pixels over [origin, origin + extent): the pixel before, the one after, the share of the latter; [N, S].

    Pixel centres lie at halves, and positions stay inside the crop, as when a crop is cut out and resized.
    """
    last = (origins + extents - 1)[:, None]
    steps = (torch.arange(size, device=origins.device) + 0.5) / size
    positions = origins[:, None] + steps * extents[:, None] - 0.5
    positions = positions.clamp(min=origins[:, None], max=last)
    before = positions.long()
    return before, torch.minimum(before + 1, last), positions - before


@dataclass(slots=True)
class FileImages:
    """Image files with labels, decoded for each batch, normalised with ImageNet's statistics."""

    paths: Sequence[Source]
    labels: Tensor
    size: int
    augment: Augment = "none"

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def normalisation(self) -> Normalisation:
        """See ImageSet.normalisation."""
        return Normalisation(IMAGENET_MEAN, IMAGENET_STD)

    def pixels(self, places: Tensor) -> Tensor:
        """See ImageSet.pixels."""
        return torch.stack([_centre(decoded(self.paths[place]), self.size) for place in places.tolist()])

    def batch(self, places: Tensor, draws: Tensor | None) -> LabelledImages:
        """See ImageSet.batch."""
        if draws is None:
            images = self.pixels(places)
        elif self.augment == "resized-crop-flip":
            paths = [self.paths[place] for place in places.tolist()]
            crops = [_resized_crop(decoded(path), self.size, row) for path, row in zip(paths, draws, strict=True)]
            images = augmented(torch.stack(crops), "flip", draws)
        else:
            images = augmented(self.pixels(places), self.augment, draws)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (images.float() - mean) / std, self.labels[places]


def _centre(image: Tensor, size: int) -> Tensor:
    """The middle [3, S, S] of the image, whose shorter side becomes RESIZE_RATIO times as long."""
    resized = tv.resize(image, [round(size * RESIZE_RATIO)], antialias=True)
    return tv.center_crop(resized, [size, size])


def _resized_crop(image: Tensor, size: int, draws: Tensor) -> Tensor:
    """A random crop of the image [3, H, W] as [3, S, S]."""
    height, width = image.shape[1:]
    top, left, crop_height, crop_width = crop_boxes(draws[None], height=height, width=width)[0].tolist()
    return tv.resized_crop(image, top, left, crop_height, crop_width, [size, size], antialias=True)


def decoded(source: Source) -> Tensor:
    """uint8 [3, H, W]. Raises DataMissingError where the file is damaged."""
    encoded = content(source)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return tv.pil_to_tensor(image.convert("RGB"))
    # Pillow tells of damage in all of these ways, depending on the format and on the place.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataMissingError(f"{source}: cannot be read as an image ({error}); replace or remove the file.") from None
