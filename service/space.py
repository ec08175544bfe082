"""The search-space grammar: what each varied setting may be.

method.zeta:      {loguniform: [0.01, 1.0]}     a float, even on a log scale
method.eta:       {uniform: [0.0, 2.0]}         a float
method.top_k:     {int: [4, 16]}                a whole number, both ends included
method.capacity:  {choice: [12.0, 24.0, 36.0]}  one of these
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from trainables.errors import ConfigError, did_you_mean

Scalar = bool | int | float | str
KINDS = ("choice", "int", "loguniform", "uniform")


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


Domain = Choice | Float | Int


def suggest(space: Mapping[str, Domain], trial: Suggester) -> dict[str, Scalar]:
    """A value for every setting of the space."""
    return {name: domain.suggest(name, trial) for name, domain in space.items()}


def parse_domain(value: object) -> Domain:
    """Reads one entry of a space. Raises ConfigError with what would be right."""
    if not isinstance(value, dict) or len(value) != 1:
        raise ConfigError(f"found {value!r}; expected one of {{{'}, {'.join(f'{k}: [...]' for k in KINDS)}}}")
    ((kind, content),) = value.items()
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of range {kind!r}{did_you_mean(str(kind), KINDS)}")
    if not isinstance(content, list):
        raise ConfigError(f"{kind}: found {content!r}; expected a list in brackets")
    return _choice(content) if kind == "choice" else _range(str(kind), content)


def _choice(values: list[object]) -> Choice:
    if not values:
        raise ConfigError("choice: the list is empty; give at least one value")
    checked: list[Scalar] = []
    for value in values:
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"choice: found {value!r}; expected single numbers, words or true/false")
        # 12 and 12.0 are one value of a setting; 1 and true are not.
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in checked):
            raise ConfigError(f"choice: {value!r} stands twice; give each value once")
        checked.append(value)
    return Choice(tuple(checked))


def _range(kind: str, content: list[object]) -> Domain:
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
