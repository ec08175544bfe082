"""One trial, as each of its workers runs it. What it finds is in the sweep's storage before anybody hears of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.baseline import Baseline, attribution_of, checkpoint_of
from service.files import write_text
from service.marks import RANDOM, SWEEP_FILE
from service.orchestrate.carrier import (
    alone,
    attempt_begun,
    group_carried,
    maps_carried,
    reference_carried,
    trial_group,
)
from service.orchestrate.failures import failure_of, message_of
from service.promoted import model_folder
from service.records import SweepStore, TrialRecord, now_ms
from service.redaction import traceback_of
from service.replica import ReplacedError
from service.working_copy import Place
from trainables.api import EpochReport, FinetuneResult, ReferenceRecord, Report, TrialResult
from trainables.config import BenchConfig, TrialConfig
from trainables.detector_config import DetectorConfig
from trainables.errors import DivergedError
from trainables.patience import patient, storage_to_blame
from trainables.policy_file import PolicyRecord
from trainables.samples import ATTRIBUTION_FILE

Tell = Callable[[dict[str, Any]], None]
"""Passes a worker's numbers on to Ray; called the same number of times on every worker."""


class Science(Protocol):
    """What a trial computes: `trainables.api`, or, to measure the service alone, something that costs nothing."""

    def ensure_reference(self, config: BenchConfig, report: Report, *, store: Path) -> ReferenceRecord: ...
    def run_trial(
        self, config: TrialConfig, report: Report, *, store: Path, checkpoint: Path | None = None
    ) -> TrialResult: ...
    def finetune(
        self,
        config: BenchConfig | DetectorConfig,
        policy: PolicyRecord,
        report: Report,
        *,
        store: Path,
        checkpoint: Path | None = None,
        output: Path | None = None,
    ) -> FinetuneResult:
        """Only asked for by promotions, and where the sweep has `gallery.random`."""
        ...


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotedJob:
    """Everything a worker needs for an attempt at the finetune of a promoted policy."""

    begun: TrialRecord
    """As it was when the attempt began."""
    config: BenchConfig | DetectorConfig
    policy: PolicyRecord
    sweep_folder: Path
    """Of the promotion."""
    threads: int
    """As of a trial."""
    science: Science


def use_threads(threads: int) -> None:
    """Sets the CPU threads of this process."""
    import torch

    torch.set_num_threads(threads)


def run_trial(job: TrialJob | PromotedJob, *, rank: int, tell: Tell) -> TrialRecord:
    """Runs the trial and, on rank 0, writes its history, what it found, and its result.

    Goes on from the trial's checkpoint. A diverged trial is a result like any other; other errors go to the caller.
    """
    use_threads(job.threads)
    store = SweepStore(job.sweep_folder)
    with patient(), logged(store, job.begun.trial_id):
        return _run(job, store, rank=rank, tell=tell)


@contextlib.contextmanager
def logged(store: SweepStore, trial_id: str) -> Iterator[None]:
    """Meanwhile what is said of the trial's checkpoint stands in the sweep's log."""
    handler, said = _SweepLog(store, trial_id), logging.getLogger("bitfront.checkpoint")
    said.addHandler(handler)
    try:
        yield
    finally:
        said.removeHandler(handler)


class _SweepLog(logging.Handler):
    def __init__(self, store: SweepStore, trial_id: str) -> None:
        super().__init__(logging.WARNING)
        self._store, self._trial_id = store, trial_id

    def emit(self, record: logging.LogRecord) -> None:
        self._store.log(f"{self._trial_id}: {record.getMessage()}")


def _run(job: TrialJob | PromotedJob, store: SweepStore, *, rank: int, tell: Tell) -> TrialRecord:
    trial_id, last = job.begun.trial_id, time.monotonic()

    def report(epoch: EpochReport) -> None:
        nonlocal last
        seconds, last = time.monotonic() - last, time.monotonic()
        if rank == 0:
            if store.trial(trial_id).attempts != job.begun.attempts:
                raise SupersededError(trial_id)
            store.append_epoch(trial_id, epoch, seconds=seconds, now_ms=now_ms())
        tell({**_numbers(epoch), "seconds": seconds})

    carried = group_carried(store, trial_group(trial_id)) if rank == 0 else contextlib.nullcontext()
    with maps_carried(store.references, _reference_of(job), rank=rank):
        try:
            with carried:
                metrics, policy_hash = _computed(job, store, report, rank=rank)
        except DivergedError as error:
            record = dataclasses.replace(job.begun, state="diverged", failure="nan", error=str(error))
        else:
            record = dataclasses.replace(job.begun, state="done", metrics=metrics, policy_hash=policy_hash)
        record = dataclasses.replace(record, ended_ms=now_ms())
        if rank == 0:
            record = _finished(store, record)
    tell({"state": record.state, **record.metrics})
    return record


def _finished(store: SweepStore, record: TrialRecord) -> TrialRecord:
    try:
        return store.finish_trial(record)
    except ReplacedError:
        raise SupersededError(record.trial_id) from None


def _reference_of(job: TrialJob | PromotedJob) -> str:
    """Key of the reference that the trial reads; empty of a detector."""
    return job.config.reference_key if isinstance(job.config, BenchConfig) else ""


def _computed(
    job: TrialJob | PromotedJob, store: SweepStore, report: Report, *, rank: int
) -> tuple[Mapping[str, float], str]:
    """What the trial measured, and the hash of its policy."""
    checkpoint = store.checkpoint(job.begun.trial_id)
    if isinstance(job, PromotedJob):
        output = model_folder(store.trial_folder(job.begun.trial_id))
        found = job.science.finetune(
            job.config, job.policy, report, store=store.references, checkpoint=checkpoint, output=output
        )
        return found.metrics, job.policy.policy.hash
    result = job.science.run_trial(job.config, report, store=store.references, checkpoint=checkpoint)
    if rank == 0:
        _save_policy(store, job.begun.trial_id, result)
    return result.metrics, result.record.policy.hash


def _numbers(epoch: EpochReport) -> dict[str, Any]:
    """An epoch as Ray takes it."""
    return {"stage": epoch.stage, "epoch": epoch.epoch, "epochs": epoch.epochs, **epoch.metrics}


def settle_failure(store: SweepStore, begun: TrialRecord, error: Exception) -> TrialRecord:
    """Writes down why the trial failed, with its traceback beside; the record that stands.

    An attempt that is over, or that another one has followed, has nothing to say any more. Raises
    StorageUnavailableError where the storage is to blame: the trial has not failed, and goes on when that is mended.
    """
    storage_error = storage_to_blame(error, store.folder, SWEEP_FILE)
    if storage_error is not None:
        raise storage_error from None
    standing = store.trial(begun.trial_id)
    if standing.final or standing.attempts != begun.attempts:
        return standing
    write_text(store.trial_folder(begun.trial_id) / "error.txt", traceback_of(error))
    failed = dataclasses.replace(
        begun, state="failed", ended_ms=now_ms(), failure=failure_of(error), error=message_of(error)
    )
    try:
        return store.finish_trial(failed)
    except ReplacedError:
        return store.trial(begun.trial_id)


def _save_policy(store: SweepStore, trial_id: str, result: TrialResult) -> None:
    from dashboards.bits import draw_bits

    store.save_policy(trial_id, result.record)
    store.save_choices(trial_id, result.choices)
    if result.samples:
        result.samples.save(store.trial_folder(trial_id) / ATTRIBUTION_FILE)
    draw_bits(result.record, store.trial_folder(trial_id) / "bits.png")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneJob:
    """Everything a worker needs to finetune a sweep's random policy."""

    baseline: Baseline
    """What is known of it already."""
    policy: PolicyRecord
    config: TrialConfig
    sweep_folder: Path
    threads: int
    """As of a trial."""
    science: Science


def finetune_policy(job: FinetuneJob, *, rank: int, tell: Tell) -> None:
    """Finetunes and measures a policy; rank 0 writes maps and, last, the record. One that diverges has no numbers."""
    use_threads(job.threads)
    store = SweepStore(job.sweep_folder)

    def report(epoch: EpochReport) -> None:
        tell(_numbers(epoch))

    checkpoint = checkpoint_of(job.sweep_folder)
    carried = group_carried(store, RANDOM) if rank == 0 else contextlib.nullcontext()
    try:
        with (
            patient(),
            logged(store, "random policy"),
            maps_carried(store.references, job.config.reference_key, rank=rank),
            carried,
        ):
            found = job.science.finetune(job.config, job.policy, report, store=store.references, checkpoint=checkpoint)
    except DivergedError as error:
        done = dataclasses.replace(job.baseline, error=f"diverged: {error}")
    else:
        done = dataclasses.replace(job.baseline, metrics=found.metrics)
        if rank == 0 and found.samples:
            found.samples.save(attribution_of(job.sweep_folder))
    if rank == 0:
        done.save(job.sweep_folder)
        if store.replica is not None:
            store.replica.push(store.folder.name, RANDOM)


def finetune_policy_at(place: Place, job: FinetuneJob, *, tell: Tell) -> None:
    """As `finetune_policy`, by this process alone; the sweep's folder is `place` on its machine."""
    with attempt_begun(place, RANDOM) as store:
        finetune_policy(dataclasses.replace(job, sweep_folder=store.folder), rank=0, tell=tell)


def make_reference(
    science: Science,
    config: BenchConfig,
    *,
    store: Place,
    threads: int,
    tell: Tell,
    rank: int = 0,
    barrier: Callable[[], None] = alone,
) -> ReferenceRecord:
    """The reference's record, trained by this worker and its peers if need be; `barrier` waits for these."""
    use_threads(threads)

    def report(epoch: EpochReport) -> None:
        tell(_numbers(epoch))

    with patient(), reference_carried(store.here, config.reference_key, rank=rank, barrier=barrier):
        return science.ensure_reference(config, report, store=store.here)
