"""A promotion on Ray: references first, then the finetune of each policy, in a process of its own or on its workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import ray

from service.background_mirror import BackgroundMirror
from service.orchestrate.carrier import attempt_begun, trial_group
from service.orchestrate.drive import FINISHED, INTERRUPTED, SweepOutcome, Work, drive, publish
from service.orchestrate.failures import unwrapped
from service.orchestrate.limits import SweepStopper, settle_hung, watched
from service.orchestrate.reference import STOP_POLL_S, prepare_references, silent, task_options
from service.orchestrate.worker import (
    PromotedJob,
    Science,
    SupersededError,
    run_trial,
    settle_failure,
)
from service.progress import Progress
from service.records import SweepStore, now_ms
from service.template import Template
from service.tracking import resolve_uri
from service.working_copy import Place
from trainables import api
from trainables.config import BenchConfig
from trainables.detector_config import DetectorConfig
from trainables.errors import BitfrontError, StorageUnavailableError
from trainables.patience import patient

Config = BenchConfig | DetectorConfig


def run_promotion(
    template: Template,
    store: SweepStore,
    progress_for: Callable[[SweepStore], Progress],
    *,
    address: str = "",
    science: Science = api,
) -> SweepOutcome:
    """Finetunes every policy of the promotion in `store` that is not finetuned yet.

    Those that were cut off go on where they stopped.
    """

    def prepare() -> Work | None:
        trials = store.trials()
        for trial in trials:
            # Its driver was killed.
            store.interrupt_trial(trial.trial_id)
        return work if any(not trial.final for trial in trials) else None

    def work(progress: Progress, mirror: BackgroundMirror, stopper: SweepStopper) -> str:
        waiting = [trial.trial_id for trial in store.trials() if not trial.final]
        configs = {trial_id: template.config(store.policy(trial_id)) for trial_id in waiting}
        benches = [config for config in configs.values() if isinstance(config, BenchConfig)]
        wanted = {bench.reference_key: bench for bench in reversed(benches)}
        prepare_references(wanted, template, store, progress, science)
        mirror.poke()
        running = _Running(template, store, progress, mirror, stopper, science)
        return running.until_done(configs)

    return drive(template, store, progress_for, prepare, address=address)


class _Running:
    """The finetunes that run, in the driver."""

    def __init__(
        self,
        template: Template,
        store: SweepStore,
        progress: Progress,
        mirror: BackgroundMirror,
        stopper: SweepStopper,
        science: Science,
    ) -> None:
        self.template, self.store, self.science = template, store, science
        self.progress, self.mirror, self.stopper = progress, mirror, stopper
        self.tasks: dict[ray.ObjectRef[Any], str] = {}
        self.told: dict[str, int] = {}
        """Epochs of each trial that the terminal and the limits know of."""

    def until_done(self, configs: Mapping[str, Config]) -> str:
        """Runs these trials, so many at once as the template says; why it ended."""
        waiting = deque(configs)
        try:
            while (waiting or self.tasks) and not self.stopper.stop_all():
                while waiting and len(self.tasks) < self.template.resources.concurrency:
                    self._start(waiting[0], configs[waiting.popleft()])
                done, _ = ray.wait(list(self.tasks), timeout=STOP_POLL_S)
                for trial_id in self.tasks.values():
                    self._follow(trial_id)
                for task in done:
                    self._settle(task)
        finally:
            for task in self.tasks:
                ray.cancel(task, force=True)
        self.stopper.check_storage()
        if all(trial.final for trial in self.store.trials()):
            return FINISHED
        return self.stopper.reason or INTERRUPTED

    def _start(self, trial_id: str, config: Config) -> None:
        self.told[trial_id] = len(self.store.history(trial_id))
        # On a GPU a process of its own each time: what one has left there is gone before the next begins.
        calls = 1 if self.template.resources.gpus_per_worker else 0
        task = ray.remote(**task_options(self.template), max_calls=calls)(_finetune)
        place = Place.of(self.store.folder)
        made = task.remote(trial_id, config, template=self.template, place=place, science=self.science)
        self.tasks[made] = trial_id
        self.progress.started(trial_id)
        self.mirror.poke()

    def _follow(self, trial_id: str) -> None:
        lines = self.store.history(trial_id)
        for line in lines[self.told[trial_id] :]:
            self.progress.epoch(trial_id, line)
            self.stopper(trial_id, line)
            self.mirror.poke()
        self.told[trial_id] = len(lines)

    def _settle(self, task: ray.ObjectRef[Any]) -> None:
        trial_id = self.tasks.pop(task)
        self.store.refresh(trial_id)
        try:
            lost_storage = ray.get(task)
            if lost_storage:
                self.stopper.lose_storage(lost_storage)
                return
        except Exception as error:  # its process was lost, more often than limits.retries allows
            settle_hung(self.store, trial_id)
            meant = unwrapped(error)
            settle_failure(self.store, self.store.trial(trial_id), meant if isinstance(meant, Exception) else error)
        record = self.store.result(trial_id)
        if record is not None:
            self.progress.finished(record)
            publish(self.store, page=False)
            self.mirror.poke()


def _finetune(trial_id: str, config: Config, *, template: Template, place: Place, science: Science) -> str:
    """What Ray runs for each attempt; writes down what went wrong. Ray sees an error only where a process was lost.

    Returns why the storage cannot be used any more; empty as a rule.
    """
    try:
        with patient(), attempt_begun(place, trial_group(trial_id)) as store:
            _attempt(trial_id, config, template=template, store=store, science=science)
    except StorageUnavailableError as error:
        return str(error)
    return ""


def _attempt(trial_id: str, config: Config, *, template: Template, store: SweepStore, science: Science) -> None:
    settle_hung(store, trial_id)
    if store.result(trial_id) is not None:
        return
    reference = config.reference_key if isinstance(config, BenchConfig) else ""
    begun = store.start_trial(trial_id, now_ms=now_ms(), reference=reference)
    job = PromotedJob(
        begun=begun,
        config=config,
        policy=store.policy(trial_id),
        sweep_folder=store.folder,
        threads=template.resources.cpus_per_worker,
        science=science,
    )
    try:
        with watched(store, begun, template.limits):
            _compute(job, template)
    except SupersededError:
        return
    except Exception as error:
        settle_failure(store, begun, error)


def _compute(job: PromotedJob, template: Template) -> None:
    if template.resources.launch_resolved == "process":
        run_trial(job, rank=0, tell=silent)
        return
    from service.orchestrate.train import run_trial_on_workers

    run_trial_on_workers(job, template)


def register_outcome(template: Template, store: SweepStore) -> str:
    """Registers the best network of a finished promotion; a line that says so, or why it could not be done."""
    from service.registry import register_best

    wanted = template.register
    tracking = template.tracking
    try:
        found = register_best(
            store,
            resolve_uri(tracking.uri, store.folder.parent),
            tracking.experiment,
            model=wanted.model or template.name,
            alias=wanted.alias,
            objective=wanted.objective or template.accuracy,
        )
    except BitfrontError as error:
        return f"The best network could not be registered ({error}); `bitfront resume {template.name}` tries again"
    alias = f"models:/{found.model}@{wanted.alias}"
    if found.kept:
        better = found.kept[wanted.alias]
        return f"The best network, {found.trial}, is {found.uri}; {alias} stays version {better}, better on this data"
    return f"The best network, {found.trial}, is {found.uri}, also {alias}"
