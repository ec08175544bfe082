"""Images with labelled boxes, in few tensors however many images there are.

Boxes are x0, y0, x1, y1 in pixels of the image as it lies on disk, x to the right and y downwards, with x1 − x0 the
width: the first pixel spans 0 to 1. Labels count from 1; 0 is the background.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trainables.data.folders import check_files
from trainables.errors import DataMissingError


class LabelledBox(NamedTuple):
    """One object as its file describes it."""

    box: tuple[float, float, float, float]
    label: int
    ignored: bool
    """Neither trained on, nor missed, nor wrong to find: a crowd (COCO), or a difficult object (VOC)."""
    area: float
    """Pixels of the object where the file says them, else of its box."""


class Objects(NamedTuple):
    """The objects of one image, n of them."""

    boxes: Tensor
    """[n, 4] float32."""
    labels: Tensor
    """[n] int64."""
    ignored: Tensor
    """[n] bool; see LabelledBox."""
    areas: Tensor
    """[n] float64."""


@dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """N images with M objects in all."""

    paths: tuple[Path, ...]
    starts: Tensor
    """[N + 1]: the objects of image i are those from starts[i] to starts[i + 1]."""
    objects: Objects
    """Of all images."""

    def __len__(self) -> int:
        return len(self.paths)

    def of(self, place: int) -> Objects:
        """The objects of one image."""
        part = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return Objects(*(values[part] for values in self.objects))

    @property
    def counted(self) -> int:
        """Objects that are not ignored."""
        return int((~self.objects.ignored).sum())


@dataclass(frozen=True, kw_only=True)
class DetectionSplits:
    """A data set as finetune and evaluation see it."""

    train: DetectionSet
    validation: DetectionSet
    class_names: tuple[str, ...]
    """By label less one."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images, boxes and classes, hexadecimal; names and places of files do not matter."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for split in (self.train, self.validation):
            for tensor in (split.starts, *split.objects):
                digest.update(tensor.numpy().tobytes())
            for path in split.paths:
                digest.update(_content(path))
        return digest.hexdigest()


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataMissingError(f"{path}: cannot be read ({error}); get it again.") from None


def detection_set(where: str, images: Iterable[tuple[Path, Sequence[LabelledBox]]]) -> DetectionSet:
    """Boxes of no area are left out: nobody could find them. Raises DataMissingError where no object counts."""
    paths: list[Path] = []
    found: list[LabelledBox] = []
    starts = [0]
    for path, boxes in images:
        paths.append(path)
        found += [box for box in boxes if box.box[2] > box.box[0] and box.box[3] > box.box[1]]
        starts.append(len(found))
    check_files(where, paths)
    objects = Objects(
        boxes=torch.tensor([box.box for box in found], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([box.label for box in found], dtype=torch.int64),
        ignored=torch.tensor([box.ignored for box in found], dtype=torch.bool),
        areas=torch.tensor([box.area for box in found], dtype=torch.float64),
    )
    made = DetectionSet(paths=tuple(paths), starts=torch.tensor(starts), objects=objects)
    if not made.counted:
        raise DataMissingError(
            f"{where}: {len(paths)} images without a single box that counts; give lists of images with objects."
        )
    return made
