"""Importance indicators: what each width of a layer's weights, or of its activation, costs in accuracy; less is better.

LIMPQ (Tang et al. 2022) learns them as the steps of its quantisers, one for each (layer, width). Its search chooses

    minimise  Σ_l s_a[l, a_l] + α·s_w[l, w_l]    over widths w, a of each layer l,   within the limits

so that −α·s_w and −s_a are scores. Layers that share an activation share its width: their s_a are added up. A file may
have one for all of them, under the first one's name: it counts for each, as the sum is over layers.

Joint training leaves outliers: a width whose indicator is below that of the next wider one costs less, and is worth
more. Such widths are not offered, as in the authors' release. Neighbours alone are compared: of 0.25, 0.2 and 0.3 for
2, 3 and 4 bits, 3 are left out, and 4 are on offer for nothing, as allocation takes no width that is worth no more than
a smaller one. Where a budget needs what is left out, `exclusion` says what becomes of it.

Files are the JSON of what the authors' extractor collects, widths as text:

    {"weight": {LAYER: {"6": 0.01, …}, …}, "act": {LAYER: {"6": 0.02, …}, …}, "layer_name": [LAYER, …]}
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trainables.choices import Choices, Scores
from trainables.errors import ConfigError, did_you_mean
from trainables.policy import MAX_BITS
from trainables.policy_file import read_object, read_text

ByWidth = Mapping[int, float]
Kind = Literal["weight", "act"]

LARGEST_FILE = 2**26
"""Bytes: more than a thousand times what a network of 50 layers takes."""
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")
_MOST_NAMED = 6
"""Layers that an error lists."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """A width that is not offered, as its indicator is below that of the next wider one."""

    owner: str
    """The layer; of an activation the group's first."""
    kind: Kind
    width: int
    wider: int
    values: tuple[float, float]
    """Indicators of both."""

    @property
    def what(self) -> str:
        """Says which width of what it is."""
        return f"{self.owner}: {self.width}-bit {'weights' if self.kind == 'weight' else 'activations'}"

    def __str__(self) -> str:
        return (
            f"{self.what} are not offered: their indicator {self.values[0]:.4g} is below {self.values[1]:.4g}, that of "
            f"{self.wider} bits"
        )


@dataclass(frozen=True, slots=True)
class Indicators:
    """Indicators by layer and width; positive or zero, less is better."""

    weights: Mapping[str, ByWidth]
    acts: Mapping[str, ByWidth]
    """Each layer's own, or for a group of layers that share an activation one under the name of the first."""

    def __post_init__(self) -> None:
        for kind, layers in (("weight", self.weights), ("act", self.acts)):
            for layer, values in layers.items():
                for width, value in values.items():
                    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= MAX_BITS:
                        raise ConfigError(f"{kind}.{layer}: {width!r} is no width; give 1 to {MAX_BITS} bits.")
                    if not 0 <= value < math.inf:
                        raise ConfigError(
                            f"{kind}.{layer}.{width} is {value}; an indicator is zero or a positive, finite number."
                        )

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that have an indicator, in order."""
        return tuple(dict.fromkeys([*self.weights, *self.acts]))

    def choices(self, template: Choices, *, alpha: float = 2.0) -> Choices:
        """The widths of `template` with their scores, less those of `excluded`. What is pinned needs no indicator.

        Raises ConfigError for layers that the network lacks, and for layers and widths without an indicator.
        """
        self._check_layers(template.layers)
        weights, acts = self._offered(template)
        return replace(
            template,
            weights={name: _scores(values, alpha) for name, values in weights.items()},
            acts={
                group: _scores(acts[group], 1.0) if group in acts else scores for group, scores in template.acts.items()
            },
        )

    def excluded(self, template: Choices) -> tuple[Excluded, ...]:
        """The widths of `template` that `choices` leaves out. Raises as `choices`."""
        self._check_layers(template.layers)
        weights, acts = self._offered(template)
        found = [one for name, values in weights.items() for one in _excluded(name, "weight", values)]
        return (*found, *(one for name, values in acts.items() for one in _excluded(name, "act", values)))

    def without_prefix(self, layers: Iterable[str]) -> tuple[Indicators, str]:
        """The same under the names of a network's `layers`, and what all names had in front of them, such as "module.".

        Nothing is taken off where that does not leave names of the network.
        """
        known, names = set(layers), self.layers
        parts = names[0].split(".") if names else []
        for count in range(len(parts)):
            prefix = "".join(f"{part}." for part in parts[:count])
            if all(name.startswith(prefix) and name.removeprefix(prefix) in known for name in names):
                return Indicators(_stripped(self.weights, prefix), _stripped(self.acts, prefix)), prefix
        return self, ""

    def to_content(self) -> dict[str, Any]:
        """Plain values, as JSON holds them; `from_content` reads them back."""
        return {"weight": _written(self.weights), "act": _written(self.acts), "layer_name": list(self.weights)}

    @classmethod
    def from_content(cls, content: Mapping[str, Any], origin: str) -> Indicators:
        """Reads `to_content`; `origin` is named in errors, which are ConfigErrors."""
        keys = ("weight", "act", "layer_name")
        for key in content:
            if key not in keys:
                raise ConfigError(f"{origin}: unknown key {key!r}{did_you_mean(key, keys)}.")
        for key in keys[:2]:
            if not isinstance(content.get(key), dict):
                raise ConfigError(f"{origin}: {key!r} must map each layer's name to its indicators by width.")
        try:
            weights, acts = (_read(key, content[key]) for key in keys[:2])
            found = cls(weights, acts)
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from None
        names = content.get("layer_name", list(weights))
        if not isinstance(names, list) or sorted(map(str, names)) != sorted(weights):
            raise ConfigError(f"{origin}: 'layer_name' must list the layers of 'weight', each once; or leave it out.")
        return found

    def to_json(self) -> str:
        """The file's text; `load` reads it back."""
        return json.dumps(self.to_content(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Indicators:
        """Reads the file at `path`."""
        if path.suffix in _PICKLES:
            raise ConfigError(
                f"{path} is a pickle, which can run any code when it is read. Where you trust it, write it as JSON: "
                f"python -c 'import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], \"rb\")), sys.stdout)' "
                f"{path} > {path.with_suffix('.json')}"
            )
        if path.is_file() and path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes are no file of indicators; give another.")
        return cls.from_content(read_object(read_text(path), origin=str(path)), str(path))

    def _check_layers(self, layers: Sequence[str]) -> None:
        unknown = [name for name in self.layers if name not in layers]
        if unknown:
            more = f" ({len(unknown)} such layers)" if len(unknown) > 1 else ""
            raise ConfigError(f"indicators: the network has no layer {unknown[0]!r}{more}{_near(unknown[0], layers)}.")

    def _offered(self, template: Choices) -> tuple[dict[str, ByWidth], dict[str, ByWidth]]:
        """Indicators of all widths of `template`: of layers' weights, and of groups that have a width to choose."""
        weights = {
            name: _of_widths("weight", name, self.weights, scores.widths) for name, scores in template.weights.items()
        }
        members: dict[str, list[str]] = {}
        for name, group in template.group_of.items():
            members.setdefault(group, []).append(name)
        acts: dict[str, ByWidth] = {}
        for group, scores in template.acts.items():
            if len(scores.widths) == 1:
                continue
            # The file may have the first alone: then all layers read what one quantiser made, and have its indicator.
            first = members[group][0]
            alone = first in self.acts and not any(name in self.acts for name in members[group][1:])
            owners = [first] * len(members[group]) if alone else members[group]
            parts = [_of_widths("act", name, self.acts, scores.widths) for name in owners]
            acts[group] = {width: math.fsum(part[width] for part in parts) for width in sorted(scores.widths)}
        return weights, acts


def _near(name: str, layers: Iterable[str]) -> str:
    """The end of an error sentence: the nearest of the known layers, and how many there are besides."""
    known = list(layers)
    near = difflib.get_close_matches(name, known, n=_MOST_NAMED, cutoff=0.0)
    more = f" and {len(known) - len(near)} more" if len(known) > len(near) else ""
    return did_you_mean(name, near) + more


def _of_widths(kind: Kind, name: str, layers: Mapping[str, ByWidth], widths: Sequence[int]) -> ByWidth:
    """Of one layer, by width, ascending."""
    if name not in layers:
        raise ConfigError(
            f"indicators: {kind} has no layer {name!r}{_near(name, layers)}. Give it indicators, or pin it."
        )
    missing = [str(width) for width in sorted(widths) if width not in layers[name]]
    if missing:
        raise ConfigError(
            f"indicators: {kind}.{name} has none of {', '.join(missing)} bits, only of "
            f"{', '.join(map(str, sorted(layers[name]))) or 'no width'}; offer those widths alone."
        )
    return {width: layers[name][width] for width in sorted(widths)}


def _excluded(owner: str, kind: Kind, values: ByWidth) -> list[Excluded]:
    widths = list(values)
    return [
        Excluded(owner, kind, width, wider, (values[width], values[wider]))
        for width, wider in itertools.pairwise(widths)
        if values[width] < values[wider]
    ]


def _scores(values: ByWidth, factor: float) -> Scores:
    left_out = {one.width for one in _excluded("", "weight", values)}
    kept = {width: value for width, value in values.items() if width not in left_out}
    return Scores(tuple(kept), tuple(-factor * value for value in kept.values()))


def _stripped(layers: Mapping[str, ByWidth], prefix: str) -> dict[str, ByWidth]:
    return {name.removeprefix(prefix): values for name, values in layers.items()}


def _written(layers: Mapping[str, ByWidth]) -> dict[str, dict[str, float]]:
    return {name: {str(width): value for width, value in values.items()} for name, values in layers.items()}


def _read(kind: str, content: Mapping[str, Any]) -> dict[str, ByWidth]:
    return {layer: _read_layer(f"{kind}.{layer}", values) for layer, values in content.items()}


def _read_layer(where: str, content: object) -> ByWidth:
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{where} is {str(content)[:40]!r}; expected indicators by width, such as {{'2': 0.1}}.")
    found = {}
    for width, value in content.items():
        if (
            not width.isdecimal()
            or not width.isascii()
            or width != width.lstrip("0")
            or len(width) > len(str(MAX_BITS))
        ):
            raise ConfigError(f"{where}: {width[:40]!r} is no width; give a whole number from 1 to {MAX_BITS}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{where}.{width} is {str(value)[:40]!r}; expected a number.")
        try:
            found[int(width)] = float(value)
        except OverflowError:
            raise ConfigError(f"{where}.{width} has {len(str(value))} digits; give a finite number.") from None
    return found
