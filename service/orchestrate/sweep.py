"""A sweep from its spec to its front: reference, trials under Ray Tune, records, mirror.

Ray's own snapshots are not used: they lag, and after a restore finished trials run again. A sweep begins, and is
resumed, from its own storage: trials that were cut off are handed out first, then new ones until all that are planned
are final.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback

from dashboards.front import as_json, as_markdown
from dashboards.front_picture import draw_front
from dashboards.page import sweep_page
from service import driver
from service.front import Front, find_front
from service.mirror import BackgroundMirror, Tracker
from service.orchestrate.baseline import baseline_is_due, baseline_is_wanted, make_baseline
from service.orchestrate.cluster import connected
from service.orchestrate.gauges import exported
from service.orchestrate.limits import STOPPED, SweepStopper, end_after
from service.orchestrate.reference import StoppedError, prepare_references
from service.orchestrate.scheduler import SweepScheduler
from service.orchestrate.searcher import StudySearcher
from service.orchestrate.worker import (
    Science,
    SupersededError,
    TrialJob,
    now_ms,
    run_trial,
    settle_failure,
)
from service.progress import Progress
from service.records import SweepStore, write_json, write_text
from service.spec import SweepSpec
from service.sweeps import TRAIN_FOLDER, TUNE_FOLDER
from service.tracking import first_line, resolve_uri
from service.view import read_view
from trainables import api
from trainables.errors import BitfrontError

log = logging.getLogger("bitfront.sweep")

FINISHED, INTERRUPTED = "finished", "interrupted"
PAGE_ERROR = "page-error.txt"
DRIVER_MEMORY = 2**20
"""Bytes that a trial asks for when its workers have the processors. Some resource it must name, and a share of a CPU
could leave its own workers without a whole one for ever."""


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """What a sweep leaves behind when its driver ends."""

    store: SweepStore
    found: Front
    end: str
    """'finished', or why it was stopped."""
    mirror_error: Exception | None
    """Why the tracking record is behind, if it is."""


def run_sweep(
    spec: SweepSpec,
    store: SweepStore,
    progress_for: Callable[[SweepStore], Progress],
    *,
    address: str = "",
    science: Science = api,
) -> SweepOutcome:
    """Runs what is left of the sweep in `store`, here or on the Ray cluster at `address`.

    What a trial found is in the storage when this returns or raises.
    """
    with driver.hold(store.folder):
        began, end, before_s = time.monotonic(), INTERRUPTED, store.sweep().running_s
        store.save_sweep(dataclasses.replace(store.sweep(), ended_ms=0, end=""))
        storage = store.folder.parent
        tracker = Tracker(store, uri=resolve_uri(spec.tracking.uri, storage), experiment=spec.tracking.experiment)
        mirror = BackgroundMirror(tracker)
        try:
            if _is_finished(spec, store):
                # A driver may have been killed between the last result and telling the study.
                StudySearcher(spec, store)
                end = FINISHED
            if end != FINISHED or baseline_is_due(spec, store):
                with (
                    connected(spec, address),
                    exported(store),
                    _stopped_by_sigterm(store),
                    progress_for(store) as progress,
                ):
                    stopper = SweepStopper(spec, store, before_s=before_s, began=began)
                    if end != FINISHED:
                        prepare_references(spec, store, progress, science)
                        mirror.poke()
                        end = _run_trials(spec, store, progress, mirror, science, stopper)
                    if end == FINISHED:
                        _compare_knee(spec, store, progress, science, stopper)
        except StoppedError:
            end = STOPPED
        except Exception as error:
            # What goes wrong after the last trial does not undo it.
            end = end if end == FINISHED else f"error: {first_line(error)}"
            raise
        finally:
            try:
                _close(store, end, running_s=before_s + time.monotonic() - began)
                found = publish(store, page=True)
            finally:
                error_in_mirror = mirror.close()
        return SweepOutcome(store, found, end, error_in_mirror)


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
        _note_end(store, FINISHED, running_s=stopper.running_s)
        publish(store, page=True)
        make_baseline(spec, store, progress, science, seconds=stopper.seconds_left)


@contextlib.contextmanager
def _stopped_by_sigterm(store: SweepStore) -> Iterator[None]:
    """A job that is stopped, or a machine that is shut down, gets the time to note where it was. After Ray's own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: driver.request_stop(store.folder))
    try:
        yield
    finally:
        # None is a handler that was not set from Python.
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def _interrupts_as_before() -> Iterator[None]:
    """Tune leaves a handler behind that takes the next Ctrl-C for its own."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _close(store: SweepStore, end: str, *, running_s: float) -> None:
    """The driver is gone now, and says so; trials that it cut off wait for the next."""
    for trial in store.trials():
        store.interrupt_trial(trial.trial_id)
    _note_end(store, end, running_s=running_s)
    store.log(f"closed: {end}")


def _note_end(store: SweepStore, end: str, *, running_s: float) -> None:
    store.save_sweep(dataclasses.replace(store.sweep(), ended_ms=now_ms(), end=end, running_s=running_s))


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
    # A failed trial is a line of ours, with its traceback in the trial's folder.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shutil.rmtree(store.folder / TUNE_FOLDER, ignore_errors=True)
    # The scheduler first: it may end trials that the searcher would hand out again.
    scheduler, searcher = SweepScheduler(spec, store), StudySearcher(spec, store)
    if not searcher.remaining:
        return FINISHED
    function = tune.with_parameters(_trial, spec=spec, folder=store.folder, science=science)
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
        tuner.fit()
    if _is_finished(spec, store):
        return FINISHED
    return stopper.reason or INTERRUPTED


def _resources(spec: SweepSpec) -> tune.PlacementGroupFactory:
    if spec.resources.launch_resolved == "train":
        return tune.PlacementGroupFactory([{"CPU": 0, "memory": DRIVER_MEMORY}])
    needs: dict[str, float] = {"CPU": spec.resources.cpus_per_worker}
    if spec.resources.gpus_per_worker:
        needs["GPU"] = spec.resources.gpus_per_worker
    return tune.PlacementGroupFactory([needs])


def _trial_id(trial: Trial) -> str:
    return str(trial.config["trial_id"])


def _trial(config: dict[str, Any], *, spec: SweepSpec, folder: Path, science: Science) -> None:
    """What Ray Tune runs for each attempt at a trial; writes down what went wrong.

    Tune sees an error only where a process was lost, and starts the trial again; everything else is a result.
    """
    store = SweepStore(folder)
    known = store.result(config["trial_id"])
    if known is not None:
        tune.report({"state": known.state, **known.metrics})
        return
    begun = store.start_trial(config["trial_id"], now_ms=now_ms(), reference=_reference_key(spec, store, config))
    timer = end_after(store, begun, spec.limits.trial_time)
    try:
        job = TrialJob(
            begun=begun,
            config=spec.trial_config(begun.settings),
            sweep_folder=folder,
            threads=spec.resources.cpus_per_worker,
            science=science,
        )
        if spec.resources.launch_resolved == "process":
            run_trial(job, rank=0, tell=tune.report)
        else:
            from service.orchestrate.train import run_trial_on_workers

            record = run_trial_on_workers(job, spec, scratch=folder / TRAIN_FOLDER)
            tune.report({"state": record.state, **record.metrics})
    except SupersededError:
        return
    except Exception as error:
        record = settle_failure(store, begun, error)
        tune.report({"state": record.state})
    finally:
        timer.cancel()


def _reference_key(spec: SweepSpec, store: SweepStore, config: Mapping[str, Any]) -> str:
    """Of the trial that Tune hands out; empty where its settings make no trial, as its attempt then says."""
    with contextlib.suppress(BitfrontError):
        return spec.trial_config(store.trial(config["trial_id"]).settings).reference_key
    return ""


class _Watcher(tune.Callback):  # type: ignore[misc]  # Ray is not typed
    """Follows the trials in the driver: terminal, front files, mirror."""

    def __init__(self, store: SweepStore, progress: Progress, mirror: BackgroundMirror) -> None:
        self.store, self.progress, self.mirror = store, progress, mirror

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
        self._ended(trial)

    def _ended(self, trial: Trial) -> None:
        record = self.store.result(_trial_id(trial))
        if record is not None:
            self.progress.finished(record)
            publish(self.store, page=False)
            self.mirror.poke()


def publish(store: SweepStore, *, page: bool) -> Front:
    """Writes the front of the finished trials into the sweep's folder; the page is large and written at the end.

    A page that cannot be drawn is told, and holds up nothing.
    """
    sweep = store.sweep()
    found = find_front(store.trials(), sweep)
    write_json(store.folder / "front.json", as_json(sweep, found))
    write_text(store.folder / "front.md", as_markdown(sweep, found))
    if page:
        try:
            _draw(store)
        except Exception as error:  # whatever a damaged file or a number that nobody foresaw does to it
            write_text(store.folder / PAGE_ERROR, "".join(traceback.format_exception(error)))
            told = f"the page could not be drawn: {type(error).__name__}: {first_line(error)}"
            store.log(told)
            log.warning("%s (all of it in %s)", told, store.folder / PAGE_ERROR)
    return found


def _draw(store: SweepStore) -> None:
    view = read_view(store)
    write_text(store.folder / "front.html", sweep_page(view))
    draw_front(view, store.folder / "front.png")
    (store.folder / PAGE_ERROR).unlink(missing_ok=True)
