"""What a setting takes, found by asking its class: values are tried until the ends of the accepted range are known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from service.settings import ResourcesConfig
from trainables.config import ReferenceConfig
from trainables.errors import ConfigError
from trainables.finetune_config import FinetuneConfig

ENDLESS = float(2**53)
"""A number that no limit names: where it is taken there is none."""
LADDER = (-ENDLESS, -1.0, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, ENDLESS)
"""Numbers of which every setting takes one or more, and between which the ends of its range lie."""
BESIDE: dict[type, dict[str, Any]] = {
    FinetuneConfig: {"epochs": 2**60},  # or the warm-up is longer
    ReferenceConfig: {"weights": "torchvision"},  # or 0 epochs are refused
    ResourcesConfig: {"workers": 2**60},  # or there are fewer than min_workers
}
"""Other settings of the class that leave the tried one all its values."""


def accepted(kind: type, name: str) -> str:
    """The range of numbers that the setting takes, as people read it; empty for what is no number."""
    number, wrapped = _number_of(get_type_hints(kind)[name])
    if not number:
        return ""
    others = _example(kind)

    def is_taken(value: float) -> bool:
        try:
            kind(**{**others, name: wrapped(number(value))})
        except ConfigError:
            return False
        return True

    return _interval(is_taken, number)


def _number_of(hint: Any) -> tuple[type | None, Callable[[Any], Any]]:
    """Which numbers the setting is made of, and how one of them becomes its value."""
    if hint in (int, float):
        return hint, lambda value: value
    arguments = get_args(hint)
    if get_origin(hint) is tuple and arguments[0] in (int, float):
        return arguments[0], lambda value: (value,)
    if arguments[1:] in ((int,), (float,)):
        return arguments[1], lambda value: {"name": value}
    return None, lambda value: value


def _example(kind: type) -> dict[str, Any]:
    """Values for the settings that have to be given."""
    values: Mapping[Any, Any] = {int: 1, float: 1.0, str: "a"}
    hints = get_type_hints(kind)
    needed = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    return {name: values.get(hints[name]) or get_args(hints[name])[0] for name in needed} | BESIDE.get(kind, {})


def _interval(is_taken: Callable[[float], bool], number: type) -> str:
    tried = [value for value in LADDER if number is float or value == int(value)]
    taken = [value for value in tried if is_taken(value)]
    low, high = taken[0], taken[-1]
    lower = None if low == tried[0] else _end(is_taken, tried[tried.index(low) - 1], low, number)
    upper = None if high == tried[-1] else _end(is_taken, tried[tried.index(high) + 1], high, number)
    match lower, upper:
        case None, None:
            return "any"
        case (value, is_included), None:
            return f"{'≥' if is_included else '>'} {value:.17g}"
        case (value, is_included), (last, is_last_included):
            signs = f"{'≤' if is_included else '<'} · {'≤' if is_last_included else '<'}"
            if signs == "≤ · ≤":
                return f"{value:.17g} to {last:.17g}"
            return f"{value:.17g} {signs} {last:.17g}"
    raise AssertionError((lower, upper))


def _end(is_taken: Callable[[float], bool], refused: float, taken: float, number: type) -> tuple[float, bool]:
    """Where the range ends between a refused and a taken value, and whether that value is taken: by halving."""
    if number is int:
        while abs(refused - taken) > 1:
            middle = float((int(refused) + int(taken)) // 2)
            refused, taken = (refused, middle) if is_taken(middle) else (middle, taken)
        return taken, True
    if is_taken(math.nextafter(refused, taken)):
        return refused, False
    while math.nextafter(taken, refused) != refused and is_taken(math.nextafter(taken, refused)):
        middle = (refused + taken) / 2
        refused, taken = (refused, middle) if is_taken(middle) else (middle, taken)
    return taken, True
