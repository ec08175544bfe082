"""A storage that cannot be used for a while: full, read-only, or gone. Who waits for it, and how long.

Drivers and workers wait, as others may make room or bring a server back; commands that only look do not.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from trainables.errors import ConfigError, StorageError, StorageUnavailableError

T = TypeVar("T")
log = logging.getLogger("bitfront.storage")

WAIT_VARIABLE = "BITFRONT_STORAGE_WAIT"
"""Of the environment: seconds, instead of WAIT_S."""
WAIT_S = 300.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
LOOK_EVERY_S = 0.1
"""Whoever waits sees so soon that it shall not."""

_FULL = {errno.ENOSPC: "there is no space left", errno.EDQUOT: "the quota is used up"}
_AWAY = (
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.ENODEV, errno.ENXIO, errno.EREMOTEIO,
)  # fmt: skip
_GONE = (errno.ENOENT, errno.ENOTDIR)


class _Patience:
    """Of this process."""

    def __init__(self) -> None:
        self.holders = 0
        """Who is patient; nobody waits without one."""
        self.ended = False
        """What has been waited for in vain is not waited for again.

        A mere flag: a handler of a signal that came upon a threading.Event's own lock would wait for ever.
        """

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until it is ended; whether it is."""
        last = time.monotonic() + seconds
        while not self.ended and (left := last - time.monotonic()) > 0:
            time.sleep(min(LOOK_EVERY_S, left))
        return self.ended


_patience = _Patience()


@contextmanager
def patient() -> Iterator[None]:
    """Meanwhile `patiently` waits for storages."""
    wait_s()
    if not _patience.holders:
        _patience.ended = False
    _patience.holders += 1
    try:
        yield
    finally:
        _patience.holders -= 1


def give_up() -> None:
    """Whoever waits, waits no longer: this process was asked to end. For a handler of signals, too."""
    _patience.ended = True


def paused(seconds: float) -> bool:
    """Waits so long, or until this process is asked to end; whether it was."""
    return _patience.wait(seconds)


def wait_s() -> float:
    """How long is waited for a storage, seconds."""
    text = os.environ.get(WAIT_VARIABLE, "")
    try:
        found = float(text) if text else WAIT_S
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ConfigError(f"{WAIT_VARIABLE} is {text!r}; give seconds, such as 300, or 0 to wait for nothing.")
    return found


def trouble_of(error: BaseException, folder: Path, landmark: str = "") -> str:
    """What is wrong with the storage of `folder`, with the fix; empty where the error is of another kind.

    `landmark` is a file that the folder always has: one without it was made by somebody who did not know of the other.
    """
    number = _number(error)
    if number in _FULL:
        return f"{_FULL[number]}; make room there"
    if number == errno.EROFS:
        return "it is read-only; mount it for writing again"
    if number in _AWAY:
        return f"it does not answer ({os.strerror(number)}); bring it back"
    if (number in _GONE or isinstance(error, StorageError)) and not (folder / landmark).exists():
        return "it is gone; bring it back"
    return ""


def storage_to_blame(error: Exception, folder: Path, landmark: str = "") -> StorageUnavailableError | None:
    """As `unavailable`, of an error that anything may have raised that a trial does, not the storage's own writers.

    A data set's disk that cannot be read, or a server that does not answer, says nothing of the storage: that is looked
    at itself. Only what is full counts wherever it is, as reading never says so, and the next trial would fare alike.
    """
    if isinstance(error, OSError) and error.errno not in _FULL:
        is_ours = error.filename and not _is_elsewhere(error.filename, folder)
        if not is_ours and _answers(folder):
            return None
    return unavailable(error, folder, landmark)


def _answers(folder: Path) -> bool:
    """Whether the folder takes a file and gives it back."""
    probe = folder / f".probe.{uuid.uuid4().hex[:8]}"
    try:
        with probe.open("xb") as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
        return probe.read_bytes() == b"probe"
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _number(error: BaseException) -> int:
    """The system's number of the error, or of the one that a StorageError was raised for; 0 where there is none."""
    inner = error.__context__ if isinstance(error, StorageError) else error
    return inner.errno or 0 if isinstance(inner, OSError) else 0


def _place(error: BaseException, folder: Path) -> str:
    """The folder, or the file where it is another place that is full, such as one for temporary files."""
    name = error.filename if isinstance(error, OSError) else None
    return str(name) if _is_elsewhere(name, folder) else str(folder)


def _is_elsewhere(name: object, folder: Path) -> bool:
    """Whether this is a file's name, and not of one in the storage that the folder lies in."""
    return isinstance(name, str) and not Path(name).absolute().is_relative_to(folder.absolute().parent)


def unavailable(error: BaseException, folder: Path, landmark: str = "") -> StorageUnavailableError | None:
    """What a process ends with after this error; None where the storage is not to blame."""
    if isinstance(error, StorageUnavailableError):
        return error
    trouble = trouble_of(error, folder, landmark)
    if not trouble:
        return None
    return StorageUnavailableError(f"{_place(error, folder)}: {trouble}, and resume: it goes on where it was.")


def patiently(do: Callable[[], T], folder: Path, landmark: str = "") -> T:
    """What `do` returns, called again while the storage of `folder` cannot be used: it must bear that.

    Raises StorageUnavailableError once that has lasted for `wait_s`; where nobody is `patient`, what `do` raises.
    """
    pause, last = FIRST_PAUSE_S, 0.0
    while True:
        try:
            return do()
        except (OSError, StorageError) as error:
            if not _patience.holders or isinstance(error, StorageUnavailableError):
                raise
            end = unavailable(error, folder, landmark)
            if end is None:
                raise
            if not last:
                last = time.monotonic() + wait_s()
                if not _patience.ended:
                    log.warning("%s Waiting for up to %g s.", end, wait_s())
            left = last - time.monotonic()
            if left <= 0 or _patience.wait(min(pause, left)):
                give_up()
                raise end from None
            pause = min(2 * pause, LONGEST_PAUSE_S)
