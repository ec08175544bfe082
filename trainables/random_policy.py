"""Random policies of a given cost: each of those within a window of BOPs as likely as every other. No torch.

Notation: l searched layers with MACs m_l, g groups of layers that share an activation; x = (w, a) the widths of all,

    c(x) = Σ_g c_g(x_g),   c_g = Σ_{l in g} m_l·w_l·a_g                                  BOPs of the searched layers

Far from the mean cost next to no uniformly drawn policy lies in the window. So x is drawn from the exponentially tilted
distribution q(x) ∝ exp(−λ·c(x)), and one within the window [lo, hi] is kept with probability

    exp(λ·(c(x) − hi))  for λ ≥ 0,      exp(λ·(c(x) − lo))  for λ < 0,

at most 1, which undoes the tilt: what is kept is uniform on the window, exactly. A layer's BOPs are a product of two
widths, but groups have no factor in common: under q they are independent, and within one the weights are, given a_g. So
draws from q are exact and cheap.

λ is where the rate of keeping, |window|·exp(−λ·hi) / Σ_x exp(−λ·c(x)), is largest: where the tilted mean of c is that
end of the window which is nearer to the untilted mean; 0 where that lies inside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

from trainables.bops import GIGA, CostModel
from trainables.choices import Choices
from trainables.errors import ConfigError
from trainables.policy import BitPolicy, LayerBits

WINDOW = 0.97
"""Least BOPs of a policy, as a share of the BOPs that are asked for."""
BATCH = 1024
MOST_DRAWS = 256 * BATCH
STEEPEST = 1e9
"""Of λ, in units of one over the range of costs: beyond it only the cheapest policy is left."""


class _TooFewError(ConfigError):
    """So rare are policies of the wanted cost that no more are drawn."""

    def __init__(self, around: str, nearest: str) -> None:
        self.around = around
        super().__init__(
            f"{around} none costs {100 * WINDOW:g} to 100 % of it; those nearest to it cost {nearest}; give the BOPs "
            "of one of these."
        )


def random_draws(
    choices: Choices, costs: CostModel, *, bops_g: float, seed: int | tuple[int, ...]
) -> Iterator[BitPolicy]:
    """Policies with 97 to 100 % of `bops_g` (10^9), drawn independently, without end; the same for the same seed.

    Of the widths that `choices` offers, whatever they score. Raises ConfigError that says which costs there are where
    the window holds no policy, or so few among those of like cost that fewer than one in MOST_DRAWS is found.
    """
    window = _window(choices, costs, bops_g)
    drawn = np.random.default_rng(seed)
    tilted = _Tilted(choices, costs, window)
    found = 0
    for tried in itertools.count(BATCH, BATCH):
        batch = tilted.draw(drawn)
        for place in np.flatnonzero(tilted.keeps(batch.bops, drawn)):
            yield tilted.policy(batch, int(place))
            found += 1
        if tried >= MOST_DRAWS * (found + 1):
            raise _TooFewError(f"of {tried} policies drawn around {bops_g:g} G BOPs", tilted.nearest)


def random_policies(
    choices: Choices, costs: CostModel, *, bops_g: float, count: int, seed: int | tuple[int, ...]
) -> tuple[BitPolicy, ...]:
    """The first `count` of `random_draws`. Raises as that, and says how many were found where they are too few."""
    found: list[BitPolicy] = []
    try:
        found.extend(itertools.islice(random_draws(choices, costs, bops_g=bops_g, seed=seed), count))
    except _TooFewError as error:
        if not found:
            raise
        raise ConfigError(
            f"{error.around} only {len(found)} of the {count} that are wanted were found within {100 * WINDOW:g} to "
            "100 % of it; ask for fewer, or give other BOPs."
        ) from None
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Window:
    """Whole BOPs, ends included; and those of all layers that are not searched."""

    low: int
    high: int
    unsearched: int


def _window(choices: Choices, costs: CostModel, bops_g: float) -> _Window:
    """Raises ConfigError where all policies cost less, or all cost more."""
    most = round(bops_g * GIGA)
    if most / GIGA > bops_g:
        most -= 1
    window = _Window(
        low=math.ceil(WINDOW * bops_g * GIGA),
        high=most,
        unsearched=costs.unsearched({layer: LayerBits(b, b) for layer, b in choices.pinned.items()}).bops,
    )
    floor, ceiling = (costs.counts(policy).bops for policy in (choices.smallest, choices.largest))
    if not (floor <= window.high and window.low <= ceiling):
        raise ConfigError(
            f"no policy of these widths costs {100 * WINDOW:g} to 100 % of {bops_g:g} G BOPs: all cost between "
            f"{floor / GIGA:g} and {ceiling / GIGA:g} G; give BOPs within that."
        )
    return window


@dataclass(frozen=True, slots=True)
class _Batch:
    """Drawn policies, as numbers of widths, with the BOPs of each."""

    acts: dict[str, NDArray[np.int64]]
    weights: dict[str, NDArray[np.int64]]
    bops: NDArray[np.int64]


class _Tilted:
    """The distribution q of the policies of some choices."""

    def __init__(self, choices: Choices, costs: CostModel, window: _Window) -> None:
        self._choices, self._window = choices, window
        self._members: dict[str, list[str]] = {group: [] for group in choices.acts}
        for layer, group in choices.group_of.items():
            self._members[group].append(layer)
        # [acts, weights] of each layer, whole BOPs.
        self._bops: dict[str, NDArray[np.int64]] = {
            layer: costs.work[layer].macs
            * np.outer(choices.acts[group].widths, choices.weights[layer].widths).astype(np.int64)
            for layer, group in choices.group_of.items()
        }
        self._scale = float(sum(int(bops.max()) - int(bops.min()) for bops in self._bops.values())) or 1.0
        self._tilt = self._solved()
        self._shares = {group: self._group_shares(group, self._tilt) for group in self._members}
        self._below, self._above = 0, 0

    def _solved(self) -> float:
        """λ in units of one over the scale, as the module's text tells."""
        low, high = (end - self._window.unsearched for end in (self._window.low, self._window.high))
        even = self._mean(0.0)
        if low <= even <= high:
            return 0.0
        goal, sign = (float(high), 1.0) if even > high else (float(low), -1.0)
        steep = 1.0
        while sign * (self._mean(sign * steep) - goal) > 0 and steep < STEEPEST:
            steep *= 2
        if steep >= STEEPEST:
            return sign * STEEPEST
        return float(brentq(lambda tilt: self._mean(tilt) - goal, 0.0, sign * steep, xtol=1e-9))

    def _mean(self, tilt: float) -> float:
        """Tilted mean of c, BOPs."""
        total = 0.0
        for group, layers in self._members.items():
            acts, weights = self._group_shares(group, tilt)
            of_layers = sum((weights[layer] * self._bops[layer]).sum(axis=1) for layer in layers)
            total += float((acts * of_layers).sum())
        return total

    def _group_shares(self, group: str, tilt: float) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """q(a_g) [acts], and q(w_l | a_g) [acts, weights] of each of its layers."""
        logs = {layer: -tilt / self._scale * self._bops[layer] for layer in self._members[group]}
        sums = {layer: logsumexp(values, axis=1) for layer, values in logs.items()}
        of_acts = np.sum(list(sums.values()), axis=0)
        acts = np.exp(of_acts - logsumexp(of_acts))
        return acts, {layer: np.exp(values - sums[layer][:, None]) for layer, values in logs.items()}

    def draw(self, drawn: np.random.Generator) -> _Batch:
        """So many policies from q."""
        acts, weights = {}, {}
        bops = np.full(BATCH, self._window.unsearched, dtype=np.int64)
        for group, layers in self._members.items():
            of_acts, of_weights = self._shares[group]
            acts[group] = _chosen(np.broadcast_to(of_acts, (BATCH, len(of_acts))), drawn)
            for layer in layers:
                weights[layer] = _chosen(of_weights[layer][acts[group]], drawn)
                bops += self._bops[layer][acts[group], weights[layer]]
        return _Batch(acts, weights, bops)

    def keeps(self, bops: NDArray[np.int64], drawn: np.random.Generator) -> NDArray[np.bool_]:
        """Which of the drawn policies are kept."""
        low, high = self._window.low, self._window.high
        self._below = max(self._below, int(bops[bops < low].max(initial=0)))
        above = bops[bops > high]
        if len(above):
            self._above = min(self._above or int(above.min()), int(above.min()))
        excess = self._tilt / self._scale * (bops - (high if self._tilt >= 0 else low))
        inside = (low <= bops) & (bops <= high)
        kept: NDArray[np.bool_] = inside & (drawn.random(BATCH) < np.exp(np.where(inside, excess, 0.0)))
        return kept

    @property
    def nearest(self) -> str:
        """The costs below and above the window that were drawn, for people."""
        return " and ".join(f"{bops / GIGA:g} G" for bops in (self._below, self._above) if bops)

    def policy(self, batch: _Batch, place: int) -> BitPolicy:
        """One of the drawn policies."""
        choices = self._choices
        return choices.policy(
            {layer: choices.weights[layer].widths[number[place]] for layer, number in batch.weights.items()},
            {group: choices.acts[group].widths[number[place]] for group, number in batch.acts.items()},
        )


def _chosen(shares: NDArray[np.float64], drawn: np.random.Generator) -> NDArray[np.int64]:
    """A number for each row of `shares` [N, widths], each with its share; [N]."""
    ends = np.cumsum(shares[:, :-1], axis=1)
    chosen: NDArray[np.int64] = (drawn.random(len(shares))[:, None] >= ends).sum(axis=1)
    return chosen
