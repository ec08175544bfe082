"""Data sets that torchvision fetches, one process at a time."""

from __future__ import annotations

import fcntl
import http.client
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.config import DataConfig
from trainables.data.places import data_root
from trainables.errors import DataMissingError


def download(fetch: Callable[[Path], object], config: DataConfig) -> None:
    """Calls `fetch` with the root. Raises DataMissingError where it fails."""
    root = data_root(config)
    try:
        with alone_in(root):
            fetch(root)
    # torchvision passes on what the network, the system and the archive tell.
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        raise DataMissingError(
            f"{config.name} could not be downloaded into {root} ({error}); where the network does not allow it, put "
            "the files there by hand and leave data.download out."
        ) from None


@contextmanager
def alone_in(root: Path) -> Iterator[None]:
    """Trials and workers that start together fetch one after the other; the second finds what the first fetched."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".download.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
