"""Tar shards as WebDataset writes them: `<key>.jpg` and `<key>.cls`, read at random by their offsets. Needs no torch.

Each archive's headers are read once; what they say is kept beside the shards where the folder can be written to.
Labels are decimal numbers. Members with other endings are left alone.
"""

from __future__ import annotations

import os
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from trainables.data.folders import IMAGE_ENDINGS, shard_paths
from trainables.data.listing import MemberList
from trainables.errors import DataMissingError

BLOCK = 512
MAX_LABEL = 10**6
INDEX_VERSION = 1


@dataclass(frozen=True, eq=False)
class Shards:
    """The images of one split with their labels, shard by shard in the order of names, within a shard as they lie."""

    images: MemberList
    labels: npt.NDArray[np.int64]


def read_shards(root: Path, split: str) -> Shards:
    """The split's index, from the file beside the shards where it is there and they have not changed since."""
    paths = shard_paths(root, split)
    state = np.array([(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)], dtype=np.int64)
    kept = root / f".{split}-shards.npz"
    columns = _kept_index(kept, paths, state)
    if columns is None:
        columns = _indexed(paths)
        _keep(kept, columns, paths, state)
    shard_of, offsets, sizes, names, labels = columns
    return Shards(MemberList(paths, shard_of, offsets, sizes, names), labels)


Columns = tuple[
    npt.NDArray[np.int32],
    npt.NDArray[np.int64],
    npt.NDArray[np.int64],
    npt.NDArray[np.bytes_],
    npt.NDArray[np.int64],
]
"""Shard, offset, size, name and label of each image."""
COLUMNS = ("shard_of", "offsets", "sizes", "names", "labels")


def _indexed(paths: tuple[Path, ...]) -> Columns:
    parts = [_indexed_shard(place, path) for place, path in enumerate(paths)]
    shard_of, offsets, sizes, names, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return shard_of, offsets, sizes, names, labels


def _indexed_shard(place: int, path: Path) -> Columns:
    offsets, sizes, names, labels = zip(*_samples(path), strict=True)
    return (
        np.full(len(names), place, dtype=np.int32),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array([os.fsencode(name) for name in names], dtype=np.bytes_),
        np.array(labels, dtype=np.int64),
    )


def _samples(path: Path) -> list[tuple[int, int, str, int]]:
    """Offset, size, name and label of each image of one archive."""
    images: dict[str, tuple[int, int, str]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, ending = _key(member.name)
                if not member.isfile() or ending not in {*IMAGE_ENDINGS, ".cls"}:
                    continue
                if key in (labels if ending == ".cls" else images):
                    raise DataMissingError(f"{path}: {key} is there twice ({member.name}); write the shard again.")
                if ending == ".cls":
                    labels[key] = _label(path, member.name, archive.extractfile(member))
                else:
                    images[key] = (member.offset_data, member.size, member.name)
            _check_end(path, archive.offset)
    except (tarfile.TarError, OSError) as error:
        raise DataMissingError(f"{path}: not a whole uncompressed tar archive ({error}); get it again.") from None
    _check_pairs(path, images, labels)
    return [(*image, labels[key]) for key, image in images.items()]


def _key(name: str) -> tuple[str, str]:
    """WebDataset's key, up to the first dot of the file's name, and the ending with its dot."""
    folder, _, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return f"{folder}/{stem}", (dot + ending).lower()


def _label(path: Path, name: str, file: IO[bytes] | None) -> int:
    text = file.read(32) if file is not None else b""
    if not text.strip().isdigit():
        raise DataMissingError(f"{path}: {name} holds {text!r} instead of a label; write a number from 0.")
    if int(text) > MAX_LABEL:
        raise DataMissingError(f"{path}: {name} holds the label {int(text)}; expected numbers from 0 to {MAX_LABEL}.")
    return int(text)


def _check_end(path: Path, offset: int) -> None:
    """Raises DataMissingError unless a block of zeros, which ends every archive, lies where the members end.

    An archive that was cut off between two members, or has a damaged header, otherwise looks like a shorter one.
    """
    with path.open("rb") as file:
        if os.pread(file.fileno(), BLOCK, offset) != bytes(BLOCK):
            raise DataMissingError(
                f"{path}: cut off or damaged at byte {offset}, where a member or the archive's end should be; "
                "get it again."
            )


def _check_pairs(path: Path, images: Collection[str], labels: Collection[str]) -> None:
    if not images:
        raise DataMissingError(
            f"{path} holds no images ({', '.join(sorted(IMAGE_ENDINGS))}); remove it, or get it again."
        )
    for found, other, what in (
        (images, labels, "an image without <key>.cls"),
        (labels, images, "a .cls without image"),
    ):
        alone = [key for key in found if key not in other]
        if alone:
            raise DataMissingError(
                f"{path}: {alone[0].lstrip('/')} is {what}, and so are {len(alone) - 1} more; write the shard again."
            )


def _kept_index(kept: Path, paths: tuple[Path, ...], state: npt.NDArray[np.int64]) -> Columns | None:
    """The index in the file, if it is one of these shards as they are now."""
    try:
        with np.load(kept, allow_pickle=False) as found:
            if int(found["version"]) != INDEX_VERSION or found["shards"].tolist() != [path.name for path in paths]:
                return None
            if not np.array_equal(found["state"], state):
                return None
            shard_of, offsets, sizes, names, labels = (found[column] for column in COLUMNS)
            return shard_of, offsets, sizes, names, labels
    # None was kept, or it is damaged: the archives are there to be read again.
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _keep(kept: Path, columns: Columns, paths: tuple[Path, ...], state: npt.NDArray[np.int64]) -> None:
    """Writes the index whole or not at all; a folder that cannot be written to has none."""
    shard_of, offsets, sizes, names, labels = columns
    about = [path.name for path in paths]
    beside = kept.with_name(f"{kept.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            np.savez(
                file,
                version=INDEX_VERSION,
                shards=about,
                state=state,
                shard_of=shard_of,
                offsets=offsets,
                sizes=sizes,
                names=names,
                labels=labels,
            )
        beside.replace(kept)
    except OSError:
        with suppress(OSError):
            beside.unlink()
