"""What a trial's settings foretell: a ridge regression on the trials before it. Numbers in, numbers out.

Letters: n trials, d coordinates of what is known of a trial early, m values that are known of it later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from service.space import Choice, Domain, Float, Int, Scalar, range_of

RIDGE = 1.0
"""Added to the diagonal of the normal equations, where every column and every value has the standard deviation 1."""
Values = tuple[float, ...]


def coordinates(space: Mapping[str, Domain], settings: Mapping[str, Scalar]) -> Values:
    """Settings as numbers: where in its range each lies, from 0 to 1; for each of several choices whether it is that.

    An entry that is not active lies in the middle of its range, and is none of its choices.
    """
    found: list[float] = []
    for name, domain in space.items():
        plain, value = range_of(domain), settings.get(name)
        if isinstance(plain, Choice):
            found += [float(value == one) for one in plain.values] if len(plain.values) > 1 else []
        elif isinstance(value, int | float):
            found.append(_place(plain, value))
        else:
            found.append(0.5)
    return tuple(found)


def _place(domain: Float | Int, value: float) -> float:
    low, high = float(domain.low), float(domain.high)
    if isinstance(domain, Float) and domain.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.5


def early_values(space: Mapping[str, Domain], settings: Mapping[str, Scalar], epoch: Values) -> Values:
    """What is known of a trial after an epoch of its search: its settings, and the logarithms of what that epoch tells.

    Risks and BOPs are positive and lie orders of magnitude apart.
    """
    return (*coordinates(space, settings), *(math.log(x) if x > 0 else x for x in epoch))


def foretell(early: Sequence[Values], late: Mapping[int, Values]) -> list[Values]:
    """What every trial will have later, of those that have it already too, so that all are foretold alike.

        late ≈ w₀ + Σᵢ (wᵢ xᵢ + vᵢ xᵢ²),  (w, v) = argmin ‖error‖² + RIDGE·(‖w‖² + ‖v‖²)

    Args:
        early: [n][d], what is known of each trial.
        late: [m] by the place of the trial, of those that have come so far; at least one.
    Returns: [n][m], in the units of `late`.
    """
    places = list(late)
    x, y = np.array(early, dtype=float).reshape(len(early), -1), np.array([late[place] for place in places])
    x = _standard(x)
    x = _standard(np.hstack([x, x**2]))
    middle, spread = y.mean(axis=0), y.std(axis=0)
    known = np.hstack([np.ones((len(places), 1)), x[places]])
    penalty = RIDGE * np.eye(known.shape[1])
    penalty[0, 0] = 0.0
    weights = np.linalg.solve(known.T @ known + penalty, known.T @ (y - middle))
    # A value that is the same for all stays what it is.
    foretold = np.hstack([np.ones((len(x), 1)), x]) @ weights
    return [tuple(row) for row in np.where(spread > 0, foretold + middle, middle).tolist()]


def _standard(columns: np.ndarray) -> np.ndarray:
    """Each with mean 0 and standard deviation 1; those without variation are 0."""
    spread = columns.std(axis=0)
    varies = spread > 1e-12 * (1 + np.abs(columns).max(axis=0, initial=0.0))
    return np.where(varies, (columns - columns.mean(axis=0)) / np.where(varies, spread, 1.0), 0.0)
