"""The service's own settings of a sweep: sampler, resources, storage, tracking and the plain keys of the top level."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from trainables.config import STRICT
from trainables.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """How the settings of the next trial are chosen."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: Literal["tpe", "nsga2", "random"] = "tpe"
    """Optuna's tree-structured Parzen estimator, NSGA-II, or independent draws."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"sampler.seed is {self.seed}; give 0 to {2**32 - 1}, as NumPy's generators take.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """What a trial gets, and how many run at once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    workers: int = 1
    """Processes that share a trial's batches (data parallel)."""
    cpus_per_worker: int = 1
    """CPUs, and CPU threads, of each worker."""
    gpus_per_worker: float = 0.0
    launch: Literal["auto", "process", "train"] = "auto"
    """`process` runs a trial of one worker in its own process (2-3 s of overhead); `train` starts its workers under Ray
    Train (11-19 s). `auto` is `process` for one worker and `train` for several."""
    concurrency: int = 1
    """Trials that run at once."""

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"resources.{name} is {getattr(self, name)}; give at least 1.")
        if self.gpus_per_worker < 0:
            raise ConfigError(f"resources.gpus_per_worker is {self.gpus_per_worker}; give 0 or more.")
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
class StorageConfig:
    """Where sweeps are kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    path: str = "bitfront-sweeps"
    """Folder; relative to where the command is run."""


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
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", self.name):
            raise ConfigError(
                f"name is {self.name!r}; use up to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first."
            )
        if self.trials < 1:
            raise ConfigError(f"trials is {self.trials}; give at least 1.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; give zero or a positive number.")
        for tag in self.tags:
            if not re.fullmatch(r"[A-Za-z0-9_./: -]{1,250}", tag):
                raise ConfigError(
                    f"tags: the name {tag!r} has signs that MLflow refuses; use letters, digits and _./:-."
                )
