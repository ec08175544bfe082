"""The service's own settings of a sweep: sampler, resources, storage, tracking and the plain keys of the top level."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from service.object_store import is_url, parse_url
from service.pareto import check_objectives, parse_constraint
from service.rules import Gates, parse_rule
from trainables.checked import STRICT
from trainables.errors import ConfigError

RESERVED_TAGS = ("mlflow.", "bitfront.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """How the settings of the next trial are chosen."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: Literal["tpe", "nsga2", "gp", "random", "quasi-random", "grid"] = "tpe"
    """Optuna's tree-structured Parzen estimator, NSGA-II, Gaussian process; independent draws; a scrambled Sobol
    sequence; every combination of the space's values."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"sampler.seed is {self.seed}; give 0 to {2**32 - 1}, as NumPy's generators take.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStartConfig:
    """What the sampler begins with."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    points: tuple[dict[str, bool | int | float | str], ...] = ()
    """Settings of the first trials; what a point leaves out is drawn by the sampler."""
    sweeps: tuple[str, ...] = ()
    """Sweeps of the same storage whose results the sampler learns from; their trials are not run again."""

    def __post_init__(self) -> None:
        for sweep in self.sweeps:
            check_sweep(sweep)


def check_sweep(name: str) -> None:
    """Raises ConfigError unless this may be the name of a stored sweep, one that was taken with its number."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,70}", name):
        raise ConfigError(f"warm_start.sweeps: found {name!r}; expected the name of a sweep, as its folder has it")


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStoppingConfig:
    """When a trial is stopped: where others beat it at the same epoch, or add more to the front than it would."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: Literal["none", "successive-halving", "hypervolume"] = "none"
    """`successive-halving`: asynchronous, on the non-dominated rank of what is known at a rung; `hypervolume`: what
    adds most to the front goes on, within a share of the epochs."""
    share: float = 0.35
    """Of `hypervolume`: of the epochs that all trials would take, those that are spent; between 0 and 1."""
    reduction: int = 3
    """Of `successive-halving`: of so many trials that reach a rung one goes on; rungs are this factor apart."""
    min_epochs: int = 3
    """Of `successive-halving`: epochs (search and finetune together) before the first rung."""

    def __post_init__(self) -> None:
        if self.reduction < 2:
            raise ConfigError(f"early_stopping.reduction is {self.reduction}; give at least 2.")
        if self.min_epochs < 1:
            raise ConfigError(f"early_stopping.min_epochs is {self.min_epochs}; give at least 1.")
        if not 0 < self.share < 1:
            raise ConfigError(f"early_stopping.share is {self.share}; give more than 0 and less than 1.")

    @property
    def counted(self) -> dict[str, Any]:
        """The settings on which results depend: those that the rule has."""
        content = dataclasses.asdict(self)
        for key in ("reduction", "min_epochs") if self.name == "hypervolume" else ("share",):
            del content[key]
        return content


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitsConfig:
    """When a sweep, or a trial, has had enough. What was cut off by a limit of the sweep goes on with `extend`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    wall_time: str = ""
    """Time that the sweep may run, such as 90m, 12h or 2d; all its runs together. Empty: no limit."""
    device_hours: float = 0.0
    """Device-hours that the trials may spend together; 0: no limit."""
    trial_time: str = ""
    """Time after which a trial is ended by force, such as 2h, each attempt on its own. Empty: no limit."""
    stall: str = ""
    """Time without a new epoch after which a trial is ended by force, such as 30m. Empty: no limit."""
    retries: int = 3
    """New attempts of a trial whose process or machine was lost; it goes on from its last epoch."""

    def __post_init__(self) -> None:
        for name in ("wall_time", "trial_time", "stall"):
            if getattr(self, name) and not parse_duration(getattr(self, name)):
                raise ConfigError(
                    f"limits.{name} is {getattr(self, name)!r}; give a time such as 45s, 90m, 12h, 2d or 1d12h."
                )
        if self.device_hours < 0:
            raise ConfigError(f"limits.device_hours is {self.device_hours}; give a positive number, or 0 for no limit.")
        if self.retries < 0:
            raise ConfigError(f"limits.retries is {self.retries}; give 0 or more.")


def parse_duration(text: str) -> float:
    """Seconds of a time such as 1d12h or 90m; 0 where it is none."""
    match = re.fullmatch(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", text)
    if not match:
        return 0.0
    return float(sum(int(n or 0) * s for n, s in zip(match.groups(), (86400, 3600, 60, 1), strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """What a trial gets, and how many run at once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    workers: int = 1
    """Processes that share a trial's batches (data parallel)."""
    min_workers: int = 0
    """With how many a trial goes on when machines are lost, until others take their place; 0: it waits for all. A
    share of a batch is as exact with any number of workers, to rounding."""
    cpus_per_worker: int = 1
    """CPUs, and CPU threads, of each worker."""
    gpus_per_worker: float = 0.0
    launch: Literal["auto", "process", "train"] = "auto"
    """`process` runs a trial of one worker in its own process (2-3 s of overhead); `train` starts its workers under Ray
    Train (11-19 s). `auto` is `process` for one worker and `train` for several."""
    concurrency: int = 1
    """Trials that run at once."""
    price_per_device_hour: float = 0.0
    """What an hour of one worker's device costs, for estimates; 0: not known."""
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"resources.{name} is {getattr(self, name)}; give at least 1.")
        if not 0 <= self.min_workers <= self.workers:
            raise ConfigError(
                f"resources.min_workers is {self.min_workers}; give 0 to resources.workers, {self.workers}."
            )
        if self.min_workers and self.launch_resolved == "process":
            raise ConfigError(
                f"resources.min_workers is {self.min_workers}, but the one worker runs in the trial's own process; set "
                f"workers, or launch: train."
            )
        if self.gpus_per_worker < 0:
            raise ConfigError(f"resources.gpus_per_worker is {self.gpus_per_worker}; give 0 or more.")
        if self.price_per_device_hour < 0:
            raise ConfigError(
                f"resources.price_per_device_hour is {self.price_per_device_hour}; give 0 or a positive number."
            )
        if self.launch == "process" and self.workers > 1:
            raise ConfigError(
                f"resources.launch is 'process', which has one worker, not {self.workers}; use 'train' or 'auto'."
            )

    @property
    def launch_resolved(self) -> Literal["process", "train"]:
        """`launch` with `auto` decided."""
        if self.launch == "auto":
            return "process" if self.workers == 1 else "train"
        return self.launch


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryConfig:
    """What the sweep's page shows of where the networks look. Nothing that is searched or measured depends on it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    images: int = 8
    """Validation images, spread over the classes; 0: no gallery."""
    random: bool = True
    """Whether, at the end of a finished sweep, a random policy of the knee's cost is finetuned to compare with."""

    def __post_init__(self) -> None:
        if not 0 <= self.images <= 32:
            raise ConfigError(f"gallery.images is {self.images}; give 1 to 32, or 0 for no gallery.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteConfig:
    """What is finetuned at the end of a finished sweep, without being asked for: as `bitfront promote` does it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    to: str = ""
    """The finetune template, a YAML relative to the file in which this stands; empty: nothing is promoted."""
    rule: str = "knee"
    """Of the front: knee, all, top 3 by top1, within bops_g <= 0.03, hypervolume 3."""
    min_top1: float = 0.0
    """Only policies with at least this top-1 in their search, percent."""
    max_ard: float = 0.0
    """Only policies with at most this ARD in their search, ranks; 0: any."""

    def __post_init__(self) -> None:
        try:
            parse_rule(self.rule)
        except ConfigError as error:
            raise ConfigError(f"promote.{error}") from None
        for name in ("min_top1", "max_ard"):
            if getattr(self, name) < 0:
                raise ConfigError(f"promote.{name} is {getattr(self, name)}; give 0 or a positive number.")

    @property
    def gates(self) -> Gates:
        """What a policy must have reached."""
        return Gates(min_top1=self.min_top1, max_ard=self.max_ard)


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageConfig:
    """Where sweeps are kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    path: str = "bitfront-sweeps"
    """Folder, relative to where the command is run; or `s3://BUCKET/FOLDER`."""

    def __post_init__(self) -> None:
        if is_url(self.path):
            parse_url(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where MLflow records the sweep."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    uri: str = ""
    """MLflow tracking server or database; empty for an SQLite database in the storage."""
    experiment: str = "bitfront"

    def __post_init__(self) -> None:
        if not self.experiment:
            raise ConfigError("tracking.experiment is ''; give the name under which MLflow lists the sweep.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainConfig:
    """The keys of the top level that are not sections."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    trials: int
    seed: int = 0
    description: str = ""
    owner: str = ""
    """Who answers for the sweep."""
    tags: dict[str, str] = field(default_factory=dict)
    objectives: tuple[str, ...] = ("top1", "bops_g", "ard")
    """Metrics to trade off; each is improved in its own direction."""
    constraints: tuple[str, ...] = ()
    """Such as `bops_g <= 7.5`: a policy that breaks one is not on the front."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.trials < 1:
            raise ConfigError(f"trials is {self.trials}; give at least 1.")
        check_objectives(self.objectives)
        for constraint in self.constraints:
            parse_constraint(constraint)
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; give zero or a positive number.")
        check_tags(self.tags)


def check_name(name: str) -> None:
    """Raises ConfigError unless this may be the name of a sweep, or of a promotion."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise ConfigError(f"name is {name!r}; use up to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first.")


def check_tags(tags: Iterable[str]) -> None:
    """Raises ConfigError for names of tags that MLflow refuses, or that the record there needs itself."""
    for tag in tags:
        if not re.fullmatch(r"[A-Za-z0-9_./: -]{1,250}", tag):
            raise ConfigError(f"tags: the name {tag!r} has signs that MLflow refuses; use letters, digits and _./:-.")
        if tag.startswith(RESERVED_TAGS):
            raise ConfigError(
                f"tags: the name {tag!r} begins with {' or '.join(RESERVED_TAGS)}, which the record in MLflow uses "
                "itself; choose another."
            )
