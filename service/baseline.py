"""The random policy that a sweep's knee is compared with: as costly, drawn and not searched, finetuned alike.

    <sweep>/random/policy.json       the policy, written before its finetune
                   checkpoint.pt     where that goes on; gone once it is measured
                   attribution.npz   its maps of the sample images
                   record.json       what it is worth; written last

It is no trial: neither the study nor the front knows of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.files import write_json
from service.records import CHECKPOINT_FILE, POLICY_FILE
from trainables.errors import StorageError
from trainables.report import checkpoint_files
from trainables.samples import ATTRIBUTION_FILE

_RECORD_FILE = "record.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A random policy and what came of it."""

    knee: str
    """The trial whose BOPs it has, 97 to 100 % of them, and whose finetune."""
    knee_policy: str
    """Hash of that trial's policy."""
    seed: int
    policy_hash: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """As a trial has them, less the search; empty where it failed."""
    error: str = ""
    """Why there are none."""

    @classmethod
    def find(cls, sweep: Path) -> Baseline | None:
        """That of the sweep in this folder; None while there is none. One that cannot be read counts as none."""
        try:
            return cls(**json.loads((baseline_folder(sweep) / _RECORD_FILE).read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def is_of(self, knee: str, knee_policy: str, seed: int) -> bool:
        """Whether it was made for this knee, and with this seed."""
        return (self.knee, self.knee_policy, self.seed) == (knee, knee_policy, seed)

    def save(self, sweep: Path) -> None:
        """Writes the record: the baseline is complete with it."""
        folder = baseline_folder(sweep)
        try:
            folder.mkdir(exist_ok=True)
            write_json(folder / _RECORD_FILE, dataclasses.asdict(self))
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {error.strerror}.") from None
        for path in checkpoint_files(checkpoint_of(sweep)):
            path.unlink(missing_ok=True)


def baseline_folder(sweep: Path) -> Path:
    """Where a sweep's random policy is."""
    return sweep / "random"


def policy_of(sweep: Path) -> Path:
    """The file of its policy."""
    return baseline_folder(sweep) / POLICY_FILE


def attribution_of(sweep: Path) -> Path:
    """The file of its maps."""
    return baseline_folder(sweep) / ATTRIBUTION_FILE


def checkpoint_of(sweep: Path) -> Path:
    """Where its finetune goes on."""
    return baseline_folder(sweep) / CHECKPOINT_FILE
