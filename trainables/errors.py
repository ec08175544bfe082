"""What can go wrong for a user, each with a message that says the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class BitfrontError(Exception):
    """An error whose message is meant for the user as it stands, without a traceback."""


class ConfigError(BitfrontError, ValueError):
    """A setting that cannot work: what was found, and what would be right."""


class InfeasibleBudgetError(ConfigError):
    """Limits that no policy keeps."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        """`problems`: for each such limit what it is, the floor, and the fix."""
        super().__init__(dict(problems))
        self.problems = dict(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems.values())


class DataMissingError(BitfrontError):
    """A data set that is not where it was looked for, and how to get it."""


class CoverageError(BitfrontError):
    """A module that does work (multiply-accumulates) which no cost would count."""


class DivergedError(BitfrontError):
    """A loss that is no longer a finite number: a result of the settings, not a crash."""


class SpecError(BitfrontError):
    """Everything that is wrong with a sweep's YAML; one line per finding, each with file:line:column."""


class TrackingError(BitfrontError):
    """A tracking server that cannot be reached or refuses, and where it was looked for."""


class StorageError(BitfrontError):
    """A sweep's storage that is missing, incomplete or not writable."""


class StorageUnavailableError(StorageError):
    """A storage that is full, read-only or gone: no fault of what was computed, which goes on once it is mended."""


class LostError(BitfrontError):
    """Work that failed without a fault in what the user wrote: a process, a machine or memory that was lost."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known name, and all of them."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    return (f"; did you mean {nearest[0]!r}?" if nearest else ";") + f" known: {', '.join(names)}"
