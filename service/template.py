"""A finetune template: how promoted policies are finetuned, on which data, with what, and what becomes of the best.

Read as a sweep's YAML is: bases, settings of the command line, a smoke profile, errors with file:line:column.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from service.merge import read_sweep, reveal, stored_text
from service.sections import counted_resources, read_section
from service.settings import LimitsConfig, ResourcesConfig, TrackingConfig, check_name, check_tags
from service.varied import section
from service.yaml_source import Path_, Source
from trainables.checked import STRICT
from trainables.config import BenchConfig, DataConfig, EvaluationConfig, NetworkConfig, ReferenceConfig
from trainables.data import check_data_name
from trainables.detector_config import (
    DETECTOR_BACKBONES,
    DetectionDataConfig,
    DetectionEvaluationConfig,
    DetectorConfig,
    DetectorNetworkConfig,
)
from trainables.errors import ConfigError, SpecError, did_you_mean
from trainables.finetune_config import DeployedQuantizer, FinetuneConfig
from trainables.policy_file import PolicyRecord

Task = Literal["classification", "detection"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisterConfig:
    """What the best of the finetuned networks becomes in MLflow's registry."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    model: str = ""
    """The registered model; empty: named as the promotion."""
    alias: str = "champion"
    """Moves to the version of the best network; empty: nothing is registered."""
    objective: str = ""
    """The metric that decides; empty: the accuracy on the target, top1, map or ap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainTemplate:
    """The keys of the top level that are not sections."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    task: Task = "classification"
    """What the network is finetuned to do; each has sections of its own."""
    seed: int = 0
    description: str = ""
    owner: str = ""
    """Who answers for the promotion."""
    tags: dict[str, str] = field(default_factory=dict)
    """Names and values for MLflow, for people to search by."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_tags(self.tags)
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; give zero or a positive number.")


SECTIONS: dict[str, type] = {
    "finetune": FinetuneConfig,
    "resources": ResourcesConfig,
    "limits": LimitsConfig,
    "tracking": TrackingConfig,
    "register": RegisterConfig,
}
TASK_SECTIONS: dict[Task, dict[str, type]] = {
    "classification": {"data": DataConfig, "reference": ReferenceConfig, "evaluation": EvaluationConfig},
    "detection": {
        "detector": DetectorNetworkConfig,
        "data": DetectionDataConfig,
        "evaluation": DetectionEvaluationConfig,
    },
}
_WITHOUT_RESULT = {"data": ("download", "loader_workers"), "finetune": ("checkpoint_every",)}
"""Settings on which no result depends."""
_ONLY_SWEEPS = ("method", "network", "space", "sampler", "trials", "budget", "objectives", "constraints", "storage")


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A template, checked."""

    name: str
    task: Task
    seed: int
    description: str
    owner: str
    tags: Mapping[str, str]
    sections: Mapping[str, Any]
    """What the task alone has: settings by the section's name."""
    finetune: FinetuneConfig
    resources: ResourcesConfig
    limits: LimitsConfig
    tracking: TrackingConfig
    register: RegisterConfig
    text: str
    """The YAML by which it is kept."""
    source: Source = field(compare=False, repr=False)
    """Where everything stands; without the content."""

    def config(self, policy: PolicyRecord) -> BenchConfig | DetectorConfig:
        """The settings of the finetune of `policy`."""
        if self.task == "detection":
            return DetectorConfig(**self.sections, finetune=self.finetune, seed=self.seed)
        network = NetworkConfig(name=policy.policy.network)
        return BenchConfig(network=network, **self.sections, finetune=self.finetune, seed=self.seed)

    def refuse(self, path: Path_, message: str) -> SpecError:
        """The error that points at the value of a path, for what is found out later."""
        return SpecError(f"{self.source.place(path)}: {message}")

    @property
    def accuracy(self) -> str:
        """The metric that says how good a network is on the target."""
        if self.task == "classification":
            return "top1"
        return "map" if self.sections["data"].format == "voc" else "ap"

    @property
    def objectives(self) -> tuple[str, ...]:
        """What the finetuned networks are traded off by."""
        return (self.accuracy, "bops_g", "ard") if self.task == "classification" else (self.accuracy, "bops_g")

    @property
    def recipe(self) -> dict[str, Any]:
        """What a finetuned network depends on besides its policy, as JSON has it."""
        content: dict[str, Any] = {
            "task": self.task,
            "seed": self.seed,
            "finetune": dataclasses.asdict(self.finetune),
            "resources": counted_resources(self.resources),
            **{name: dataclasses.asdict(settings) for name, settings in self.sections.items()},
        }
        for place, keys in _WITHOUT_RESULT.items():
            for key in keys:
                content[place].pop(key, None)
        recipe: dict[str, Any] = json.loads(json.dumps(content))
        return recipe

    @property
    def recipe_hash(self) -> str:
        """SHA-256 of the recipe."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()


def load_template(
    path: Path, overrides: Sequence[str] = (), *, smoke: bool = False, to_launch: bool = False
) -> Template:
    """Reads and checks a template. Raises SpecError with all that is wrong, a line each; arguments as `load_spec`."""
    source, profile = read_sweep(path, overrides, to_launch=to_launch)
    if smoke and profile is None:
        raise SpecError(f"{source.place(())}: --smoke: the file has no profile of a short run")
    return _checked(profile if smoke and profile else source)


def _checked(source: Source) -> Template:
    task = source.content.get("task", "classification")
    tasks = next((kinds for known, kinds in TASK_SECTIONS.items() if known == task), {})
    kinds = {**SECTIONS, **tasks}
    plain_keys = [f.name for f in dataclasses.fields(PlainTemplate)]
    for key in source.content:
        if tasks and key not in kinds and key not in plain_keys:
            source.add((key,), _unknown(key, task, (*plain_keys, *kinds)), at_key=True)
    plain = read_section(source, (), PlainTemplate, {key: v for key, v in source.content.items() if key in plain_keys})
    read: dict[str, Any] = {
        name: read_section(source, (name,), kind, reveal(source, name, section(source, name)))
        for name, kind in kinds.items()
    }
    _check_names(source, read)
    source.raise_problems()
    assert plain is not None  # or there would have been problems
    return Template(
        **{name: getattr(plain, name) for name in plain_keys},
        **{name: read[name] for name in SECTIONS},
        sections={name: read[name] for name in tasks},
        text=stored_text(source),
        source=source.places_only(),
    )


def _unknown(key: str, task: str, known: Sequence[str]) -> str:
    if key in _ONLY_SWEEPS:
        return f"{key!r} belongs to a sweep; a finetune template says what is done with the policies that it found"
    other = next((t for t, kinds in TASK_SECTIONS.items() if t != task and key in kinds), None)
    if other:
        return f"{key!r} is for task: {other}, and this is task: {task}"
    return f"unknown key {key!r}{did_you_mean(key, known)}"


def _check_names(source: Source, read: Mapping[str, Any]) -> None:
    data, detector, register = read.get("data"), read.get("detector"), read.get("register")
    finetune, resources = read.get("finetune"), read.get("resources")
    if finetune and finetune.quantizer == "searched":
        source.add(
            ("finetune", "quantizer"),
            "finetune.quantizer: a template names one, as policies of several searches are finetuned alike; expected "
            f"one of {', '.join(get_args(DeployedQuantizer))}",
        )
    if finetune and resources and finetune.amp == "fp16" and not resources.gpus_per_worker:
        source.add(
            ("finetune", "amp"),
            "finetune.amp is 'fp16', which needs a GPU, and resources.gpus_per_worker is 0; give it one, or use bf16",
        )
    if isinstance(data, DataConfig):
        try:
            check_data_name(data.name)
        except ConfigError as error:
            source.add(("data", "name"), f"data.name: {str(error).rstrip('.')}")
    if isinstance(detector, DetectorNetworkConfig) and detector.name not in DETECTOR_BACKBONES:
        hint = did_you_mean(detector.name, DETECTOR_BACKBONES)
        source.add(("detector", "name"), f"detector.name: unknown detector {detector.name!r}{hint}")
    if isinstance(register, RegisterConfig) and register.alias and not re.fullmatch("[A-Za-z0-9_-]+", register.alias):
        source.add(("register", "alias"), f"register.alias is {register.alias!r}; use letters, digits, '-' and '_'")
