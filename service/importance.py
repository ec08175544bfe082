"""Which settings an objective depends on: functional analysis of variance over the finished trials.

PED-ANOVA (Watanabe et al. 2023) is the other choice. It tells what separates the best tenth of the trials from the
others: a handful of the few dozen that most sweeps have; and it has no variance by which conditional settings could be
weighed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.correlation import rank_correlation
from service.records import TrialRecord
from service.view import SweepView

MIN_TRIALS = 10
"""A forest of fewer says nothing."""
MAX_LEAF = 5
"""Trials in a leaf of the trees, a twentieth of all where that is less: what is noise to one setting is averaged."""


def importances(view: SweepView) -> dict[str, dict[str, float]]:
    """For each objective of the view, each setting's share of what single settings explain; largest first, sum 1.

    A share is a main effect divided by the sum of all main effects. It is not one of the objective's whole variation:
    of that, what settings do only together and what is noise are left out, however much they are.

    Numbers count by their order, so that a logarithmic range and a linear one are the same thing, words and booleans by
    that of the alphabet; every value that was tried weighs the same. A conditional setting is assessed among the trials
    that have it, with the settings that all of these have; the variance that it explains there is weighed with their
    number, so that all shares are of the same whole. A setting that never changes has 0, and so has a conditional one
    that fewer than MIN_TRIALS trials have. Done trials beyond a constraint count as well.

    An objective has {} where there are fewer than MIN_TRIALS trials, where nothing varies, and where what the forest
    says of trials that it has not seen does not go with what they found (95 % interval of the rank correlation).
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
    import numpy as np

    from service.fanova import main_effects

    positions = np.array([_positions(column) for column in varying.values()]).T
    found = main_effects(positions, np.array(values), leaf=min(max(len(values) // 20, 1), MAX_LEAF))
    correlation = rank_correlation(found.foretold.tolist(), values)
    if correlation is None or correlation.low <= 0:
        return {}
    return dict(zip(varying, found.variances.mean(axis=0).tolist(), strict=True))


def _positions(column: Sequence[Any]) -> list[float]:
    """Where between 0 and 1 each trial's setting lies: every value that was tried has an equal part of that range.

    Numbers lie in their order, words and booleans in the alphabet's, which knows nothing of the objective: in the order
    of the mean that they come with, a tree would have heard of the trials that it is to foretell. A tree takes more
    cuts that way to tell a word in the middle from the others.
    """
    in_order = all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
    keys: list[Any] = [float(value) if in_order else repr(value) for value in column]
    order = sorted(set(keys))
    position = {key: (place + 0.5) / len(order) for place, key in enumerate(order)}
    return [position[key] for key in keys]
