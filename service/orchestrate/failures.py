"""Why a trial failed: errors that Ray has wrapped, and the class that decides what is done about them."""

from __future__ import annotations

import re

from service.records import Failure
from service.redaction import without_credentials
from trainables.errors import BitfrontError

_MEMORY_SIGNS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "running low on memory",
    "node_out_of_memory", "std::bad_alloc",
)  # fmt: skip
MEMORY_ADVICE = (
    "give it smaller batches (batch_size, or parts of them with accumulate), run fewer trials at once "
    "(resources.concurrency), or take larger machines; then `bitfront rerun-failed`"
)


def unwrapped(error: BaseException) -> BaseException:
    """The error meant for users that Ray has wrapped, whose message would be a traceback; else the error itself."""
    inner = error
    while isinstance(nested := getattr(inner, "cause", None) or inner.__cause__, BaseException):
        inner = nested
    return inner if isinstance(inner, BitfrontError) else error


def message_of(error: BaseException) -> str:
    """The error in words; of one that Ray has wrapped, whose text is a traceback in colours, the last line."""
    from ray import exceptions

    text = str(error)
    if isinstance(error, exceptions.RayError):
        text = re.sub(r"\x1b\[[0-9;]*m", "", text.strip().splitlines()[-1] if text.strip() else "")
    advice = f" ({MEMORY_ADVICE})" if failure_of(error) == "out of memory" else ""
    return without_credentials(f"{type(error).__name__}: {text}{advice}")


def failure_of(error: BaseException) -> Failure:
    """The class of an error: what the user can mend, what the machine did, and what is left."""
    from ray import exceptions

    if isinstance(unwrapped(error), BitfrontError):
        return "user error"
    text = f"{type(error).__name__} {error}".lower()
    if isinstance(error, MemoryError | exceptions.OutOfMemoryError) or any(sign in text for sign in _MEMORY_SIGNS):
        return "out of memory"
    if getattr(error, "preempted", False):
        return "pre-empted"
    lost = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError)
    return "lost worker" if isinstance(error, lost) else "error"
