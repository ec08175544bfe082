"""A sweep from its spec to its front: reference, trials under Ray Tune, records, mirror."""

from __future__ import annotations

import dataclasses
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback

from dashboards.front import Front, as_json, as_markdown, as_page, find_front
from service.orchestrate.failures import unwrapped
from service.orchestrate.searcher import StudySearcher
from service.orchestrate.worker import TrialJob, make_reference, now_ms, run_trial
from service.progress import Progress
from service.records import SweepRecord, SweepStore, TrialRecord, write_json, write_text
from service.spec import SweepSpec
from service.tracking import BackgroundMirror, Tracker, resolve_uri
from trainables.api import ReferenceRecord
from trainables.config import TrialConfig
from trainables.errors import ConfigError

TRAIN_FOLDER, TUNE_FOLDER = "train", "tune"
DRIVER_MEMORY = 2**20
"""Bytes that a trial asks for when its workers have the processors. Some resource it must name, and a share of a CPU
could leave its own workers without a whole one for ever."""


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """What a finished sweep leaves behind."""

    store: SweepStore
    found: Front
    mirror_error: Exception | None
    """Why the tracking record is behind, if it is."""


def run_sweep(spec: SweepSpec, progress_for: Callable[[SweepStore], Progress]) -> SweepOutcome:
    """Runs every trial of `spec` on this machine. What a trial found is in the storage when this returns or raises."""
    storage = Path(spec.storage.path).absolute()
    store = SweepStore.create(storage, _record_of(spec), spec_text=spec.text)
    tracker = Tracker(store, uri=resolve_uri(spec.tracking.uri, storage), experiment=spec.tracking.experiment)
    mirror = BackgroundMirror(tracker)
    try:
        with local_ray(spec), progress_for(store) as progress:
            _prepare_reference(spec, store, progress)
            mirror.poke()
            _run_trials(spec, store, progress, mirror)
    finally:
        _end_running(store)
        store.save_sweep(dataclasses.replace(store.sweep(), ended_ms=now_ms()))
        found = publish(store, page=True)
        error = mirror.close()
    return SweepOutcome(store, found, error)


def _end_running(store: SweepStore) -> None:
    """Trials that an interrupt or an error of the sweep cut off are over, and say so."""
    for trial in store.trials():
        if trial.state == "running":
            error = "the sweep ended before the trial did"
            store.finish_trial(dataclasses.replace(trial, state="failed", ended_ms=now_ms(), error=error))


def _record_of(spec: SweepSpec) -> SweepRecord:
    return SweepRecord(
        name=spec.name,
        spec_hash=spec.hash,
        facts={
            "network": spec.network.name,
            "data": spec.data.name,
            "method": spec.method_name,
            "sampler": spec.sampler.name,
            "trials": str(spec.trials),
            "seed": str(spec.seed),
        },
        total_trials=spec.trials,
        created_ms=now_ms(),
        tags=spec.tags,
        description=spec.description,
    )


@contextmanager
def local_ray(spec: SweepSpec) -> Iterator[None]:
    """A Ray of our own for the time of a sweep, or the one that this process already uses."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    try:
        gpus = spec.resources.gpus_per_worker * spec.resources.workers
        if gpus > ray.cluster_resources().get("GPU", 0):
            raise ConfigError(f"resources: a trial asks for {gpus:g} GPUs, this machine has fewer; ask for fewer.")
        yield
    finally:
        ray.shutdown()


def _prepare_reference(spec: SweepSpec, store: SweepStore, progress: Progress) -> None:
    config = spec.trial_config(spec.example_settings())
    known = ReferenceRecord.find(store.references, config.reference_key) is not None
    progress.note(f"reference: {'found' if known else 'training'} {config.reference_key} …")
    record = _make_reference(spec, config, store)
    progress.note(f"reference: {record.top1:.2f} % top-1 in full precision")
    store.save_sweep(dataclasses.replace(store.sweep(), reference=dataclasses.asdict(record)))


def _make_reference(spec: SweepSpec, config: TrialConfig, store: SweepStore) -> ReferenceRecord:
    resources = spec.resources
    if resources.launch_resolved == "train":
        from service.orchestrate.train import make_reference_on_workers

        scratch = store.folder / TRAIN_FOLDER
        return make_reference_on_workers(config, resources, store=store.references, scratch=scratch)
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)(make_reference)
    threads = resources.cpus_per_worker
    try:
        found: ReferenceRecord = ray.get(task.remote(config, store=store.references, threads=threads, tell=_silent))
    except ray.exceptions.RayTaskError as error:
        raise unwrapped(error) from None
    return found


def _silent(numbers: dict[str, Any]) -> None:
    """Nobody listens to a reference's epochs."""


def _run_trials(spec: SweepSpec, store: SweepStore, progress: Progress, mirror: BackgroundMirror) -> None:
    # Of Tune's loggers only the one that it reads itself at the end: each trial's history is in our own storage.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # A failed trial is a line of ours, with its traceback in the trial's folder.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    searcher = StudySearcher(dict(spec.space), spec.sampler, store.folder / "study.journal", store.folder.name)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, spec=spec, folder=store.folder), _resources(spec)),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=spec.trials,
            max_concurrent_trials=spec.resources.concurrency,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(store.folder),
            callbacks=[_Watcher(store, progress, mirror), JsonLoggerCallback()],
            verbose=0,
        ),
    )
    tuner.fit()


def _resources(spec: SweepSpec) -> tune.PlacementGroupFactory:
    if spec.resources.launch_resolved == "train":
        return tune.PlacementGroupFactory([{"CPU": 0, "memory": DRIVER_MEMORY}])
    needs: dict[str, float] = {"CPU": spec.resources.cpus_per_worker}
    if spec.resources.gpus_per_worker:
        needs["GPU"] = spec.resources.gpus_per_worker
    return tune.PlacementGroupFactory([needs])


def _trial_name(trial: Trial) -> str:
    return trial_id_of(trial.config["number"])


def trial_id_of(number: int) -> str:
    """Name of a trial in storage and records."""
    return f"t{number:04d}"


def _trial(config: dict[str, Any], *, spec: SweepSpec, folder: Path) -> None:
    """What Ray Tune runs for each trial; writes down what went wrong before passing it on."""
    store = SweepStore(folder)
    job = TrialJob(
        trial_id=trial_id_of(config["number"]),
        number=config["number"],
        settings=config["settings"],
        config=spec.trial_config(config["settings"]),
        sweep_folder=folder,
        threads=spec.resources.cpus_per_worker,
    )
    finished = store.result(job.trial_id)
    if finished is not None:
        # Ray runs finished trials again after some restarts; their result stands.
        tune.report({"state": finished.state, **finished.metrics})
        return
    store.start_trial(job.trial_id, number=job.number, settings=job.settings, now_ms=now_ms())
    begun = now_ms()
    try:
        if spec.resources.launch_resolved == "process":
            run_trial(job, rank=0, tell=tune.report)
        else:
            from service.orchestrate.train import run_trial_on_workers

            record = run_trial_on_workers(job, spec.resources, scratch=folder / TRAIN_FOLDER)
            tune.report({"state": record.state, **record.metrics})
    except Exception as error:
        write_text(store.trial_folder(job.trial_id) / "error.txt", traceback.format_exc())
        store.finish_trial(
            TrialRecord(
                trial_id=job.trial_id,
                number=job.number,
                state="failed",
                settings=job.settings,
                started_ms=begun,
                ended_ms=now_ms(),
                error=f"{type(error).__name__}: {error}",
            )
        )
        raise


class _Watcher(tune.Callback):  # type: ignore[misc]  # Ray is not typed
    """Follows the trials in the driver: terminal, front files, mirror."""

    def __init__(self, store: SweepStore, progress: Progress, mirror: BackgroundMirror) -> None:
        self.store, self.progress, self.mirror = store, progress, mirror

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune stores its callbacks with the experiment; terminal and thread belong to this process alone.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.progress.started(_trial_name(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if "stage" in result:
            self.progress.epoch(_trial_name(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended(trial)

    def _ended(self, trial: Trial) -> None:
        record = self.store.result(_trial_name(trial))
        if record is None:
            # Its process died without a word.
            record = TrialRecord(
                trial_id=_trial_name(trial),
                number=trial.config["number"],
                state="failed",
                settings=trial.config["settings"],
                started_ms=int((trial.start_time or 0) * 1000),
                ended_ms=now_ms(),
                error="the trial's process was lost",
            )
            self.store.finish_trial(record)
        self.progress.finished(record)
        publish(self.store, page=False)
        self.mirror.poke()


def publish(store: SweepStore, *, page: bool) -> Front:
    """Writes the front of the finished trials into the sweep's folder; the page is large and written at the end."""
    sweep, found = store.sweep(), find_front(store.trials())
    write_json(store.folder / "front.json", as_json(sweep, found))
    write_text(store.folder / "front.md", as_markdown(sweep, found))
    if page:
        write_text(store.folder / "front.html", as_page(sweep, found))
    return found


def epochs_per_trial(spec: SweepSpec) -> int:
    """Epochs of search and finetune, at example settings."""
    config = spec.trial_config(spec.example_settings())
    return config.method.epochs + config.finetune.epochs
