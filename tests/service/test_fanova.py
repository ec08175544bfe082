"""Main effects of a forest: closed forms, a grid of cells, and Optuna's evaluator."""

import random

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.importance import FanovaImportanceEvaluator

from service import fanova
from service.fanova import TREES, main_effects


def test_effects_of_a_step_and_of_a_product_are_the_closed_forms() -> None:
    # On a full grid of cell centres, repeated so that every bag holds every cell, a tree is the function itself.
    grid = (np.arange(4) + 0.5) / 4
    cells = np.array([(a, b, c) for a in grid for b in grid for c in grid[:2] * 2])
    cells = np.repeat(cells, 20, axis=0)
    steps = np.floor(cells * 4)
    # 3a + b: variances of a and b, even on 0..3, are 15/12. A product of centred factors has no main effect.
    product = (steps[:, 0] - 1.5) * (steps[:, 1] - 1.5)
    linear = main_effects(cells, 3 * steps[:, 0] + steps[:, 1], leaf=5)
    assert linear.variances == pytest.approx(np.tile([9 * 1.25, 1.25, 0.0], (TREES, 1)), abs=1e-9)
    assert linear.foretold == pytest.approx(3 * steps[:, 0] + steps[:, 1])
    crossed = main_effects(cells, product, leaf=1)
    assert crossed.variances == pytest.approx(np.zeros((TREES, 3)), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_trees_proportions_are_those_of_optunas_evaluator(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanova, "TREES", 1)
    monkeypatch.setattr(fanova, "SEED", seed)
    draw = random.Random(0)
    names = ("a", "b", "c")
    rows = [{name: draw.random() for name in names} for _ in range(25)]
    values = [2 * row["a"] + row["a"] * row["b"] + 0.3 * draw.random() for row in rows]
    ours = main_effects(np.array([[row[name] for name in names] for row in rows]), np.array(values), leaf=1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    distributions = {name: FloatDistribution(0.0, 1.0) for name in names}
    for row, value in zip(rows, values, strict=True):
        study.add_trial(optuna.trial.create_trial(params=row, distributions=distributions, value=value))
    # Theirs are shares of the tree's whole variance, which leaves out what settings do together.
    theirs = FanovaImportanceEvaluator(n_trees=1, max_depth=64, seed=seed).evaluate(study)
    assert 0.5 < sum(theirs.values()) < 1
    (variances,) = ours.variances
    expected = {name: share / sum(theirs.values()) for name, share in theirs.items()}
    assert dict(zip(names, variances / variances.sum(), strict=True)) == pytest.approx(expected, rel=1e-9)


def test_what_is_foretold_of_a_trial_comes_from_others() -> None:
    noise = np.random.default_rng(0)
    positions, values = noise.random((100, 3)), noise.random(100)
    found = main_effects(positions, values, leaf=1)
    assert abs(np.corrcoef(found.foretold, values)[0, 1]) < 0.3
    alone = values.copy()
    alone[0] += 1_000.0
    assert main_effects(positions, alone, leaf=1).foretold[0] == pytest.approx(found.foretold[0])
