"""Which of Ray Tune's trials go on: early stopping, and what becomes of trials that Tune gives up."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from service.contribution import Answer, ContributionRule, excesses
from service.halving import Halving, rung_values
from service.orchestrate.failures import failure_of
from service.records import RungRecord, SweepStore, now_ms
from service.space import Scalar
from service.spec import SweepSpec
from service.tracking import first_line
from service.varied import stage_epochs
from trainables.errors import StorageError


class SweepScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray is not typed
    """Starts trials in order; stops those that early stopping gives up, and writes down what was given up.

    What is decided is noted before anything is done about it, and a new driver goes on from these notes: a resumed
    sweep decides as an undisturbed one.
    """

    def __init__(self, spec: SweepSpec, store: SweepStore) -> None:
        super().__init__()
        self._objectives, self._store = spec.objectives, store
        self._spec = spec
        self._halving: Halving | None = None
        self._contribution: ContributionRule | None = None
        self._noted: set[tuple[str, int]] = set()
        """Trial and epoch of the rungs that were decided."""
        self._watched: set[str] = set()
        """Trials that went on and have not ended, as far as is known."""
        if spec.early_stopping.name == "hypervolume":
            self._contribution = ContributionRule(share=spec.early_stopping.share, space=spec.space)
            self._replay()
        if spec.early_stopping.name == "successive-halving":
            config = spec.early_stopping
            epochs = longest_trial(spec)
            self._halving = Halving(min_epochs=config.min_epochs, reduction=config.reduction, epochs=epochs)
            self._replay()

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune keeps its scheduler with the experiment's state; ours is made from the sweep's storage.
        return FIFOScheduler, ()

    def on_trial_result(self, controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Stops the trial where its epoch is a rung and early stopping does not let it go on."""
        trial_id = trial.config["trial_id"]
        if self._spec.early_stopping.name == "none" or "stage" not in result:
            return str(TrialScheduler.CONTINUE)
        # Workers under Ray Train do not wait for the driver, and may have finished epochs since.
        told = [(line["stage"], line["epoch"]) for line in self._store.history(trial_id)]
        here = (result["stage"], result["epoch"])
        epoch = (told.index(here) if here in told else len(told)) + 1
        answer = self._judge(trial_id, epoch, stage=result["stage"], stage_epoch=result["epoch"], metrics=result)
        if answer.goes_on:
            return str(TrialScheduler.CONTINUE)
        self._prune(trial_id, result, answer)
        return str(TrialScheduler.STOP)

    def _judge(
        self, trial_id: str, epoch: int, *, stage: str, stage_epoch: int, metrics: Mapping[str, float]
    ) -> Answer:
        """What the sweep's rule says of an epoch, counted through all stages; noted where it is a rung's."""
        is_rung = stage_epoch == 1 if self._halving is None else epoch in self._halving.rungs
        is_new = is_rung and (trial_id, epoch) not in self._noted
        if self._contribution is not None and not is_rung:
            return self._contribution.standing(trial_id)
        if is_new:
            self._note_ends()
        risk = metrics.get("task_risk", math.nan) if stage == "search" else math.nan
        rung = RungRecord(
            trial_id=trial_id,
            epoch=epoch,
            stage=stage,
            values=rung_values(stage, metrics, self._objectives),
            settings=self._store.trial(trial_id).settings,
            risk=risk if math.isfinite(risk) else None,
            excess=excesses(metrics, self._spec.constraints) if stage == "finetune" else (),
        )
        answer = self._answer(rung)
        if is_new and all(map(math.isfinite, (*rung.values, *rung.excess))):
            self._noted.add((trial_id, epoch))
            self._store.append_rung(dataclasses.replace(rung, goes_on=answer.goes_on, reason=answer.reason))
        return answer

    def _answer(self, rung: RungRecord) -> Answer:
        """What the sweep's rule says of a report, or has said."""
        if self._halving is not None:
            values = tuple(rung.values)
            goes_on = self._halving.report(rung.trial_id, rung.epoch, values, stage=rung.stage, noted=rung.goes_on)
            return Answer(goes_on=goes_on)
        assert self._contribution is not None
        settings = rung.settings or {}
        answer = self._contribution.report(
            rung.trial_id,
            rung.stage,
            tuple(rung.values),
            settings=settings,
            epochs=self._epochs(settings),
            risk=rung.risk,
            excess=tuple(rung.excess),
            noted=None if rung.goes_on is None else Answer(goes_on=rung.goes_on, reason=rung.reason),
        )
        if answer.goes_on:
            self._watched.add(rung.trial_id)
        return answer

    def _epochs(self, settings: Mapping[str, Scalar]) -> tuple[int, int]:
        config = self._spec.trial_config(settings)
        return config.method.search_epochs, config.finetune.epochs

    def _note_ends(self) -> None:
        """Tells the rule which trials, of those that it let go on, have come to nothing since."""
        for trial_id in sorted(self._watched):
            with contextlib.suppress(StorageError):
                record = self._store.trial(trial_id)
                if not record.final:
                    continue
                if record.state in ("diverged", "failed"):
                    epochs = self._store.history(trial_id)
                    stage = epochs[-1]["stage"] if epochs else ""
                    end = RungRecord(
                        trial_id=trial_id, epoch=len(epochs), stage=stage, settings=record.settings, ended=True
                    )
                    self._store.append_rung(end)
                    self._end(end)
            self._watched.discard(trial_id)

    def _end(self, noted: RungRecord) -> None:
        if self._contribution is not None:
            self._contribution.ended(noted.trial_id, after=noted.epoch, epochs=self._epochs(noted.settings or {}))
        self._watched.discard(noted.trial_id)

    def on_trial_error(self, controller: TuneController, trial: Trial) -> None:
        """The trial's process was lost. Tune makes another attempt, up to `limits.retries`; but a trial that needs
        more memory than there is gets its result here, and its next attempt ends at once.
        """
        trial_id, error = trial.config["trial_id"], _last_error(trial)
        failure = failure_of(error)
        if trial.should_recover() and failure != "out of memory":
            return
        self._store.refresh(trial_id)
        record = dataclasses.replace(
            self._store.trial(trial_id),
            state="failed",
            ended_ms=now_ms(),
            failure=failure,
            error=f"its process was lost: {first_line(error)}",
        )
        self._store.finish_trial(record)

    def _prune(self, trial_id: str, last: Mapping[str, Any], answer: Answer) -> None:
        self._store.refresh(trial_id)
        record = self._store.trial(trial_id)
        reason = f"stopped early after epoch {last['epoch']} of the {last['stage']}"
        reason += f": {answer.reason}" if answer.reason else ""
        self._store.finish_trial(dataclasses.replace(record, state="pruned", ended_ms=now_ms(), error=reason))

    def _replay(self) -> None:
        """Tells the rungs what was decided before, in the order in which that was; then what was not.

        A trial whose driver was killed between its report and the end that this meant is ended now.
        """
        for noted in self._store.rungs():
            self._repeat(noted)
        lines = [
            (line["time_ms"], trial.trial_id, epoch, line)
            for trial in self._store.trials()
            for epoch, line in enumerate(self._store.history(trial.trial_id), start=1)
        ]
        for _, trial_id, epoch, line in sorted(lines, key=lambda found: found[:3]):
            answer = self._judge(
                trial_id, epoch, stage=line["stage"], stage_epoch=line["epoch"], metrics=line["metrics"]
            )
            if not answer.goes_on and not self._store.trial(trial_id).final:
                self._prune(trial_id, line, answer)

    def _repeat(self, noted: RungRecord) -> None:
        if noted.settings is None and self._contribution is not None:
            # Of an older version; where the trial's folder is gone as well, nothing more is known of it.
            try:
                noted = dataclasses.replace(noted, settings=self._store.trial(noted.trial_id).settings)
            except StorageError:
                return
        if noted.ended:
            self._end(noted)
            return
        self._noted.add((noted.trial_id, noted.epoch))
        self._answer(noted)


def _last_error(trial: Trial) -> BaseException:
    """As Tune has put it down beside the trial."""
    path = trial.pickled_error_file
    if path and Path(path).exists():
        error = cloudpickle.loads(Path(path).read_bytes())
        if isinstance(error, BaseException):
            return error
    return RayActorError()


def longest_trial(spec: SweepSpec) -> int:
    """Epochs of search and finetune together, of the longest trial that the space allows."""
    configs = spec.example_configs()
    return max(sum(max(found) for found in stage_epochs(config, spec.fixed, spec.space)) for config in configs)
