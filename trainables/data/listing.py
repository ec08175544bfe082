"""Long lists of images in files or in tar archives, in a few bytes each.

A million Path objects take 300 to 400 MB in every process that loads images; the names alone take forty.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from trainables.errors import DataMissingError


class Member(NamedTuple):
    """A file within an uncompressed tar archive."""

    shard: Path
    offset: int
    size: int
    """Bytes."""
    name: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"


Source = Path | Member
"""Where an encoded image lies."""


def content(source: Source) -> bytes:
    """The encoded image. Raises DataMissingError where it cannot be read."""
    try:
        if isinstance(source, Path):
            return source.read_bytes()
        with source.shard.open("rb") as file:
            found = os.pread(file.fileno(), source.size, source.offset)
    except OSError as error:
        raise DataMissingError(f"{source}: cannot be read ({error}); get it again.") from None
    if len(found) < source.size:
        raise DataMissingError(f"{source}: the archive ends before the image does; get the archive again.")
    return found


@dataclass(frozen=True, eq=False)
class FileList(Sequence[Path]):
    """Files below one folder."""

    root: Path
    names: npt.NDArray[np.bytes_]
    """Paths below the root [N], in the file system's encoding."""

    @classmethod
    def of(cls, root: Path, names: Iterable[str]) -> FileList:
        """Of paths below `root`."""
        return cls(root, np.array([os.fsencode(name) for name in names], dtype=np.bytes_))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> FileList: ...
    def __getitem__(self, place: int | slice) -> Path | FileList:
        if isinstance(place, slice):
            return FileList(self.root, self.names[place])
        return self.root / os.fsdecode(bytes(self.names[place]))

    def chosen(self, places: Sequence[int]) -> FileList:
        """The files at these places."""
        return FileList(self.root, self.names[list(places)])


@dataclass(frozen=True, eq=False)
class MemberList(Sequence[Member]):
    """Files within archives."""

    shards: tuple[Path, ...]
    shard_of: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    names: npt.NDArray[np.bytes_]
    """[N] each."""

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Member: ...
    @overload
    def __getitem__(self, place: slice) -> MemberList: ...
    def __getitem__(self, place: int | slice) -> Member | MemberList:
        if isinstance(place, slice):
            return self.chosen(range(*place.indices(len(self))))
        shard, name = self.shards[self.shard_of[place]], os.fsdecode(bytes(self.names[place]))
        return Member(shard, int(self.offsets[place]), int(self.sizes[place]), name)

    def chosen(self, places: Sequence[int]) -> MemberList:
        """The files at these places."""
        kept = np.asarray(places, dtype=np.int64)
        parts = (self.shard_of[kept], self.offsets[kept], self.sizes[kept], self.names[kept])
        return MemberList(self.shards, *parts)


def chosen(sources: Sequence[Source], places: Sequence[int]) -> Sequence[Source]:
    """The sources at these places, as short as they were kept before."""
    if isinstance(sources, FileList | MemberList):
        return sources.chosen(places)
    return [sources[place] for place in places]
