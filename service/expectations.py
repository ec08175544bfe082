"""What is expected of a nightly sweep, from the NAME.expect.yaml beside it: see docs/nightly.md.

Everything that is wrong with a file is told at once, each finding with file:line:column, before anything is run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from service.nightly_report import Setting
from service.pareto import METRICS, SEARCHED
from service.sections import read_section
from service.space import Choice, range_of
from service.spec import SweepSpec
from service.yaml_source import Path_, Source, read_yaml
from trainables.checked import STRICT, check_not_negative
from trainables.errors import ConfigError, did_you_mean

EXPECT_ENDING, BASELINE_ENDING = ".expect.yaml", ".baseline.json"
SEED = "seed"
HYPERVOLUME = "hypervolume"
Selection = Mapping[str, Setting | tuple[Setting, ...]]
"""Values of settings; of several values any."""
Relation = Literal["less", "more", "not_less", "not_more", "band"]
RELATIONS: tuple[Relation, ...] = ("less", "more", "not_less", "not_more", "band")
TIMED = (
    "images_per_s",
    "device_hours",
    "search_device_hours",
    "finetune_device_hours",
    "search_cost_hours",
)
"""What trials measure of time and speed: never the same twice."""
MEASURED = tuple(
    dict.fromkeys((*SEARCHED, "top5", "attribution_pixels", "reference_top1", "full_bops_g", "float_mb", *TIMED))
)
"""What a search's trials measure."""
DEFAULT_FLOORS = {"top1": 0.1}
"""A tenth of a point is an image of a thousand."""
STAND_INS = {"claim": "x", "source": "x", "metric": "top1"}
"""For what is missing in a claim, so that the rest of it is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Something that is said about the means of trials, and where it is said."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    claim: str
    source: str
    metric: str
    less: dict[str, Setting | tuple[Setting, ...]] = field(default_factory=dict)
    more: dict[str, Setting | tuple[Setting, ...]] = field(default_factory=dict)
    not_less: dict[str, Setting | tuple[Setting, ...]] = field(default_factory=dict)
    not_more: dict[str, Setting | tuple[Setting, ...]] = field(default_factory=dict)
    than: dict[str, Setting | tuple[Setting, ...]] = field(default_factory=dict)
    band: tuple[float, ...] = ()
    of: dict[str, Setting | tuple[Setting, ...]] = field(default_factory=dict)
    at: dict[str, Setting | tuple[Setting, ...]] = field(default_factory=dict)
    by: float = 0.0
    """In the metric's unit."""
    standard_errors: float = 0.0
    required: bool = True

    def __post_init__(self) -> None:
        if self.metric not in MEASURED:
            raise ConfigError(f"metric: unknown metric {self.metric!r}{_known_metrics(self.metric)}")
        check_not_negative("claims", by=self.by, standard_errors=self.standard_errors)

    @property
    def said(self) -> tuple[Relation, ...]:
        """What is said: of a claim that was checked one thing."""
        return tuple(name for name in RELATIONS if getattr(self, name))

    @property
    def relation(self) -> Relation:
        """What is said."""
        return self.said[0]

    @property
    def left(self) -> Selection:
        """The trials of which it is said, within `at`."""
        found: Selection = self.of if self.relation == "band" else getattr(self, self.relation)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What is drift whatever the baseline says; 0: no limit."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    step_ratio: float = 0.0
    """Search step over full-precision step, at most."""
    front_distance: float = 0.0
    """At most, with the box's sides as 1."""
    hypervolume: float = 0.0
    """At least, as a share of the baseline's box."""

    def __post_init__(self) -> None:
        check_not_negative(
            "limits", step_ratio=self.step_ratio, front_distance=self.front_distance, hypervolume=self.hypervolume
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparing:
    """How a night is compared with the baseline: the plain keys."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    match: Literal["spread", "identical"] = "spread"
    false_alarms: float = 0.01
    """Share of nights without a change that may be called drifted."""
    metrics: tuple[str, ...] = ("top1", "bops_g", "ard")
    floors: dict[str, float] = field(default_factory=dict)
    """Differences that never count, in the metric's unit, besides DEFAULT_FLOORS."""
    step_ratio_band: float = 0.25
    """Share by which the step ratio may leave the baseline without a warning."""

    def __post_init__(self) -> None:
        if not 0 < self.false_alarms < 1:
            raise ConfigError(f"false_alarms is {self.false_alarms}; give more than 0 and less than 1, such as 0.01")
        if not self.metrics or len(set(self.metrics)) != len(self.metrics):
            raise ConfigError(f"metrics is {list(self.metrics)}; give one or more, each once")
        for name in self.metrics:
            if name not in MEASURED:
                raise ConfigError(f"metrics: unknown metric {name!r}{_known_metrics(name)}")
            if name in TIMED:
                raise ConfigError(f"metrics: {name!r} is a time, which is never the same twice; claim an order of it")
        for name, floor in self.floors.items():
            if name not in (*self.metrics, HYPERVOLUME):
                raise ConfigError(f"floors: {name!r} is not compared{did_you_mean(name, (*self.metrics, HYPERVOLUME))}")
            if not (math.isfinite(floor) and floor >= 0):
                raise ConfigError(f"floors: {name} is {floor}; give zero or a positive number")
        check_not_negative("expectations", step_ratio_band=self.step_ratio_band)

    def floor(self, metric: str) -> float:
        """Of a metric, in its unit."""
        return self.floors.get(metric, DEFAULT_FLOORS.get(metric, 0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectations:
    """All that is expected of a sweep."""

    comparing: Comparing = field(default_factory=Comparing)
    limits: Limits = field(default_factory=Limits)
    claims: tuple[Claim, ...] = ()


TOP_KEYS = ("match", "false_alarms", "metrics", "floors", "step_ratio_band", "limits", "claims")


def load_expectations(path: Path, spec: SweepSpec) -> Expectations:
    """What the file at `path` expects of the sweep; the defaults where there is none.

    Raises SpecError with all that is wrong, a line each.
    """
    if not path.exists():
        return Expectations()
    source = read_yaml(path)
    for key in source.content:
        if key not in TOP_KEYS:
            source.add((key,), f"unknown key {key!r}{did_you_mean(key, TOP_KEYS)}", at_key=True)
    plain = {key: value for key, value in source.content.items() if key in TOP_KEYS and key not in ("limits", "claims")}
    comparing = read_section(source, (), Comparing, plain)
    limits = read_section(source, ("limits",), Limits, _mapping(source, "limits"))
    claims = [_claim(source, place, one, spec) for place, one in enumerate(_claims(source))]
    source.raise_problems()
    assert comparing is not None
    assert limits is not None
    return Expectations(comparing=comparing, limits=limits, claims=tuple(one for one in claims if one))


def _mapping(source: Source, key: str) -> Mapping[str, Any]:
    found = source.content.get(key, {})
    if not isinstance(found, dict):
        source.refuse((key,), f"{key}: found {found!r}; expected settings below it")
        return {}
    return found


def _claims(source: Source) -> list[Any]:
    found = source.content.get("claims", [])
    if not isinstance(found, list):
        source.refuse(
            ("claims",), f"claims: found {found!r}; expected a list, each with 'claim', 'source' and 'metric'"
        )
        return []
    return found


def _claim(source: Source, place: int, content: Any, spec: SweepSpec) -> Claim | None:
    path: Path_ = ("claims", place)
    if not isinstance(content, dict):
        source.refuse(path, f"claims: found {content!r}; expected keys such as 'claim', 'source', 'metric', 'less'")
        return None
    missing = [name for name in STAND_INS if name not in content]
    for name in missing:
        source.add(path, f"claims: {name!r} is missing here")
    found = read_section(source, path, Claim, STAND_INS | content)
    if found:
        _check_said(source, path, found)
    for side in ("less", "more", "not_less", "not_more", "than", "of", "at"):
        if isinstance(content.get(side), dict):
            for name, value in content[side].items():
                _check_setting(source, (*path, side, name), value, spec)
    return found


def _check_said(source: Source, path: Path_, claim: Claim) -> None:
    """A problem for each key that does not go with the others."""
    if len(claim.said) != 1:
        found = " and ".join(claim.said) or "none"
        source.add(path, f"claims: says {found} of less, more, not_less, not_more and band; give one of them")
        return
    said = claim.relation
    if said == "band":
        if len(claim.band) != 2 or not claim.band[0] <= claim.band[1]:
            source.add((*path, "band"), f"band: found {list(claim.band)}; expected [low, high]")
        for name in ("than", "by", "standard_errors"):
            if getattr(claim, name):
                source.add(
                    (*path, name), f"{name}: a band has none; say of which trials with 'of' and 'at'", at_key=True
                )
        return
    if not claim.than:
        source.add((*path, said), f"claims: {said!r} needs 'than', the trials that it is compared with", at_key=True)
    elif claim.left == claim.than:
        source.add((*path, "than"), f"than: the same trials as {said!r}; compare with others")
    if claim.of:
        source.add((*path, "of"), f"of: belongs to a band; narrow both sides of {said!r} with 'at'", at_key=True)


def _check_setting(source: Source, path: Path_, value: Any, spec: SweepSpec) -> None:
    """A problem for a setting that the sweep does not vary, or to which it never gives this value."""
    name = str(path[-1])
    dotted = ".".join(map(str, path[:-1]))
    if name not in spec.space:
        known = did_you_mean(name, spec.space) if spec.space else "; it varies none"
        source.add(path, f"{dotted}: the sweep's space does not vary {name!r}{known}", at_key=True)
        return
    domain = range_of(spec.space[name])
    wanted = value if isinstance(value, list) else [value]
    if not wanted:
        source.add(path, f"{dotted}: {name} has no value; give one, or several in brackets")
    for one in wanted:
        if isinstance(domain, Choice) and not any(same(one, given) for given in domain.values):
            given = ", ".join(map(str, domain.values))
            source.add(path, f"{dotted}: the sweep never has {name} {one!r}; expected one of {given}")


def same(value: object, other: object) -> bool:
    """Whether two settings are equal: true is not 1, and 1 is 1.0."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def selects(selection: Selection, settings: Mapping[str, Any]) -> bool:
    """Whether a trial with these settings is among those of the selection."""
    return all(
        name in settings and any(same(settings[name], one) for one in (value if isinstance(value, tuple) else (value,)))
        for name, value in selection.items()
    )


def _known_metrics(name: str) -> str:
    if name in METRICS and name not in MEASURED:
        return f", which promotions alone measure; give one of {', '.join(MEASURED)}"
    return did_you_mean(name, MEASURED)
