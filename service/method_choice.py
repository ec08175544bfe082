"""Which methods a sweep's trials may have: one that its section names, or those that its space gives them.

A setting that is fixed in the section goes to every method that has it; one of the space belongs to trials whose
method has it, which its condition says where there are several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from service.reached import reached
from service.space import Domain, Scalar, chosen_for, example, parse_domain, range_of
from service.validate import build, find_problems
from service.varied import METHOD, Fixed, check_example, content_of, section
from service.yaml_source import Path_, Source
from trainables.errors import ConfigError, did_you_mean
from trainables.method_config import METHOD_CONFIGS, MethodConfig


def read_methods(source: Source) -> tuple[str, tuple[str, ...]]:
    """The method that the section names, empty where it names none, and all that trials may have.

    A problem for each unknown one, and where there is none; of these none are returned.
    """
    fixed, found = section(source, "method").get("name"), dict[str, None]()
    for path, name in _written(source):
        if isinstance(name, str) and name in METHOD_CONFIGS:
            found[name] = None
        else:
            dotted = ".".join(path[:2] if path[0] == "space" else path)  # type: ignore[arg-type]
            source.add(path, f"{dotted}: unknown method {name!r}{did_you_mean(str(name), METHOD_CONFIGS)}")
            return "", ()
    if fixed is None and METHOD not in section(source, "space"):
        source.add(("method",), f"method.name: missing; expected one of {', '.join(METHOD_CONFIGS)}", at_key=True)
    return fixed if isinstance(fixed, str) else "", tuple(found)


def _written(source: Source) -> list[tuple[Path_, object]]:
    """Every name that the file gives a method, with its place, in the order of the space."""
    found: list[tuple[Path_, object]] = []
    entry = section(source, "space").get(METHOD)
    try:
        domain = parse_domain(entry) if entry is not None else None
    except ConfigError:
        # It has its own message.
        domain = None
    if domain is not None and isinstance(entry, dict):
        kind = next(key for key in entry if key != "when")
        places: list[Path_] = [("space", METHOD, kind, n) for n in range(len(range_of(domain).examples()))]
        if kind == "fixed":
            places = [("space", METHOD, kind)]
        found += zip(places, range_of(domain).examples(), strict=True)
    name = section(source, "method").get("name")
    return found + ([(("method", "name"), name)] if name is not None else [])


def build_method(name: str, content: Mapping[str, Any]) -> MethodConfig:
    """The settings of the method `name`, of those among `content` that it has."""
    kind = METHOD_CONFIGS[name]
    return build(kind, _own(kind, content))


def _own(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    names = _names(kind)
    return {key: value for key, value in content.items() if key in names}


def _names(kind: type) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def check_methods(source: Source, methods: tuple[str, ...], fixed: Fixed, space: Mapping[str, Domain]) -> None:
    """What is wrong with the settings of several methods: keys that none has, entries of the space that reach a method
    without such a setting, and whatever a method's own settings class refuses."""
    known = {key for name in methods for key in _names(METHOD_CONFIGS[name])}
    for key in fixed["method"]:
        if key not in known:
            source.add(("method", key), f"method.{key}: unknown key {key!r}{did_you_mean(key, known)}", at_key=True)
    own = {name: domain for name, domain in space.items() if name.startswith("method.") and name != METHOD}
    for name in own:
        _check_reach(source, name, methods, space)
    for method in methods:
        _check_one(source, method, fixed, space, own)


def example_with(
    method: str, space: Mapping[str, Domain], chosen: Mapping[str, Scalar] = MappingProxyType({})
) -> dict[str, Scalar]:
    """The first settings of trials with a method, but for those that are chosen."""
    if method in range_of(space[METHOD]).examples():
        return example(space, {**chosen_for(space, METHOD), METHOD: method, **chosen})
    # The section's own, of trials to which the space gives none.
    return example({name: domain for name, domain in space.items() if name != METHOD}, chosen)


def _check_reach(source: Source, name: str, methods: tuple[str, ...], space: Mapping[str, Domain]) -> None:
    key = name.removeprefix("method.")
    having = [method for method in methods if key in _names(METHOD_CONFIGS[method])]
    try:
        found = reached(space, [name])
    except ConfigError:
        return  # too many to look at, which `combinations` tells
    reaching = {point.get(METHOD) for point in found if name in point}
    without = [m for m in methods if m not in having and (m in reaching or None in reaching)]
    if without:
        when = having[0] if len(having) == 1 else f"[{', '.join(having)}]"
        message = f"space.{name}: {', '.join(without)} has no such setting; add when: {{{METHOD}: {when}}}"
        source.add(("space", name), message, at_key=True)


def _check_one(
    source: Source, method: str, fixed: Fixed, space: Mapping[str, Domain], own: Mapping[str, Domain]
) -> None:
    kind = METHOD_CONFIGS[method]
    first = example_with(method, space)
    problems = find_problems(kind, _own(kind, content_of("method", fixed, first)), "method")
    for path, message, at_key in problems:
        if message.endswith("missing"):
            source.add(("method",), f"{message}, which {method} needs", at_key=True)
        elif ".".join(map(str, path)) not in own:
            source.add(path, f"{message} (of {method})", at_key=at_key)
    for name, domain in own.items():
        values = domain.examples() if name.removeprefix("method.") in _names(kind) else ()
        for value in values:
            settings = example_with(method, space, {**chosen_for(space, name), METHOD: method, name: value})
            if settings.get(name) == value:
                found = find_problems(kind, _own(kind, content_of("method", fixed, settings)), "method")
                check_example(source, found, name, value, is_alone=not problems)
