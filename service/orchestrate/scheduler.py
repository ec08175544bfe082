"""Which of Ray Tune's trials go on: early stopping, and what becomes of trials that Tune gives up."""

from __future__ import annotations

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

from service.contribution import Answer, ContributionRule
from service.halving import Halving, Losses, rung_values
from service.orchestrate.failures import failure_of
from service.orchestrate.worker import now_ms
from service.records import SweepStore
from service.spec import SweepSpec
from service.tracking import first_line
from service.varied import stage_epochs


class SweepScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray is not typed
    """Starts trials in order; stops those that are worse than others at a rung, and writes down what was given up.

    Rungs are filled from what was noted of them, so that a resumed sweep decides as an undisturbed one.
    """

    def __init__(self, spec: SweepSpec, store: SweepStore) -> None:
        super().__init__()
        self._objectives, self._store = spec.objectives, store
        self._spec = spec
        self._halving: Halving | None = None
        self._contribution: ContributionRule | None = None
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
        """Stops the trial where its epoch is a rung and too many others are better."""
        trial_id = trial.config["trial_id"]
        if self._spec.early_stopping.name == "none" or "stage" not in result:
            return str(TrialScheduler.CONTINUE)
        values = rung_values(result["stage"], result, self._objectives)
        # Workers under Ray Train do not wait for the driver, and may have finished epochs since.
        told = [(line["stage"], line["epoch"]) for line in self._store.history(trial_id)]
        here = (result["stage"], result["epoch"])
        epoch = (told.index(here) if here in told else len(told)) + 1
        is_rung = result["epoch"] == 1 if self._halving is None else epoch in self._halving.rungs
        if is_rung and all(map(math.isfinite, values)):
            self._store.append_rung(trial_id=trial_id, epoch=epoch, stage=result["stage"], values=values)
        answer = self._answer(trial_id, result["stage"], epoch, values, stage_epoch=result["epoch"])
        if answer.goes_on:
            return str(TrialScheduler.CONTINUE)
        self._prune(trial_id, result, answer)
        return str(TrialScheduler.STOP)

    def _answer(self, trial_id: str, stage: str, epoch: int, values: Losses, *, stage_epoch: int = 1) -> Answer:
        """What the sweep's rule says of an epoch, counted through all stages."""
        if self._halving is not None:
            return Answer(goes_on=self._halving.report(trial_id, epoch, values, stage=stage))
        assert self._contribution is not None
        if stage_epoch > 1:
            return self._contribution.standing(trial_id)
        settings = self._store.trial(trial_id).settings
        config = self._spec.trial_config(settings)
        epochs = (config.method.search_epochs, config.finetune.epochs)
        return self._contribution.report(trial_id, stage, values, settings=settings, epochs=epochs)

    def on_trial_error(self, controller: TuneController, trial: Trial) -> None:
        """The trial's process was lost. Tune makes another attempt, up to `limits.retries`; but a trial that needs
        more memory than there is gets its result here, and its next attempt ends at once.
        """
        trial_id, error = trial.config["trial_id"], _last_error(trial)
        failure = failure_of(error)
        if trial.should_recover() and failure != "out of memory":
            return
        record = dataclasses.replace(
            self._store.trial(trial_id),
            state="failed",
            ended_ms=now_ms(),
            failure=failure,
            error=f"its process was lost: {first_line(error)}",
        )
        self._store.finish_trial(record)

    def _prune(self, trial_id: str, last: Mapping[str, Any], answer: Answer) -> None:
        record = self._store.trial(trial_id)
        reason = f"stopped early after epoch {last['epoch']} of the {last['stage']}"
        reason += f": {answer.reason}" if answer.reason else ""
        self._store.finish_trial(dataclasses.replace(record, state="pruned", ended_ms=now_ms(), error=reason))

    def _replay(self) -> None:
        """Tells the rungs what trials have reported before, in the order in which that was heard; then what was not.

        A trial whose driver was killed between its report and the end that this meant is ended now.
        """
        for noted in self._store.rungs():
            self._answer(noted["trial_id"], noted["stage"], noted["epoch"], tuple(noted["values"]))
        lines = [
            (line["time_ms"], trial.trial_id, epoch, line)
            for trial in self._store.trials()
            for epoch, line in enumerate(self._store.history(trial.trial_id), start=1)
        ]
        for _, trial_id, epoch, line in sorted(lines, key=lambda found: found[:3]):
            values = rung_values(line["stage"], line["metrics"], self._objectives)
            answer = self._answer(trial_id, line["stage"], epoch, values, stage_epoch=line["epoch"])
            if not answer.goes_on and not self._store.trial(trial_id).final:
                self._prune(trial_id, line, answer)


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
