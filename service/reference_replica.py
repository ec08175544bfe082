"""Carries full-precision references: what is finished of one never changes, so each part is carried once, and whole.

references/<key>/model.pt, record.json          a part: a folder with a record, which is written last
                 maps/<digest>/…, record.json   another
                 samples/…                      files that stand alone
           .<key>.checkpoint.pt                 where its training goes on
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from service.marks import RECORD, Group, Mark, has_content_of, is_carried, order, stat_of, temporary
from service.object_store import ConditionError, Entry
from service.replica import Replica


def fetch_reference(replica: Replica, folder: Path, *, maps: bool) -> None:
    """Reads what the store has of a reference and this machine has not; without the maps of all images if need be."""
    group = Group(replica.root, folder.parent.name, folder.name)
    with group.alone():
        there = replica.store.entries(group.prefix)
        parts = {str(PurePosixPath(key).parent) for key in there if PurePosixPath(key).name == RECORD}
        # The reference itself first: its parts lie within.
        for part in sorted(parts, key=len):
            if (maps or part == str(group)) and not (replica.root / part / RECORD).exists():
                files = {key: there[key] for key in there if str(PurePosixPath(key).parent) == part}
                _fetch_part(replica, files, replica.root / part)
        _fetch_samples(replica, group, there)


def fetch_samples(replica: Replica, folder: Path) -> None:
    """Reads the sample images of a reference that this machine has not, and their maps."""
    group = Group(replica.root, folder.parent.name, folder.name)
    _fetch_samples(replica, group, replica.store.entries(f"{group.prefix}samples/"))


def _fetch_samples(replica: Replica, group: Group, there: Iterable[str]) -> None:
    for key in there:
        if key.startswith(f"{group.prefix}samples/") and not (replica.root / key).exists():
            replica.fetch_file(replica.root / key)


def _fetch_part(replica: Replica, files: dict[str, Entry], folder: Path) -> None:
    with temporary(replica.root) as temporary_folder:
        unfinished = temporary_folder / "part"
        unfinished.mkdir()
        paths = [(key, unfinished / PurePosixPath(key).name) for key in files]
        whole = replica.store.get_files(paths) and all(path.stat().st_size == files[key].size for key, path in paths)
        if whole and not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished.rename(folder)
        elif whole:
            # Something that lies within was first.
            for path in sorted(unfinished.iterdir(), key=lambda path: order(path.name)):
                path.replace(folder / path.name)


def push_reference(replica: Replica, folder: Path) -> None:
    """Writes what this machine has of a reference and the store has not.

    Of two machines that have trained the same one the first stays, and the other takes it over.
    """
    group = Group(replica.root, folder.parent.name, folder.name)
    if not (folder / RECORD).exists():
        return
    with group.alone():
        there = replica.store.entries(group.prefix)
        lost = _is_another(replica, folder / RECORD, there)
        whole = {str(PurePosixPath(key).parent) for key in there if PurePosixPath(key).name == RECORD}
        parts = sorted((record.parent for record in folder.rglob(RECORD)), key=lambda part: len(part.parts))
        for part in parts:
            files = [
                path for path in part.iterdir() if path.is_file() and path.name != RECORD and _is_ours(folder, path)
            ]
            if replica.key(part) in whole or not _is_ours(folder, part / RECORD):
                continue
            for path in files:
                replica.store.put_file(replica.key(path), path)
            try:
                replica.store.put(replica.key(part / RECORD), (part / RECORD).read_bytes(), replaces="")
            except ConditionError:
                lost |= part == folder
        for path in (folder / "samples").glob("*"):
            if replica.key(path) not in there and _is_ours(folder, path):
                with contextlib.suppress(FileNotFoundError):
                    replica.push_file(path)
    if lost:
        shutil.rmtree(folder)
        fetch_reference(replica, folder, maps=False)


def fetch_checkpoint(replica: Replica, path: Path) -> None:
    """Where a reference's training goes on: as the store has it where somebody else has pushed, else as it is here."""
    group = Group(replica.root, path.parent.name, path.name.strip("."))
    with group.alone():
        marks, etag = group.marks(), replica.store.etag(replica.key(path))
        known = marks[path.name].there.etag if path.name in marks else ""
        if etag and (etag != known or not path.exists()):
            if replica.fetch_file(path):
                group.save({path.name: Mark(Entry(etag, path.stat().st_size), stat_of(path))})
            return
        changed = path.exists() and (path.name not in marks or marks[path.name].here != stat_of(path))
    if changed:
        push_checkpoint(replica, path)


def push_checkpoint(replica: Replica, path: Path) -> None:
    """Writes it into the store, or deletes it there where it has gone here."""
    group = Group(replica.root, path.parent.name, path.name.strip("."))
    with group.alone():
        try:
            stat = stat_of(path)
            group.save({path.name: Mark(Entry(replica.store.put_file(replica.key(path), path), stat[0]), stat)})
        except FileNotFoundError:
            replica.store.delete([replica.key(path)])
            group.save({})


def _is_another(replica: Replica, record: Path, there: Mapping[str, Entry]) -> bool:
    """Whether the store has a reference that was trained elsewhere."""
    entry = there.get(replica.key(record))
    if entry is None or has_content_of(record, entry):
        return False
    # The etag of an encrypted object tells nothing of its content.
    found = replica.store.get(replica.key(record))
    return found is not None and found.content != record.read_bytes()


def _is_ours(folder: Path, path: Path) -> bool:
    """Whether a file is finished, and no lock."""
    return is_carried(path.relative_to(folder).as_posix()) and path.suffix != ".lock"
