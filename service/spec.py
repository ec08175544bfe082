"""The sweep's YAML: read, checked whole, and turned into the settings of trials.

`load_spec` reports everything that is wrong with a file at once, each with file:line:column. The settings' own classes
say what is allowed (`trainables.config`, `service.settings`); pydantic compares the file with them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from service.pareto import Constraint, Objective, check_objectives, parse_constraint
from service.settings import (
    EarlyStoppingConfig,
    LimitsConfig,
    PlainConfig,
    ResourcesConfig,
    SamplerConfig,
    ScheduleConfig,
    StorageConfig,
    TrackingConfig,
    WarmStartConfig,
)
from service.space import Choice, Domain, Int, Scalar, parse_domain
from service.yaml_source import Path_, Source, read_yaml
from trainables.config import (
    METHOD_CONFIGS,
    DataConfig,
    EvaluationConfig,
    FinetuneConfig,
    NetworkConfig,
    ReferenceConfig,
    TrialConfig,
)
from trainables.data import check_data_name
from trainables.errors import ConfigError, did_you_mean
from trainables.models import check_network

T = TypeVar("T")
VARIABLE = ("method", "finetune")
"""Sections whose settings a space may vary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSpec:
    """A sweep as its YAML describes it, checked."""

    name: str
    trials: int
    seed: int
    """Seed of every trial: trials differ in their settings alone."""
    description: str
    owner: str
    tags: Mapping[str, str]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    network: NetworkConfig
    data: DataConfig
    reference: ReferenceConfig
    method_name: str
    fixed: Mapping[str, Mapping[str, Any]]
    """Settings of `method` and `finetune` that the space does not vary."""
    evaluation: EvaluationConfig
    space: Mapping[str, Domain]
    sampler: SamplerConfig
    warm_start: WarmStartConfig
    early_stopping: EarlyStoppingConfig
    resources: ResourcesConfig
    limits: LimitsConfig
    schedule: ScheduleConfig
    storage: StorageConfig
    tracking: TrackingConfig
    text: str
    """The YAML as written."""

    def trial_config(self, settings: Mapping[str, Any]) -> TrialConfig:
        """The settings of a trial to which the space gave `settings`. Raises ConfigError where they do not fit."""
        varied: dict[str, dict[str, Any]] = {section: dict(self.fixed[section]) for section in VARIABLE}
        for name, value in settings.items():
            section, setting = name.split(".", 1)
            varied[section][setting] = value
        return TrialConfig(
            network=self.network,
            data=self.data,
            reference=self.reference,
            method=_build(METHOD_CONFIGS[self.method_name], varied["method"]),
            finetune=_build(FinetuneConfig, varied["finetune"]),
            evaluation=self.evaluation,
            seed=self.seed,
        )

    def example_settings(self) -> dict[str, Scalar]:
        """The first example of every domain of the space."""
        return {name: domain.examples()[0] for name, domain in self.space.items()}

    @property
    def hash(self) -> str:
        """SHA-256 of what the results depend on: equal for a default that is written out, another name or storage."""
        parts = (self.trial_config(self.example_settings()), self.sampler, self.resources)
        # The order of the space counts: a sampler draws in it.
        space = [(name, type(domain).__name__, dataclasses.asdict(domain)) for name, domain in self.space.items()]
        content = [self.method_name, self.trials, space, *(dataclasses.asdict(part) for part in parts)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


SECTIONS: dict[str, type] = {
    "network": NetworkConfig,
    "data": DataConfig,
    "reference": ReferenceConfig,
    "evaluation": EvaluationConfig,
    "sampler": SamplerConfig,
    "warm_start": WarmStartConfig,
    "early_stopping": EarlyStoppingConfig,
    "resources": ResourcesConfig,
    "limits": LimitsConfig,
    "schedule": ScheduleConfig,
    "storage": StorageConfig,
    "tracking": TrackingConfig,
}
PLAIN_KEYS = tuple(f.name for f in dataclasses.fields(PlainConfig))
PARSED_KEYS = ("objectives", "constraints")
TOP_KEYS = (*PLAIN_KEYS, *SECTIONS, *VARIABLE, "space")


def load_spec(path: Path) -> SweepSpec:
    """Reads and checks a sweep's YAML. Raises SpecError with all that is wrong, a line each."""
    source = read_yaml(path)
    content = source.content
    for key in content:
        if key not in TOP_KEYS:
            source.add((key,), f"unknown key {key!r}{did_you_mean(key, TOP_KEYS)}", at_key=True)
    plain = _read(source, (), PlainConfig, {k: v for k, v in content.items() if k in PLAIN_KEYS})
    sections: dict[str, Any] = {
        name: _read(source, (name,), kind, _section(source, name)) for name, kind in SECTIONS.items()
    }
    _check_names(source, sections)
    method = dict(_section(source, "method"))
    method_name = method.pop("name", None)
    fixed = {"method": method, "finetune": dict(_section(source, "finetune"))}
    kinds: dict[str, type] = {"finetune": FinetuneConfig}
    if isinstance(method_name, str) and method_name in METHOD_CONFIGS:
        kinds = {"method": METHOD_CONFIGS[method_name], **kinds}
    elif method_name is None:
        source.add(("method",), f"method.name: missing; expected one of {', '.join(METHOD_CONFIGS)}", at_key=True)
    else:
        hint = did_you_mean(str(method_name), METHOD_CONFIGS)
        source.add(("method", "name"), f"method.name: unknown method {method_name!r}{hint}")
    space = _read_space(source, kinds, fixed)
    _check_varied(source, kinds, fixed, space)
    source.raise_problems()
    assert plain is not None  # or there would have been problems
    spec = SweepSpec(
        **{f.name: getattr(plain, f.name) for f in dataclasses.fields(PlainConfig) if f.name not in PARSED_KEYS},
        objectives=check_objectives(plain.objectives),
        constraints=tuple(parse_constraint(text) for text in plain.constraints),
        **sections,
        method_name=str(method_name),
        fixed=fixed,
        space=space,
        text=source.text,
    )
    _check_batches(source, spec)
    source.raise_problems()
    return spec


def _section(source: Source, name: str) -> dict[str, Any]:
    value = source.content.get(name, {})
    if isinstance(value, dict):
        return value
    source.refuse((name,), f"{name}: found {value!r}; expected settings below it")
    return {}


def _check_names(source: Source, sections: Mapping[str, Any]) -> None:
    for section, check in (("network", check_network), ("data", check_data_name)):
        config = sections[section]
        if config is not None:
            try:
                check(config.name)
            except ConfigError as error:
                source.add((section, "name"), f"{section}.name: {error}")


def _read_space(source: Source, kinds: Mapping[str, type], fixed: Mapping[str, Mapping[str, Any]]) -> dict[str, Domain]:
    """Domains by setting. Of a section that is not in `kinds` (its method is unknown) only the ranges are checked."""
    entries = _section(source, "space")
    if not entries:
        source.add(
            ("space",),
            "space: missing or empty; give at least one setting to vary, as method.zeta: {loguniform: [0.01, 1.0]}",
            at_key=True,
        )
    settings = {f"{section}.{f.name}": f for section, kind in kinds.items() for f in dataclasses.fields(kind)}
    lists = {name for name, setting in settings.items() if str(setting.type).startswith("tuple")}
    known = sorted(set(settings) - lists)
    unchecked = tuple(f"{section}." for section in VARIABLE if section not in kinds)
    space: dict[str, Domain] = {}
    for name, value in entries.items():
        path = ("space", name)
        if name in lists:
            source.add(
                path, f"space: {name!r} is a list, which a space cannot vary; fix it in its section", at_key=True
            )
            continue
        if name not in known and not (unchecked and name.startswith(unchecked)):
            source.add(path, f"space: {name!r} is not a setting{did_you_mean(name, known)}", at_key=True)
            continue
        section, setting = name.split(".", 1)
        if setting in fixed[section]:
            source.add(path, f"space.{name}: also fixed under '{section}:'; remove one of the two", at_key=True)
            continue
        try:
            space[name] = parse_domain(value)
        except ConfigError as error:
            source.add(path, f"space.{name}: {error}")
    return space


def _check_varied(
    source: Source,
    kinds: Mapping[str, type],
    fixed: Mapping[str, Mapping[str, Any]],
    space: Mapping[str, Domain],
) -> None:
    """Builds `method` and `finetune` once for each example of each domain, the others at their first."""
    unread = {name for name in _section(source, "space") if name not in space}
    for section, kind in kinds.items():
        own = {name.split(".", 1)[1]: domain for name, domain in space.items() if name.startswith(f"{section}.")}
        first = {**fixed[section], **{name: domain.examples()[0] for name, domain in own.items()}}
        problems = _problems(kind, first, section)
        for path, message, at_key in problems:
            dotted = ".".join(str(part) for part in path)
            if dotted in space:
                continue
            if not (message.endswith("missing") and dotted in unread):
                source.add(path, message, at_key=at_key)
        for name, domain in own.items():
            for example in domain.examples():
                for path, message, _ in _problems(kind, {**first, name: example}, section):
                    entry = f"{section}.{name}"
                    if path == (section, name):
                        source.add(("space", entry), f"space.{message}")
                    elif not problems:
                        # All was well with the first examples, so this one does not go with the other settings.
                        source.add(("space", entry), f"space.{entry}: with {example!r}, {message}")


def _check_batches(source: Source, spec: SweepSpec) -> None:
    workers = spec.resources.workers
    config = spec.trial_config(spec.example_settings())
    for section in ("reference", "method", "finetune"):
        size: int = getattr(config, section).batch_size
        setting = f"{section}.batch_size"
        place = ("space", setting) if setting in spec.space else (section, "batch_size")
        domain = spec.space.get(setting, Choice((size,)))
        # Both ends of a range may be multiples, but not two neighbours in it.
        sizes = (domain.low, domain.low + 1) if isinstance(domain, Int) else domain.examples()
        for images in sizes:
            if int(images) % workers:
                message = f"{images} images cannot be shared equally by {workers} workers; give multiples of {workers}"
                source.add(place, f"{'.'.join(place)}: {message}")


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _build(kind: type[T], content: Mapping[str, Any]) -> T:
    """An instance of a settings class. Through JSON, as there a list may stand for a tuple and nothing else is lax."""
    try:
        built: T = _adapter(kind).validate_json(json.dumps(content))
        return built
    except ValidationError as error:
        raise ConfigError("; ".join(str(problem["msg"]) for problem in error.errors())) from None


def _read(source: Source, path: Path_, kind: type[T], content: Mapping[str, Any]) -> T | None:
    problems = _problems(kind, content, *path)
    for place, message, at_key in problems:
        source.add(place, message, at_key=at_key)
    return None if problems else _build(kind, content)


def _problems(kind: type, content: Mapping[str, Any], *prefix: str | int) -> list[tuple[Path_, str, bool]]:
    """What is wrong with a section: path, message, and whether the key rather than its value is."""
    try:
        _adapter(kind).validate_json(json.dumps(content))
    except ValidationError as error:
        return [_explain(kind, problem, prefix) for problem in error.errors(include_url=False)]
    return []


def _explain(kind: type, problem: Any, prefix: Path_) -> tuple[Path_, str, bool]:
    path = (*prefix, *problem["loc"])
    dotted = ".".join(str(part) for part in path)
    names = [f.name for f in dataclasses.fields(kind)]
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
            return path, f"{dotted}: found {problem['input']!r}; expected {expected}", False


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
