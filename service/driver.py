"""Who runs a sweep: one driver at a time, known to be alive, that can be asked to stop.

The driver holds a lock on `driver.lock`, which the system takes away when the process dies, however it dies; for those
who look from another machine it also touches the file every few seconds. Where the storage is kept as objects, the
folder is this machine's working copy, and `service.lease` tells machines from each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service import lease
from service.files import try_lock
from service.object_store import patience
from service.replica import replica_of
from trainables.errors import StorageError
from trainables.patience import patiently, wait_s

HEARTBEAT_S = 5.0
SILENCE_S = 60.0
"""Without a heartbeat for so long a driver on another machine counts as gone."""
BEATS = 2.5
"""Before it is taken for gone, so many are waited for."""
_ended_here: set[Path] = set()
"""Folders whose driver, this process, is to end, also where the storage does not take the request."""


def _lock(folder: Path) -> Path:
    return folder / "driver.lock"


def _stop_file(folder: Path) -> Path:
    return folder / "stop"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Makes this process the sweep's driver. Raises StorageError where another one is."""
    descriptor = patiently(lambda: os.open(_lock(folder), os.O_RDWR | os.O_CREAT, 0o644), folder)
    try:
        if _held_elsewhere(folder) or not _take(descriptor) or _beats_elsewhere(folder):
            raise StorageError(
                f"{folder.name} is run by {_who(folder)} already. See `bitfront status {folder.name}`, or end it with "
                f"`bitfront stop {folder.name}`."
            )
        patiently(lambda: _sign(folder, descriptor), folder)
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(descriptor, ended), name="bitfront-heartbeat", daemon=True)
        beat.start()
        try:
            with _carried(folder):
                yield
        finally:
            ended.set()
            beat.join()
            # The lock is given back in any case, and says the same to this machine.
            with contextlib.suppress(OSError):
                os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextmanager
def _carried(folder: Path) -> Iterator[None]:
    """Of a storage kept as objects: nobody else drives the sweep, it is here as it stands, what changes goes there."""
    replica = replica_of(folder.parent)
    if replica is None:
        yield
        return
    with lease.held(replica, folder.name) as held:
        replica.begin(folder.name)
        with patience(wait_s()):
            try:
                yield
            finally:
                if not held.is_lost:
                    replica.push_sweep(folder.name)


def _sign(folder: Path, descriptor: int) -> None:
    """Says who holds the lock, in place of who held it before; nobody has asked this driver to end."""
    _stop_file(folder).unlink(missing_ok=True)
    _ended_here.discard(folder)
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    os.pwrite(descriptor, content, 0)
    os.truncate(descriptor, len(content))


def _take(descriptor: int) -> bool:
    """Somebody who only asks whether a driver is alive holds the lock for a moment, too."""
    for _ in range(10):
        if try_lock(descriptor):
            return True
        time.sleep(0.05)
    return False


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _driver(folder: Path) -> dict[str, object]:
    """Host and process of the driver that holds the lock, or held it when it was killed."""
    try:
        content = json.loads(_lock(folder).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _who(folder: Path) -> str:
    driver = _driver(folder)
    return f"process {driver.get('pid', '?')} on {driver.get('host', '?')}"


def _is_elsewhere(folder: Path) -> bool:
    return _driver(folder).get("host") not in (None, socket.gethostname())


def _held_elsewhere(folder: Path) -> bool:
    """By the clock. One that was set back makes the last heartbeat lie ahead: who that is of, nobody knows."""
    return _is_elsewhere(folder) and abs(_clock_of(folder) - _touched(folder)) < SILENCE_S


def _beats_elsewhere(folder: Path) -> bool:
    """Without the clock, which may have been set forwards: whether the file of a silent driver is touched again."""
    if not _is_elsewhere(folder):
        return False
    before, last = _touched(folder), time.monotonic() + BEATS * HEARTBEAT_S
    while time.monotonic() < last:
        if _touched(folder) != before:
            return True
        time.sleep(HEARTBEAT_S / 10)
    return False


def _touched(folder: Path) -> float:
    # Opened: a network file system answers a mere stat from what it has heard a minute ago.
    with _lock(folder).open("rb") as lock:
        return os.fstat(lock.fileno()).st_mtime


def _clock_of(folder: Path) -> float:
    """Unix time by the clock that the folder's files are dated by: on a network file system that is not our own."""
    probe = folder / f".clock.{uuid.uuid4().hex[:8]}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:  # who may only read is told by our own clock
        return time.time()
    return now


def alive(folder: Path) -> bool:
    """Whether a driver is running the sweep."""
    if _held_elsewhere(folder):
        return True
    replica = replica_of(folder.parent)
    return _alive_here(folder) or (replica is not None and lease.alive(replica, folder.name))


def _alive_here(folder: Path) -> bool:
    try:
        # For reading: whoever may look at a sweep may ask.
        descriptor = os.open(_lock(folder), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def request_stop(folder: Path) -> None:
    """Asks the driver to end; running trials can be gone on with."""
    _stop_file(folder).touch()
    replica = replica_of(folder.parent)
    if replica is not None and not _alive_here(folder):
        lease.request_stop(replica, folder.name)


def end_here(folder: Path) -> None:
    """Asks the driver, which is this process, to end. For a handler of signals: it waits for nothing and never raises.

    The storage may be what is away; where it is not, it says so to others, too.
    """
    _ended_here.add(folder)
    with contextlib.suppress(OSError):
        _stop_file(folder).touch()


def stop_requested(folder: Path) -> bool:
    """Whether the driver was asked to end."""
    # A storage that does not answer has asked for nothing.
    return folder in _ended_here or os.path.exists(_stop_file(folder))  # noqa: PTH110
