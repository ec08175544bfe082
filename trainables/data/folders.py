"""Image files in folders, as they are found on disk. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from trainables.errors import DataMissingError

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
SHARDS = {"train": ("*train-*.tar",), "val": ("*val-*.tar", "*validation-*.tar")}
"""Names of tar archives by split."""
SPLIT_WORDS = {"train": ("train",), "val": ("val", "validation")}


def image_paths(folder: Path) -> Iterator[Path]:
    """Image files below `folder`, in no certain order."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())


def class_names(folder: Path) -> list[str]:
    """Folders in `folder`, in alphabetical order: their places are the labels."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _splits_of(name: str) -> list[str]:
    """The splits whose word stands in the name of an archive on its own, in front of a dash: `trainval-` is neither."""
    return [split for split, words in SPLIT_WORDS.items() if re.search(rf"(?<![A-Za-z])({'|'.join(words)})-", name)]


def check_shards(root: Path) -> None:
    """Raises DataMissingError unless there are shards for both splits."""
    for split in SHARDS:
        shard_paths(root, split)


def shard_paths(root: Path, split: str) -> tuple[Path, ...]:
    """The split's archives in the order of their names."""
    there = {path for pattern in SHARDS[split] for path in root.glob(pattern) if path.is_file()}
    found = sorted(path for path in there if split in _splits_of(path.name))
    unclear = [path.name for path in found if len(_splits_of(path.name)) > 1]
    if unclear:
        raise DataMissingError(f"shards: {root / unclear[0]} may be for training or for validation; rename it.")
    if not found:
        raise DataMissingError(
            f"shards: {root} has no {' or '.join(SHARDS[split])}; put uncompressed tar archives of <key>.jpg and "
            "<key>.cls there."
        )
    return tuple(found)
