"""One trial, as each of its workers runs it. What it finds is in the sweep's storage before anybody hears of it."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.orchestrate.failures import failure_of
from service.records import SweepStore, TrialRecord
from trainables.api import EpochReport, ReferenceRecord, Report, TrialResult
from trainables.config import TrialConfig
from trainables.errors import DivergedError

Tell = Callable[[dict[str, Any]], None]
"""Passes a worker's numbers on to Ray; called the same number of times on every worker."""


class Science(Protocol):
    """What a trial computes: `trainables.api`, or, to measure the service alone, something that costs nothing."""

    def ensure_reference(self, config: TrialConfig, report: Report, *, store: Path) -> ReferenceRecord: ...
    def run_trial(
        self, config: TrialConfig, report: Report, *, store: Path, checkpoint: Path | None = None
    ) -> TrialResult: ...


class SupersededError(Exception):
    """Another attempt at the same trial has begun: this one's driver is gone, and it must not write any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialJob:
    """Everything a worker needs for an attempt at a trial."""

    begun: TrialRecord
    """As it was when the attempt began."""
    config: TrialConfig
    sweep_folder: Path
    threads: int
    """CPU threads of each worker. Part of the result's last bits, so it is set and not found."""
    science: Science


def now_ms() -> int:
    """Unix time, milliseconds."""
    return time.time_ns() // 1_000_000


def use_threads(threads: int) -> None:
    """Sets the CPU threads of this process."""
    import torch

    torch.set_num_threads(threads)


def run_trial(job: TrialJob, *, rank: int, tell: Tell) -> TrialRecord:
    """Runs the trial and, on rank 0, writes its history, policy, picture and result.

    Goes on from the trial's checkpoint. A diverged trial is a result like any other; other errors go to the caller.
    """
    use_threads(job.threads)
    store, trial_id = SweepStore(job.sweep_folder), job.begun.trial_id
    last = time.monotonic()

    def report(epoch: EpochReport) -> None:
        nonlocal last
        seconds, last = time.monotonic() - last, time.monotonic()
        if rank == 0:
            if store.trial(trial_id).attempts != job.begun.attempts:
                raise SupersededError(trial_id)
            store.append_epoch(trial_id, epoch, seconds=seconds, now_ms=now_ms())
        tell({**_numbers(epoch), "seconds": seconds})

    try:
        result = job.science.run_trial(
            job.config, report, store=store.references, checkpoint=store.checkpoint(trial_id)
        )
    except DivergedError as error:
        record = dataclasses.replace(job.begun, state="diverged", failure="nan", error=str(error))
    else:
        if rank == 0:
            _save_policy(store, trial_id, result)
        record = dataclasses.replace(
            job.begun, state="done", metrics=result.metrics, policy_hash=result.record.policy.hash
        )
    record = dataclasses.replace(record, ended_ms=now_ms())
    if rank == 0:
        record = store.finish_trial(record)
    tell({"state": record.state, **record.metrics})
    return record


def _numbers(epoch: EpochReport) -> dict[str, Any]:
    """An epoch as Ray takes it."""
    return {"stage": epoch.stage, "epoch": epoch.epoch, "epochs": epoch.epochs, **epoch.metrics}


def settle_failure(store: SweepStore, begun: TrialRecord, error: Exception) -> TrialRecord:
    """Writes down why the trial failed, with its traceback beside; the record that stands.

    An attempt that is over, or that another one has followed, has nothing to say any more.
    """
    standing = store.trial(begun.trial_id)
    if standing.final or standing.attempts != begun.attempts:
        return standing
    store.trial_folder(begun.trial_id).joinpath("error.txt").write_text("".join(traceback.format_exception(error)))
    return store.finish_trial(
        dataclasses.replace(
            begun,
            state="failed",
            ended_ms=now_ms(),
            failure=failure_of(error),
            error=f"{type(error).__name__}: {error}",
        )
    )


def _save_policy(store: SweepStore, trial_id: str, result: TrialResult) -> None:
    from dashboards.bits import draw_bits

    store.save_policy(trial_id, result.record)
    store.save_choices(trial_id, result.choices)
    draw_bits(result.record, store.trial_folder(trial_id) / "bits.png")


def make_reference(science: Science, config: TrialConfig, *, store: Path, threads: int, tell: Tell) -> ReferenceRecord:
    """The reference's record, trained by this worker and its peers if need be."""
    use_threads(threads)

    def report(epoch: EpochReport) -> None:
        tell(_numbers(epoch))

    return science.ensure_reference(config, report, store=store)
