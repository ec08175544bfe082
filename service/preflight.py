"""What can be known to fail before anything is computed."""

from __future__ import annotations

import contextlib
import math
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from service.combinations import Combination, Surveyed, budgets, combinations, subject
from service.launched import Launched
from service.pareto import METRICS, Constraint
from service.promotion import find_promotion
from service.registrable import check_names
from service.replica import replica_of
from service.space import range_of
from service.spec import SweepSpec
from service.sweeps import find_sweep
from service.template import Template
from service.tracking import check_tracking, resolve_uri
from service.varied import VARIABLE
from service.working_copy import located
from service.yaml_source import Path_
from trainables import api
from trainables.api import Reach, Survey
from trainables.config import DataConfig, EvaluationConfig
from trainables.data import check_data
from trainables.errors import (
    ConfigError,
    CoverageError,
    DataMissingError,
    InfeasibleBudgetError,
    StorageError,
    did_you_mean,
)
from trainables.method_config import GmpqConfig
from trainables.user_code import is_import_path

Problem = tuple[Path_, str]
"""Where it stands in the sweep's YAML, and the message."""


def check(spec: SweepSpec, *, cpus: float | None = None, gpus: float | None = None) -> None:
    """Raises a BitfrontError for missing data, too few CPUs or GPUs, storage or tracking that cannot be used.

    Args:
        cpus: of the machine or the cluster; None for those of this machine.
        gpus: likewise; None leaves them to Ray, which finds them without torch.
    """
    check_resources(spec, cpus=os.cpu_count() or 1 if cpus is None else cpus, gpus=gpus)
    _raise(spec, list(_data_problems(spec)))
    storage = located(spec.storage.path)
    _check_storage(storage)
    _raise(spec, list(_warm_start_problems(spec, storage)))
    check_tracking(resolve_uri(spec.tracking.uri, storage))
    if spec.promotion:
        _check_promotion_of(spec, spec.promotion, storage, elsewhere=cpus == math.inf)


def _check_promotion_of(spec: SweepSpec, template: Template, storage: Path, *, elsewhere: bool) -> None:
    """Of a sweep that promotes at its end: what would be refused after its last trial is refused now."""
    if template.name == spec.name:
        raise template.refuse(("name",), f"name is {template.name!r}, as that of the sweep; give the promotion another")
    check_promotion(template, storage, elsewhere=elsewhere)
    find_promotion(template, storage)


def check_promotion(template: Template, storage: Path, *, elsewhere: bool) -> None:
    """As `check`, for a promotion; `elsewhere`: it runs on a cluster, whose size is checked once it is connected."""
    cpus, gpus = (math.inf, math.inf) if elsewhere else (os.cpu_count() or 1, None)
    check_resources(template, cpus=cpus, gpus=gpus)
    data = template.sections["data"]
    # Boxes are read by the survey.
    if isinstance(data, DataConfig):
        try:
            check_data(data)
        except (ConfigError, DataMissingError) as error:
            where = "root" if data.root else "name"
            raise template.refuse(("data", where), str(error).rstrip(".")) from None
    _check_storage(storage)
    check_tracking(resolve_uri(template.tracking.uri, storage))
    _check_register(template)


def _check_register(template: Template) -> None:
    """Raises SpecError for what the registry would refuse once everything is finetuned."""
    wanted = template.register
    try:
        check_names(wanted.model or template.name, [wanted.alias] if wanted.alias else [])
    except ConfigError as error:
        raise template.refuse(("register",), f"register: {str(error).rstrip('.').replace('--', '')}") from None
    if wanted.objective and wanted.objective not in METRICS:
        hint = did_you_mean(wanted.objective, METRICS)
        raise template.refuse(
            ("register", "objective"), f"register.objective: unknown metric {wanted.objective!r}{hint}"
        )


def check_resources(spec: Launched, *, cpus: float, gpus: float | None) -> None:
    """Raises SpecError for trials that so many CPUs and GPUs cannot hold; arguments as in `check`."""
    _raise(spec, [*_cpu_problems(spec, cpus), *_gpu_problems(spec, gpus)])


def _raise(spec: Launched, problems: list[Problem]) -> None:
    """Raises SpecError with all problems, each at its place in the file."""
    found = spec.source.places_only()
    for path, message in problems:
        found.add(path, message)
    found.raise_problems()


def _cpu_problems(spec: Launched, cpus: float) -> Iterator[Problem]:
    resources = spec.resources
    needed = resources.workers * resources.cpus_per_worker
    if needed > cpus:
        yield (
            ("resources", "workers" if resources.workers > 1 else "cpus_per_worker"),
            f"resources: a trial asks for {needed} CPUs ({resources.workers} workers × {resources.cpus_per_worker}), "
            f"there are {cpus:g}; ask for fewer",
        )
    # A trial in its own process waits its turn; workers under Ray Train would time out, again and again.
    elif resources.launch_resolved == "train" and needed * resources.concurrency > cpus:
        yield (
            ("resources", "concurrency"),
            f"resources: {resources.concurrency} trials at once ask for {needed * resources.concurrency} CPUs, "
            f"there are {cpus:g}; set concurrency to {int(cpus) // needed}",
        )


def _gpu_problems(spec: Launched, gpus: float | None) -> Iterator[Problem]:
    resources = spec.resources
    needed = resources.workers * resources.gpus_per_worker
    if gpus is not None and needed > gpus:
        yield (
            ("resources", "workers" if resources.workers > 1 else "gpus_per_worker"),
            f"resources: a trial asks for {needed:g} GPUs ({resources.workers} workers × "
            f"{resources.gpus_per_worker:g}), there are {gpus:g}; ask for fewer",
        )


def _data_problems(spec: SweepSpec) -> Iterator[Problem]:
    for data, settings in {one.config.data: one.settings for one in reversed(combinations(spec))}.items():
        try:
            check_data(data)
        except (ConfigError, DataMissingError) as error:
            is_rooted = "data.root" in settings or "root" in spec.fixed["data"]
            yield spec.path_of("data.root" if is_rooted else "data.name", settings), str(error).rstrip(".")


def _warm_start_problems(spec: SweepSpec, storage: Path) -> Iterator[Problem]:
    for place, name in enumerate(spec.warm_start.sweeps):
        path = ("warm_start", "sweeps", place)
        if name == spec.name:
            yield path, f"warm_start.sweeps: {name!r} is this sweep itself; name others"
            continue
        try:
            if find_sweep(storage, name).sweep().kind != "search":
                yield path, f"warm_start.sweeps: {name!r} is a promotion, which varies no settings; name sweeps"
        except StorageError as error:
            yield path, f"warm_start.sweeps: {error}"


def _check_storage(storage: Path) -> None:
    """Raises ConfigError or StorageError unless files can be written as records are: moved, and linked, into place."""
    place = next(path for path in (storage, *storage.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"storage.path: {storage} cannot be written: {place} is not a writable folder.")
    probe = place / f".probe.{uuid.uuid4().hex[:8]}"
    linked, moved = (probe.with_name(f"{probe.name}.{kind}") for kind in ("linked", "moved"))
    doing = "written"
    try:
        probe.touch()
        doing = "linked (a result is, so that the first of two writers wins)"
        os.link(probe, linked)
        doing = "moved into place"
        probe.replace(moved)
    except OSError as error:
        raise ConfigError(
            f"storage.path: in {place} files cannot be {doing}: {error.strerror}; give a folder of a disk, or of a "
            "network file system such as NFS 4, that is mounted for writing, or s3://BUCKET/FOLDER."
        ) from None
    finally:
        for path in (probe, linked, moved):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    replica = replica_of(storage)
    if replica is not None:
        replica.check()


def needs_survey(spec: SweepSpec) -> bool:
    """Whether a survey, which takes seconds, can find anything wrong.

    That is limits, pixels, code of the user's own, or, after hours with others, a network that does not fit its data.
    """
    written = "top_k" in spec.fixed["method"] or "method.top_k" in spec.space
    limited = bool(spec.fixed["budget"]) or any(name.startswith("budget.") for name in spec.space)
    own_code = any(is_import_path(name) for place in ("network", "data") for name in spec.names(place))
    several = len(combinations(spec)) > 1
    return bool(spec.constraints or limited or written or own_code or several) or _is_written(
        spec, spec.evaluation.top_k
    )


def survey_all(spec: SweepSpec) -> Surveyed:
    """Counts every combination of network and data; reads each data set once.

    Raises SpecError naming every combination that cannot be, where the YAML has what it does not fit, and what
    `check_survey` finds wrong with the others.
    """
    found = combinations(spec)
    try:
        return list(zip(found, api.surveys([one.config for one in found]), strict=True))
    except (ConfigError, CoverageError):
        problems, others = _apart(spec, found)
        _raise(spec, [*problems, *_constraint_problems(spec, others), *_budget_problems(spec, others)])
        raise


def _apart(spec: SweepSpec, found: Sequence[Combination]) -> tuple[list[Problem], Surveyed]:
    """What is wrong with the combinations that cannot be, and the surveys of the others."""
    problems: list[Problem] = []
    surveyed: list[tuple[Combination, Survey]] = []
    for one in found:
        try:
            surveyed.append((one, api.survey(one.config)))
        except (ConfigError, CoverageError) as error:
            where = f"{one.label}: " if len(found) > 1 else ""
            problems.append((_path_named(spec, one, str(error)), f"{where}{str(error).rstrip('.')}"))
    return problems, surveyed


def _path_named(spec: SweepSpec, one: Combination, message: str) -> Path_:
    """Where the YAML gives the setting that a message begins with; the network where it begins with none."""
    named = re.match(rf"(?:{'|'.join(VARIABLE)}|reference|evaluation)\.\w+", message)
    name = named[0] if named else "network.name"
    if name == "data.image_size" and name not in one.settings and "network.name" in one.settings:
        # Other networks of the space may fit this size.
        name = "network.name"
    return ("space", name) if name in spec.space and name not in one.settings else spec.path_of(name, one.settings)


def check_survey(spec: SweepSpec, surveyed: Surveyed) -> None:
    """Raises SpecError for constraints and budgets that no policy keeps, and more pixels than a map has: all at once.

    What holds of one combination of network and data alone says which it is.
    """
    problems = [*_constraint_problems(spec, surveyed), *_budget_problems(spec, surveyed)]
    _raise(spec, [*problems, *_pixel_problems(spec, [survey for _, survey in surveyed])])


def _constraint_problems(spec: SweepSpec, surveyed: Surveyed) -> Iterator[Problem]:
    for place, constraint in enumerate(spec.constraints):
        path, metric, refused = ("constraints", place), constraint.metric, False
        for combination, survey in surveyed:
            reach = survey.reach.get(metric)
            reason = _out_of_reach(constraint, reach) if reach else ""
            if reason:
                where = f" of {combination.label}" if len(surveyed) > 1 else ""
                offered = f"with the widths offered {metric} is {reason}"
                yield path, f"constraints: no policy{where} keeps '{constraint}': {offered}"
                refused = True
        for other in () if refused else spec.constraints[:place]:
            if other.metric == metric and _exclude(constraint, other):
                yield path, f"constraints: no policy keeps both '{other}' and '{constraint}'; widen one of the two"


def _budget_problems(spec: SweepSpec, surveyed: Surveyed) -> Iterator[Problem]:
    found = {subject(combination.config): (combination, survey) for combination, survey in surveyed}
    for config, settings in budgets(spec):
        if subject(config) not in found:
            continue
        combination, survey = found[subject(config)]
        try:
            api.check_budget(config, survey)
        except InfeasibleBudgetError as error:
            where = f"{combination.label}: " if len(surveyed) > 1 else ""
            for key, message in error.problems.items():
                yield spec.path_of(f"budget.{key}", settings), f"{where}{message.rstrip('.')}"


def _out_of_reach(constraint: Constraint, reach: Reach) -> str:
    """What the metric is instead; rounded so that the number given can be kept. Empty where the bound is in reach."""
    if constraint.relation == "<=" and constraint.bound < reach.low:
        return f"at least {_rounded(reach.low, up=True):.6g}"
    if constraint.relation == ">=" and constraint.bound > reach.high:
        return f"at most {_rounded(reach.high, up=False):.6g}"
    return ""


def _rounded(value: float, *, up: bool) -> float:
    """To four significant digits; `value` is above 0."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return (math.ceil(value / unit) if up else math.floor(value / unit)) * unit


def _exclude(one: Constraint, other: Constraint) -> bool:
    upper, lower = (one, other) if one.relation == "<=" else (other, one)
    return upper.relation != lower.relation and upper.bound < lower.bound


def _pixel_problems(spec: SweepSpec, surveys: Sequence[Survey]) -> Iterator[Problem]:
    """Of what the author wrote: the default is larger than many maps, and then means all of their pixels.

    Where some trials' maps are large enough, smaller ones keep all.
    """
    top_k, largest_map = spec.evaluation.top_k, max(survey.evaluation_pixels for survey in surveys)
    if top_k > largest_map and _is_written(spec, top_k):
        yield ("evaluation", "top_k"), f"evaluation.top_k: {_too_many(top_k, largest_map)}"
    imitating = [config.method for config in spec.example_configs() if isinstance(config.method, GmpqConfig)]
    if not imitating or max(_method_values(spec, imitating, "eta")) == 0:
        return
    resolutions = _method_values(spec, imitating, "resolution")
    pixels = max(survey.map_pixels[resolution] for survey in surveys for resolution in resolutions)
    written = {("method", "top_k"): spec.fixed["method"].get("top_k", 0)}
    if "method.top_k" in spec.space:
        written["space", "method.top_k"] = max(_examples(spec, "top_k"))
    for path, largest in written.items():
        if largest > pixels:
            yield path, f"{'.'.join(path)}: {_too_many(largest, pixels)}"


def _method_values(spec: SweepSpec, methods: Sequence[GmpqConfig], setting: str) -> list[Any]:
    """Values that stand for all that a setting of these methods may have."""
    values = _examples(spec, setting)
    if setting in spec.fixed["method"]:
        values.append(spec.fixed["method"][setting])
    return values or [getattr(method, setting) for method in methods]


def _examples(spec: SweepSpec, setting: str) -> list[Any]:
    domain = spec.space.get(f"method.{setting}")
    return list(range_of(domain).examples()) if domain else []


def _too_many(top_k: int, pixels: int) -> str:
    return f"{top_k} pixels are to be ranked, but the attribution maps have {pixels}; give at most that"


def _is_written(spec: SweepSpec, top_k: int) -> bool:
    section = spec.source.place(("evaluation",), at_key=True)
    return top_k != EvaluationConfig().top_k or spec.source.place(("evaluation", "top_k")) != section
