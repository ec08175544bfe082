"""Optuna's samplers behind Ray Tune's searcher: what a study is told is true.

Ray's own searcher tells stopped and failed trials as complete, and leaves trials with NaN running for ever.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from service.pareto import OBJECTIVES
from service.settings import SamplerConfig
from service.space import Domain, suggest

SAMPLERS = {"tpe": TPESampler, "nsga2": NSGAIISampler, "random": RandomSampler}


class StudySearcher(Searcher):  # type: ignore[misc]  # Ray is not typed
    """Asks an Optuna study for settings and tells it the objectives. The study's journal stays with the sweep."""

    def __init__(self, space: dict[str, Domain], sampler: SamplerConfig, journal: Path, name: str) -> None:
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._study = optuna.create_study(
            study_name=name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            sampler=_sampler(sampler),
            directions=["maximize" if o.direction == "max" else "minimize" for o in OBJECTIVES],
        )
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Settings for Tune's trial `trial_id`, with the trial's number in the study."""
        trial = self._study.ask()
        self._numbers[trial_id] = trial.number
        return {"number": trial.number, "settings": suggest(self._space, trial)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study; a trial without finite objectives has failed."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        values = [(result or {}).get(o.name) for o in OBJECTIVES]
        if error or not all(isinstance(v, float | int) and math.isfinite(v) for v in values):
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, values)

    def save(self, checkpoint_path: str) -> None:
        """Which trial of the study each running trial of Tune is; the study itself is in its journal."""
        Path(checkpoint_path).write_text(json.dumps(self._numbers))

    def restore(self, checkpoint_path: str) -> None:
        """Reads what `save` wrote."""
        self._numbers = json.loads(Path(checkpoint_path).read_text())


def _sampler(config: SamplerConfig) -> BaseSampler:
    return SAMPLERS[config.name](seed=config.seed)
