"""Who runs a sweep: one driver at a time, known to be alive, that can be asked to stop.

The driver holds a lock on `driver.lock`, which the system takes away when the process dies, however it dies; for those
who look from another machine it also touches the file every few seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.errors import StorageError

HEARTBEAT_S = 5.0
SILENCE_S = 60.0
"""Without a heartbeat for so long a driver on another machine counts as gone."""


def _lock(folder: Path) -> Path:
    return folder / "driver.lock"


def _stop_file(folder: Path) -> Path:
    return folder / "stop"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Makes this process the sweep's driver. Raises StorageError where another one is."""
    descriptor = os.open(_lock(folder), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if _held_elsewhere(folder) or not _take(descriptor):
            raise StorageError(
                f"{folder.name} is run by {_who(folder)} already. See `bitfront status {folder.name}`, or end it with "
                f"`bitfront stop {folder.name}`."
            )
        _stop_file(folder).unlink(missing_ok=True)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(descriptor, ended), name="bitfront-heartbeat", daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    """Somebody who only asks whether a driver is alive holds the lock for a moment, too."""
    for _ in range(10):
        if _try_lock(descriptor):
            return True
        time.sleep(0.05)
    return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _driver(folder: Path) -> dict[str, object]:
    """Host and process of the driver that holds the lock, or held it when it was killed."""
    try:
        content = json.loads(_lock(folder).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _who(folder: Path) -> str:
    driver = _driver(folder)
    return f"process {driver.get('pid', '?')} on {driver.get('host', '?')}"


def _held_elsewhere(folder: Path) -> bool:
    host = _driver(folder).get("host")
    if host is None or host == socket.gethostname():
        return False
    return time.time() - _lock(folder).stat().st_mtime < SILENCE_S


def alive(folder: Path) -> bool:
    """Whether a driver is running the sweep."""
    if _held_elsewhere(folder):
        return True
    try:
        # For reading: whoever may look at a sweep may ask.
        descriptor = os.open(_lock(folder), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def request_stop(folder: Path) -> None:
    """Asks the driver to end; running trials can be gone on with."""
    _stop_file(folder).touch()


def stop_requested(folder: Path) -> bool:
    """Whether the driver was asked to end."""
    return _stop_file(folder).exists()
