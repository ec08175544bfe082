"""An allocation in numbers.

L searched layers, sorted by group; G groups; A, W most widths of an activation, of weights; D limits. Losses are shares
of the worst policy's, in whole multiples of 1/UNIT, so that sums depend on no order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from trainables.bops import COUNT_OF, CostModel
from trainables.choices import Choices, Scores
from trainables.policy import BitPolicy, LayerBits

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TIE = 1e-6
"""Score that all of the full-precision BOPs take, where scores have a range of 1 or more: see `tie`."""
UNIT = 2**60
_LARGEST_COUNT = 2**62
"""Sums of counts must stay within 64 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knapsack:
    """Losses to be small, counts to be within limits. Options that an owner lacks have an infinite loss."""

    loss: Floats
    """[L, A, W] of a layer's weights, the tie's share included."""
    group_loss: Floats
    """[G, A] of a group's activation."""
    whole_loss: Ints
    """[L, A, W] the same as `loss`, times UNIT; 0 where there is no option."""
    whole_group_loss: Ints
    """[G, A]"""
    counts: Ints
    """[D, L, A, W] what a layer adds to each limited count."""
    left: Ints
    """[D] what searched layers may add up to; above 0."""
    starts: Ints
    """[G] each group's first layer."""
    sizes: Ints
    """[G] layers of each group."""

    @property
    def group_of(self) -> Ints:
        """[L]"""
        return np.repeat(np.arange(len(self.starts)), self.sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A knapsack, and what its places stand for."""

    problem: Knapsack
    groups: tuple[str, ...]
    layers: tuple[str, ...]
    act_widths: Mapping[str, tuple[int, ...]]
    weight_widths: Mapping[str, tuple[int, ...]]

    def policy(self, choices: Choices, acts: Ints, weights: Ints) -> BitPolicy:
        """The policy of the places [G] of the groups' widths and [L] of the layers'."""
        return choices.policy(
            {name: self.weight_widths[name][place] for name, place in zip(self.layers, weights, strict=True)},
            {group: self.act_widths[group][place] for group, place in zip(self.groups, acts, strict=True)},
        )


def tie(choices: Choices) -> float:
    """Score that all of the full-precision BOPs take, so that of equals one with fewer BOPs is chosen.

    Absolute for log π, which is in nats; of scores whose policies differ by less than 1 the same share of that
    difference, so that indicators and losses may have any scale.
    """
    return TIE * min(1.0, sum(map(_range, (*choices.weights.values(), *choices.acts.values()))))


def _range(scores: Scores) -> float:
    """Of the widths that are worth their cost: their scores ascend."""
    widths = scores.worthwhile
    return scores.of(widths[-1]) - scores.of(widths[0])


def tabulate(choices: Choices, costs: CostModel, limits: Mapping[str, int]) -> Table | None:
    """The knapsack of `limits` (`allocate.ceilings`); None where its counts do not fit into 64 bits."""
    if max(costs.macs * 1024, costs.weights * 32, costs.inputs * 32) >= _LARGEST_COUNT:
        return None
    members: dict[str, list[str]] = {group: [] for group in choices.acts}
    for name, group in choices.group_of.items():
        members[group].append(name)
    left = _left(choices, costs, limits)
    if min(left.values()) <= 0:
        return None
    layers = tuple(name for names in members.values() for name in names)
    acts = {group: scores.worthwhile for group, scores in choices.acts.items()}
    weights = {name: choices.weights[name].worthwhile for name in layers}
    shape = (len(layers), max(map(len, acts.values())), max(map(len, weights.values())))
    counts, scores = np.zeros((len(left), *shape), np.int64), np.full(shape, -np.inf)
    taken = tie(choices) / (costs.full_bops_g * 1e9)
    for row, name in enumerate(layers):
        own_acts, own_weights = acts[choices.group_of[name]], weights[name]
        cells = np.s_[row, : len(own_acts), : len(own_weights)]
        found = _counts(costs, name, own_weights, own_acts)
        for limit, count in enumerate(left):
            counts[limit][cells] = found[count]
        values = [choices.weights[name].of(width) for width in own_weights]
        scores[cells] = np.array(values) - taken * found["bops"]
    group_scores = np.full((len(acts), shape[1]), -np.inf)
    for row, (group, widths) in enumerate(acts.items()):
        group_scores[row, : len(widths)] = [choices.acts[group].of(width) for width in widths]
    sizes = np.array([len(names) for names in members.values()])
    problem = _problem(scores, group_scores, counts, np.array(list(left.values())), sizes)
    return Table(problem=problem, groups=tuple(acts), layers=layers, act_widths=acts, weight_widths=weights)


def _left(choices: Choices, costs: CostModel, limits: Mapping[str, int]) -> dict[str, int]:
    """Count -> what searched layers may add up to; limits on one count, and on all and the searched BOPs, are one."""
    taken = costs.unsearched({layer: LayerBits(bits, bits) for layer, bits in choices.pinned.items()})
    left: dict[str, int] = {}
    for name, most in limits.items():
        count = COUNT_OF[name]
        room = most - int(getattr(taken, count))
        shared = "bops" if count == "searched_bops" else count
        left[shared] = min(room, left.get(shared, room))
    return left


def _counts(costs: CostModel, name: str, weights: tuple[int, ...], acts: tuple[int, ...]) -> dict[str, Ints]:
    """Of all pairs of a layer's widths at once, [A, W] or what broadcasts to it: `LayerWork.counts` only multiplies."""
    bits = LayerBits(cast("int", np.array([weights])), cast("int", np.array([acts]).T))
    found = costs.work[name].counts(bits, searched=True)
    return {count: np.asarray(getattr(found, count)) for count in ("bops", "weight_bits", "act_bits")}


def _problem(scores: Floats, group_scores: Floats, counts: Ints, left: Ints, sizes: Ints) -> Knapsack:
    # Scores of one owner may all be raised alike: each owner has exactly one option.
    losses = scores.max(axis=(1, 2), keepdims=True) - scores, group_scores.max(axis=1, keepdims=True) - group_scores
    offered = [np.isfinite(loss) for loss in losses]
    finite = [np.where(there, loss, 0.0) for there, loss in zip(offered, losses, strict=True)]
    worst = finite[0].max(axis=(1, 2)).sum() + finite[1].max(axis=1).sum()
    whole = [np.rint(loss * (UNIT / worst)).astype(np.int64) for loss in finite]
    shares = [np.where(there, loss / UNIT, np.inf) for there, loss in zip(offered, whole, strict=True)]
    return Knapsack(
        loss=shares[0],
        group_loss=shares[1],
        whole_loss=whole[0],
        whole_group_loss=whole[1],
        counts=counts,
        left=left,
        starts=np.cumsum(sizes) - sizes,
        sizes=sizes,
    )
