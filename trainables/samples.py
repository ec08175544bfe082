"""A few validation images, and where networks look on them: what pages show of attribution. Values and files, no torch.

    <references>/<reference>/samples/<digest>.npz   the images, with the reference's maps (`SampleImages`)
    <trial>/attribution.npz                         a policy's maps of these images (`SampleMaps`), by that digest

The digest is of the content: maps are never shown beside images that they are not of.

Notation: K images, maps [K, h, w] as the networks make them, each with sum 1, or all zero.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trainables.errors import StorageError
from trainables.patience import unavailable

ATTRIBUTION_FILE = "attribution.npz"
SAMPLES_FOLDER = "samples"
THUMBNAIL_SIDE = 96
"""Pixels at most."""


def spread(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Places of `count` images that are spread over the classes, always the same for the same labels.

    The first image of each class, of so many classes at even distances; where there are fewer classes, then the second
    image of each, and so on. Fewer than `count` where there are no more.
    """
    classes, of_class = np.unique(labels, return_inverse=True)
    by_class = np.argsort(of_class, kind="stable")
    starts = np.searchsorted(of_class[by_class], np.arange(len(classes)))
    nth = np.empty(len(labels), dtype=np.int64)
    nth[by_class] = np.arange(len(labels)) - starts[of_class[by_class]]
    in_rounds = np.lexsort((of_class, nth))
    if len(classes) > count:
        return in_rounds[np.arange(count) * len(classes) // count]
    return in_rounds[:count]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Arrays:
    """Fields that are arrays, texts or tuples of texts, kept in one file."""

    def save(self, path: Path) -> None:
        """Writes a file that appears whole or not at all; who writes the same at once does no harm."""
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                np.savez_compressed(
                    file, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
                )
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            otherwise = StorageError(f"{path} cannot be written ({error.strerror}); make room, or check its folder.")
            raise unavailable(error, path.parent) or otherwise from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote. Raises StorageError where that is not there, or damaged."""
        try:
            with np.load(path, allow_pickle=False) as kept:
                return cls(**{field.name: _plain(kept[field.name]) for field in dataclasses.fields(cls)})
        except FileNotFoundError:
            raise StorageError(f"{path} does not exist.") from None
        # NumPy tells of damage in all of these ways.
        except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise StorageError(f"{path} cannot be read ({error}).") from None


def _plain(found: NDArray[Any]) -> Any:
    """Texts as they were before NumPy took them."""
    if found.dtype.kind != "U":
        return found
    return tuple(str(text) for text in found) if found.ndim else str(found)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleImages(_Arrays):
    """Images and the full-precision reference's maps of them."""

    reference: str
    """Key of the reference."""
    network: str
    data: str
    places: NDArray[np.int64]
    """In the validation split [K]."""
    labels: NDArray[np.int64]
    """[K]."""
    class_names: tuple[str, ...]
    """Of each image; the label's number where the data set does not know names."""
    thumbnails: NDArray[np.uint8]
    """[K, s, s, 3], as people see them."""
    maps: NDArray[np.float32]
    """The reference's, for the label's class."""

    @property
    def digest(self) -> str:
        """Of all that is in it."""
        found = hashlib.sha256()
        for field in dataclasses.fields(self):
            value = np.ascontiguousarray(getattr(self, field.name))
            found.update(f"{field.name} {value.dtype} {value.shape}\0".encode() + value.tobytes())
        return found.hexdigest()[:16]

    @classmethod
    def path(cls, references: Path, reference: str, digest: str) -> Path:
        """Where a storage's references have it."""
        return references / reference / SAMPLES_FOLDER / f"{digest}.npz"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleMaps(_Arrays):
    """A policy's maps of sample images, for the label's class, after its finetune."""

    reference: str
    """Key of the reference that has the images."""
    samples: str
    """Digest of the images."""
    maps: NDArray[np.float32]
    ard: NDArray[np.float64]
    """Attribution rank difference of each image, as the sweep measures it [K], ranks."""
