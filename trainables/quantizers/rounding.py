"""Weights rounded without any training: what a width alone does to a layer.

Notation: w the n weights of a layer, b bits, h = 2^(b−1) − 1, s the step; T = h·s is where the range ends.

    Q_b(w) = s · clip(round(w / s), −h, h)        b ≥ 2; `minmax`: T = max|w|; `mse`: the s of least Σ (Q_b(w) − w)²
    Q_1(w) = sign(w) · mean|w|                    the α·sign(w) of least Σ (Q_1(w) − w)²; sign(0) = 1

The squared error of a step needs no pass over the weights. With |w| sorted, those of code k lie together between
(k − ½)·s and (k + ½)·s, with number N_k, sum A_k and sum of squares S, so that

    E(s) = S − 2·s·Σ_k k·A_k + s²·Σ_k k²·N_k

Given the codes the best step is Σ_k k·A_k / Σ_k k²·N_k, given the step the best codes are the nearest: done in turn, E
never grows (Lloyd 1982). It begins from the best `KEPT` of `STARTS` steps, and the best of where they end is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["minmax", "mse"]
STARTS = 2048
"""Ends of the range that are looked at, evenly spread up to max|w|."""
KEPT = 64
TURNS = 40
"""Of codes and steps; most starts stand still after a few."""


def rounded(weight: Tensor, widths: Sequence[int], rounding: Rounding) -> Tensor:
    """Q_b(w) for every width: [B, *weight.shape], dtype of `weight`."""
    flat = weight.detach().flatten().double().cpu()
    magnitudes = flat.abs().sort().values
    found = torch.stack([_rounded(flat, magnitudes, bits, rounding) for bits in widths])
    return found.to(weight).reshape(len(widths), *weight.shape)


def _rounded(flat: Tensor, magnitudes: Tensor, bits: int, rounding: Rounding) -> Tensor:
    if bits == 1:
        return torch.where(flat < 0, -1.0, 1.0) * magnitudes.mean()
    largest = float(magnitudes[-1])
    if largest == 0.0:
        return flat
    top = 2 ** (bits - 1) - 1
    step = largest / top if rounding == "minmax" else _best_step(magnitudes, top)
    return (flat / step).round().clamp(-top, top) * step


def _best_step(magnitudes: Tensor, top: int) -> float:
    """The step of least squared error [scalar] for codes up to `top`, of ascending magnitudes [n], float64."""
    sums = torch.cat([magnitudes.new_zeros(1), magnitudes.cumsum(0)])
    codes = torch.arange(1, top + 1, dtype=torch.float64)
    steps = float(magnitudes[-1]) / top * torch.arange(1, STARTS + 1, dtype=torch.float64) / STARTS
    moment, square = _sums_of_codes(magnitudes, sums, codes, steps)
    steps = steps[_losses(steps, moment, square).argsort()[:KEPT]]
    for _ in range(TURNS):
        moment, square = _sums_of_codes(magnitudes, sums, codes, steps)
        # A step so wide that every code is 0 stays where it is.
        steps, before = torch.where(square > 0, moment / square.clamp_min(1.0), steps), steps
        if torch.equal(steps, before):
            break
    moment, square = _sums_of_codes(magnitudes, sums, codes, steps)
    return float(steps[_losses(steps, moment, square).argmin()])


def _losses(steps: Tensor, moment: Tensor, square: Tensor) -> Tensor:
    """E(s) − S of each of the steps, [S] all."""
    return steps * (steps * square - 2 * moment)


def _sums_of_codes(magnitudes: Tensor, sums: Tensor, codes: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_k k·A_k and Σ_k k²·N_k for each of the steps, [S] both.

    Written by what lies above each bound: a weight of code k lies above k bounds, each of which counts it once more.
    """
    above = torch.searchsorted(magnitudes, (codes - 0.5) * steps[:, None])
    moment = (sums[-1] - sums[above]).sum(1)
    square = ((len(magnitudes) - above) * (2 * codes - 1)).sum(1)
    return moment, square
