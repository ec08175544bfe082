"""HWGQ (Cai et al. 2017): fixed uniform quantisers of a normal variable; the quantiser of EdMIPS.

Weights, b bits:      2^b mid-rise levels ±s·std(w)·{1/2, 3/2, …}, no zero
Activations, b bits:  half-wave, 0 for x ≤ 0, else the nearest of s·{1, …, 2^b − 1};
                      no gradient outside of (0, s·(2^b − 1)]

The steps s minimise E(Q(x) − x)² for x ~ N(0, 1), for activations over x > 0: batch normalisation in front of the
layer makes its input such a variable.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from trainables.quantizers.affine import AffineGrid
from trainables.quantizers.grid import Grid
from trainables.quantizers.staircase import deviation, staircase


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _positive_error(step: float, levels: list[float]) -> float:
    """∫_0^∞ (Q(x) − x)² φ(x) dx for the nearest of step·levels (positive, ascending)."""
    values = [step * level for level in levels]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(values)), math.inf]
    error = 0.0
    for (low, high), value in zip(pairwise(edges), values, strict=True):
        mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
        first = _density(low) - _density(high)
        second = mass + low * _density(low) - (0.0 if high == math.inf else high * _density(high))
        error += second - 2 * value * first + value * value * mass
    return error


@cache
def normal_step(bits: int, *, half: bool) -> float:
    """MSE-optimal step for N(0, 1) (`half` False: 2^bits mid-rise levels) or its positive half (2^bits − 1 levels)."""
    from scipy.optimize import minimize_scalar

    levels = [float(i) for i in range(1, 2**bits)] if half else [i + 0.5 for i in range(2 ** (bits - 1))]
    found = minimize_scalar(
        _positive_error, args=(levels,), bounds=(1e-3, 2.0), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x)


def _mid_rise(bits: int, *, windowed: bool) -> Grid:
    return Grid(lo=-(2 ** (bits - 1)), hi=2 ** (bits - 1) - 1, offset=0.5, windowed=windowed)


class HwgqWeights(nn.Module):
    """Mixture of mid-rise weight quantisers, scaled by the weight's standard deviation at every call."""

    def __init__(self, bits: tuple[int, ...]) -> None:
        super().__init__()
        self.grids = tuple(_mid_rise(b, windowed=False) for b in bits)
        self.register_buffer("unit", torch.tensor([normal_step(b, half=False) for b in bits]), persistent=False)
        self.unit: Tensor

    def forward(self, weight: Tensor, probs: Tensor) -> Tensor:
        """Mixed weight, shape of `weight`; probs [n]."""
        return staircase(weight, probs, self._steps(weight), self.grids)

    def calibrate(self, weight: Tensor) -> None:
        """Nothing to set: the steps follow the weight at every call."""

    def affine(self, weight: Tensor) -> AffineGrid:
        """The grid of `weight` in plain numbers, of a quantiser of one width."""
        (grid,) = self.grids
        return grid.affine(float(self._steps(weight)))

    def _steps(self, weight: Tensor) -> Tensor:
        return self.unit * deviation(weight).clamp_min(1e-12)


class HwgqActivations(nn.Module):
    """Mixture of half-wave quantisers with fixed steps.

    DEVIATION: an activation that can be negative gets the mid-rise grid of the whole normal, as a half-wave would lose
    the sign. The EdMIPS release rounds small positive values to zero, which is not the quantiser that the steps are
    optimal for; here they go to the first level, as in HWGQ.
    """

    def __init__(self, bits: tuple[int, ...], *, signed: bool) -> None:
        super().__init__()
        self.grids = tuple(
            _mid_rise(b, windowed=True) if signed else Grid(lo=1, hi=2**b - 1, half_wave=True, windowed=True)
            for b in bits
        )
        self.register_buffer("steps", torch.tensor([normal_step(b, half=not signed) for b in bits]), persistent=False)
        self.steps: Tensor

    def forward(self, x: Tensor, probs: Tensor) -> Tensor:
        """Mixed activation, shape of `x`; probs [n]."""
        return staircase(x, probs, self.steps, self.grids)

    def calibrate(self, x: Tensor) -> None:
        """Nothing to set: the steps are constants."""

    def affine(self) -> AffineGrid:
        """The grid in plain numbers, of a quantiser of one width."""
        (grid,) = self.grids
        return grid.affine(float(self.steps))
