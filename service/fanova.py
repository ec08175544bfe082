"""Functional analysis of variance of a random forest: Hutter, Hoos and Leyton-Brown 2014.

*An efficient approach for assessing hyperparameter importance*, section 4. Notation: a tree over [0, 1]^D is constant
on L boxes, its leaves. With D settings that are even and independent, the main effect of one of them is the variance of
the tree's mean over all the others.

Of each tree it gives the proportions that Optuna's evaluator of that name gives, which a test holds. That evaluator
says neither the variances in the objective's own unit, by which effects in different trials can be added, nor whether
the forest predicts anything; and it takes minutes for a thousand trials.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TREES, SEED = 64, 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MainEffects:
    """What the settings explain one by one, in the objective's unit squared."""

    variances: Floats
    """[TREES, D]: of each tree's mean as one setting alone changes."""
    foretold: Floats
    """[N]: what the trees that were not fitted to a trial say of it."""


def main_effects(positions: Floats, values: Floats, *, leaf: int) -> MainEffects:
    """The main effects of a forest fitted to the trials.

    Args:
        positions: [N, D], each setting's place in its range, 0 to 1.
        values: [N], the objective.
        leaf: trials that each leaf has at least.
    """
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(n_estimators=TREES, min_samples_leaf=leaf, random_state=SEED, oob_score=True)
    with warnings.catch_warnings():
        # Of a handful of trials one may be in every tree's bag: its prediction is 0, and counts as a wrong one.
        warnings.filterwarnings("ignore", message="Some inputs do not have OOB scores")
        forest.fit(positions, values)
    return MainEffects(
        variances=np.array([_of_tree(estimator.tree_, positions.shape[1]) for estimator in forest.estimators_]),
        foretold=np.asarray(forest.oob_prediction_),
    )


def _of_tree(tree: Any, num_settings: int) -> Floats:
    """Main effects [D]."""
    lows, highs, values = _leaves(tree, num_settings)
    sides = highs - lows
    volumes = sides.prod(axis=1)
    mean = float(volumes @ values)
    return np.array(
        [_main_effect(lows[:, d], highs[:, d], volumes / sides[:, d] * values, mean) for d in range(num_settings)]
    )


def _main_effect(lows: Floats, highs: Floats, weighted: Floats, mean: float) -> float:
    """Variance along one setting of the mean over the others; `weighted` is leaf values times their sections [L]."""
    cuts = np.unique(np.concatenate((lows, highs)))
    # A leaf adds from its lower end on, and no more from its upper end on.
    changes = np.zeros(len(cuts))
    np.add.at(changes, np.searchsorted(cuts, lows), weighted)
    np.subtract.at(changes, np.searchsorted(cuts, highs), weighted)
    means = np.cumsum(changes)[:-1]
    return float(np.diff(cuts) @ (means - mean) ** 2)


def _leaves(tree: Any, num_settings: int) -> tuple[Floats, Floats, Floats]:
    """Lower and upper ends [L, D] of the tree's leaves, and their values [L]."""
    lows, highs, values = [], [], []
    waiting = [(0, np.zeros(num_settings), np.ones(num_settings))]
    while waiting:
        node, low, high = waiting.pop()
        left, right = int(tree.children_left[node]), int(tree.children_right[node])
        if left == right:  # as scikit-learn marks a leaf
            lows.append(low)
            highs.append(high)
            values.append(tree.value[node, 0, 0])
            continue
        setting, cut = int(tree.feature[node]), float(tree.threshold[node])
        below, above = high.copy(), low.copy()
        below[setting] = above[setting] = cut
        waiting += [(left, low, below), (right, above, high)]
    return np.array(lows), np.array(highs), np.array(values)
