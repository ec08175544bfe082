"""What a search ended with: how much each width of each layer is worth. From it, and a budget, follows a policy.

Scores are added up over the layers, whatever they measure: log-probabilities of a supernet, losses of a sensitivity
analysis, learned indicators (`indicators`). Weights have their scores by layer; activations by group, as layers that
share an activation share its bits. No tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.errors import ConfigError
from trainables.policy import MAX_BITS, BitPolicy, LayerBits
from trainables.policy_file import read_object, read_text

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Scores:
    """Widths on offer, each with what it is worth: more is better, and scores are added."""

    widths: tuple[int, ...]
    values: tuple[float, ...]
    """Finite, on a scale of the method's own: log π (nats) where a supernet was searched, minus a loss or an indicator
    where layers were tried one by one. Differences alone count."""

    def __post_init__(self) -> None:
        if not self.widths or len(set(self.widths)) != len(self.widths) or len(self.widths) != len(self.values):
            raise ConfigError(f"widths are {self.widths}, scores {self.values}; give each of some widths one score.")
        if not all(isinstance(width, int) and 1 <= width <= MAX_BITS for width in self.widths):
            raise ConfigError(f"widths are {self.widths}; give whole numbers from 1 to {MAX_BITS}.")
        if not all(math.isfinite(value) for value in self.values):
            raise ConfigError(f"the scores of the widths {self.widths} are {self.values}; give finite numbers.")

    @property
    def best(self) -> int:
        """The width of the highest score; of equals the smaller."""
        return max(zip(self.values, (-width for width in self.widths), self.widths, strict=True))[2]

    @property
    def worthwhile(self) -> tuple[int, ...]:
        """Widths that are worth more than every smaller one, ascending: the others cost more for nothing."""
        kept: list[int] = []
        for width in sorted(self.widths):
            if not kept or self.of(width) > self.of(kept[-1]):
                kept.append(width)
        return tuple(kept)

    def of(self, width: int) -> float:
        """The score of a width that is on offer."""
        return self.values[self.widths.index(width)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """The scores of a network's layers. Groups have the name of their first layer."""

    network: str
    layers: tuple[str, ...]
    """All layers with a weight, in order of execution."""
    weights: Mapping[str, Scores]
    """Of each searched layer's weights."""
    acts: Mapping[str, Scores]
    """Of each group's activation; a single width where a pinned layer fixes it."""
    group_of: Mapping[str, str]
    """The group of each searched layer."""
    pinned: Mapping[str, int]
    """Weight and activation bits of the other layers."""
    indicators: Mapping[str, Any] = field(default_factory=dict)
    """Importance indicators that the scores follow from, as a file of them holds them; empty where there are none."""

    def __post_init__(self) -> None:
        if set(self.weights) & set(self.pinned) or {*self.weights, *self.pinned} != set(self.layers):
            raise ConfigError("choices: each layer needs either scores of its widths or pinned bits.")
        if set(self.group_of) != set(self.weights) or set(self.group_of.values()) != set(self.acts):
            raise ConfigError("choices: each searched layer needs a group, and each group scores and a layer.")

    @property
    def best(self) -> BitPolicy:
        """The widths of the highest scores, whatever they cost; of equals the smaller."""
        return self.policy(
            {name: scores.best for name, scores in self.weights.items()},
            {group: scores.best for group, scores in self.acts.items()},
        )

    @property
    def smallest(self) -> BitPolicy:
        """The smallest widths: no policy of these choices costs less, in any cost."""
        return self.policy(
            {name: min(scores.widths) for name, scores in self.weights.items()},
            {group: min(scores.widths) for group, scores in self.acts.items()},
        )

    @property
    def largest(self) -> BitPolicy:
        """The largest widths: no policy of these choices costs more, in any cost."""
        return self.policy(
            {name: max(scores.widths) for name, scores in self.weights.items()},
            {group: max(scores.widths) for group, scores in self.acts.items()},
        )

    def policy(self, weight_bits: Mapping[str, int], act_bits: Mapping[str, int]) -> BitPolicy:
        """The policy of the searched layers' weight bits and the groups' activation bits."""
        bits = {name: LayerBits(b, b) for name, b in self.pinned.items()}
        bits |= {name: LayerBits(weight_bits[name], act_bits[group]) for name, group in self.group_of.items()}
        return BitPolicy(
            network=self.network, bits={name: bits[name] for name in self.layers}, pinned=frozenset(self.pinned)
        )

    def score(self, policy: BitPolicy) -> float:
        """Sum of the scores that `policy` chose, each group's activation once. It must be one of these choices."""
        parts = [scores.of(policy.bits[name].weight) for name, scores in self.weights.items()]
        member = {group: name for name, group in self.group_of.items()}
        parts += [scores.of(policy.bits[member[group]].act) for group, scores in self.acts.items()]
        return math.fsum(parts)

    def to_content(self) -> dict[str, Any]:
        """Plain values, as JSON holds them; `from_content` reads them back."""

        def layer(name: str) -> dict[str, Any]:
            if name in self.pinned:
                return {"pinned": self.pinned[name]}
            return {"weight": _written(self.weights[name]), "group": self.group_of[name]}

        content = {
            "bitfront_choices": FORMAT_VERSION,
            "network": self.network,
            "layers": {name: layer(name) for name in self.layers},
            "groups": {group: _written(scores) for group, scores in self.acts.items()},
        }
        return {**content, "indicators": self.indicators} if self.indicators else content

    @classmethod
    def from_content(cls, content: Mapping[str, Any], *, origin: str) -> Choices:
        """Reads `to_content`; `origin` is named in errors, which are ConfigErrors."""
        if content.get("bitfront_choices") != FORMAT_VERSION:
            raise ConfigError(f"{origin}: not a file of choices: expected 'bitfront_choices': {FORMAT_VERSION}.")
        layers, groups, indicators = content.get("layers"), content.get("groups"), content.get("indicators", {})
        if not isinstance(layers, dict) or not isinstance(groups, dict) or not isinstance(content.get("network"), str):
            raise ConfigError(f"{origin}: expected 'network', a name, and 'layers' and 'groups', objects.")
        if not isinstance(indicators, dict):
            raise ConfigError(
                f"{origin}: 'indicators' are {str(indicators)[:40]!r}; expected an object, or leave it out."
            )
        for name, entry in layers.items():
            if not isinstance(entry, dict) or set(entry) not in ({"pinned"}, {"weight", "group"}):
                raise ConfigError(f"{origin}: layer {name!r}: expected 'weight' and 'group', or 'pinned'.")
        searched = {name: entry for name, entry in layers.items() if "weight" in entry}
        if not all(isinstance(entry["group"], str) for entry in searched.values()):
            raise ConfigError(f"{origin}: 'group' of a layer is no name; give one of 'groups'.")
        try:
            return cls(
                network=content["network"],
                layers=tuple(layers),
                weights={name: _read(entry["weight"]) for name, entry in searched.items()},
                acts={group: _read(scores) for group, scores in groups.items()},
                group_of={name: entry["group"] for name, entry in searched.items()},
                pinned={name: entry["pinned"] for name, entry in layers.items() if "pinned" in entry},
                indicators=indicators,
            )
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from None

    def to_json(self) -> str:
        """The file's text; `load` reads it back."""
        return json.dumps(self.to_content(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Choices:
        """Reads the file at `path`."""
        return cls.from_content(read_object(read_text(path), origin=str(path)), origin=str(path))


def _written(scores: Scores) -> dict[str, float]:
    return {str(width): value for width, value in zip(scores.widths, scores.values, strict=True)}


def _read(content: object) -> Scores:
    if not isinstance(content, dict) or not all(str(width).isdecimal() for width in content):
        raise ConfigError(f"expected scores by width, found {str(content)[:60]!r}.")
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in content.values()):
        raise ConfigError(f"expected a number for each width, found {content!r}.")
    try:
        return Scores(tuple(int(width) for width in content), tuple(float(value) for value in content.values()))
    except OverflowError:
        raise ConfigError("found a score of more digits than a number has; give a finite one.") from None
