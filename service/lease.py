"""Who drives a sweep whose storage is kept as objects: whoever has written `driver.lock` last, and still does.

The object names host, process and working copy, and is written again every few seconds, each time on the condition that
nobody else has. Silence is measured by the store's own clock. After a minute of it another driver may take over: it
watches for a while first, as the store may have been away for everybody.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from service.object_store import ConditionError, patience
from service.replica import LOCK, Replica, holder_of
from trainables.errors import StorageError

BEAT_S = 10.0
SILENCE_S = 60.0
WATCH_S = 2.5 * BEAT_S
STOP = "stop"


@contextmanager
def held(replica: Replica, sweep: str, *, look: str = "") -> Iterator[Lease]:
    """Makes this process the driver of a sweep, for as long as it is that of this machine's working copy.

    `look`: the command that shows it, where it is no sweep. Raises StorageError where another one is, or where another
    one has taken over before the end.
    """
    lease = Lease(replica, sweep, look=look)
    lease.take()
    ended = threading.Event()
    beat = threading.Thread(target=lease.beat_until, args=(ended,), name="bitfront-lease", daemon=True)
    beat.start()
    replica.driving.add(sweep)
    try:
        replica.store.delete([f"{sweep}/{STOP}"])
        yield lease
    finally:
        replica.driving.discard(sweep)
        ended.set()
        beat.join()
        lease.give_back()


def alive(replica: Replica, sweep: str) -> bool:
    """Whether a driver with another working copy runs the sweep; of one with this copy the system knows."""
    found = replica.store.get(f"{sweep}/{LOCK}")
    holder = holder_of(found)
    if found is None or not holder or holder.get("copy") == replica.copy_id:
        return False
    return found.age_s < SILENCE_S


def request_stop(replica: Replica, sweep: str) -> None:
    """Asks the driver to end, wherever it is."""
    replica.store.put(f"{sweep}/{STOP}", b"")


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}" if holder else "a driver that has ended"


class Lease:
    """This process's hold on a sweep."""

    def __init__(self, replica: Replica, sweep: str, *, look: str = "") -> None:
        self._replica, self._sweep, self._key = replica, sweep, f"{sweep}/{LOCK}"
        self._command = look or f"bitfront status {sweep}"
        self._etag, self._beats, self._lost = "", 0, ""

    def take(self) -> None:
        """Raises StorageError that names the driver where another one is."""
        found = self._replica.store.get(self._key)
        holder = holder_of(found)
        if found and holder and holder.get("copy") != self._replica.copy_id:
            if found.age_s < SILENCE_S:
                raise self._refused(holder)
            time.sleep(WATCH_S)
            again = self._replica.store.get(self._key)
            if again is not None and again.etag != found.etag:
                raise self._refused(holder_of(again))
        try:
            self._write(found.etag if found else "")
        except ConditionError:
            raise self._refused(holder_of(self._replica.store.get(self._key))) from None

    def beat_until(self, ended: threading.Event) -> None:
        """Writes the object again and again, and passes a request to stop on to the working copy."""
        folder = self._replica.root / self._sweep
        while not ended.wait(BEAT_S) and not self._lost:
            # Whatever goes wrong: one who says nothing any more is taken for gone.
            with patience(0), contextlib.suppress(Exception):
                try:
                    self._write(self._etag)
                except ConditionError:
                    self._look()
                if self._lost:
                    (folder / STOP).touch()
                if self._replica.store.etag(f"{self._sweep}/{STOP}"):
                    (folder / STOP).touch()

    def give_back(self) -> None:
        """Raises StorageError where another driver has the lease by now."""
        while not self._lost:
            try:
                # Like nobody else's: a successor's end is not to be taken for this one.
                self._replica.store.put(self._key, self._content(ended=True), replaces=self._etag)
            except ConditionError:
                self._look()
                continue
            if not (self._replica.root / self._sweep).exists():
                self._replica.store.delete([self._key])
            return
        raise StorageError(
            f"{self._sweep} was taken over by {self._lost}, as nothing was heard of this driver for more than "
            f"{SILENCE_S:g} s. What was found is kept; follow it with: {self._command}"
        )

    @property
    def is_lost(self) -> bool:
        """Whether another driver has taken over."""
        return bool(self._lost)

    def _write(self, replaces: str) -> None:
        self._beats += 1
        self._etag = self._replica.store.put(self._key, self._content(), replaces=replaces)

    def _content(self, *, ended: bool = False) -> bytes:
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "copy": self._replica.copy_id, "beat": self._beats}
        return json.dumps({**holder, "ended": True} if ended else holder).encode()

    def _look(self) -> None:
        """The object is another one: of another driver, or our own, written by a try whose answer was lost."""
        found = self._replica.store.get(self._key)
        holder = holder_of(found)
        if found and (holder.get("copy"), holder.get("pid")) == (self._replica.copy_id, os.getpid()):
            self._etag = found.etag
        else:
            self._lost = _named(holder)

    def _refused(self, holder: dict[str, Any]) -> StorageError:
        name = self._sweep
        return StorageError(
            f"{name} is run by {_named(holder)} already. See `bitfront status {name}`, or end it with "
            f"`bitfront stop {name}`."
        )
