"""One trial, as each of its workers runs it. What it finds is in the sweep's storage before anybody hears of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.records import SweepStore, TrialRecord
from trainables import api
from trainables.api import EpochReport, ReferenceRecord
from trainables.config import TrialConfig
from trainables.errors import DivergedError
from trainables.policy import PolicyRecord

Tell = Callable[[dict[str, Any]], None]
"""Passes a worker's numbers on to Ray; called the same number of times on every worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialJob:
    """Everything a worker needs for a trial."""

    trial_id: str
    number: int
    settings: Mapping[str, Any]
    config: TrialConfig
    sweep_folder: Path
    threads: int
    """CPU threads of each worker. Part of the result's last bits, so it is set and not found."""


def now_ms() -> int:
    """Unix time, milliseconds."""
    return time.time_ns() // 1_000_000


def use_threads(threads: int) -> None:
    """Sets the CPU threads of this process."""
    import torch

    torch.set_num_threads(threads)


def run_trial(job: TrialJob, *, rank: int, tell: Tell) -> TrialRecord:
    """Runs the trial and, on rank 0, writes its history, policy, picture and result.

    A diverged trial is a result like any other; other errors go to the caller.
    """
    use_threads(job.threads)
    store = SweepStore(job.sweep_folder)
    started = now_ms()

    def report(epoch: EpochReport) -> None:
        if rank == 0:
            store.append_epoch(job.trial_id, epoch, now_ms=now_ms())
        tell({"stage": epoch.stage, "epoch": epoch.epoch, "epochs": epoch.epochs, **epoch.metrics})

    record = TrialRecord(
        trial_id=job.trial_id, number=job.number, state="running", settings=job.settings, started_ms=started
    )
    try:
        result = api.run_trial(job.config, report, store=store.references)
    except DivergedError as error:
        record = dataclasses.replace(record, state="diverged", ended_ms=now_ms(), error=str(error))
    else:
        if rank == 0:
            _save_policy(store, job.trial_id, result.record)
        record = dataclasses.replace(
            record, state="done", ended_ms=now_ms(), metrics=result.metrics, policy_hash=result.record.policy.hash
        )
    if rank == 0:
        store.finish_trial(record)
    tell({"state": record.state, **record.metrics})
    return record


def _save_policy(store: SweepStore, trial_id: str, record: PolicyRecord) -> None:
    from dashboards.bits import draw_bits

    store.save_policy(trial_id, record)
    draw_bits(record, store.trial_folder(trial_id) / "bits.png")


def make_reference(config: TrialConfig, *, store: Path, threads: int, tell: Tell) -> ReferenceRecord:
    """The reference's record, trained by this worker and its peers if need be."""
    use_threads(threads)

    def report(epoch: EpochReport) -> None:
        tell({"stage": epoch.stage, "epoch": epoch.epoch, "epochs": epoch.epochs, **epoch.metrics})

    return api.ensure_reference(config, report, store=store)
