"""Several workers under Ray Train: the same functions, each in a process group that Ray has started."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from service.baseline import Baseline
from service.launched import Launched
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
from service.records import SweepStore, TrialRecord, write_text
from trainables.api import ReferenceRecord
from trainables.config import BenchConfig
from trainables.errors import BitfrontError, ConfigError

# A nested trainer waits for its controller's checks; Ray's own two seconds make short trials long.
HEALTH_CHECK_INTERVAL_S = "0.2"


def run_trial_on_workers(
    job: TrialJob | PromotedJob, spec: Launched, *, scratch: Path, callbacks: Sequence[Any] = ()
) -> TrialRecord:
    """Runs the trial on its workers; rank 0's epochs reach the callbacks. Its result is read from the storage.

    Ray Train starts the workers again when one was lost, and cannot tell that from any other error: what another
    attempt would not mend is a result before it hears of it, and the next attempt finds it.
    """
    store, trial_id = SweepStore(job.sweep_folder), job.begun.trial_id

    def work(tell: Tell, rank: int) -> None:
        if store.result(trial_id) is not None:
            return
        try:
            run_trial(job, rank=rank, tell=tell)
        except SupersededError:
            return
        except Exception as error:
            if failure_of(error) in ("user error", "out of memory"):
                settle_failure(store, job.begun, error)
            raise

    _fit(work, spec, name=f"{trial_id}-{job.begun.attempts}", scratch=scratch, callbacks=list(callbacks))
    record = store.result(trial_id)
    if record is None:
        raise RuntimeError("the workers ended without a result")
    return record


def make_reference_on_workers(
    science: Science, config: BenchConfig, spec: Launched, *, store: Path, scratch: Path
) -> ReferenceRecord:
    """Trains the reference on as many workers as a trial has."""

    name = f"{config.reference_key}-{uuid.uuid4().hex[:8]}"
    refused = scratch / f"{name}.txt"

    def work(tell: Tell, rank: int) -> None:
        if refused.exists():
            return
        try:
            make_reference(science, config, store=store, threads=spec.resources.cpus_per_worker, tell=tell)
        except BitfrontError as error:
            # Another attempt would not mend it: the next one ends at once.
            write_text(refused, str(error))
            raise

    _fit(work, spec, name=name, scratch=scratch, callbacks=[])
    if refused.exists():
        raise ConfigError(refused.read_text())
    record = ReferenceRecord.find(store, config.reference_key)
    if record is None:
        raise RuntimeError("the workers ended without a reference")
    return record


def finetune_policy_on_workers(job: FinetuneJob, spec: Launched, *, scratch: Path) -> None:
    """Finetunes a policy on as many workers as a trial has."""

    def work(tell: Tell, rank: int) -> None:
        if Baseline.find(job.sweep_folder) is None:
            finetune_policy(job, rank=rank, tell=tell)

    _fit(work, spec, name=f"random-{uuid.uuid4().hex[:8]}", scratch=scratch, callbacks=[])


def _fit(
    work: Callable[[Tell, int], None],
    spec: Launched,
    *,
    name: str,
    scratch: Path,
    callbacks: list[Any],
) -> None:
    """Runs `work(tell, rank)` on every worker."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_INTERVAL_S)
    from ray import train
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        work(train.report, train.get_context().get_world_rank())

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
            storage_path=str(scratch),
            callbacks=callbacks,
            failure_config=train.FailureConfig(max_failures=spec.limits.retries),
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        # Each worker's own error, where the group's would quote the end of its traceback.
        raise unwrapped(next(iter(error.worker_failures.values()), error)) from None
