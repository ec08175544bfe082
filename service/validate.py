"""A section's content compared with its settings class, by pydantic: what is wrong, and at which path."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from service.yaml_source import Path_
from trainables.errors import ConfigError, did_you_mean

T = TypeVar("T")
Problem = tuple[Path_, str, bool]
"""Path, message, and whether the key rather than its value is wrong."""
adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def build(kind: type[T], content: Mapping[str, Any]) -> T:
    """An instance of a settings class. Through JSON, as there a list may stand for a tuple and nothing else is lax."""
    try:
        built: T = adapter(kind).validate_json(json.dumps(content))
        return built
    except ValidationError as error:
        raise ConfigError("; ".join(str(problem["msg"]) for problem in error.errors())) from None


def find_problems(kind: type, content: Mapping[str, Any], *prefix: str | int) -> list[Problem]:
    """All that is wrong with a section.

    A class raises at its first broken limit. So what was found wrong is left out, and the rest is read again.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    rest, found, left_out = dict(content), dict[Problem, None](), set[str]()
    while True:
        # A limit that is only broken together with a default that stands in is not the author's mistake.
        defaults = {repr(fields[name].default) for name in left_out & set(fields) if _is_word(fields[name].default)}
        problems = [
            (path, message, at_key)
            for path, message, at_key in _problems_once(kind, rest, prefix)
            if not left_out.intersection(map(str, path[len(prefix) :][:1])) and not any(d in message for d in defaults)
        ]
        found.update(dict.fromkeys(problems))
        names = {str(path[len(prefix)]) for path, _, _ in problems if len(path) > len(prefix)}
        if not names:
            return list(found)
        left_out |= names
        rest = {name: value for name, value in rest.items() if name not in names}
        rest |= {name: _stand_in(str(fields[name].type)) for name in names if _must_stand(fields.get(name))}


_STAND_INS = {"int": 1, "float": 1.0, "str": "x", "tuple[str, ...]": ["x"]}
"""Values that every required setting of the type accepts."""


def _stand_in(kind: str) -> Any:
    words = re.fullmatch(r"""Literal\[["'](\w+)["'].*\]""", kind)
    return words[1] if words else _STAND_INS[kind]


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _must_stand(setting: Any) -> bool:
    missing = dataclasses.MISSING
    return setting is not None and setting.default is missing and setting.default_factory is missing


def _problems_once(kind: type, content: Mapping[str, Any], prefix: Path_) -> list[Problem]:
    try:
        adapter(kind).validate_json(json.dumps(content))
    except ValidationError as error:
        return [_explain(kind, content, problem, prefix) for problem in error.errors(include_url=False)]
    return []


def _explain(kind: type, content: Mapping[str, Any], problem: Any, prefix: Path_) -> Problem:
    place: Path_ = tuple(problem["loc"])
    names = [f.name for f in dataclasses.fields(kind)]
    of_several = problem["type"] != "missing" and not _leads(content, place)
    if of_several:
        # The last part names one of several types that would have been right.
        place = place[:-1]
    path = (*prefix, *place)
    dotted = ".".join(str(part) for part in path)
    match problem["type"]:
        case "missing":
            return path, f"{dotted}: missing", True
        case "unexpected_keyword_argument":
            return path, f"{dotted}: unknown key {path[-1]!r}{did_you_mean(str(path[-1]), names)}", True
        case "value_error":
            message = str(problem["ctx"]["error"])
            named = re.match(r"(?:\w+\.)?(\w+)(?= is |: )", message)
            if named and named[1] in names:
                return (*prefix, named[1]), message.rstrip("."), False
            return prefix, message.rstrip("."), False
        case kind_of_error:
            expected = _EXPECTED.get(kind_of_error) or _literals(problem) or problem["msg"].lower()
            expected = "a number, a word, true or false" if of_several else expected
            return path, f"{dotted}: found {problem['input']!r}; expected {expected}", False


def _leads(content: Any, path: Path_) -> bool:
    for part in path:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list in brackets",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
}


def _literals(problem: Any) -> str:
    if problem["type"] != "literal_error":
        return ""
    return f"one of {problem['ctx']['expected'].replace(' or ', ', ')}"
