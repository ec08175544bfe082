"""Image files in folders, as they are found on disk. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainables.errors import DataMissingError

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
SHARDS = {"train": ("*train-*.tar",), "val": ("*val-*.tar", "*validation-*.tar")}
"""Names of tar archives by split."""


def image_paths(folder: Path) -> Iterator[Path]:
    """Image files below `folder`, in no certain order."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())


def class_names(folder: Path) -> list[str]:
    """Folders in `folder`, in alphabetical order: their places are the labels."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def check_shards(root: Path) -> None:
    """Raises DataMissingError unless there are shards for both splits."""
    for split in SHARDS:
        shard_paths(root, split)


def shard_paths(root: Path, split: str) -> tuple[Path, ...]:
    """The split's archives in the order of their names."""
    found = sorted({path for pattern in SHARDS[split] for path in root.glob(pattern) if path.is_file()})
    if not found:
        raise DataMissingError(
            f"shards: {root} has no {' or '.join(SHARDS[split])}; put uncompressed tar archives of <key>.jpg and "
            "<key>.cls there."
        )
    return tuple(found)
