"""Several workers under Ray Train: the same functions, each in a process group that Ray has started."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.orchestrate.failures import unwrapped
from service.orchestrate.worker import Tell, TrialJob, make_reference, run_trial
from service.records import TrialRecord
from service.settings import ResourcesConfig
from trainables.api import ReferenceRecord
from trainables.config import TrialConfig

# A nested trainer waits for its controller's checks; Ray's own two seconds make short trials long.
HEALTH_CHECK_INTERVAL_S = "0.2"


def run_trial_on_workers(job: TrialJob, resources: ResourcesConfig, *, scratch: Path) -> TrialRecord:
    """Runs the trial inside of a Tune trial; rank 0's epochs reach Tune. Its result is read from the storage."""
    from ray.tune.integration.ray_train import TuneReportCallback

    from service.records import SweepStore

    def work(tell: Tell, rank: int) -> None:
        run_trial(job, rank=rank, tell=tell)

    _fit(work, resources, name=job.trial_id, scratch=scratch, callbacks=[TuneReportCallback()])
    record = SweepStore(job.sweep_folder).result(job.trial_id)
    if record is None:
        raise RuntimeError("the workers ended without a result")
    return record


def make_reference_on_workers(
    config: TrialConfig, resources: ResourcesConfig, *, store: Path, scratch: Path
) -> ReferenceRecord:
    """Trains the reference on as many workers as a trial has."""

    def work(tell: Tell, rank: int) -> None:
        make_reference(config, store=store, threads=resources.cpus_per_worker, tell=tell)

    _fit(work, resources, name=config.reference_key, scratch=scratch, callbacks=[])
    record = ReferenceRecord.find(store, config.reference_key)
    if record is None:
        raise RuntimeError("the workers ended without a reference")
    return record


def _fit(
    work: Callable[[Tell, int], None],
    resources: ResourcesConfig,
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

    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    trainer = TorchTrainer(
        loop,
        scaling_config=train.ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=per_worker
        ),
        run_config=train.RunConfig(name=name, storage_path=str(scratch), callbacks=callbacks),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        # Each worker's own error, where the group's would quote the end of its traceback.
        raise unwrapped(next(iter(error.worker_failures.values()), error)) from None
