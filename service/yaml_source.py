"""YAML with the place of every key and value, so that an error can point at it.

Narrower than YAML at large: no anchors, aliases, tags or several documents; only true and false are booleans; numbers
as in YAML 1.2, so that 1e-3 is one; neither null nor NaN nor infinity; a key stands once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainables.errors import SpecError

MAX_BYTES = 1 << 16
"""PyYAML takes seconds for a megabyte; a sweep takes a page."""
Path_ = tuple[str | int, ...]
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_ENDLESS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
MAX_MESSAGE = 600
"""Characters; what was found may be long, and the end of a message says what was expected."""


@dataclass(slots=True)
class Source:
    """A YAML file's content with places and with what is wrong in it so far."""

    file: str
    text: str
    content: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[int, int, str]] = field(default_factory=list)
    """Line and column from 1, and the message."""
    _values: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    _keys: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    _refused: set[Path_] = field(default_factory=set)
    _above_refused: set[Path_] = field(default_factory=set)

    def add(self, path: Path_, message: str, *, at_key: bool = False) -> None:
        """A problem at the value of `path`, or at its key; at the nearest thing above that exists.

        Says nothing more about a value that was refused, or about one that holds it.
        """
        if any(path[:n] in self._refused for n in range(1, len(path) + 1)):
            return
        if not at_key and path in self._above_refused:
            return
        places = self._keys if at_key else self._values
        known = path
        while known and known not in places:
            known, places = known[:-1], self._keys
        line, column = places.get(known, (1, 1))
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE // 2]} … {message[-MAX_MESSAGE // 2 :]}"
        self.problems.append((line, column, message))

    def refuse(self, path: Path_, message: str) -> None:
        """A problem with the value of `path` that leaves nothing to say about its content."""
        self.add(path, message)
        self._refused.add(path)
        self._above_refused.update(path[:n] for n in range(len(path)))

    def raise_problems(self) -> None:
        """Raises SpecError with a line for each problem, in the order of the file."""
        if self.problems:
            unique = sorted(dict.fromkeys(self.problems))
            raise SpecError("\n".join(f"{self.file}:{line}:{column}: {message}" for line, column, message in unique))


def read_yaml(path: Path) -> Source:
    """Reads a file whose top level is a mapping. Raises SpecError where nothing more can be said about the content."""
    text = _text(path)
    source = Source(str(path), text)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            unwanted = _unwanted(event)
            if unwanted:
                source.problems.append((*_place(event.start_mark), unwanted))
        source.raise_problems()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = _place(mark) if mark else (1, 1)
        raise SpecError(f"{path}:{line}:{column}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}:1:1: not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise SpecError(f"{path}:1:1: nested too deeply") from None
    if not isinstance(node, yaml.MappingNode):
        found = "is empty" if node is None else "does not start with a mapping"
        raise SpecError(f"{path}:1:1: the file {found}; expected keys such as 'name:', 'network:' and 'space:'")
    source.content = _mapping(node, (), source)
    return source


def _text(path: Path) -> str:
    """Read once and up to a limit: a pipe has no size and cannot be read again."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SpecError(f"{path}: larger than {MAX_BYTES >> 10} KiB; this is not a sweep's YAML")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: a folder; give the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None


def _unwanted(event: Any) -> str:
    """What YAML knows and a sweep does not use, as a message; empty for what it does."""
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        return "anchors and aliases are not used here; repeat the value"
    if getattr(event, "tag", None):
        return f"the tag {event.tag!r} is not used here; give a plain value, in quotes where it is text"
    if isinstance(event, yaml.ScalarEvent) and _HALF_CHARACTER.search(event.value):
        return f"found {event.value!r}, in which \\ud800 to \\udfff is half of a character; write the character itself"
    return ""


def _place(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _value(node: yaml.Node, path: Path_, source: Source) -> Any:
    source._values[path] = _place(node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, source)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, place), source) for place, child in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)  # the only kind left
    return _scalar(node, path, source)


def _mapping(node: yaml.MappingNode, path: Path_, source: Source) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            source.problems.append((*_place(key_node.start_mark), "a key must be a word"))
            continue
        key = key_node.value
        here = (*path, key)
        if key in found:
            place = _place(key_node.start_mark)
            source.problems.append((*place, f"{_dotted(here)}: the key stands twice; keep one"))
            continue
        source._keys[here] = _place(key_node.start_mark)
        found[key] = _value(value_node, here, source)
    return found


def _scalar(node: yaml.ScalarNode, path: Path_, source: Source) -> Any:
    text = node.value
    if node.style is not None:
        return text
    if text in ("true", "false"):
        return text == "true"
    if _INT.fullmatch(text) and len(text) < 20:
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if text in ("", "~", "null", "Null", "NULL"):
        source.refuse(path, f"{_dotted(path)}: has no value; give one or leave the key out")
    elif _ENDLESS.fullmatch(text) or _FLOAT.fullmatch(text):
        source.refuse(path, f"{_dotted(path)}: found {text}; expected a finite number")
    return text


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path) or "the file"
