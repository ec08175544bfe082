"""Several workers under Ray Train: the same functions, each in a process group that Ray has started."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from service.baseline import Baseline
from service.files import write_text
from service.launched import Launched
from service.marks import RANDOM
from service.orchestrate.carrier import attempt_begun, share_reference, trial_group
from service.orchestrate.failures import failure_of, unwrapped
from service.orchestrate.worker import (
    FinetuneJob,
    PromotedJob,
    Science,
    SupersededError,
    Tell,
    TrialJob,
    finetune_policy,
    make_reference,
    run_trial,
    settle_failure,
)
from service.records import SweepStore, TrialRecord
from service.sweeps import TRAIN_FOLDER
from service.working_copy import Place
from trainables.api import ReferenceRecord
from trainables.config import BenchConfig
from trainables.errors import BitfrontError, ConfigError

Barrier = Callable[[], None]
"""Waits for all workers."""

# A nested trainer waits for its controller's checks; Ray's own two seconds make short trials long.
HEALTH_CHECK_INTERVAL_S = "0.2"


def run_trial_on_workers(job: TrialJob | PromotedJob, spec: Launched, *, callbacks: Sequence[Any] = ()) -> TrialRecord:
    """Runs the trial on its workers; rank 0's epochs reach the callbacks. Its result is read from the storage.

    Ray Train starts the workers again when one was lost, and cannot tell that from any other error: what another
    attempt would not mend is a result before it hears of it, and the next attempt finds it.
    """
    place, trial_id = Place.of(job.sweep_folder), job.begun.trial_id

    def work(tell: Tell, rank: int, barrier: Barrier) -> None:
        with attempt_begun(place, trial_group(trial_id), rank=rank, barrier=barrier) as store:
            if store.result(trial_id) is not None:
                return
            try:
                run_trial(dataclasses.replace(job, sweep_folder=store.folder), rank=rank, tell=tell)
            except SupersededError:
                return
            except Exception as error:
                if failure_of(error) in ("user error", "out of memory"):
                    settle_failure(store, job.begun, error)
                raise

    _fit(work, spec, name=f"{trial_id}-{job.begun.attempts}", sweep=place, callbacks=list(callbacks))
    store = SweepStore(job.sweep_folder)
    store.refresh(trial_id)
    record = store.result(trial_id)
    if record is None:
        raise RuntimeError("the workers ended without a result")
    return record


def make_reference_on_workers(
    science: Science, config: BenchConfig, spec: Launched, *, sweep: Place
) -> ReferenceRecord:
    """Trains the reference on as many workers as a trial has."""

    name = f"{config.reference_key}-{uuid.uuid4().hex[:8]}"
    references, threads = Place.of(SweepStore(sweep.here).references), spec.resources.cpus_per_worker

    def work(tell: Tell, rank: int, barrier: Barrier) -> None:
        if _refusal(sweep, name):
            return
        try:
            make_reference(science, config, store=references, threads=threads, tell=tell, rank=rank, barrier=barrier)
        except BitfrontError as error:
            # Another attempt would not mend it: the next one ends at once.
            _refuse(sweep, name, str(error))
            raise

    _fit(work, spec, name=name, sweep=sweep, callbacks=[])
    refusal = _refusal(sweep, name)
    if refusal:
        raise ConfigError(refusal)
    share_reference(SweepStore(sweep.here), config.reference_key)
    record = ReferenceRecord.find(references.here, config.reference_key)
    if record is None:
        raise RuntimeError("the workers ended without a reference")
    return record


def _refuse(sweep: Place, name: str, why: str) -> None:
    path = sweep.here / TRAIN_FOLDER / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    write_text(path, why)
    replica = SweepStore(sweep.here).replica
    if replica is not None:
        replica.push_file(path)


def _refusal(sweep: Place, name: str) -> str:
    """Why a worker, on whatever machine, has refused to train the reference; empty where none has."""
    path = sweep.here / TRAIN_FOLDER / f"{name}.txt"
    replica = SweepStore(sweep.here).replica
    if replica is not None:
        replica.fetch_file(path)
    return path.read_text() if path.exists() else ""


def finetune_policy_on_workers(job: FinetuneJob, spec: Launched, *, sweep: Place) -> None:
    """Finetunes a policy on as many workers as a trial has."""

    def work(tell: Tell, rank: int, barrier: Barrier) -> None:
        with attempt_begun(sweep, RANDOM, rank=rank, barrier=barrier) as store:
            if Baseline.find(store.folder) is None:
                finetune_policy(dataclasses.replace(job, sweep_folder=store.folder), rank=rank, tell=tell)

    _fit(work, spec, name=f"random-{uuid.uuid4().hex[:8]}", sweep=sweep, callbacks=[])


def _fit(
    work: Callable[[Tell, int, Barrier], None],
    spec: Launched,
    *,
    name: str,
    sweep: Place,
    callbacks: list[Any],
) -> None:
    """Runs `work(tell, rank, barrier)` on every worker."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_INTERVAL_S)
    from ray import train
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        from ray.train.collective import barrier

        work(train.report, train.get_context().get_world_rank(), barrier)

    resources = spec.resources
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    trainer = TorchTrainer(
        loop,
        scaling_config=train.ScalingConfig(
            num_workers=(resources.min_workers, resources.workers) if resources.min_workers else resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        ),
        run_config=train.RunConfig(
            name=name,
            **_scratch(sweep),
            callbacks=callbacks,
            failure_config=train.FailureConfig(max_failures=spec.limits.retries),
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        # Each worker's own error, where the group's would quote the end of its traceback.
        raise unwrapped(next(iter(error.worker_failures.values()), error)) from None


def _scratch(sweep: Place) -> dict[str, Any]:
    """Where Ray Train keeps its notes, which all workers have to reach: in the sweep's folder, or among its objects."""
    replica = SweepStore(sweep.here).replica
    if replica is None:
        return {"storage_path": str(sweep.here / TRAIN_FOLDER)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    store = replica.store
    folder = "/".join(part for part in (store.bucket, store.prefix, sweep.below, TRAIN_FOLDER) if part)
    return {"storage_path": folder, "storage_filesystem": PyFileSystem(FSSpecHandler(store.files))}
