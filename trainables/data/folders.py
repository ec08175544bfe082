"""Image files in folders, as they are found on disk. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainables.errors import DataMissingError

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
SPLITS = {"train": ("train",), "val": ("val", "validation")}
"""Words for a split in the name of a tar archive, each in front of a dash."""


def image_paths(folder: Path) -> Iterator[Path]:
    """Image files below `folder`, in no certain order."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())


def class_names(folder: Path) -> list[str]:
    """Folders in `folder`, in alphabetical order: their places are the labels."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _splits_of(name: str) -> list[str]:
    """The splits whose word stands in the name of an archive on its own, in front of a dash: `trainval-` is neither."""
    return [split for split, words in SPLITS.items() if re.search(rf"(?<![A-Za-z])({'|'.join(words)})-", name)]


def check_shards(root: Path) -> None:
    """Raises DataMissingError unless there are shards for both splits."""
    for split in SPLITS:
        shard_paths(root, split)


def shard_paths(root: Path, split: str) -> tuple[Path, ...]:
    """The split's archives in the order of their names."""
    splits = {path: _splits_of(path.name) for path in root.glob("*.tar") if path.is_file()}
    found = sorted(path for path, named in splits.items() if split in named)
    unclear = [path for path in found if len(splits[path]) > 1]
    if unclear:
        raise DataMissingError(f"shards: {unclear[0]} may be for training or for validation; rename it.")
    if not found:
        raise DataMissingError(
            f"shards: {root} has no {' or '.join(f'*{word}-*.tar' for word in SPLITS[split])}; put uncompressed tar "
            "archives of <key>.jpg and <key>.cls there."
        )
    return tuple(found)


def check_files(where: str, paths: Sequence[Path]) -> None:
    """Raises DataMissingError unless all are files. Lists each folder once instead of asking for each file."""
    there = {folder: _file_names(folder) for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in there[path.parent]]
    if missing:
        raise DataMissingError(
            f"{where}: {len(missing)} of {len(paths)} listed images are missing, the first is {missing[0]}; "
            "get them again."
        )


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
