"""A sweep from its spec to its front: reference, trials under Ray Tune, records, mirror.

Ray's own snapshots are not used: they lag, and after a restore finished trials run again. A sweep begins, and is
resumed, from its own storage: trials that were cut off are handed out first, then new ones until all that are planned
are final.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback

from service.background_mirror import BackgroundMirror
from service.combinations import references
from service.orchestrate.baseline import baseline_is_due, baseline_is_wanted, make_baseline
from service.orchestrate.carrier import attempt_begun, trial_group
from service.orchestrate.drive import FINISHED, INTERRUPTED, SweepOutcome, Work, drive, note_end, publish
from service.orchestrate.failures import unwrapped
from service.orchestrate.limits import UNAVAILABLE, SweepStopper, settle_hung, watched
from service.orchestrate.reference import prepare_references
from service.orchestrate.scheduler import SweepScheduler
from service.orchestrate.searcher import StudySearcher
from service.orchestrate.worker import (
    Science,
    SupersededError,
    TrialJob,
    run_trial,
    settle_failure,
)
from service.progress import Progress
from service.records import SweepStore, TrialRecord, now_ms
from service.spec import SweepSpec
from service.sweeps import TUNE_FOLDER
from service.working_copy import Place
from trainables import api
from trainables.errors import BitfrontError, StorageUnavailableError
from trainables.patience import patient

DRIVER_MEMORY = 2**20
"""Bytes that a trial asks for when its workers have the processors. Some resource it must name, and a share of a CPU
could leave its own workers without a whole one for ever."""
PUBLISH_S, PUBLISH_SHARE = 1.0, 0.02
"""While trials run the front's files are written no more often, and no larger share of the time."""


def run_sweep(
    spec: SweepSpec,
    store: SweepStore,
    progress_for: Callable[[SweepStore], Progress],
    *,
    address: str = "",
    science: Science = api,
) -> SweepOutcome:
    """Runs what is left of the sweep in `store`, here or on the Ray cluster at `address`."""

    def prepare() -> Work | None:
        finished = _is_finished(spec, store)
        if finished:
            # A driver may have been killed between the last result and telling the study.
            StudySearcher(spec, store)
        return None if finished and not baseline_is_due(spec, store) else work

    def work(progress: Progress, mirror: BackgroundMirror, stopper: SweepStopper) -> str:
        end = FINISHED
        if not _is_finished(spec, store):
            prepare_references(references(spec), spec, store, progress, science)
            mirror.poke()
            end = _run_trials(spec, store, progress, mirror, science, stopper)
        if end == FINISHED:
            _compare_knee(spec, store, progress, science, stopper)
        return end

    return drive(spec, store, progress_for, prepare, address=address)


def _is_finished(spec: SweepSpec, store: SweepStore) -> bool:
    records = store.trials()
    return len(records) >= spec.trials and all(record.final for record in records)


def _compare_knee(
    spec: SweepSpec, store: SweepStore, progress: Progress, science: Science, stopper: SweepStopper
) -> None:
    """Finetunes a random policy beside the knee, if the sweep wants one that it has not.

    Whatever comes of that, and should this driver be killed meanwhile: the sweep has ended well, and says so before.
    """
    if baseline_is_wanted(spec, store):
        note_end(store, FINISHED, running_s=stopper.running_s)
        drawn = partial(publish, store, page=True)
        make_baseline(spec, store, progress, science, seconds=stopper.seconds_left, meanwhile=drawn)


@contextlib.contextmanager
def _interrupts_as_before() -> Iterator[None]:
    """Tune leaves a handler behind that takes the next Ctrl-C for its own."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _run_trials(
    spec: SweepSpec,
    store: SweepStore,
    progress: Progress,
    mirror: BackgroundMirror,
    science: Science,
    stopper: SweepStopper,
) -> str:
    # Of Tune's loggers only the one that it reads itself at the end: each trial's history is in our own storage.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would write down all its trials again and again, for a restore that is never asked for.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")
    # A failed trial is a line of ours, with its traceback in the trial's folder.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    keep_credentials()
    shutil.rmtree(store.folder / TUNE_FOLDER, ignore_errors=True)
    # The scheduler first: it may end trials that the searcher would hand out again.
    scheduler, searcher = SweepScheduler(spec, store), StudySearcher(spec, store)
    if not searcher.remaining:
        return FINISHED
    function = tune.with_parameters(_trial, spec=spec, place=Place.of(store.folder), science=science)
    tuner = tune.Tuner(
        tune.with_resources(function, _resources(spec)),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=searcher.remaining,
            max_concurrent_trials=spec.resources.concurrency,
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
            # A process with its imports behind it takes the next trial at once; Ray Train starts its workers anew.
            reuse_actors=spec.resources.launch_resolved == "process",
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(store.folder),
            callbacks=[_Watcher(store, progress, mirror), JsonLoggerCallback()],
            failure_config=tune.FailureConfig(max_failures=spec.limits.retries),
            stop=stopper,
            verbose=0,
        ),
    )
    with _interrupts_as_before():
        try:
            tuner.fit()
        except Exception as error:
            if isinstance(meant := unwrapped(error), StorageUnavailableError):
                raise meant from None
            raise
    stopper.check_storage()
    if _is_finished(spec, store):
        return FINISHED
    return stopper.reason or INTERRUPTED


def keep_credentials() -> None:
    """Tune would write the driver's for object storage into each trial's environment, which Ray logs and shows.

    Machines of a cluster have theirs, and processes of a Ray of one's own inherit them.
    """
    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    passed_on.difference_update([name for name in passed_on if name.startswith("AWS_")])


def _resources(spec: SweepSpec) -> tune.PlacementGroupFactory:
    if spec.resources.launch_resolved == "train":
        return tune.PlacementGroupFactory([{"CPU": 0, "memory": DRIVER_MEMORY}])
    needs: dict[str, float] = {"CPU": spec.resources.cpus_per_worker}
    if spec.resources.gpus_per_worker:
        needs["GPU"] = spec.resources.gpus_per_worker
    return tune.PlacementGroupFactory([needs])


def _trial_id(trial: Trial) -> str:
    return str(trial.config["trial_id"])


def _trial(config: dict[str, Any], *, spec: SweepSpec, place: Place, science: Science) -> None:
    """What Ray Tune runs for each attempt at a trial; writes down what went wrong.

    Tune sees an error only where a process was lost, and starts the trial again; everything else is a result. Where the
    storage cannot be used, what there is to say ends the sweep.
    """
    try:
        with patient(), attempt_begun(place, trial_group(config["trial_id"])) as store:
            _attempt(config, spec=spec, store=store, science=science)
    except StorageUnavailableError as error:
        tune.report({"state": "pending", UNAVAILABLE: str(error)})


def _attempt(config: dict[str, Any], *, spec: SweepSpec, store: SweepStore, science: Science) -> None:
    settle_hung(store, config["trial_id"])
    known = store.result(config["trial_id"])
    if known is not None:
        tune.report({"state": known.state, **known.metrics})
        return
    begun = store.start_trial(config["trial_id"], now_ms=now_ms(), reference=_reference_key(spec, store, config))
    try:
        with watched(store, begun, spec.limits):
            _compute(begun, spec=spec, store=store, science=science)
    except SupersededError:
        return
    except Exception as error:
        record = settle_failure(store, begun, error)
        tune.report({"state": record.state})


def _compute(begun: TrialRecord, *, spec: SweepSpec, store: SweepStore, science: Science) -> None:
    job = TrialJob(
        begun=begun,
        config=spec.trial_config(begun.settings),
        sweep_folder=store.folder,
        threads=spec.resources.cpus_per_worker,
        science=science,
    )
    if spec.resources.launch_resolved == "process":
        run_trial(job, rank=0, tell=tune.report)
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    from service.orchestrate.train import run_trial_on_workers

    callbacks = [TuneReportCallback()]
    record = run_trial_on_workers(job, spec, callbacks=callbacks)
    tune.report({"state": record.state, **record.metrics})


def _reference_key(spec: SweepSpec, store: SweepStore, config: Mapping[str, Any]) -> str:
    """Of the trial that Tune hands out; empty where its settings make no trial, as its attempt then says."""
    with contextlib.suppress(BitfrontError):
        return spec.trial_config(store.trial(config["trial_id"]).settings).reference_key
    return ""


class _Watcher(tune.Callback):  # type: ignore[misc]  # Ray is not typed
    """Follows the trials in the driver: terminal, front files, mirror."""

    def __init__(
        self,
        store: SweepStore,
        progress: Progress,
        mirror: BackgroundMirror,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.progress, self.mirror = store, progress, mirror
        self._clock, self._due, self._behind = clock, -float("inf"), False

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune stores its callbacks with the experiment; terminal and thread belong to this process alone.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.progress.started(_trial_id(trial))
        self.mirror.poke()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self.store.result(_trial_id(trial)) is None:
            self.progress.note(f"{_trial_id(trial)}: its process was lost; it goes on from its last epoch")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if "stage" in result:
            self.progress.epoch(_trial_id(trial), result)
            self.mirror.poke()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.store.refresh(_trial_id(trial))
        # No attempt follows that would.
        settle_hung(self.store, _trial_id(trial))
        self._ended(trial)

    def _ended(self, trial: Trial) -> None:
        # Tune keeps its trials for as long as it runs, each with means of every number, 40 kB that nobody asks for.
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()
        self.store.refresh(_trial_id(trial))
        record = self.store.result(_trial_id(trial))
        if record is not None:
            self.progress.finished(record)
            self._behind = True
            self.mirror.poke()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        # Not with every end: a front costs as much as it has trials before it, and thousands of them end.
        began = self._clock()
        if self._behind and began >= self._due:
            publish(self.store, page=False)
            now = self._clock()
            self._behind, self._due = False, now + max(PUBLISH_S, (now - began) / PUBLISH_SHARE)
