"""Errors that come back from Ray in wrappings of its own."""

from __future__ import annotations

from trainables.errors import BitfrontError


def unwrapped(error: BaseException) -> BaseException:
    """The error meant for users that Ray has wrapped, whose message would be a traceback; else the error itself."""
    inner = error
    while isinstance(nested := getattr(inner, "cause", None) or inner.__cause__, BaseException):
        inner = nested
    return inner if isinstance(inner, BitfrontError) else error
