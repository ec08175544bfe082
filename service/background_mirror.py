"""A sweep's mirror beside its driver: in a thread of its own, seldom, and patient with a server that errs."""

from __future__ import annotations

import contextlib
import importlib
import logging
import random
import threading
import time

from service.mirror import Tracker
from service.tracking import first_line, without_secrets
from trainables.errors import StorageError, TrackingError

log = logging.getLogger("bitfront.mirror")

PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
SHARE = 0.02
"""Of a processor that syncs take as a rule while a sweep runs: its trials need them all. More where one sync takes
longer than `LONGEST_PAUSE_S` can make up for."""
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
"""After a sync that has failed."""
CLOSING_S, GIVE_UP_S = 120.0, 30.0
"""A sweep that ends waits no longer for its last sync, and then for the request that is under way; MLflow's client
gives one up after `MLFLOW_HTTP_REQUEST_TIMEOUT`, 20 seconds unless it is set."""


def pause_s(*, took_s: float, since_s: float) -> float:
    """How long a sync that is asked for now waits, where the last one took a processor so long and ended so long ago.

    `PAUSE_S` always: what comes in the meantime is one sync, as epochs may be short, and trials many.
    """
    return max(PAUSE_S, min(took_s / SHARE, LONGEST_PAUSE_S) - since_s)


def backoff_s(failures: int, *, chance: float) -> float:
    """How long a sync waits after so many that have failed in a row, whatever happens meanwhile.

    min(FIRST_RETRY_S * 2^(failures - 1), LONGEST_RETRY_S), of which `chance` in [0, 1) takes up to a half away: the
    mirrors of many sweeps do not come back to a server in one moment.
    """
    whole = min(FIRST_RETRY_S * 2.0 ** min(failures - 1, 30), LONGEST_RETRY_S)
    return whole * (1 - chance / 2)


class BackgroundMirror:
    """Syncs in a thread of its own, so that a slow or absent server never holds up the sweep.

    Where MLflow errs it is left alone for longer and longer; what is wrong is said once, and once that it is over.
    """

    def __init__(self, tracker: Tracker, *, closing_s: float = CLOSING_S) -> None:
        """`closing_s`: how long `close` lets the last sync go on."""
        # Here and not in the thread: two threads that import it at once can see half of it.
        importlib.import_module("mlflow.tracking")
        self._tracker, self._closing_s = tracker, closing_s
        self._wanted, self._closing = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._failures, self._behind_since = 0, 0.0
        self._thread = threading.Thread(target=self._work, name="bitfront-mirror", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Asks for a sync soon; many requests become one."""
        self._wanted.set()

    def close(self) -> Exception | None:
        """A last sync; what went wrong in it, or None. One that takes too long is given up with its next request."""
        self._closing.set()
        self._wanted.set()
        self._thread.join(self._closing_s)
        self._tracker.given_up.set()
        self._thread.join(GIVE_UP_S)
        if self._thread.is_alive():
            return TrackingError(f"{without_secrets(self._tracker.uri)} does not answer")
        return self._error

    def _work(self) -> None:
        due_s: float | None = None
        took_s, ended_s = 0.0, time.monotonic()
        while True:
            if self._failures:
                self._closing.wait(backoff_s(self._failures, chance=random.random()))
            else:
                self._wanted.wait(due_s)
                self._closing.wait(pause_s(took_s=took_s, since_s=time.monotonic() - ended_s))
            # In this order: `close` sets both, and its wish must not be cleared unread.
            self._wanted.clear()
            closing, began_s = self._closing.is_set(), time.thread_time()
            try:
                due_s = self._tracker.sync(closing=closing)
                self._note_well()
            except Exception as error:  # whatever the server does, the sweep goes on and a later sync tries again
                due_s = None
                self._note_wrong(error)
            if closing:
                return
            took_s, ended_s = time.thread_time() - began_s, time.monotonic()

    def _note_wrong(self, error: Exception) -> None:
        self._failures, self._error = self._failures + 1, error
        if self._failures == 1:
            self._behind_since = time.monotonic()
            self._tell(f"the tracking record is behind, trials go on: {first_line(error)}")

    def _note_well(self) -> None:
        if self._failures:
            self._tell(f"the tracking record is complete again after {time.monotonic() - self._behind_since:.0f} s")
        self._failures, self._error = 0, None

    def _tell(self, text: str) -> None:
        log.warning("%s", text)
        # Where the storage cannot be written to, that is told by whoever needs it.
        with contextlib.suppress(OSError, StorageError):
            self._tracker.store.log(text)
