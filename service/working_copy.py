"""Where a storage is on this machine: its own folder, or a working copy of one that is kept as objects.

A storage `s3://bucket/prefix` has the layout of a folder, with objects for files. Every machine works on a copy of its
own, below BITFRONT_CACHE or else XDG_CACHE_HOME/bitfront:

    <cache>/storages/<bucket>-<prefix>-<hash>/<sweep>/…, references/…     as in a storage folder
                                              .replica.json               whose copy it is
                                              .replica/                   what `service.replica` knows of it
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from service.files import write_once
from service.object_store import is_url, parse_url
from trainables.errors import StorageError

MARKER = ".replica.json"


@dataclass(frozen=True, slots=True)
class Copied:
    """What a working copy is of."""

    url: str
    copy_id: str
    """Unique among all copies."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder as it is named to other machines: by its path where all share it, else by address and name."""

    storage: str
    below: str

    @classmethod
    def of(cls, folder: Path) -> Place:
        """The folder, which may lie in a working copy."""
        for root in (folder, *folder.parents):
            copied = copied_in(root)
            if copied is not None:
                return cls(copied.url, folder.relative_to(root).as_posix())
        return cls(str(folder), "")

    @property
    def here(self) -> Path:
        """The folder on this machine."""
        return located(self.storage) / self.below

    def __str__(self) -> str:
        return self.storage if self.below in ("", ".") else f"{self.storage}/{self.below}"


def cache_root() -> Path:
    """Where working copies are on this machine."""
    named = os.environ.get("BITFRONT_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "bitfront"


def located(path: str) -> Path:
    """The folder of a storage, absolute; of an address this machine's working copy, which is made."""
    if not is_url(path):
        return Path(path).absolute()
    bucket, prefix = parse_url(path)
    url = f"s3://{bucket}/{prefix}".rstrip("/")
    slug = re.sub("[^A-Za-z0-9]+", "-", f"{bucket}-{prefix}").strip("-")[:60]
    root = cache_root() / "storages" / f"{slug}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    if not (root / MARKER).exists():
        try:
            _mark(root, url)
        except OSError as error:
            raise StorageError(
                f"{root} cannot be written ({error.strerror}), and {url} needs a working copy on this machine; give "
                "BITFRONT_CACHE a folder that can be."
            ) from None
    return root


def _mark(root: Path, url: str) -> None:
    """Of several processes that make the copy at once the first one's name for it stays."""
    root.mkdir(parents=True, exist_ok=True)
    write_once(root / MARKER, {"url": url, "copy_id": uuid.uuid4().hex})


def copied_in(root: Path) -> Copied | None:
    """What this folder is a working copy of; None where it is none."""
    try:
        return Copied(**json.loads((root / MARKER).read_text()))
    except OSError:
        return None
    except (ValueError, TypeError):
        raise StorageError(f"{root / MARKER} is damaged; remove {root}, which is a copy.") from None
