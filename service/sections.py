"""A section of a YAML as an instance of its settings class, with what is wrong in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from service.pareto import SEARCHED, check_objectives, parse_constraint
from service.settings import ResourcesConfig, check_sweep
from service.validate import build, find_problems
from service.yaml_source import Path_, Source
from trainables.errors import ConfigError

T = TypeVar("T")
ITEMS: dict[Path_, Callable[[str], object]] = {
    ("objectives",): lambda name: check_objectives((name,), SEARCHED),
    ("constraints",): lambda text: parse_constraint(text, SEARCHED),
    ("warm_start", "sweeps"): check_sweep,
}
"""Lists whose items are checked one by one, so that an error points at the item."""


def read_section(source: Source, path: Path_, kind: type[T], content: Mapping[str, Any]) -> T | None:
    """The settings that `content` gives; None, and problems in the source, where it gives none."""
    rest = {key: value for key, value in content.items() if not _has_bad_item(source, (*path, key), value)}
    problems = find_problems(kind, rest, *path)
    for place, message, at_key in problems:
        source.add(place, message, at_key=at_key)
    return None if problems or len(rest) < len(content) else build(kind, content)


def _has_bad_item(source: Source, path: Path_, items: Any) -> bool:
    """Whether a list has an item that its own check refuses; adds a problem for each."""
    check = ITEMS.get(path)
    num_problems = len(source.problems)
    for place, item in enumerate(items if check and isinstance(items, list) else ()):
        if check and isinstance(item, str):
            try:
                check(item)
            except ConfigError as error:
                source.add((*path, place), str(error).rstrip("."))
    return len(source.problems) > num_problems


def counted_resources(resources: ResourcesConfig) -> dict[str, Any]:
    """How many share a batch, with how many threads, changes sums; how many trials run at once does not."""
    return {key: getattr(resources, key) for key in ("workers", "cpus_per_worker", "gpus_per_worker")}
