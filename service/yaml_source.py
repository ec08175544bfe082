"""YAML with the place of every key and value, so that an error can point at it.

Narrower than YAML at large: no anchors, aliases, tags or several documents; only true and false are booleans; numbers
as in YAML 1.2, so that 1e-3 is one; neither null nor NaN nor infinity; a key stands once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from trainables.errors import SpecError

MAX_BYTES = 1 << 16
"""PyYAML takes seconds for a megabyte; a sweep takes a page."""
MAX_DEPTH, MAX_VALUES = 32, MAX_BYTES // 2
"""Levels of lists and mappings within each other, and keys and values in all: a sweep has six levels, and hundreds.
So many values have room in the largest file, or merged text, where each is written: what is short enough is not refused
for them, here or where it is read again."""
Path_ = tuple[str | int, ...]
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_ENDLESS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
MAX_MESSAGE = 600
"""Characters; what was found may be long, and the end of a message says what was expected."""
MAX_PROBLEMS = 30
"""That are told at once."""


class Place(NamedTuple):
    """Where something stands: in a file, or in a setting of the command line, which has no lines."""

    rank: int
    """Of several files, in what order their problems are told."""
    where: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.where}:{self.line}:{self.column}" if self.line else self.where


@dataclass(slots=True)
class Source:
    """A YAML file's content with places and with what is wrong in it so far."""

    file: str
    text: str
    rank: int = 0
    origins: tuple[str, ...] = ()
    """Files and command-line settings that were merged; none where the text stands for itself."""
    content: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)
    _values: dict[Path_, Place] = field(default_factory=dict)
    _keys: dict[Path_, Place] = field(default_factory=dict)
    _refused: set[Path_] = field(default_factory=set)
    _above_refused: set[Path_] = field(default_factory=set)

    def place(self, path: Path_, *, at_key: bool = False) -> Place:
        """Where the value of `path` stands, or its key; the nearest thing above that exists."""
        places, known = self._keys if at_key else self._values, path
        while known and known not in places:
            known, places = known[:-1], self._keys
        return places.get(known) or Place(self.rank, self.file, 1, 1)

    def has(self, path: Path_) -> bool:
        """Whether the value of `path` is written."""
        return path in self._values

    def add(self, path: Path_, message: str, *, at_key: bool = False) -> None:
        """A problem at the value of `path`, or at its key; at the nearest thing above that exists.

        Says nothing more about a value that was refused, or about one that holds it.
        """
        if any(path[:n] in self._refused for n in range(1, len(path) + 1)):
            return
        if not at_key and path in self._above_refused:
            return
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE // 2]} … {message[-MAX_MESSAGE // 2 :]}"
        self.problems.append((self.place(path, at_key=at_key), message))

    def refuse(self, path: Path_, message: str) -> None:
        """A problem with the value of `path` that leaves nothing to say about its content."""
        self.add(path, message)
        self._refused.add(path)
        self._above_refused.update(path[:n] for n in range(len(path)))

    def raise_problems(self) -> None:
        """Raises SpecError with a line for each problem, in the order of the file."""
        if self.problems:
            unique = sorted(dict.fromkeys(self.problems))
            told = [f"{place}: {message}" for place, message in unique[:MAX_PROBLEMS]]
            more = len(unique) - len(told)
            raise SpecError("\n".join([*told, f"… and {more} more"] if more else told))

    def places_only(self) -> Source:
        """A copy that knows where things stand, and nothing else."""
        return Source(self.file, "", self.rank, _values=self._values, _keys=self._keys)

    def cover(self, above: Source, is_whole: Callable[[Path_], bool]) -> None:
        """Lays another source over this one: mappings are merged, all else and what `is_whole` names is replaced."""
        self._cover(self.content, above.content, (), above, is_whole)
        self.problems += above.problems
        self._refused |= above._refused
        self._above_refused |= above._above_refused

    def mapping(self, path: Path_) -> dict[str, Any]:
        """The mapping at `path`, to be changed in place; an empty one where there is none."""
        found: Any = self.content
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def drop(self, path: Path_) -> None:
        """Forgets a value, if there is one."""
        holder = self.mapping(path[:-1])
        if path[-1] in holder:
            self._forget(path, holder.pop(str(path[-1])))

    def cut(self, key: str) -> Source:
        """Takes a mapping of the top level out of this source: another one, of which it is the whole content."""
        taken = Source(self.file, "", self.rank, content=self.content.pop(key))
        for mine, others in ((taken._keys, self._keys), (taken._values, self._values)):
            mine.update({path[1:]: place for path, place in others.items() if path[:1] == (key,) and path[1:]})
        taken._refused = {path[1:] for path in self._refused if path[:1] == (key,)}
        taken._above_refused = {path[1:] for path in self._above_refused if path[:1] == (key,)}
        self._forget((key,), taken.content)
        return taken

    def _cover(
        self,
        mine: dict[str, Any],
        others: dict[str, Any],
        path: Path_,
        above: Source,
        is_whole: Callable[[Path_], bool],
    ) -> None:
        for key, value in others.items():
            here = (*path, key)
            old = mine.get(key)
            if isinstance(old, dict) and isinstance(value, dict) and not is_whole(here):
                self._cover(old, value, here, above, is_whole)
                continue
            self._forget(here, old)
            self._take(here, value, above)
            mine[key] = value

    def _forget(self, path: Path_, value: Any) -> None:
        for known in (self._keys, self._values):
            known.pop(path, None)
        for key, inner in _children(value):
            self._forget((*path, key), inner)

    def _take(self, path: Path_, value: Any, other: Source) -> None:
        for mine, others in ((self._keys, other._keys), (self._values, other._values)):
            if path in others:
                mine[path] = others[path]
        for key, inner in _children(value):
            self._take((*path, key), inner, other)


def _children(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def read_yaml(path: Path, rank: int = 0) -> Source:
    """Reads a file whose top level is a mapping. Raises SpecError where nothing more can be said about the content."""
    try:
        text = read_text(path)
    except SpecError as error:
        raise SpecError(f"{shown(str(path))}: {error}") from None
    return parse_yaml(text, shown(str(path)), rank)


def parse_yaml(text: str, file: str, rank: int = 0) -> Source:
    """The content of a file that was read. Raises SpecError where nothing more can be said about it."""
    source = Source(file, text, rank)
    node = _compose(text, source)
    source.raise_problems()
    if not isinstance(node, yaml.MappingNode):
        found = "is empty" if node is None else "does not start with a mapping"
        raise SpecError(f"{file}:1:1: the file {found}; expected keys such as 'name:', 'network:' and 'space:'")
    source.content = _mapping(node, (), source)
    return source


def parse_setting(text: str, path: Path_, file: str, rank: int) -> Source:
    """A source with one value, read from the command line and put at `path`: all of it stands in one place."""
    source = Source(file, text, rank)
    here = Place(rank, file)
    source._keys = {path[:n]: here for n in range(1, len(path) + 1)}
    source._values = dict(source._keys)
    value: Any = text
    node = _compose(text, source)
    if source.problems:
        source.problems = [(place, f"{_dotted(path)}: {message}") for place, message in source.problems]
        source._refused.add(path)
    elif node is None:
        source.refuse(path, f"{_dotted(path)}: has no value; give one")
    else:
        value = _value(node, path, source)
    source.problems = [(here, message) for _, message in source.problems]
    source._keys = dict.fromkeys(source._keys, here)
    source._values = dict.fromkeys(source._values, here)
    for part in reversed(path):
        value = {part: value}
    source.content = value
    return source


def _compose(text: str, source: Source) -> yaml.Node | None:
    """The tree of a text. What is not YAML, or not used here, is a problem of the source."""
    try:
        depth = values = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            unwanted = _unwanted(event)
            if unwanted:
                source.problems.append((_place(source, event.start_mark), unwanted))
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            values += isinstance(event, yaml.NodeEvent)
            if depth > MAX_DEPTH or values > MAX_VALUES:
                # PyYAML's time grows faster than the text here: the rest is not looked at.
                what = (
                    f"nested too deeply, more than {MAX_DEPTH} levels"
                    if depth > MAX_DEPTH
                    else (f"more than {MAX_VALUES} keys and values; a sweep has fewer")
                )
                source.problems = [(_place(source, event.start_mark), what)]
                return None
        return None if source.problems else yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(source, mark) if mark else source.place(())
        source.problems = [(place, f"not YAML: {error.problem or error.context}")]
    except yaml.YAMLError as error:
        source.problems = [(source.place(()), f"not YAML: {str(error).splitlines()[0]}")]
    except RecursionError:
        source.problems = [(source.place(()), "nested too deeply")]
    return None


def read_text(path: Path) -> str:
    """Read once and up to a limit: a pipe has no size and cannot be read again. Raises SpecError with the reason."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SpecError(f"larger than {MAX_BYTES >> 10} KiB; this is not a sweep's YAML")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise SpecError("no such file") from None
    except IsADirectoryError:
        raise SpecError("a folder; give the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise SpecError("no such file: a name has no zero byte") from None


def shown(text: str) -> str:
    """Text on one line, whatever is in it."""
    return text if text.isprintable() else repr(text)[1:-1]


def _unwanted(event: Any) -> str:
    """What YAML knows and a sweep does not use, as a message; empty for what it does."""
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        return "anchors and aliases are not used here; repeat the value"
    if getattr(event, "tag", None):
        return f"the tag {event.tag!r} is not used here; give a plain value, in quotes where it is text"
    if isinstance(event, yaml.ScalarEvent) and _HALF_CHARACTER.search(event.value):
        return f"found {event.value!r}, in which \\ud800 to \\udfff is half of a character; write the character itself"
    return ""


def _place(source: Source, mark: Any) -> Place:
    return Place(source.rank, source.file, mark.line + 1, mark.column + 1)


def _value(node: yaml.Node, path: Path_, source: Source) -> Any:
    source._values[path] = _place(source, node.start_mark)
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
            source.problems.append((_place(source, key_node.start_mark), "a key must be a word"))
            continue
        key = key_node.value
        here = (*path, key)
        if key in found:
            place = _place(source, key_node.start_mark)
            source.problems.append((place, f"{_dotted(here)}: the key stands twice; keep one"))
            continue
        source._keys[here] = _place(source, key_node.start_mark)
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


def write_yaml(content: dict[str, Any]) -> str:
    """A text that reads as this content again, in its order."""
    text: str = yaml.dump(
        content, Dumper=_Writer, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf
    )
    return text


class _Writer(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is written by reference: `_unwanted` refuses that."""
        return True


def _write_str(writer: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = _WORDS.fullmatch(text) and text not in _NOT_WORDS
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_WORDS = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]+)*")
_NOT_WORDS = ("true", "false", "null", "Null", "NULL")
_Writer.add_representer(str, _write_str)
