"""Which settings an objective depends on: functional analysis of variance over the finished trials.

fANOVA (Hutter, Hoos and Leyton-Brown 2014): a random forest is fitted to the trials, and a setting's share is the
variance of the forest's mean over all other settings, as that setting alone changes. Optuna's evaluator does it.
PED-ANOVA (Watanabe et al. 2023) is faster, but tells what separates the best tenth of the trials from the others: a
handful of the few dozen that most sweeps have. And it has no variance by which conditional settings could be weighed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from service.correlation import average_ranks
from service.records import TrialRecord
from service.view import SweepView

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

MIN_TRIALS = 10
"""A forest of fewer says nothing."""
TREES, DEPTH, SEED = 16, 6, 0
"""Deeper trees take minutes for a thousand trials; at depth 6 main effects are within a few hundredths of theirs."""


def importances(view: SweepView) -> dict[str, dict[str, float]]:
    """For each objective of the view, each setting's share of what the settings explain; they sum to 1, largest first.

    Numbers count by their rank, so that a logarithmic range and a linear one are the same thing, and what the sampler
    tried often weighs more; words and booleans are categories. A conditional setting is assessed among the trials that
    have it, with the settings that all of these have; its share of their variance is weighed with their number, so
    that all shares are of the same whole. A setting that never changes has 0, and so has a conditional one that fewer
    than MIN_TRIALS trials have. Done trials beyond a constraint count as well.

    An objective has {} where there are fewer than MIN_TRIALS trials, or where nothing varies.
    """
    return {objective.name: _shares(view.found.done, objective.name) for objective in view.found.objectives}


def _shares(trials: Sequence[TrialRecord], metric: str) -> dict[str, float]:
    known = [trial for trial in trials if metric in trial.metrics]
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in dict.fromkeys(name for trial in known for name in trial.settings):
        having = tuple(place for place, trial in enumerate(known) if name in trial.settings)
        groups.setdefault(having, []).append(name)
    explained: dict[str, float] = {}
    for having, names in groups.items():
        found = _explained([known[place] for place in having], metric)
        explained |= {name: found.get(name, 0.0) * len(having) for name in names}
    total = sum(explained.values())
    if not total:
        return {}
    return {name: part / total for name, part in sorted(explained.items(), key=lambda item: (-item[1], item[0]))}


def _explained(trials: Sequence[TrialRecord], metric: str) -> dict[str, float]:
    """Variance of the metric, in its unit squared, that each setting which all these trials have explains alone."""
    values = [trial.metrics[metric] for trial in trials]
    if len(trials) < MIN_TRIALS or len(set(values)) == 1:
        return {}
    columns = {
        name: [trial.settings[name] for trial in trials]
        for name in trials[0].settings
        if all(name in trial.settings for trial in trials)
    }
    varying = {name: column for name, column in columns.items() if len(set(map(repr, column))) > 1}
    if not varying:
        return {}
    variance = statistics.pvariance(values)
    return {name: share * variance for name, share in _fractions(varying, values).items()}


def _fractions(columns: Mapping[str, Sequence[Any]], values: Sequence[float]) -> dict[str, float]:
    """The share of the values' variance that each column explains alone."""
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.trial import create_trial

    sides = {name: _side(column) for name, column in columns.items()}
    distributions = {name: distribution for name, (distribution, _) in sides.items()}
    study = _quiet_study()
    study.add_trials(
        create_trial(
            params={name: side[place] for name, (_, side) in sides.items()}, distributions=distributions, value=value
        )
        for place, value in enumerate(values)
    )
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=SEED)
    return {name: float(share) for name, share in evaluator.evaluate(study).items()}


def _quiet_study() -> Study:
    """A study in memory, of which Optuna does not tell on standard error."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)


def _side(column: Sequence[Any]) -> tuple[BaseDistribution, list[Any]]:
    """A setting as Optuna takes it: numbers by their rank, from 0 to 1, all else as a category."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in column):
        words = [repr(value) for value in column]
        return CategoricalDistribution(sorted(set(words))), words
    return FloatDistribution(0.0, 1.0), [(rank - 0.5) / len(column) for rank in average_ranks(column)]
