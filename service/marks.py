"""What this machine knows of a working copy's groups: what each file was when it was last the same here and there.

A group is what one process at a time, wherever it is, goes on with: a trial, a sweep's own files, its random policy, a
night of `nightly`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.files import try_lock
from service.object_store import SINGLE_PUT, Entry
from trainables.report import checkpoint_files

SWEEP, TRIALS, RANDOM = "", "trials", "random"
"""Groups: a sweep's own files; below `trials` one for each; the random policy."""
CHECKPOINT, TRIAL, RESULT, RECORD, SWEEP_FILE = (
    "checkpoint.pt", "trial.json", "result.json", "record.json", "sweep.json",
)  # fmt: skip
REFERENCES, NIGHTS = "references", "nightly"
"""Folders of a storage that are no sweeps, and are carried each in its own way."""
_ORDER = {"history.jsonl": 1, CHECKPOINT: 2, TRIAL: 3, SWEEP_FILE: 3, RECORD: 8, RESULT: 9}
"""In which a group's files are written anywhere; 0 for others. A history has the epochs of its checkpoint, at least."""
BEFORE = checkpoint_files(Path(CHECKPOINT))[1].name
"""The checkpoint before, kept in case that a disk damages the newest. An object is whole, and its store keeps it so."""
OWN_FILES = ("driver.lock", "stop", "study.journal.lock", BEFORE)
"""Of this machine alone."""
HUNG_FILE, POLICY = "hung.txt", "policy.json"
_PASSING = (CHECKPOINT, "error.txt", HUNG_FILE)
"""Of a trial: removed in the ordinary course of things, and in the store as well."""
POLL_S = 0.02

Stat = tuple[int, int, int]
"""Size, time of the last change in ns, inode: another one whenever the file was written."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A file, when it was last the same here and in the store."""

    there: Entry
    here: Stat


Marks = dict[str, Mark]
"""By the file's path within its group."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group of a working copy."""

    root: Path
    sweep: str
    name: str

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.root / self.sweep / self.name

    @property
    def prefix(self) -> str:
        """With which the keys of its objects begin."""
        return f"{self.sweep}/{self.name}/" if self.name else f"{self.sweep}/"

    def __str__(self) -> str:
        return self.prefix.rstrip("/")

    def scan(self) -> dict[str, Stat]:
        """The files that are carried, in the order in which they are written."""
        paths = self.folder.iterdir() if self.name == SWEEP else self.folder.rglob("*")
        found: dict[str, Stat] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in paths:
                file = path.relative_to(self.folder).as_posix()
                with contextlib.suppress(FileNotFoundError):
                    if is_carried(file) and path.is_file():
                        stat = stat_of(path)
                        # An empty one only says that somebody on this machine watches.
                        if stat[0] or path.name != HUNG_FILE:
                            found[file] = stat
        return {file: found[file] for file in sorted(found, key=order)}

    def marks(self) -> Marks:
        """What is known; nothing where that cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            content = json.loads(self._beside("marks").read_text())
            return {file: Mark(Entry(*there), (here[0], here[1], here[2])) for file, (there, here) in content.items()}
        return {}

    def save(self, marks: Mapping[str, Mark]) -> None:
        """Replaces what is known."""
        path = self._beside("marks")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        content = {file: ((mark.there.etag, mark.there.size), mark.here) for file, mark in marks.items()}
        unfinished.write_text(json.dumps(content))
        unfinished.replace(path)

    def has_changed(self) -> bool:
        """Whether there is something to push."""
        marks = self.marks()
        changed = any(file not in marks or marks[file].here != stat for file, stat in self.scan().items())
        return changed or (self.folder.is_dir() and bool(self.missing(marks)[0]))

    def missing(self, marks: Mapping[str, Mark]) -> tuple[list[str], list[str]]:
        """Files that were here when they were last the same: those removed on purpose, and those that got lost.

        Caches are cleaned by people and by systems. What such a one has taken is no change of the sweep.
        """
        gone = [file for file in marks if not (self.folder / file).exists()]
        removed = [file for file in gone if self._was_removed(file, marks)]
        return removed, [file for file in gone if file not in removed]

    def _was_removed(self, file: str, marks: Mapping[str, Mark]) -> bool:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if self.name == SWEEP:
                return file == "page-error.txt" and (self.folder / SWEEP_FILE).exists()
            if self.name == RANDOM:
                # All of it goes where another policy is drawn.
                known = marks[POLICY].here if POLICY in marks else None
                return stat_of(self.folder / POLICY) != known or file == CHECKPOINT
            trial = json.loads((self.folder / TRIAL).read_text())
            if file == RESULT:
                # Run again after a failure: its result is kept beside.
                return (self.folder / f"failed-{trial['attempts']}.json").exists()
            return file in _PASSING
        return False

    @contextmanager
    def alone(self, wait_s: float = float("inf")) -> Iterator[None]:
        """While other processes of this machine that carry the group wait. Raises BlockingIOError after so long."""
        path = self._beside("lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        last = time.monotonic() + wait_s
        with path.open("w") as lock:
            while not try_lock(lock.fileno()):
                if time.monotonic() > last:
                    raise BlockingIOError(errno.EWOULDBLOCK, "another process works on it", str(path))
                time.sleep(POLL_S)
            yield

    def _beside(self, kind: str) -> Path:
        place = notes(self.root) / self.sweep / (self.name or "sweep")
        return place.with_name(f"{place.name}.{kind}")


def notes(root: Path) -> Path:
    """Where a working copy's marks, locks and unfinished files are."""
    return root / ".replica"


def marked(root: Path, folder: str) -> list[str]:
    """The groups of a folder of which something is known, by the names of their marks."""
    place = notes(root) / folder
    return [path.relative_to(place).as_posix().removesuffix(".marks") for path in place.rglob("[!.]*.marks")]


def marked_groups(root: Path, sweep: str) -> list[str]:
    """The groups of a sweep of which something is known."""
    return [SWEEP if group == "sweep" else group for group in marked(root, sweep)]


@contextmanager
def temporary(root: Path) -> Iterator[Path]:
    """A folder on the copy's own disk, that goes."""
    folder = notes(root) / "tmp" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def split(file: str) -> tuple[str | None, str]:
    """Group and path within it of a path below a sweep's folder; None for what is not carried, such as Ray's notes."""
    parts = file.split("/")
    if not is_carried(file):
        return None, file
    if len(parts) == 1:
        return SWEEP, file
    if parts[0] == TRIALS and len(parts) > 2:
        return "/".join(parts[:2]), "/".join(parts[2:])
    return (RANDOM, "/".join(parts[1:])) if parts[0] == RANDOM else (None, file)


def is_carried(file: str) -> bool:
    """Whether other machines need this file."""
    return file.rpartition("/")[2] not in OWN_FILES and not any(part.startswith(".") for part in file.split("/"))


def order(file: str) -> tuple[int, str]:
    """By which files are sorted before they are written."""
    return _ORDER.get(file, 0), file


def stat_of(path: Path) -> Stat:
    """The file as it is now."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def has_content_of(path: Path, entry: Entry) -> bool:
    """Whether a file is known to have an object's content: the etag of most is the content's MD5."""
    if path.stat().st_size != entry.size or entry.size > SINGLE_PUT:
        return False
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == entry.etag.strip('"')
