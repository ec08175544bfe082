"""Image files in folders, as they are found on disk. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


def image_paths(folder: Path) -> Iterator[Path]:
    """Image files below `folder`, in no certain order."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())


def class_names(folder: Path) -> list[str]:
    """Folders in `folder`, in alphabetical order: their places are the labels."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
