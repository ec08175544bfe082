"""What a sweep varies, compared with the settings that it varies and with all that counts points or epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.contribution import rates
from service.reached import reached
from service.settings import EarlyStoppingConfig, PlainConfig, WarmStartConfig
from service.space import (
    Choice,
    Conditional,
    Domain,
    Int,
    Scalar,
    check_condition,
    chosen_for,
    example,
    fit,
    is_active,
    parse_domain,
    points,
    range_of,
    size,
)
from service.validate import Problem, find_problems
from service.yaml_source import Path_, Source
from trainables.config import BudgetConfig, TrialConfig
from trainables.data import check_data_name
from trainables.errors import ConfigError, did_you_mean
from trainables.method_config import BlackboxConfig
from trainables.models import check_network

STAGES = ("method", "finetune")
"""Those with epochs and batches of their own."""
SUBJECTS = ("network", "data")
"""What a full-precision reference is trained for: of these a space may have finitely many."""
VARIABLE = (*SUBJECTS, "budget", *STAGES)
"""Sections whose settings a space may vary."""
BARRIER = "method.barrier"
METHOD = "method.name"
SEED = "seed"
"""Of the top level: the one setting outside of the sections that a space may vary."""
Kinds = Mapping[str, tuple[type, ...]]
"""By section the classes of its settings: several where trials may have one of several methods."""
Fixed = Mapping[str, Mapping[str, Any]]


def section(source: Source, name: str) -> dict[str, Any]:
    """The content of a section, empty where it is missing or no section."""
    value = source.content.get(name, {})
    if isinstance(value, dict):
        return value
    source.refuse((name,), f"{name}: found {value!r}; expected settings below it")
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Named:
    """What a method's class does not say: its name."""

    name: str


def settings_of(kinds: Kinds) -> dict[str, dataclasses.Field[Any]]:
    """Fields of what a space may vary, by their dotted names."""
    classes = [*((place, kind) for place, several in kinds.items() for kind in several), ("method", _Named)]
    found = {f"{place}.{f.name}": f for place, kind in classes for f in dataclasses.fields(kind)}
    return found | {f.name: f for f in dataclasses.fields(PlainConfig) if f.name == SEED}


def is_list(setting: dataclasses.Field[Any]) -> bool:
    """Whether it holds several values, which a space cannot vary."""
    return str(setting.type).startswith(("tuple", "Mapping"))


def read_space(source: Source, kinds: Kinds) -> dict[str, Domain]:
    """Domains by setting. Of a section that is not in `kinds` (its method is unknown) only the ranges are checked."""
    entries = section(source, "space")
    if not entries:
        source.add(
            ("space",),
            "space: missing or empty; give at least one setting to vary, as method.zeta: {loguniform: [0.01, 1.0]}",
            at_key=True,
        )
    settings = settings_of(kinds)
    unchecked = tuple(f"{place}." for place in VARIABLE if place not in kinds)
    space: dict[str, Domain] = {}
    for name, value in entries.items():
        path = ("space", name)
        wrong = _wrong_name(name, settings, unchecked)
        if wrong:
            source.add(path, wrong, at_key=True)
            continue
        try:
            domain = parse_domain(value)
        except ConfigError as error:
            source.add(path, f"space.{name}: {error}")
            continue
        if name.startswith(tuple(f"{place}." for place in SUBJECTS)) and size(domain) == math.inf:
            message = (
                "trials have finitely many networks and data sets; give choice, grid, int or fixed instead of a range"
            )
            source.add(path, f"space.{name}: {message}")
            continue
        if name == SEED and not _are_seeds(domain):
            source.add(path, f"space.{name}: give choice, grid, int or fixed with whole numbers from 0")
            continue
        if _may_be_varied(source, name, domain, settings.get(name)):
            conditioned = _with_condition(source, name, domain, space)
            if conditioned:
                space[name] = _typed(conditioned, settings.get(name))
    return space


def _wrong_name(name: str, settings: Mapping[str, dataclasses.Field[Any]], unchecked: tuple[str, ...]) -> str:
    if name in settings and is_list(settings[name]):
        several = "list" if str(settings[name].type).startswith("tuple") else "mapping"
        return f"space: {name!r} is a {several}, which a space cannot vary; fix it in its section"
    if name not in settings and not (unchecked and name.startswith(unchecked)):
        known = [known for known, setting in settings.items() if not is_list(setting)]
        return f"space: {name!r} is not a setting{did_you_mean(name, known)}"
    return ""


def _are_seeds(domain: Domain) -> bool:
    values = range_of(domain).examples()
    return size(domain) < math.inf and all(type(value) is int and value >= 0 for value in values)


def _may_be_varied(source: Source, name: str, domain: Domain, setting: dataclasses.Field[Any] | None) -> bool:
    place, _, key = name.rpartition(".")
    written = section(source, place) if place else source.content
    if not isinstance(domain, Conditional):
        if key in written:
            where = f"under '{place}:'" if place else "at the top level"
            message = f"space.{name}: also fixed {where}; remove one of the two"
            source.add(("space", name), message, at_key=True)
        return key not in written
    missing = dataclasses.MISSING
    if place == "method" and METHOD in dict(domain.when):
        # Whether each method has what it needs is seen when its settings are built.
        return True
    if key not in written and setting and setting.default is missing and setting.default_factory is missing:
        message = f"space.{name}: has no value where its condition does not hold; give one under '{place}:' as well"
        source.add(("space", name), message, at_key=True)
    return True


def _typed(domain: Domain, setting: dataclasses.Field[Any] | None) -> Domain:
    """The domain with 12.0 for the 12 of a choice where the setting is a real number: one value, written in one way."""
    plain = range_of(domain)
    if setting is None or setting.type != "float" or not isinstance(plain, Choice):
        return domain
    plain = Choice(tuple(float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in plain.values))
    return Conditional(plain, domain.when) if isinstance(domain, Conditional) else plain


def _with_condition(source: Source, name: str, domain: Domain, earlier: Mapping[str, Domain]) -> Domain | None:
    """The domain, its condition in the words of the entries that it names; None where these cannot be found."""
    if not isinstance(domain, Conditional):
        return domain
    when = []
    entries = section(source, "space")
    for parent, values in domain.when:
        path = ("space", name, "when", parent)
        if parent in earlier:
            try:
                when.append((parent, check_condition(parent, values, earlier)))
            except ConfigError as error:
                source.add(path, f"space.{name}: when: {parent}: {error}")
        elif parent == name:
            source.add(path, f"space.{name}: when: an entry cannot depend on itself", at_key=True)
        elif parent not in entries:
            known = did_you_mean(parent, earlier)
            source.add(path, f"space.{name}: when: {parent!r} is no entry above this one{known}", at_key=True)
        elif list(entries).index(parent) > list(entries).index(name):
            source.add(path, f"space.{name}: when: {parent!r} stands further down; move it above this one", at_key=True)
    return Conditional(domain.domain, tuple(when)) if len(when) == len(domain.when) else None


def check_varied(source: Source, kinds: Kinds, fixed: Fixed, space: Mapping[str, Domain]) -> None:
    """Builds each section once for each example of each of its domains, the others at their first.

    Settings of several methods are left to `method_choice`.
    """
    entries = section(source, "space")
    for place, kind in ((place, several[0]) for place, several in kinds.items() if len(several) == 1):
        own = {name: domain for name, domain in space.items() if name.startswith(f"{place}.") and name != METHOD}
        problems = find_problems(kind, content_of(place, fixed, example(space, {})), place)
        for path, message, at_key in problems:
            # What the space gives is compared below; what it was to give and does not has its own message.
            varied = ".".join(map(str, path)) in (entries if message.endswith("missing") else own)
            if not varied:
                source.add(path, message, at_key=at_key)
        for name, domain in own.items():
            for value in domain.examples():
                settings = example(space, {**chosen_for(space, name), name: value}) | {name: value}
                found = find_problems(kind, content_of(place, fixed, settings), place)
                check_example(source, found, name, value, is_alone=not problems)
            if isinstance(domain, Conditional):
                settings = {key: value for key, value in example(space, {}).items() if key != name}
                for path, message, at_key in find_problems(kind, content_of(place, fixed, settings), place):
                    if ".".join(map(str, path)) == name and not message.endswith("missing"):
                        source.add(path, message, at_key=at_key)


def check_example(source: Source, problems: list[Problem], name: str, value: Scalar, *, is_alone: bool) -> None:
    """Adds what is wrong with a section in which an entry has this example; `is_alone`: with no other it is wrong."""
    for path, message, _ in problems:
        if ".".join(map(str, path)) == name:
            source.add(("space", name), f"space.{message}")
        elif is_alone and not message.endswith("missing"):
            # All was well with the first examples, so this one does not go with the other settings.
            source.add(("space", name), f"space.{name}: with {value!r}, {message}")


def content_of(place: str, fixed: Fixed, settings: Mapping[str, Scalar]) -> dict[str, Any]:
    """A section's settings in a trial to which the space gave `settings`; the method's without its name."""
    prefix = f"{place}."
    own = {name.removeprefix(prefix): v for name, v in settings.items() if name.startswith(prefix) and name != METHOD}
    return {**fixed[place], **own}


def count_points(source: Source, space: Mapping[str, Domain]) -> int:
    """Points of the full grid; 0, and a problem for each continuous range, where there is none."""
    continuous = [name for name, domain in space.items() if size(domain) == math.inf]
    for name in continuous:
        message = "sampler 'grid' tries every value; give choice, grid, int or fixed instead of a range"
        source.add(("space", name), f"space.{name}: {message}")
    if continuous:
        return 0
    try:
        return len(points(space))
    except ConfigError as error:
        source.add(("space", str(error).split(": ")[0]), f"space.{error}")
        return 0


def fit_points(source: Source, config: WarmStartConfig, space: Mapping[str, Domain], trials: int) -> WarmStartConfig:
    """The warm start with its points' values as the space has them."""
    if len(config.points) > trials:
        message = f"warm_start.points: {len(config.points)} points for trials: {trials}; give more trials"
        source.add(("warm_start", "points"), message)
    fitted = []
    for place, point in enumerate(config.points):
        where = f"warm_start.points.{place}"
        path = ("warm_start", "points", place)
        known: dict[str, Scalar] = {}
        for name, value in point.items():
            if name in space:
                try:
                    known[name] = fit(space[name], value)
                except ConfigError as error:
                    source.add((*path, name), f"{where}.{name}: {error}")
            elif name not in section(source, "space"):
                message = f"{where}: {name!r} is not an entry of the space{did_you_mean(name, space)}"
                source.add((*path, name), message, at_key=True)
        for name in known:
            if _is_never_active(space[name], known):
                source.add((*path, name), f"{where}.{name}: not active with the point's other values; leave it out")
        fitted.append(known)
    return dataclasses.replace(config, points=tuple(fitted))


def _is_never_active(domain: Domain, known: Mapping[str, Scalar]) -> bool:
    """Whether a point's own values rule out the condition, whatever the sampler draws for the rest."""
    return isinstance(domain, Conditional) and not all(
        parent not in known or is_active(Conditional(domain.domain, ((parent, values),)), known)
        for parent, values in domain.when
    )


def check_epochs(
    source: Source, config: EarlyStoppingConfig, trial: TrialConfig, fixed: Fixed, space: Mapping[str, Domain]
) -> None:
    """Early stopping needs a rung before the shortest trial's end, and no settings of another rule."""
    if config.name == "none":
        if source.has(("early_stopping", "share")) and not source.has(("early_stopping", "name")):
            message = "early_stopping.share is set, but no rule: give name: hypervolume, or leave it out"
            source.add(("early_stopping", "share"), message)
        return
    for key in ("reduction", "min_epochs") if config.name == "hypervolume" else ("share",):
        if source.has(("early_stopping", key)):
            message = f"early_stopping.{key} has no meaning with name: {config.name}; leave it out"
            source.add(("early_stopping", key), message)
    if config.name == "hypervolume":
        _check_share(source, config, trial, fixed, space)
        return
    epochs = sum(min(found) for found in stage_epochs(trial, fixed, space))
    if config.min_epochs >= epochs:
        message = f"is {config.min_epochs}, but the shortest trial ends after {epochs} epochs of search and finetune"
        source.add(("early_stopping", "min_epochs"), f"early_stopping.min_epochs {message}; give less")


def _check_share(
    source: Source, config: EarlyStoppingConfig, trial: TrialConfig, fixed: Fixed, space: Mapping[str, Domain]
) -> None:
    """A share of the epochs needs a first epoch of each stage that tells something, and more epochs behind it."""
    if isinstance(trial.method, BlackboxConfig):
        message = "an evaluation of blackbox tells of one policy that it tries, not of its search; give name: none"
        source.add(("early_stopping", "name"), f"early_stopping.name is hypervolume, but {message}")
        return
    for place, values in possible("finetune", "epochs", trial, fixed, space):
        if min(int(value) for value in values) < 2:
            message = "a finetune of 1 epoch has nothing to save when it is judged after its first"
            fix = "give at least 2 epochs, or early_stopping: {name: none}"
            source.add(place, f"{'.'.join(place)}: {message}; {fix}")
            return
    *search, finetune = (min(found) for found in stage_epochs(trial, fixed, space))
    try:
        rates(config.share, search=sum(search), finetune=finetune)
    except ValueError as error:
        source.add(("early_stopping", "share"), f"early_stopping: {error}")


def stage_epochs(trial: TrialConfig, fixed: Fixed, space: Mapping[str, Domain]) -> list[list[int]]:
    """Of each stage that reports epochs, numbers of them that stand for all that it may have."""
    stages = (("method", trial.method.epochs_setting), ("finetune", "epochs"))
    ranges = [possible(place, key, trial, fixed, space) for place, key in stages if key]
    return [[int(value) for _, values in found for value in values] for found in ranges]


def check_names(source: Source, fixed: Fixed, space: Mapping[str, Domain]) -> None:
    """Networks and data sets that there are, wherever the file names them."""
    for place, check in (("network", check_network), ("data", check_data_name)):
        for path, name in _written(source, f"{place}.name", fixed, space):
            if not isinstance(name, str):
                continue  # a number has its own message
            try:
                check(name)
            except ConfigError as error:
                source.add(path, f"{'.'.join(map(str, path[:2]))}: {error}")


def check_precision(source: Source, gpus_per_worker: float, fixed: Fixed, space: Mapping[str, Domain]) -> None:
    """Without a GPU there is no fp16."""
    for name in ("method.amp", "finetune.amp"):
        for path, precision in _written(source, name, fixed, space):
            if precision == "fp16" and not gpus_per_worker:
                message = "needs a GPU, and resources.gpus_per_worker is 0; give it one, or use bf16"
                source.add(path, f"{'.'.join(map(str, path[:2]))} is 'fp16', which {message}")


def check_barrier(source: Source, fixed: Fixed, space: Mapping[str, Domain]) -> None:
    """A barrier needs a budget that it stands before, in every trial that has the barrier."""
    limits = tuple(f"budget.{f.name}" for f in dataclasses.fields(BudgetConfig))
    try:
        found = reached(_by_examples(space, limits), ("budget", BARRIER))
    except ConfigError as error:
        name = str(error).split(": ", 1)[0]
        message = "with it there are too many combinations of budgets with a barrier; give fewer values"
        source.add(("space", name), f"space.{name}: {message}")
        return
    for path, weight in _written(source, BARRIER, fixed, space):
        having = [point for point in found if _value(BARRIER, fixed, point) == weight and weight]
        without = [point for point in having if not any(_value(limit, fixed, point) for limit in limits)]
        if without:
            name = ".".join(map(str, path[:2]))
            given = [f"{key} is {value}" for key, value in without[0].items() if key != BARRIER]
            where = f" where {' and '.join(given)}" if len(without) < len(having) else ""
            message = f"there is no budget that it could keep{where}; give one, as budget: {{bops_g: 7.5}}"
            source.add(path, f"{name} is {weight}, but {message}")


def _by_examples(space: Mapping[str, Domain], names: Sequence[str]) -> dict[str, Domain]:
    """The space with a few values of these entries instead of all, unless a condition may name any of them."""
    parents = {parent for domain in space.values() if isinstance(domain, Conditional) for parent, _ in domain.when}
    return {name: _few(domain) if name in names and name not in parents else domain for name, domain in space.items()}


def _few(domain: Domain) -> Domain:
    few = Choice(domain.examples())
    return Conditional(few, domain.when) if isinstance(domain, Conditional) else few


def _value(name: str, fixed: Fixed, point: Mapping[str, Scalar]) -> Any:
    """Of a setting that is 0 unless something says otherwise."""
    place, key = name.split(".", 1)
    return point.get(name, fixed.get(place, {}).get(key, 0))


def _written(source: Source, name: str, fixed: Fixed, space: Mapping[str, Domain]) -> Iterator[tuple[Path_, Scalar]]:
    """Values that the file writes for a setting, each with its own place; of a range both ends."""
    place, key = name.split(".", 1)
    if isinstance(fixed.get(place, {}).get(key), str | int | float):
        yield (place, key), fixed[place][key]
    if name in space:
        kind = next(kind for kind in section(source, "space")[name] if kind != "when")
        is_list = kind != "fixed"
        for number, value in enumerate(range_of(space[name]).examples()):
            yield ("space", name, kind, *((number,) if is_list else ())), value


def check_batches(source: Source, workers: int, trial: TrialConfig, fixed: Fixed, space: Mapping[str, Domain]) -> None:
    """Every worker gets at least one image of every batch."""
    for name in ("reference", *STAGES):
        if not hasattr(getattr(trial, name), "batch_size"):
            continue
        for place, sizes in possible(name, "batch_size", trial, fixed, space):
            for images in sizes:
                if int(images) < workers:
                    message = f"{workers} workers cannot share batches of {images}"
                    source.add(place, f"{'.'.join(place)}: {message}; give at least {workers}")


def possible(
    place: str, key: str, trial: TrialConfig, fixed: Fixed, space: Mapping[str, Domain]
) -> list[tuple[tuple[str, ...], tuple[Scalar, ...]]]:
    """Values that stand for all that a setting may have, with the place that says so."""
    name = f"{place}.{key}"
    domain = space.get(name)
    found: list[tuple[tuple[str, ...], tuple[Scalar, ...]]] = []
    if domain:
        plain = range_of(domain)
        values = (plain.low, plain.high) if isinstance(plain, Int) else plain.examples()
        found.append((("space", name), values))
    if domain is None or isinstance(domain, Conditional):
        found.append(((place, key), (fallback(getattr(trial, place), place, key, fixed, is_varied=bool(domain)),)))
    return found


def has_fallback(config: Any, place: str, key: str, fixed: Fixed) -> bool:
    """Whether a setting has a value where no entry of the space is active for it; else none of its trials needs one."""
    setting = next(f for f in dataclasses.fields(config) if f.name == key)
    return key in fixed[place] or setting.default is not dataclasses.MISSING


def fallback(config: Any, place: str, key: str, fixed: Fixed, *, is_varied: bool) -> Any:
    """The value of a setting that no entry of the space is active for."""
    if not is_varied:
        return getattr(config, key)
    setting = next(f for f in dataclasses.fields(config) if f.name == key)
    value = fixed[place].get(key, setting.default)
    return float(value) if setting.type == "float" else value
