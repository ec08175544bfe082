"""The seam: what the service may ask of the science, in values without tensors.

Imports torch only when a function is called.
"""

from __future__ import annotations

from pathlib import Path

from trainables.config import TrialConfig
from trainables.report import EpochReport, ReferenceRecord, Report, TrialResult
from trainables.survey_report import Reach, StepTimes, Survey, reference_hours, trial_hours

__all__ = [
    "EpochReport",
    "Reach",
    "ReferenceRecord",
    "Report",
    "StepTimes",
    "Survey",
    "TrialResult",
    "count_gpus",
    "ensure_reference",
    "reference_hours",
    "run_trial",
    "survey",
    "time_steps",
    "trial_hours",
]


def count_gpus() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


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


def survey(config: TrialConfig) -> Survey:
    """Layers, reachable costs, maps and steps of a trial, counted on a network with fresh weights. Trains nothing.

    Reads the data set. Raises a BitfrontError for what would fail later: uncounted work, patterns, batches, tiny maps.
    """
    from trainables import survey as counted

    return counted.survey(config)


def time_steps(config: TrialConfig, *, threads: int, workers: int = 1) -> StepTimes:
    """Seconds of each kind of step on this machine's device: the median of three, after one, on fresh networks.

    A step is one worker's share of a batch. What `workers` have to tell each other is left out.
    """
    from trainables import survey as timed

    return timed.time_steps(config, threads=threads, workers=workers)
