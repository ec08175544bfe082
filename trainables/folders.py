"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.report import RECORD_FILE


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which gets its name once all that is in it has reached the disk, or goes.

    Of several that write at once the first one's is kept: it has a RECORD_FILE then.
    """
    try:
        with _unfinished(folder) as unfinished:
            yield unfinished
            _to_disk(unfinished)
            unfinished.rename(folder)
    except OSError:
        if not (folder / RECORD_FILE).exists():
            raise


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """As `published`, but the new folder takes the place of one that is there."""
    with _unfinished(folder) as unfinished:
        yield unfinished
        _to_disk(unfinished)
        old = unfinished.with_name(unfinished.name + ".old")
        if not folder.exists():
            unfinished.rename(folder)
            return
        folder.rename(old)
        try:
            unfinished.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.mkdir()
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
