"""The sweep's YAML: read, checked whole, and turned into the settings of trials.

`load_spec` reports everything that is wrong with a file at once, each with file:line:column. The settings' own classes
say what is allowed (`trainables.config`, `service.settings`); pydantic compares the file with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.merge import read_sweep, reveal, stored_text
from service.method_choice import build_method, check_methods, example_with, read_methods
from service.pareto import Constraint, Objective, check_objectives, parse_constraint
from service.reached import reached
from service.schedule import ScheduleConfig
from service.sections import counted_resources, read_section
from service.settings import (
    EarlyStoppingConfig,
    GalleryConfig,
    LimitsConfig,
    PlainConfig,
    PromoteConfig,
    ResourcesConfig,
    SamplerConfig,
    StorageConfig,
    TrackingConfig,
    WarmStartConfig,
)
from service.space import Choice, Conditional, Domain, Scalar, as_written, example, range_of
from service.template import Template, load_template
from service.validate import build
from service.varied import (
    METHOD,
    SEED,
    VARIABLE,
    check_barrier,
    check_batches,
    check_epochs,
    check_names,
    check_precision,
    check_varied,
    count_points,
    fallback,
    fit_points,
    has_fallback,
    read_space,
    section,
)
from service.yaml_source import Path_, Source
from trainables.config import BudgetConfig, DataConfig, EvaluationConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.errors import ConfigError, SpecError, did_you_mean
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import ADDED_LATER, METHOD_CONFIGS


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSpec:
    """A sweep as its YAML describes it, checked."""

    name: str
    trials: int
    seed: int
    """Of every trial to which the space gives none: trials differ in their settings alone."""
    description: str
    owner: str
    tags: Mapping[str, str]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    reference: ReferenceConfig
    methods: tuple[str, ...]
    """Names of those that trials may have, in the order of the space."""
    method: str
    """Of trials to which the space gives none; empty where it gives one to all."""
    fixed: Mapping[str, Mapping[str, Any]]
    """By section: settings of network, data, budget, method (but its name) and finetune that the file writes there."""
    evaluation: EvaluationConfig
    space: Mapping[str, Domain]
    sampler: SamplerConfig
    warm_start: WarmStartConfig
    early_stopping: EarlyStoppingConfig
    resources: ResourcesConfig
    limits: LimitsConfig
    schedule: ScheduleConfig
    gallery: GalleryConfig
    promote: PromoteConfig
    storage: StorageConfig
    tracking: TrackingConfig
    promotion: Template | None
    """The template that `promote` names."""
    text: str
    """The YAML by which it is kept: as written, or merged with its bases and the command line's settings."""
    source: Source = field(compare=False, repr=False)
    """Where everything stands; without the content."""

    def trial_config(self, settings: Mapping[str, Any]) -> TrialConfig:
        """The settings of a trial to which the space gave `settings`. Raises ConfigError where they do not fit.

        An entry of the space that is not active is none of them: it is what its section fixes, or its default.
        """
        varied: dict[str, dict[str, Any]] = {place: dict(self.fixed[place]) for place in VARIABLE}
        for name, value in settings.items():
            if name not in (METHOD, SEED):
                place, setting = name.split(".", 1)
                varied[place][setting] = value
        return TrialConfig(
            network=build(NetworkConfig, varied["network"]),
            data=build(DataConfig, varied["data"]),
            reference=self.reference,
            method=build_method(str(settings.get(METHOD, self.method)), varied["method"]),
            finetune=build(FinetuneConfig, varied["finetune"]),
            evaluation=self.evaluation,
            budget=build(BudgetConfig, varied["budget"]),
            seed=int(settings.get(SEED, self.seed)),
            images=self.gallery.images,
        )

    @property
    def method_name(self) -> str:
        """The methods' names, for people and for comparing sweeps."""
        return ", ".join(self.methods)

    def names(self, place: str) -> tuple[str, ...]:
        """Networks, or data sets, that trials may have, in the order of the file; `place` is network or data."""
        domain = self.space.get(f"{place}.name")
        found = [str(name) for name in domain.examples()] if domain else []
        if domain is None or isinstance(domain, Conditional):
            found.append(str(self.fixed[place]["name"]))
        return tuple(dict.fromkeys(found))

    def example_settings(self) -> dict[str, Scalar]:
        """The first example of every entry of the space that is active with those before it."""
        return example(self.space, {})

    def example_configs(self) -> list[TrialConfig]:
        """The first example with each of the methods."""
        if METHOD not in self.space:
            return [self.trial_config(self.example_settings())]
        return [self.trial_config(example_with(method, self.space)) for method in self.methods]

    def path_of(self, name: str, settings: Mapping[str, Scalar]) -> Path_:
        """Where the file says the value that a setting has in a trial to which the space gave `settings`."""
        if name not in settings:
            return tuple(name.split(".", 1))
        domain = range_of(self.space[name])
        number = domain.values.index(settings[name]) if isinstance(domain, Choice) else 0
        paths: list[Path_] = [("space", name, kind, number) for kind in ("choice", "grid")]
        return next((path for path in paths if self.source.has(path)), ("space", name))

    def place(self, path: Path_) -> str:
        """Where the value of a path such as ("method", "top_k") or ("space", "method.top_k") stands: file:line:column.

        The nearest thing above it where it is not written.
        """
        return str(self.source.place(path))

    def refuse(self, path: Path_, message: str) -> SpecError:
        """The error that points at the value of a path, for what is found out later."""
        return SpecError(f"{self.place(path)}: {message}")

    @property
    def identity(self) -> dict[str, Any]:
        """What the results depend on, as JSON has it: equal for a default that is written out, or another name."""
        trial = self.trial_config(self.example_settings())
        content: dict[str, Any] = dataclasses.asdict(trial)
        # What a page shows.
        del content["images"]
        if SEED in self.space and not isinstance(self.space[SEED], Conditional):
            del content["seed"]
        for place in VARIABLE:
            content[place] = self._fixed_of(trial, place)
        content["method"]["name"] = self.method_name
        if len(self.methods) > 1:
            each = zip(self.methods, self.example_configs(), strict=True)
            content["method"] = {method: self._fixed_of(config, "method") for method, config in each}
            if isinstance(self.space[METHOD], Conditional):
                content["method"]["name"] = self.method
        content |= {
            "space": {name: as_written(domain) for name, domain in self.space.items()},
            # A sampler draws in the order of the space.
            "space_order": list(self.space),
            "trials": self.trials,
            "objectives": [objective.name for objective in self.objectives],
            "constraints": [f"{c.metric} {c.relation} {c.bound!r}" for c in self.constraints],
            "resources": counted_resources(self.resources),
        }
        for name in ("sampler", "warm_start"):
            content[name] = dataclasses.asdict(getattr(self, name))
        content["early_stopping"] = self.early_stopping.counted
        identity: dict[str, Any] = json.loads(json.dumps(content))
        return identity

    def _fixed_of(self, trial: TrialConfig, place: str) -> dict[str, Any]:
        """A section without what the space always varies."""
        config = getattr(trial, place)
        content: dict[str, Any] = dataclasses.asdict(config)
        for key in list(content):
            domain = self.space.get(f"{place}.{key}")
            if isinstance(domain, Conditional) and has_fallback(config, place, key, self.fixed):
                content[key] = fallback(config, place, key, self.fixed, is_varied=True)
            elif domain:
                del content[key]
        if place == "method":
            # Sweeps of before they could be set are still the same ones.
            content = {key: value for key, value in content.items() if ADDED_LATER.get(key, ...) != value}
        return content

    @property
    def hash(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, a line each: `method.eta: 1.0 -> 2.0`."""
    before, after = _flat(old, ()), _flat(new, ())
    lines = []
    for name in dict.fromkeys((*before, *after)):
        if name not in before:
            lines.append(f"{name}: added {after[name]}")
        elif name not in after:
            lines.append(f"{name}: removed, was {before[name]}")
        elif before[name] != after[name]:
            lines.append(f"{name}: {before[name]} -> {after[name]}")
    same_entries = sorted(old.get("space_order", ())) == sorted(new.get("space_order", ()))
    return [line for line in lines if same_entries or not line.startswith("space_order: ")]


def _flat(content: Any, path: tuple[str, ...]) -> dict[str, str]:
    if isinstance(content, Mapping) and not (len(path) == 2 and path[0] == "space"):
        return {name: text for key, value in content.items() for name, text in _flat(value, (*path, key)).items()}
    return {".".join(path): json.dumps(content, ensure_ascii=False)}


SECTIONS: dict[str, type] = {
    "network": NetworkConfig,
    "data": DataConfig,
    "reference": ReferenceConfig,
    "budget": BudgetConfig,
    "finetune": FinetuneConfig,
    "evaluation": EvaluationConfig,
    "sampler": SamplerConfig,
    "warm_start": WarmStartConfig,
    "early_stopping": EarlyStoppingConfig,
    "resources": ResourcesConfig,
    "limits": LimitsConfig,
    "schedule": ScheduleConfig,
    "gallery": GalleryConfig,
    "promote": PromoteConfig,
    "storage": StorageConfig,
    "tracking": TrackingConfig,
}
PROMOTE_FILE = "promote.yaml"
"""The template beside a spec that is kept."""
PLAIN_KEYS = tuple(f.name for f in dataclasses.fields(PlainConfig))
PARSED_KEYS = ("objectives", "constraints")
TOP_KEYS = (*PLAIN_KEYS, *SECTIONS, "method", "space", "base", "smoke")


def load_spec(path: Path, overrides: Sequence[str] = (), *, smoke: bool = False, to_launch: bool = False) -> SweepSpec:
    """Reads and checks a sweep's YAML. Raises SpecError with all that is wrong, a line each.

    Args:
        path: the file; its bases are found from there.
        overrides: settings that lie above the file's, such as "method.eta=0.1".
        smoke: the short run that the file describes under `smoke`. Without it that is checked as well, as long as
            there are no overrides: these may not be meant for it.
        to_launch: whether the environment says where to record what says nothing itself, BITFRONT_TRACKING_URI.
    """
    source, profile = read_sweep(path, overrides, to_launch=to_launch)
    if smoke and profile is None:
        raise SpecError(
            f"{source.place(())}: --smoke: the file has no profile; say what a short run changes, as "
            "smoke: {data: {name: digits, image_size: 16}, trials: 2}"
        )
    if smoke:
        assert profile is not None
        return _checked(profile, smoke=True, to_launch=to_launch)
    if profile is None or overrides:
        return _checked(source, to_launch=to_launch)
    return _checked_with(source, profile, to_launch=to_launch)


def _checked_with(source: Source, profile: Source, *, to_launch: bool) -> SweepSpec:
    """The sweep itself, where its smoke run is right as well. What is wrong with both is told once."""
    spec = None
    # The problems stay in the source.
    with contextlib.suppress(SpecError):
        spec = _checked(source, to_launch=to_launch)
    try:
        _checked(profile, smoke=True)
    except SpecError:
        known = set(source.problems)
        source.problems += [(place, f"with --smoke: {m}") for place, m in profile.problems if (place, m) not in known]
    source.raise_problems()
    assert spec is not None  # or there would have been problems
    return spec


def _checked(source: Source, *, smoke: bool = False, to_launch: bool = False) -> SweepSpec:
    """The spec of a source. Raises SpecError with all that is wrong; the source keeps it."""
    for key in source.content:
        if key not in TOP_KEYS:
            source.add((key,), f"unknown key {key!r}{did_you_mean(key, TOP_KEYS)}", at_key=True)
    sections: dict[str, Any] = {
        name: read_section(source, (name,), kind, reveal(source, name, section(source, name)))
        for name, kind in SECTIONS.items()
        if name not in VARIABLE
    }
    method, methods = read_methods(source)
    fixed = {place: dict(section(source, place)) for place in VARIABLE}
    fixed["method"].pop("name", None)
    kinds: dict[str, tuple[type, ...]] = {place: (SECTIONS[place],) for place in VARIABLE if place in SECTIONS}
    if methods:
        kinds["method"] = tuple(METHOD_CONFIGS[name] for name in methods)
    space = read_space(source, kinds)
    check_varied(source, kinds, fixed, space)
    if len(methods) > 1 and METHOD in space:
        check_methods(source, methods, fixed, space)
    check_names(source, fixed, space)
    if sections["resources"]:
        check_precision(source, sections["resources"].gpus_per_worker, fixed, space)
    check_barrier(source, fixed, space)
    plain = _read_plain(source, sections["sampler"], space)
    if sections["warm_start"] and plain:
        sections["warm_start"] = fit_points(source, sections["warm_start"], space, plain.trials)
    promotion = _read_promotion(source, sections["promote"], smoke=smoke, to_launch=to_launch)
    source.raise_problems()
    assert plain is not None  # or there would have been problems
    spec = SweepSpec(
        **{f.name: getattr(plain, f.name) for f in dataclasses.fields(PlainConfig) if f.name not in PARSED_KEYS},
        objectives=check_objectives(plain.objectives),
        constraints=tuple(parse_constraint(text) for text in plain.constraints),
        **sections,
        methods=methods,
        method=method,
        fixed=fixed,
        space=space,
        promotion=promotion,
        text=stored_text(source),
        source=source.places_only(),
    )
    check_budgeted(source, spec)
    source.raise_problems()
    for trial in spec.example_configs():
        check_batches(source, spec.resources.workers, trial, fixed, space)
        check_epochs(source, spec.early_stopping, trial, fixed, space)
    if len(methods) > 1 and spec.early_stopping.name != "none":
        message = "epochs of several methods do not compare; give name: none"
        source.add(("early_stopping", "name"), f"early_stopping.name is {spec.early_stopping.name}, but {message}")
    source.raise_problems()
    return spec


def _read_promotion(source: Source, config: PromoteConfig | None, *, smoke: bool, to_launch: bool) -> Template | None:
    """The template of a sweep that promotes; what is kept of the sweep finds it beside itself, whatever becomes of
    the file. A smoke run promotes into the smoke run of the template."""
    if config is None or not config.to:
        return None
    place = source.place(("promote", "to"))
    folder = Path(place.where).parent if place.line else Path()
    try:
        template = load_template(folder / config.to, smoke=smoke and config.to != PROMOTE_FILE, to_launch=to_launch)
    except SpecError as error:
        source.refuse(("promote", "to"), f"promote.to: {error}")
        return None
    if config.to != PROMOTE_FILE:
        source.content["promote"]["to"] = PROMOTE_FILE
        source.origins = source.origins or (source.file,)
    return template


def check_budgeted(source: Source, spec: SweepSpec) -> None:
    """Every trial whose method chooses bits for a budget has one, and a quantiser for all widths on offer."""
    try:
        found = reached(spec.space, (METHOD, "budget", "finetune.quantizer", "method.quantizer"))
    except ConfigError:
        return  # too many to look at; a trial that has none tells it
    for settings in found:
        try:
            spec.trial_config(example(spec.space, settings))
        except ConfigError as error:
            message = str(error)
            place = "finetune" if message.startswith("finetune") else "budget"
            path: Path_ = ("space", METHOD) if METHOD in settings else ("method", "name")
            source.add(path, f"{'.'.join(map(str, path))}: {message.rstrip('.')}" if place == "budget" else message)
            return


def _read_plain(source: Source, sampler: SamplerConfig | None, space: Mapping[str, Domain]) -> PlainConfig | None:
    """The keys of the top level; the trials of a grid, where they are left out, are its points."""
    content = {key: value for key, value in source.content.items() if key in PLAIN_KEYS}
    if sampler and sampler.name == "grid":
        num_points = count_points(source, space) if len(space) == len(section(source, "space")) else 0
        trials = content.setdefault("trials", max(num_points, 1))
        if isinstance(trials, int) and 0 < num_points < trials:
            source.add(("trials",), f"trials is {trials}, but the grid has {num_points} points; give no more than that")
    return read_section(source, (), PlainConfig, content)
