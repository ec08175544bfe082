"""What the science tells the service, in values without tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from trainables.choices import Choices
from trainables.errors import StorageError
from trainables.policy_file import PolicyRecord

if TYPE_CHECKING:
    from trainables.samples import SampleMaps

RECORD_FILE = "record.json"


def checkpoint_files(newest: Path) -> tuple[Path, Path]:
    """The files of a checkpoint: the newest, and the one before it, in case that the newest is damaged."""
    return newest, newest.with_stem(f"{newest.stem}-1")


Stage = Literal["reference", "search", "finetune"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """What is known after an epoch of one stage."""

    stage: Stage
    epoch: int
    """Finished epochs of this stage, from 1."""
    epochs: int
    """Epochs that the stage has in all."""
    metrics: Mapping[str, float]


class Report(Protocol):
    """Called by every worker after every epoch, with the same numbers on each."""

    def __call__(self, epoch: EpochReport, /) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceRecord:
    """The trained full-precision reference, as its file in the store tells."""

    key: str
    top1: float
    """Validation top-1, percent."""
    device_hours: float
    data_fingerprint: str
    """SHA-256 of the training and validation images and labels."""
    weights: str = ""
    """SHA-256 of the file of weights that it began with; empty for fresh ones."""
    fresh: tuple[str, ...] = ()
    """Layers that began with fresh weights all the same: a head for another number of classes."""

    @classmethod
    def find(cls, store: Path, key: str) -> ReferenceRecord | None:
        """The record of the reference `key` in `store`; None where it has not been trained yet."""
        path = store / key / RECORD_FILE
        try:
            content = json.loads(path.read_text())
            return cls(**{**content, "fresh": tuple(content.get("fresh", ()))})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise StorageError(f"{path} cannot be read ({error}); delete its folder to train anew.") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """What a trial found. Every metric is a finite number."""

    record: PolicyRecord
    choices: Choices
    """What the policy was chosen from, to choose again under another budget."""
    metrics: Mapping[str, float]
    """top1 (percent), ard (ranks), ard_normalised, entropy (nats), bops_g, bops_paper_g, compression, storage_mb,
    storage_mib, mean_weight_bits, mean_act_bits, float_mb, reference_top1, search_device_hours, search_cost_hours (what
    finding the policy took, whoever did it: with the reference's maps in full, which trials share; without the
    reference), finetune_device_hours, device_hours."""
    samples: SampleMaps | None = None
    """Maps of `TrialConfig.images` validation images; None where it asks for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """What a given policy is worth after its finetune. Every metric is a finite number."""

    metrics: Mapping[str, float]
    """Those of `TrialResult`, less those of the search."""
    samples: SampleMaps | None = None
    """As in `TrialResult`."""
