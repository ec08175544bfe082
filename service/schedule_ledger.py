"""What the scheduler has launched, in the storage: a time that stands there is never launched again.

    <storage>/schedule/<sweep>/
        schedule.json                     cron line, time zone, and since when they count
        20261122t020000z.json             noted before anything is launched, once: its name alone counts
        20261122t020000z.attempts.jsonl   when a process began for it, and which were told to stop
        20261122t020000z.ended.json       how it ended, once
        20261122t020000z.log              what it printed
        20261122t030000z.left-out.json    why a time was not launched, for people; decisions do not depend on it
        lock                              held by whoever launches the sweep, and by what was launched

The lock is the system's, so that it goes with the last process that has it, however that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.files import try_lock, write_json, write_once
from service.schedule import ScheduleConfig
from service.schedule_due import Launched

FOLDER = "schedule"
KEY = "%Y%m%dt%H%M%Sz"
"""Of a time, in UTC; a sweep's launch has it behind its name."""
LOOKS, LOOK_S = 5, 0.05
"""Who only asks whether a sweep is locked holds the lock for a moment, too."""
_NO_FILE = (FileNotFoundError, NotADirectoryError)
_NOTED = re.compile(r"(\d{8}t\d{6}z)\.json")


def key_of(due: datetime) -> str:
    """The name of a time."""
    return due.astimezone(UTC).strftime(KEY)


def take_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, here and in processes that get it, until all have closed it; None where another
    process has the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    taken = False
    try:
        taken = try_lock(descriptor)
    finally:
        if not taken:
            os.close(descriptor)
    return descriptor if taken else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Noted:
    """A launch as it stands in the ledger."""

    due: datetime
    began: datetime
    ended: datetime | None
    status: int | None
    """Exit status of what was launched; None while it has none, and of one that was given up."""
    lost: int
    """How often a process began for it and was not told to stop; of one without an end: how often it was lost."""

    @property
    def times(self) -> Launched:
        """What decisions depend on."""
        return Launched(due=self.due, began=self.began, ended=self.ended)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The launches of one sweep of a storage."""

    folder: Path
    _ended: dict[datetime, Noted] = field(default_factory=dict, repr=False)
    """Launches that have ended never change, so they are read once."""

    @classmethod
    def of(cls, storage: Path, sweep: str) -> Ledger:
        """That of a sweep; nothing is written."""
        return cls(storage / FOLDER / sweep)

    def launches(self) -> list[Noted]:
        """All that was noted, in the order of the times."""
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        times = [_due(match[1]) for match in map(_NOTED.fullmatch, names) if match]
        found = [self._read(due) for due in times if due]
        self._ended.update({one.due: one for one in found if one.ended})
        return found

    def _read(self, due: datetime) -> Noted:
        if due in self._ended:
            return self._ended[due]
        key = key_of(due)
        content, end = self._content(f"{key}.json"), self._content(f"{key}.ended.json")
        status = end.get("status")
        return Noted(
            due=due,
            began=_time(content.get("noted_ms")) or due,
            ended=_time(end.get("ended_ms")) or self._written(f"{key}.ended.json"),
            status=status if isinstance(status, int) else None,
            lost=self._count(key, "begun") - self._count(key, "told to stop"),
        )

    def _written(self, name: str) -> datetime | None:
        """When a file was; None where there is none. An end that is damaged is one."""
        with contextlib.suppress(*_NO_FILE):
            return datetime.fromtimestamp((self.folder / name).stat().st_mtime, UTC)
        return None

    def _content(self, name: str) -> dict[str, Any]:
        """A file's object; empty where there is none, or a damaged one. Raises OSError where it cannot be read now."""
        with contextlib.suppress(*_NO_FILE, ValueError):
            content = json.loads((self.folder / name).read_text())
            return content if isinstance(content, dict) else {}
        return {}

    def _count(self, key: str, what: str) -> int:
        with contextlib.suppress(*_NO_FILE, ValueError):
            return (self.folder / f"{key}.attempts.jsonl").read_text().count(f'"{what}"')
        return 0

    def since(self, schedule: ScheduleConfig, now: datetime, first: datetime, *, write: bool = True) -> datetime:
        """From when on the schedule counts: `first` where nobody has seen it before, or another cron line was there.

        A moment that has not come yet was noted by a clock that has been set back since: then it is now.
        """
        content = self._content("schedule.json")
        known = _time(content.get("since_ms"))
        same = (content.get("cron"), content.get("time_zone")) == (schedule.cron, schedule.time_zone)
        if known and same and known <= now:
            return known
        found = min(first, now)
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
            since = {"cron": schedule.cron, "time_zone": schedule.time_zone, "since_ms": _ms(found)}
            write_json(self.folder / "schedule.json", since)
        return found

    def lock(self) -> int | None:
        """Takes the sweep for this process, and for those that get the descriptor; None where another one has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(LOOKS):
            descriptor = take_lock(self.folder / "lock")
            if descriptor is not None:
                return descriptor
            time.sleep(LOOK_S)
        return None

    def is_locked(self) -> bool:
        """Whether a process has the lock; nothing is written."""
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def note(self, due: datetime, now: datetime) -> bool:
        """Notes that a time is launched by this process; False where another one was first."""
        token, path = uuid.uuid4().hex, self.folder / f"{key_of(due)}.json"
        by = {"host": socket.gethostname(), "pid": os.getpid(), "token": token}
        write_once(path, {"format": 1, "due": due.astimezone(UTC).isoformat(), "noted_ms": _ms(now), **by})
        return bool(self._content(path.name).get("token") == token)

    def end(self, due: datetime, status: int | None, now: datetime) -> None:
        """Notes how a launch ended; it is not gone on with."""
        write_once(self.folder / f"{key_of(due)}.ended.json", {"status": status, "ended_ms": _ms(now)})

    def leave_out(self, due: datetime, why: str, now: datetime) -> bool:
        """Notes why a time was not launched; False where that was done before."""
        path = self.folder / f"{key_of(due)}.left-out.json"
        if path.exists():
            return False
        write_once(path, {"why": why, "noted_ms": _ms(now)})
        return True

    def begin_attempt(self, due: datetime, now: datetime) -> None:
        """Notes that a process will begin, or go on with, what was noted."""
        self._append(due, {"begun": _ms(now), "host": socket.gethostname()})

    def name_process(self, due: datetime, pid: int) -> None:
        """Notes which process that is, for people."""
        self._append(due, {"pid": pid})

    def stop_attempt(self, due: datetime, now: datetime) -> None:
        """Notes that its process is not lost, but was told to stop."""
        self._append(due, {"told to stop": _ms(now)})

    def _append(self, due: datetime, content: Mapping[str, Any]) -> None:
        with (self.folder / f"{key_of(due)}.attempts.jsonl").open("a") as file:
            file.write(json.dumps(content) + "\n")

    def log_file(self, due: datetime) -> Path:
        """What a launch prints."""
        return self.folder / f"{key_of(due)}.log"


def _due(key: str) -> datetime | None:
    with contextlib.suppress(ValueError):
        return datetime.strptime(key, KEY).replace(tzinfo=UTC)
    return None


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _time(ms: Any) -> datetime | None:
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(ms / 1000, UTC)
    return None
