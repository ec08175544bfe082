"""Files of tensors that we have written: whole or not at all, and noticed where a bit has changed since.

torch checks nothing that it reads: a bit that flips on a disk is a weight of another value. Its files are zip archives,
though, which hold a checksum (CRC-32) of each tensor.
"""

from __future__ import annotations

import os
import pickle
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainables.errors import StorageError


class DamagedError(StorageError):
    """A file that is there and cannot be trusted."""


def read_tensors(path: Path) -> Any:
    """What `write_tensors` or `torch.save` has written, on the CPU; nothing but tensors and plain values is read.

    Raises FileNotFoundError, and DamagedError for a file that was cut off, has changed, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                changed = archive.testzip()
            if changed is not None:
                raise DamagedError(f"{path} is damaged: {changed} is not what was written.")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, LookupError) as error:
        raise DamagedError(f"{path} is damaged: {type(error).__name__}.") from None
    except (EOFError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise DamagedError(f"{path} is damaged, or not a file of tensors: {type(error).__name__}.") from None


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Writes the file where it is to be, and to the disk. A full disk is an OSError, as torch does not tell it."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def replace_tensors(content: Mapping[str, Any], path: Path, *, old: Path | None = None) -> None:
    """Writes the file beside, then into place; what is in its place becomes `old`, where that is given.

    A crash leaves one of the two whole at any moment. Nothing stays beside after an error.
    """
    # Not its parents: of a storage that is gone nothing must be made anew in its place.
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        save_tensors(content, unfinished)
        if old and path.exists():
            path.replace(old)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
