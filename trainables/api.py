"""The seam: what the service may ask of the science, in values without tensors.

Imports torch only when a function is called.
"""

from __future__ import annotations

from pathlib import Path

from trainables.config import TrialConfig
from trainables.report import EpochReport, ReferenceRecord, Report, TrialResult

__all__ = ["EpochReport", "ReferenceRecord", "Report", "TrialResult", "ensure_reference", "run_trial"]


def ensure_reference(config: TrialConfig, report: Report, *, store: Path) -> ReferenceRecord:
    """Trains the full-precision reference of `config` into `store`, unless it is there."""
    from trainables import reference

    return reference.ensure_reference(config, report, store=store)


def run_trial(config: TrialConfig, report: Report, *, store: Path, checkpoint: Path | None = None) -> TrialResult:
    """Search, discretise, finetune, measure: on every worker of the trial alike. Needs the reference in `store`.

    Goes on from the file `checkpoint`, if it is there, and keeps it up to date after every epoch. Raises DivergedError
    where a loss left the finite numbers.
    """
    from trainables import trial

    return trial.run_trial(config, report, store=store, checkpoint=checkpoint)
