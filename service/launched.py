"""What a driver needs to know of what it runs, whether that is a sweep or a promotion."""

from __future__ import annotations

from typing import Protocol

from service.settings import LimitsConfig, ResourcesConfig, TrackingConfig
from service.yaml_source import Path_, Source
from trainables.errors import SpecError


class Launched(Protocol):
    """A sweep's spec, or a promotion's template."""

    @property
    def name(self) -> str:
        """Of its folder."""
        ...

    @property
    def resources(self) -> ResourcesConfig:
        """What each trial gets."""
        ...

    @property
    def limits(self) -> LimitsConfig:
        """When it has had enough."""
        ...

    @property
    def tracking(self) -> TrackingConfig:
        """Where it is recorded."""
        ...

    @property
    def source(self) -> Source:
        """Where everything stands in its file."""
        ...

    def refuse(self, path: Path_, message: str) -> SpecError:
        """The error that points at the value of a path."""
        ...
