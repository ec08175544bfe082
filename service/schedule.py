"""When a sweep is due: the times of its cron line on the clock of its time zone."""

from __future__ import annotations

import itertools
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from service.settings import parse_duration
from trainables.checked import STRICT
from trainables.errors import ConfigError

if TYPE_CHECKING:
    from cronsim import CronSim

PUNCTUAL = timedelta(minutes=10)
"""So late a launch is still on time: a machine is busy, a crontab line comes every few minutes."""
HORIZON = timedelta(days=366 * 50)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """When `bitfront scheduler` launches the sweep."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    cron: str = ""
    """Minute, hour, day of month, month, day of week, as cron has them; empty: on demand."""
    time_zone: str = "UTC"
    """IANA name, such as Europe/Berlin."""
    missed: Literal["latest", "all", "skip"] = "latest"
    """Of the times at which no scheduler ran, which are caught up: the `latest`, `all` one after the other, or none."""
    grace: str = ""
    """How late a launch may begin, such as 90m or 1d; empty: 10m with `skip`, else no limit."""
    overlap: Literal["skip", "wait"] = "skip"
    """What becomes of a time at which the sweep's launch before it has not ended: left out, or launched after it."""

    def __post_init__(self) -> None:
        try:
            zoneinfo.ZoneInfo(self.time_zone)
        except (KeyError, ValueError, OSError):  # ZoneInfo knows no single one: a folder of zones is an OSError
            raise ConfigError(
                f"schedule.time_zone is {self.time_zone!r}; give an IANA name such as UTC or Europe/Berlin."
            ) from None
        if self.cron and next(_wall_times(self.cron, datetime.now(UTC)), None) is None:
            raise ConfigError(f"schedule.cron is {self.cron!r}, which never comes; give another day or month.")
        if self.grace and not parse_duration(self.grace):
            raise ConfigError(f"schedule.grace is {self.grace!r}; give a time such as 45s, 90m, 12h, 2d or 1d12h.")

    @property
    def max_lateness(self) -> timedelta:
        """How late a launch may begin."""
        if self.grace:
            return timedelta(seconds=parse_duration(self.grace))
        return PUNCTUAL if self.missed == "skip" else timedelta.max


def launches_between(schedule: ScheduleConfig, after: datetime, until: datetime) -> list[datetime]:
    """The times in (after, until] at which the sweep is due, in UTC, in order; none without `cron`.

    They depend on the two ends only as what is cut off there. Where the clocks change it is as in Debian's cron: with
    hours and minutes that are told, a time that does not exist is the first moment after the gap, and one that comes
    twice is the first of the two; with `*` in one of them every minute counts that the clock shows.
    """
    if not schedule.cron:
        return []
    zone = zoneinfo.ZoneInfo(schedule.time_zone)
    minute, hour, *_ = schedule.cron.split()
    told = not minute.startswith("*") and not hour.startswith("*")
    # CronSim's own way through clock changes depends on where it starts, and loses minutes where they move by half an
    # hour. A clock that never changes it walks exactly; a day covers whatever a zone's offset changes by.
    first, last = (at.astimezone(zone).replace(tzinfo=None) for at in (after, until))
    walls = _wall_times(schedule.cron, first - timedelta(days=1))
    shown = itertools.takewhile(lambda wall: wall <= last + timedelta(days=1), walls)
    found = {instant for wall in shown for instant in _instants(wall, zone, told=told)}
    return sorted(instant for instant in found if after < instant <= until)


def _instants(wall: datetime, zone: zoneinfo.ZoneInfo, *, told: bool) -> Iterator[datetime]:
    """When a clock shows this time: once, twice, or never."""
    while (first := _utc(wall, zone, 0)) != (second := _utc(wall, zone, 1)):
        if first < second:  # the clocks are set back: it comes twice
            break
        if not told:
            return
        wall += timedelta(minutes=1)
    yield first
    if not told:
        yield second


def _utc(wall: datetime, zone: zoneinfo.ZoneInfo, fold: int) -> datetime:
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def next_launches(schedule: ScheduleConfig, after: datetime, count: int) -> list[datetime]:
    """The next times at which the sweep is due, in its own time zone; none without `cron`. `after` knows its zone."""
    found: list[datetime] = []
    span = timedelta(days=1)
    while schedule.cron and len(found) < count and span < HORIZON:
        found = launches_between(schedule, after, after + span)
        span *= 4
    return [launch.astimezone(zoneinfo.ZoneInfo(schedule.time_zone)) for launch in found[:count]]


def last_launches(schedule: ScheduleConfig, after: datetime, until: datetime, count: int) -> list[datetime]:
    """The last times in (after, until] at which the sweep was due, in UTC, in order."""
    found: list[datetime] = []
    span, begin = timedelta(days=1), until
    while len(found) < count and after < begin:
        begin = max(after, until - span)
        found = launches_between(schedule, begin, until)
        span *= 4
    return found[-count:]


def _wall_times(cron: str, after: datetime) -> CronSim:
    """Times after this one, without end; ends where there are none for 50 years. Raises ConfigError."""
    from cronsim import CronSim, CronSimError

    fields = "minute, hour, day of month, month, day of week, such as '30 2 * * mon-fri'"
    if len(cron.split()) != 5:
        raise ConfigError(f"schedule.cron is {cron!r}; give five fields: {fields}.")
    try:
        return CronSim(cron, after)
    except (CronSimError, ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"schedule.cron is {cron!r}: {str(error).lower()}; the fields are {fields}.") from None
