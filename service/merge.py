"""A sweep's content: its own file, the files that it is based on, and what the command line sets.

`base: other.yaml` names a file, relative to the one it stands in, whose content lies below: mappings are merged, lists,
single values and entries of the space are replaced. A setting of the command line, `method.eta=0.1`, lies above all.

`smoke:` holds what a short trial run changes: with `--smoke` it lies above the files, with a space of its own.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from service.yaml_source import (
    MAX_BYTES,
    Path_,
    Source,
    parse_setting,
    parse_yaml,
    read_text,
    read_yaml,
    shown,
    write_yaml,
)
from trainables.errors import SpecError

MAX_BASES = 8
SECRETS = frozenset({("tracking", "uri")})
"""Settings in which ${NAME} stands for an environment variable: what is stored keeps the name."""
SMOKE_ENDING = "-smoke"
"""Of the name: a smoke run and the sweep itself never mix."""
_NOT_IN_SMOKE = {
    "name": f"a smoke run has the sweep's name with {SMOKE_ENDING!r} behind it; leave it out",
    "base": "a profile is based on the rest of its file; leave it out",
    "smoke": "a profile has none of its own; leave it out",
}
TRACKING_VARIABLE = "BITFRONT_TRACKING_URI"
"""The tracking.uri of what is launched and whose files give none."""
MAX_SHOWN = 100
"""Characters of a command-line setting in an error."""


def read_sweep(path: Path, overrides: Sequence[str] = (), *, to_launch: bool = False) -> tuple[Source, Source | None]:
    """A sweep's merged content, and with its smoke profile above it; None where the files have no such profile.

    With `to_launch`, BITFRONT_TRACKING_URI lies above files that give no tracking.uri, not even an empty one.
    Raises SpecError where nothing can be said about the content.
    """
    layers = _files(path)
    source = Source(layers[0].file, layers[0].text)
    for layer in reversed(layers):
        _lay(source, layer, _is_entry)
    files = tuple(layer.file for layer in reversed(layers))
    tracking = os.environ.get(TRACKING_VARIABLE, "") if to_launch else ""
    if tracking and _gives_no_place(source):
        place = parse_setting(json.dumps(tracking), ("tracking", "uri"), TRACKING_VARIABLE, len(layers))
        _lay(source, place, _is_entry)
        files = (*files, TRACKING_VARIABLE)
    smoke = _smoke_run(source, files)
    if smoke:
        _set(smoke, overrides, rank=len(layers))
        if isinstance(smoke.content.get("name"), str):
            smoke.content["name"] += SMOKE_ENDING
        smoke.origins = (*smoke.origins, *(f"--set {shown(o)}" for o in overrides))
    _set(source, overrides, rank=len(layers))
    if len(files) > 1 or overrides:
        source.origins = (*files, *(f"--set {shown(o)}" for o in overrides))
    return source, smoke


def _gives_no_place(source: Source) -> bool:
    """Whether the files leave open where is recorded. What is wrong with their section is told as it stands."""
    section = source.content.get("tracking", {})
    return isinstance(section, dict) and "uri" not in section


def _smoke_run(source: Source, files: Sequence[str]) -> Source | None:
    """Takes the profile out of a merged source; a copy of the source with the profile above it."""
    if "smoke" not in source.content:
        return None
    if not isinstance(source.content["smoke"], dict):
        source.refuse(("smoke",), f"smoke: found {source.content['smoke']!r}; expected settings below it")
        source.raise_problems()
    for key, reason in _NOT_IN_SMOKE.items():
        if key in source.content["smoke"]:
            source.refuse(("smoke", key), f"smoke.{key}: {reason}")
    source.raise_problems()
    profile = source.cut("smoke")
    smoke = copy.deepcopy(source)
    _lay(smoke, profile, lambda place: place == ("space",))
    smoke.origins = (*files, "--smoke")
    if "space" not in profile.content:
        _check_not_varied(smoke, profile)
    return smoke


def _check_not_varied(smoke: Source, profile: Source) -> None:
    """Adds a problem for each setting of a profile without a space that the sweep's space varies, and leaves it out."""
    for name, entry in smoke.mapping(("space",)).items():
        path = tuple(str(name).split(".", 1))
        if path[-1] in profile.mapping(path[:-1]) and not (isinstance(entry, dict) and "when" in entry):
            smoke.add(
                path, f"smoke.{name}: the sweep's space varies it; give smoke a space of its own, or leave it out"
            )
            smoke.drop(path)


def _lay(source: Source, above: Source, is_whole: Callable[[Path_], bool]) -> None:
    """Lays a source over another. What the one above always varies, the one below no longer fixes."""
    for prefix in ((), ("smoke",)):
        for name, entry in above.mapping((*prefix, "space")).items():
            # Where a condition does not hold, a setting is what is fixed below.
            if "." in name and not (isinstance(entry, dict) and "when" in entry):
                source.drop((*prefix, *name.split(".", 1)))
    source.cover(above, is_whole)


def _set(source: Source, overrides: Sequence[str], *, rank: int) -> None:
    """Lays settings of the command line above all, and looks for secrets where there may be none."""
    for number, override in enumerate(overrides, start=rank):
        where = f"--set {shown(override)}"
        setting, value = _split(override, source)
        if setting:
            layer = parse_setting(value, setting, _short(where), number)
            _lay(source, layer, lambda place, whole=setting: place == whole)  # type: ignore[misc]
    _check_variables(source)


def stored_text(source: Source) -> str:
    """The text by which a sweep is kept: its author's, or, of a merged one, the outcome. Names of variables stay."""
    if not source.origins:
        return source.text
    text = f"# Merged from {', '.join(source.origins)}\n{write_yaml(source.content)}"
    if len(text.encode()) > MAX_BYTES:
        raise SpecError(f"{source.place(())}: merged with its bases it is larger than {MAX_BYTES >> 10} KiB; say less")
    return text


def reveal(source: Source, section: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """A section's content with its secrets filled in from the environment."""
    return {
        key: _filled(source, (section, key), value) if (section, key) in SECRETS and isinstance(value, str) else value
        for key, value in content.items()
    }


def _files(path: Path) -> list[Source]:
    """The sweep's file and its bases, each without its key `base`."""
    source = read_yaml(path)
    layers, chain = [source], [path]
    while "base" in source.content:
        name = source.content.pop("base")
        chain.append(_base_path(source, name, chain))
        try:
            text = read_text(chain[-1])
        except SpecError as error:
            source.refuse(("base",), f"base: {shown(str(chain[-1]))}: {error}")
            source.raise_problems()
        source = parse_yaml(text, shown(str(chain[-1])), rank=len(layers))
        layers.append(source)
    return layers


def _base_path(source: Source, name: Any, chain: Sequence[Path]) -> Path:
    """Where the base is that `source`, the last file of the chain, names."""
    path = chain[-1]
    if not isinstance(name, str) or not name:
        source.refuse(("base",), f"base: found {name!r}; expected the path of a YAML file, relative to this one")
    elif "${" in name:
        source.refuse(("base",), _not_a_secret("base", name))
    elif "\0" in name:
        source.refuse(("base",), f"base: found {name!r}; a path has no zero byte")
    else:
        path = chain[-1].parent / name
        if any(os.path.realpath(path) == os.path.realpath(other) for other in chain):
            circle = " -> ".join(shown(str(file)) for file in (*chain, path))
            source.refuse(("base",), f"base: the files are based on each other: {circle}; take one 'base' out")
        elif len(chain) > MAX_BASES:
            source.refuse(("base",), f"base: more than {MAX_BASES} files below each other; merge some of them")
    source.raise_problems()
    return path


def _is_entry(path: Path_) -> bool:
    """Whether this is a range of a space, which is replaced whole: one is not half uniform, half int."""
    return path[-2:-1] == ("space",) and len(path) == (3 if path[0] == "smoke" else 2)


def _split(override: str, source: Source) -> tuple[Path_, str]:
    """The setting's path and its value as written; an empty path, and a problem, where there is no such."""
    name, equals, value = override.partition("=")
    name = name.strip()
    parts = tuple(name.split(".", 1) if name.startswith("space.") else name.split("."))
    message = ""
    if not equals or not all(parts):
        message = "expected a setting, '=' and its value, such as --set method.eta=0.5"
    elif parts[0] == "base":
        message = "a base is named in the file, not on the command line"
    elif parts[0] == "smoke":
        message = "the profile stands in the file; set the key itself, as --smoke --set trials=2"
    elif not name.isprintable():
        message = f"{name!r} is not a setting"
    if message:
        source.problems.append((source.place(())._replace(where=_short(f"--set {shown(override)}"), line=0), message))
        return (), ""
    return parts, value


def _short(where: str) -> str:
    return where if len(where) <= MAX_SHOWN else f"{where[:MAX_SHOWN]} …"


def _check_variables(source: Source) -> None:
    """Adds a problem for each ${...} that stands where what is stored would have to show its value."""
    rest: list[tuple[Path_, Any]] = [((), source.content)]
    while rest:
        path, value = rest.pop()
        if isinstance(value, dict | list):
            rest += [((*path, key), v) for key, v in (value.items() if isinstance(value, dict) else enumerate(value))]
        elif isinstance(value, str) and "${" in value and path not in SECRETS:
            source.refuse(path, _not_a_secret(".".join(map(str, path)), value))


def _not_a_secret(name: str, value: str) -> str:
    secrets = ", ".join(".".join(path) for path in sorted(SECRETS))
    return f"{name}: found {value!r}; environment variables are for secrets only: {secrets}; write the value itself"


def _filled(source: Source, path: Path_, text: str) -> str:
    if re.search(r"://[^/@\s$]*:[^/@\s$]+@", text):
        message = "an address with a password in it would be stored; leave user and password out and export"
        variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write ${NAME} of a variable"
        source.refuse(path, f"{'.'.join(map(str, path))}: {message} {variables}")

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], "")
        if not found:
            message = f"the environment variable {match[1]!r} is not set, or empty; export it"
            source.add(path, f"{'.'.join(map(str, path))}: {message}")
        return found

    return re.sub(r"\$\{([^}]*)\}?", value, text)
