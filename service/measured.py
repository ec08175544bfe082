"""What a nightly sweep has besides its records: the environment of its trials, and the ratio of steps there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.files import write_json
from service.nightly_report import read_as
from trainables.errors import StorageError

MEASURED_FILE = "measured.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Of the machine of a sweep's trials, as far as it was measured."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Empty: not known."""
    step_ratio: float | None = None
    """Search step over full-precision step; 0 of a sweep whose search has no steps, None: not measured."""


def read_measured(folder: Path) -> Measured:
    """Of a sweep; what is missing, or in a damaged file, was not measured."""
    try:
        found = read_as(Measured, folder / MEASURED_FILE)
    except StorageError:
        return Measured()
    is_number = found.step_ratio is not None and math.isfinite(found.step_ratio)
    return found if is_number else dataclasses.replace(found, step_ratio=None)


def save_measured(folder: Path, found: Measured) -> None:
    """Writes it whole or not at all."""
    write_json(folder / MEASURED_FILE, dataclasses.asdict(found))
