"""Carries what a machine's working copy of a storage finishes to the objects that are the storage, and back.

Of a group that somebody elsewhere has gone on with, the store's state is right, whole; else what has changed here is
still to be pushed. A trial's history is pushed before its checkpoint, its result last, and the first result stays: a
push that is cut off anywhere leaves a state that was, or nearly was, and that can be gone on from.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from service.marks import (
    BEFORE,
    CHECKPOINT,
    NIGHTS,
    RANDOM,
    REFERENCES,
    RESULT,
    SWEEP,
    SWEEP_FILE,
    TRIAL,
    TRIALS,
    Group,
    Mark,
    Marks,
    Stat,
    has_content_of,
    is_carried,
    marked,
    marked_groups,
    notes,
    order,
    split,
    stat_of,
    temporary,
)
from service.object_store import SINGLE_PUT, ConditionError, Entry, Found, ObjectStore
from service.working_copy import Copied, copied_in
from trainables.errors import StorageError

LOCK = "driver.lock"
"""Of a sweep, the object that says who drives it, as `service.lease` writes it."""
READ_WAIT_S = 2.0
"""After that a group that another process of this machine carries is read as it is here."""


class ReplacedError(StorageError):
    """Another attempt, or another driver, has gone on with a group elsewhere."""


def replica_of(storage: Path) -> Replica | None:
    """What carries the storage in this folder; None where the folder is the storage itself."""
    copied = copied_in(storage)
    return _replica(storage, copied) if copied else None


@functools.lru_cache(maxsize=64)
def _replica(root: Path, copied: Copied) -> Replica:
    return Replica(root, copied)


class Replica:
    """Carries one storage."""

    def __init__(self, root: Path, copied: Copied) -> None:
        self.root, self.url, self.copy_id = root, copied.url, copied.copy_id
        self.store = ObjectStore(copied.url)
        self.driving: set[str] = set()
        """Sweeps of which this process has the lease."""

    def sweep_names(self) -> list[str]:
        """Folders of the storage that may be sweeps, there or here."""
        here = [path.parent.name for path in self.root.glob(f"[!.]*/{SWEEP_FILE}")]
        there = [name for name in self.store.children("")[1] if name[0] != "." and name not in (REFERENCES, NIGHTS)]
        return sorted({*there, *here})

    def fetch_sweep(self, sweep: str) -> None:
        """Brings a sweep here in line with what others have pushed; without checkpoints.

        The sweep's own files are left alone where this process drives it: nobody else writes them.
        """
        if sweep in (REFERENCES, NIGHTS):
            return
        listed = self.store.entries(f"{sweep}/")
        if f"{sweep}/{SWEEP_FILE}" not in listed:
            self._forget(sweep)
            return
        (self.root / sweep / TRIALS).mkdir(parents=True, exist_ok=True)
        there: dict[str, dict[str, Entry]] = {}
        for key, entry in listed.items():
            place, file = split(key.removeprefix(f"{sweep}/"))
            if place is not None:
                there.setdefault(place, {})[file] = entry
        for name in sorted({*there, *marked_groups(self.root, sweep)}, reverse=True):
            group = Group(self.root, sweep, name)
            is_ours = name == SWEEP and sweep in self.driving and (group.folder / SWEEP_FILE).exists()
            if not is_ours:
                self._catch_up(group, there.get(name, {}))

    def fetch_all(self, folder: str) -> None:
        """Brings each group of a folder that is no sweep, such as a night of `nightly`, in line with the store."""
        there: dict[str, dict[str, Entry]] = {}
        for key, entry in self.store.entries(f"{folder}/").items():
            name, _, file = key.removeprefix(f"{folder}/").partition("/")
            if file and is_carried(file):
                there.setdefault(name, {})[file] = entry
        for name in sorted({*there, *marked(self.root, folder)}):
            self._catch_up(Group(self.root, folder, name), there.get(name, {}))

    def fetch(self, sweep: str, name: str, *, checkpoint: bool = True, exact: bool = False) -> None:
        """Brings a group in line with what others have pushed.

        `exact`: what has changed here alone is given up as well.
        """
        group = Group(self.root, sweep, name)
        with group.alone():
            self._fetch(group, checkpoint=checkpoint, exact=exact)

    def push(self, sweep: str, name: str, *, guarded: bool = False) -> None:
        """Pushes what has changed in a group.

        `guarded`: only while its trial.json is the one that was here last. A sweep's own files: only while no other
        machine's driver has taken it over. Raises ReplacedError where somebody else has gone on with the group; a
        result that is there already is fetched instead.
        """
        group = Group(self.root, sweep, name)
        if not group.folder.is_dir():
            return
        with group.alone():
            marks = group.marks()
            if name == SWEEP and self.is_driven_elsewhere(sweep):
                raise ReplacedError(f"{group} is driven from elsewhere by now.")
            if guarded and TRIAL in marks and self.store.etag(group.prefix + TRIAL) != marks[TRIAL].there.etag:
                raise ReplacedError(f"{group} was gone on with elsewhere.")
            try:
                lost = self._push(group, marks)
            finally:
                group.save(marks)
            if lost:
                self._fetch(group, checkpoint=True, exact=True)

    def begin(self, sweep: str) -> None:
        """For a sweep's driver: what others have pushed is here, and what was not pushed before is there."""
        self.fetch_sweep(sweep)
        if (notes(self.root) / sweep).is_dir():
            self.fetch(sweep, SWEEP)
        self.push_sweep(sweep)

    def is_driven_elsewhere(self, sweep: str) -> bool:
        """Whether another machine's driver has the lease, or had it since this process took it."""
        copy = holder_of(self.store.get(f"{sweep}/{LOCK}")).get("copy", "" if sweep in self.driving else self.copy_id)
        return bool(copy != self.copy_id)

    def push_sweep(self, sweep: str) -> None:
        """Pushes what has changed in any group, the sweep's own files last; nothing of one that others drive by now."""
        if self.is_driven_elsewhere(sweep):
            return
        trials = self.root / sweep / TRIALS
        names = [f"{TRIALS}/{path.name}" for path in sorted(trials.glob("[!.]*"))]
        for name in [*names, RANDOM, SWEEP]:
            try:
                if Group(self.root, sweep, name).has_changed():
                    self.push(sweep, name)
            except ReplacedError:
                self.fetch(sweep, name)

    def create(self, unfinished: Path, sweep: str) -> bool:
        """Puts a new sweep, which is ready in a folder, into the store; False where that has one of this name.

        For whoever holds the lease of the name. What is left of a sweep that was not removed to its end goes.
        """
        there = self.store.entries(f"{sweep}/")
        if f"{sweep}/{SWEEP_FILE}" in there:
            return False
        self.store.delete(key for key in there if key != f"{sweep}/{LOCK}")
        self._forget(sweep)
        group, marks = Group(unfinished.parent, unfinished.name, SWEEP), Marks()
        for file, stat in group.scan().items():
            content = (unfinished / file).read_bytes()
            etag = self.store.put(f"{sweep}/{file}", content, replaces="" if file == SWEEP_FILE else None)
            marks[file] = Mark(Entry(etag, len(content)), stat)
        Group(self.root, sweep, SWEEP).save(marks)
        return True

    def remove(self, sweep: str) -> None:
        """Deletes a sweep's objects; it is out of the list at once, even where that is cut off."""
        self.store.delete([f"{sweep}/{SWEEP_FILE}"])
        left = self.store.entries(f"{sweep}/")
        self.store.delete(key for key in left if key != f"{sweep}/{LOCK}")
        shutil.rmtree(notes(self.root) / sweep, ignore_errors=True)

    def clean(self, sweep: str, *, final: Iterable[str], folders: Iterable[str]) -> int:
        """Deletes the checkpoints of these trials, and these folders of a sweep; bytes freed."""
        there = self.store.entries(f"{sweep}/")
        doomed = {f"{sweep}/{TRIALS}/{trial}/{CHECKPOINT}" for trial in final} & there.keys()
        doomed |= {key for key in there if key.startswith(tuple(f"{sweep}/{folder}/" for folder in folders))}
        self.store.delete(doomed)
        return sum(there[key].size for key in doomed)

    def fetch_file(self, path: Path) -> bool:
        """Reads one file of the copy from the store; False where that has none."""
        return self._download([(self.key(path), path, None)])

    def push_file(self, path: Path) -> None:
        """Writes one file of the copy into the store, or deletes it there where it has gone here."""
        try:
            self.store.put_file(self.key(path), path)
        except FileNotFoundError:
            self.store.delete([self.key(path)])

    def key(self, path: Path) -> str:
        """Of the object of a file of the copy."""
        return path.relative_to(self.root).as_posix()

    def check(self) -> None:
        """Raises StorageError unless objects can be written, read, listed and deleted, and written on conditions."""
        key, content = f".probe-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        try:
            etag = self.store.put(key, content, replaces="")
            found = self.store.get(key)
            if found is None or found.content != content or key not in self.store.entries(key):
                raise StorageError(f"storage.path: {self.url} does not give back at once what was written.")
            for wrong in ("", '"0123456789abcdef0123456789abcdef"'):
                with contextlib.suppress(ConditionError):
                    self.store.put(key, b"another", replaces=wrong)
                    raise StorageError(
                        f"storage.path: {self.url} ignores If-None-Match or If-Match, conditions without which two "
                        "drivers could run one sweep; use a store that keeps them, such as AWS S3 or a recent MinIO."
                    )
            self.store.put(key, content[::-1], replaces=etag)
        finally:
            with contextlib.suppress(StorageError):
                self.store.delete([key])

    def _push(self, group: Group, marks: Marks) -> bool:
        """As `push`, and keeps `marks` true; whether somebody else's result is there."""
        here = group.scan()
        changed = {file: stat for file, stat in here.items() if file not in marks or marks[file].here != stat}
        with temporary(self.root) as folder:
            taken = _snapshots(group.folder, changed, folder)
            for file in changed:
                if file not in taken:
                    continue  # gone since
                path, stat = taken[file]
                known = marks[file].there.etag if file in marks else ""
                conditions = {RESULT: "", TRIAL: known}
                try:
                    if file in conditions:
                        etag = self.store.put(group.prefix + file, path.read_bytes(), replaces=conditions[file])
                    else:
                        etag = self.store.put_file(group.prefix + file, path)
                except ConditionError:
                    if file == RESULT:
                        return True
                    raise ReplacedError(f"{group} was gone on with elsewhere.") from None
                marks[file] = Mark(Entry(etag, path.stat().st_size), stat)
        removed, _ = group.missing(marks)
        self.store.delete(group.prefix + file for file in removed)
        for file in removed:
            del marks[file]
        return False

    def _fetch(self, group: Group, *, checkpoint: bool, exact: bool = False) -> None:
        """As `fetch`, for whoever holds the group's lock. Checkpoints are left alone, or fetched as well."""
        while True:
            there, marks, here = self._listed(group), group.marks(), group.scan()
            if not checkpoint:
                here.pop(CHECKPOINT, None)
            _adopt(group.folder, there, here, marks)
            if not exact and not _is_behind(there, marks, checkpoint=checkpoint):
                self._restore(group, marks)
                group.save(marks)
                return
            there = {file: there[file] for file in there if checkpoint or file != CHECKPOINT}
            wanted = [
                file
                for file in there
                if file not in marks or marks[file] != Mark(there[file], here.get(file, (0, 0, 0)))
            ]
            keys = [(group.prefix + file, group.folder / file, there[file]) for file in sorted(wanted, key=order)]
            if self._download(keys):
                break
            # Somebody has pushed meanwhile.
        # A sweep's own files are more than those that are carried: page-error.txt and whatever people put there.
        doomed = [file for file in here if file not in there and (group.name != SWEEP or file in marks)]
        for file in [*reversed(doomed), *([BEFORE] if checkpoint else [])]:
            (group.folder / file).unlink(missing_ok=True)
        if not checkpoint:
            _drop_own_checkpoint(group.folder, marks)
        kept = {file: mark for file, mark in marks.items() if file in there or (file == CHECKPOINT and not checkpoint)}
        fetched = {file: Mark(there[file], stat_of(group.folder / file)) for file in wanted}
        group.save({**kept, **fetched})

    def _restore(self, group: Group, marks: Marks) -> None:
        """Reads what a cleaner has taken from this machine."""
        _, lost = group.missing(marks)
        keys = [(group.prefix + file, group.folder / file, marks[file].there) for file in sorted(lost, key=order)]
        if keys and self._download(keys):
            marks.update({file: Mark(marks[file].there, stat_of(group.folder / file)) for file in lost})

    def _catch_up(self, group: Group, there: Mapping[str, Entry]) -> None:
        """For who only reads: fetches a group where it is not as it was listed, or has lost files here."""
        marks = group.marks()
        if _is_behind(there, marks, checkpoint=False) or group.missing(marks)[1]:
            # The listing is older than what a process of this machine may have pushed: looked at again under the lock.
            with contextlib.suppress(BlockingIOError), group.alone(READ_WAIT_S):
                self._fetch(group, checkpoint=False)

    def _listed(self, group: Group) -> dict[str, Entry]:
        prefix = group.prefix
        found = self.store.children(prefix)[0] if group.name == SWEEP else self.store.entries(prefix)
        listed = {key.removeprefix(prefix): entry for key, entry in found.items()}
        return {file: entry for file, entry in listed.items() if is_carried(file)}

    def _download(self, wanted: Sequence[tuple[str, Path, Entry | None]]) -> bool:
        """Reads objects into files that appear whole, in this order; False where one has gone, or is another by now."""
        with temporary(self.root) as folder:
            parts = [folder / str(number) for number in range(len(wanted))]
            if not self.store.get_files([(one[0], part) for one, part in zip(wanted, parts, strict=True)]):
                return False
            for (key, _, entry), part in zip(wanted, parts, strict=True):
                if entry and not self._is(key, entry, part):
                    return False
            for (_, path, _), part in zip(wanted, parts, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                part.replace(path)
        return True

    def _is(self, key: str, entry: Entry, part: Path) -> bool:
        """Whether a file that was read is the object that was listed; a large one is read in parts, one by one."""
        size = part.stat().st_size
        return size == entry.size and (size <= SINGLE_PUT or self.store.etag(key) == entry.etag)

    def _forget(self, sweep: str) -> None:
        """The store has no sweep of this name: a copy of one that it had goes, too."""
        if (notes(self.root) / sweep).is_dir():
            shutil.rmtree(self.root / sweep, ignore_errors=True)
            shutil.rmtree(notes(self.root) / sweep, ignore_errors=True)


def holder_of(found: Found | None) -> dict[str, Any]:
    """Host, process and working copy of who drives a sweep, by its `driver.lock`; empty where nobody does."""
    try:
        content = json.loads(found.content) if found else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) and "ended" not in content else {}


def _is_behind(there: Mapping[str, Entry], marks: Mapping[str, Mark], *, checkpoint: bool) -> bool:
    """Whether somebody else has written, or deleted, since a group was last the same here and there."""
    known = {file: mark.there for file, mark in marks.items()}
    ignored = () if checkpoint else (CHECKPOINT,)
    return {f: e for f, e in there.items() if f not in ignored} != {f: e for f, e in known.items() if f not in ignored}


def _drop_own_checkpoint(folder: Path, marks: Marks) -> None:
    """The history is the store's now: a checkpoint that was not pushed would go on behind epochs that nobody knows."""
    path, known = folder / CHECKPOINT, marks.get(CHECKPOINT)
    if path.exists() and (known is None or known.here != stat_of(path)):
        path.unlink(missing_ok=True)
        (folder / BEFORE).unlink(missing_ok=True)
        marks.pop(CHECKPOINT, None)


def _adopt(folder: Path, there: Mapping[str, Entry], here: Mapping[str, Stat], marks: Marks) -> None:
    """Marks files that are the same here and there without having been carried: pushed by a process that was killed."""
    for file, entry in there.items():
        if file in here and (file not in marks or marks[file].there != entry):
            with contextlib.suppress(FileNotFoundError):
                if has_content_of(folder / file, entry):
                    marks[file] = Mark(entry, here[file])


def _snapshots(folder: Path, changed: dict[str, Stat], temporary: Path) -> dict[str, tuple[Path, Stat]]:
    """Files as they are, the last in order first: a history that is taken has the checkpoint's epochs."""
    taken: dict[str, tuple[Path, Stat]] = {}
    for number, file in enumerate(reversed(changed)):
        path = temporary / str(number)
        with contextlib.suppress(FileNotFoundError):
            if changed[file][0] > SINGLE_PUT:
                # Large ones are replaced, and never written on.
                os.link(folder / file, path)
                taken[file] = path, stat_of(path)
            else:
                stat = stat_of(folder / file)
                shutil.copyfile(folder / file, path)
                taken[file] = path, stat
    return taken
