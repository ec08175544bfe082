"""The search-space grammar: what each varied setting may be.

method.zeta:      {loguniform: [0.01, 1.0]}     a float, even on a log scale
method.eta:       {uniform: [0.0, 2.0]}         a float
method.top_k:     {int: [4, 16]}                a whole number, both ends included
method.capacity:  {choice: [12.0, 24.0, 36.0]}  one of these
method.bit_lr:    {grid: [0.01, 0.03, 0.1]}     one of these numbers
method.start:     {fixed: scratch}              this one

An entry with a condition, {loguniform: [0.1, 1], when: {method.start: scratch}}, is active, and has a value, where each
entry that the condition names is active and has that value, or one of a list of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from trainables.errors import ConfigError, did_you_mean

Scalar = bool | int | float | str
KINDS = ("choice", "fixed", "grid", "int", "loguniform", "uniform")
MAX_POINTS = 10_000
"""Of a grid; a trial takes minutes."""


class Suggester(Protocol):
    """What a sampler's trial offers (Optuna's names)."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def suggest_categorical(self, name: str, choices: tuple[Scalar, ...]) -> Scalar: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values, without order."""

    values: tuple[Scalar, ...]

    def examples(self) -> tuple[Scalar, ...]:
        """Values that stand for all: every one must be acceptable."""
        return self.values

    def suggest(self, name: str, trial: Suggester) -> Scalar:
        """A value for one trial."""
        return trial.suggest_categorical(name, self.values)


@dataclass(frozen=True, slots=True)
class Float:
    """A real number between two ends, even on a linear or on a log scale."""

    low: float
    high: float
    log: bool

    def examples(self) -> tuple[Scalar, ...]:
        """Both ends."""
        return (self.low, self.high)

    def suggest(self, name: str, trial: Suggester) -> Scalar:
        """A value for one trial."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number between two ends, both included."""

    low: int
    high: int

    def examples(self) -> tuple[Scalar, ...]:
        """Both ends."""
        return (self.low, self.high)

    def suggest(self, name: str, trial: Suggester) -> Scalar:
        """A value for one trial."""
        return trial.suggest_int(name, self.low, self.high)


Range = Choice | Float | Int


@dataclass(frozen=True, slots=True)
class Conditional:
    """A range that matters only where other entries of the space have certain values."""

    domain: Range
    when: tuple[tuple[str, tuple[Scalar, ...]], ...]
    """Entries that stand earlier, with the values of which each must have one."""

    def examples(self) -> tuple[Scalar, ...]:
        """Those of the range."""
        return self.domain.examples()

    def suggest(self, name: str, trial: Suggester) -> Scalar:
        """A value for one trial in which it is active."""
        return self.domain.suggest(name, trial)


Domain = Range | Conditional


def range_of(domain: Domain) -> Range:
    """The range without its condition."""
    return domain.domain if isinstance(domain, Conditional) else domain


def is_active(domain: Domain, settings: Mapping[str, Scalar]) -> bool:
    """Whether its condition holds, with the settings of the entries before it."""
    return not isinstance(domain, Conditional) or all(
        name in settings and any(_same(settings[name], value) for value in values) for name, values in domain.when
    )


def suggest(space: Mapping[str, Domain], trial: Suggester) -> dict[str, Scalar]:
    """A value for every setting of the space that is active."""
    settings: dict[str, Scalar] = {}
    for name, domain in space.items():
        if is_active(domain, settings):
            settings[name] = domain.suggest(name, trial)
    return settings


def example(space: Mapping[str, Domain], chosen: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Settings with the first example of each active entry, but for those that `chosen` gives a value."""
    settings: dict[str, Scalar] = {}
    for name, domain in space.items():
        if is_active(domain, settings):
            settings[name] = chosen.get(name, domain.examples()[0])
    return settings


def chosen_for(space: Mapping[str, Domain], name: str) -> dict[str, Scalar]:
    """Values of other entries with which this one is active: the first that its condition names, and so on upwards."""
    chosen: dict[str, Scalar] = {}
    domain = space[name]
    for parent, values in domain.when if isinstance(domain, Conditional) else ():
        chosen |= chosen_for(space, parent) | {parent: values[0]}
    return chosen


def points(space: Mapping[str, Domain]) -> list[dict[str, Scalar]]:
    """The full grid: every combination of values, the last entry changing fastest. Raises ConfigError without one."""
    found: list[dict[str, Scalar]] = [{}]
    for name, domain in space.items():
        count = size(domain)
        if count == math.inf:
            raise ConfigError(f"{name}: a grid tries every value; give choice, grid, int or fixed instead of a range")
        num_active = sum(is_active(domain, point) for point in found)
        if num_active * count > MAX_POINTS:
            raise ConfigError(f"{name}: with it the grid has more than {MAX_POINTS} points; give fewer values")
        found = [
            point | {name: value} if value is not None else point
            for point in found
            for value in (_values(domain) if is_active(domain, point) else (None,))
        ]
    return found


def size(domain: Domain) -> float:
    """How many values there are; infinity for a continuous range."""
    match range_of(domain):
        case Choice(values):
            return len(values)
        case Int(low, high):
            return high - low + 1
    return math.inf


def _values(domain: Domain) -> tuple[Scalar, ...]:
    plain = range_of(domain)
    return tuple(range(plain.low, plain.high + 1)) if isinstance(plain, Int) else plain.examples()


def unit_point(space: Mapping[str, Domain], coordinates: Sequence[float]) -> dict[str, Scalar]:
    """Settings at a point of the unit cube, one coordinate for each entry; inactive entries are left out.

    Values of a choice and whole numbers have equal shares of their coordinate.
    """
    if len(coordinates) != len(space):
        raise ValueError(f"{len(coordinates)} coordinates for a space of {len(space)} entries")
    settings: dict[str, Scalar] = {}
    for (name, domain), u in zip(space.items(), coordinates, strict=True):
        if is_active(domain, settings):
            settings[name] = _at(range_of(domain), min(max(u, 0.0), 1.0))
    return settings


def _at(domain: Range, u: float) -> Scalar:
    match domain:
        case Choice(values):
            return values[min(int(u * len(values)), len(values) - 1)]
        case Int(low, high):
            return min(low + int(u * (high - low + 1)), high)
        case Float(low, high, log=True):
            return min(max(math.exp((1 - u) * math.log(low) + u * math.log(high)), low), high)
        case Float(low, high):
            return min(max((1 - u) * low + u * high, low), high)


def fit(domain: Domain, value: Scalar) -> Scalar:
    """The domain's own value that equals this one. Raises ConfigError for one outside."""
    match range_of(domain):
        case Choice(values):
            for own in values:
                if _same(own, value):
                    return own
            raise ConfigError(f"found {value!r}; expected one of {', '.join(map(repr, values))}")
        case Int(low, high):
            if not _is_number(value) or value != int(value) or not low <= value <= high:
                raise ConfigError(f"found {value!r}; expected a whole number from {low} to {high}")
            return int(value)
        case Float(low, high):
            if not _is_number(value) or not low <= float(value) <= high:
                raise ConfigError(f"found {value!r}; expected a number from {low:g} to {high:g}")
            return float(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(a: object, b: object) -> bool:
    """12 and 12.0 are one value of a setting; 1 and true are not."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def as_written(domain: Domain) -> dict[str, object]:
    """The domain in the words of the grammar."""
    condition = {}
    if isinstance(domain, Conditional):
        condition = {"when": {name: list(values) for name, values in domain.when}}
    match range_of(domain):
        case Choice(values):
            return {"choice": list(values), **condition}
        case Int(low, high):
            return {"int": [low, high], **condition}
        case Float(low, high, log):
            return {"loguniform" if log else "uniform": [low, high], **condition}


def parse_domain(value: object) -> Domain:
    """Reads one entry of a space. Raises ConfigError with what would be right.

    What a condition names is compared with the rest of the space by `check_condition`.
    """
    kinds = [kind for kind in value if kind != "when"] if isinstance(value, dict) else []
    if not isinstance(value, dict) or len(kinds) != 1:
        forms = ", ".join(f"{{{kind}: {'value' if kind == 'fixed' else '[...]'}}}" for kind in KINDS)
        raise ConfigError(f"found {value!r}; expected one of {forms}")
    (kind,) = kinds
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of range {kind!r}{did_you_mean(str(kind), (*KINDS, 'when'))}")
    domain = _parse_range(str(kind), value[kind])
    return Conditional(domain, _parse_when(value["when"])) if "when" in value else domain


def check_condition(name: str, values: Sequence[Scalar], space: Mapping[str, Domain]) -> tuple[Scalar, ...]:
    """The values of a condition as the entry `name`, one of `space` before it, has them. Raises ConfigError."""
    parent = space[name]
    if size(parent) == math.inf:
        raise ConfigError(f"{name!r} is a range; a condition needs an entry that is a choice, grid, int or fixed")
    return tuple(fit(parent, value) for value in values)


def _parse_when(value: object) -> tuple[tuple[str, tuple[Scalar, ...]], ...]:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"when: found {value!r}; expected an entry and its value, as {{method.start: scratch}}")
    when = []
    for name, wanted in value.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        if not values or not all(isinstance(v, bool | int | float | str) for v in values):
            raise ConfigError(f"when: {name}: found {wanted!r}; expected a value, or several in brackets")
        when.append((str(name), tuple(values)))
    return tuple(when)


def _parse_range(kind: str, content: object) -> Range:
    if kind == "fixed":
        if not isinstance(content, bool | int | float | str):
            raise ConfigError(f"fixed: found {content!r}; expected a single number, word or true/false")
        return Choice((content,))
    if not isinstance(content, list):
        raise ConfigError(f"{kind}: found {content!r}; expected a list in brackets")
    if kind == "grid" and not all(_is_number(value) for value in content):
        raise ConfigError(f"grid: found {content!r}; expected numbers, or use 'choice'")
    return _choice(kind, content) if kind in ("choice", "grid") else _interval(kind, content)


def _choice(kind: str, values: list[object]) -> Choice:
    if not values:
        raise ConfigError(f"{kind}: the list is empty; give at least one value")
    checked: list[Scalar] = []
    for value in values:
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"{kind}: found {value!r}; expected single numbers, words or true/false")
        if any(_same(value, other) for other in checked):
            raise ConfigError(f"{kind}: {value!r} stands twice; give each value once")
        checked.append(value)
    return Choice(tuple(checked))


def _interval(kind: str, content: list[object]) -> Range:
    if len(content) != 2 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in content):
        raise ConfigError(f"{kind}: found {content!r}; expected two numbers [low, high]")
    low, high = (v for v in content if isinstance(v, int | float))
    if not low < high:
        raise ConfigError(f"{kind}: low {low:g} is not below high {high:g}")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"loguniform: low is {low:g}; a log scale needs positive numbers, or use 'uniform'")
    if kind == "int":
        if not all(isinstance(v, int) for v in content):
            raise ConfigError(f"int: found {content!r}; expected whole numbers, or use 'uniform'")
        return Int(int(low), int(high))
    return Float(float(low), float(high), log=kind == "loguniform")
