"""What of a schedule is to be launched now: a pure decision, by what was launched before and what the clock says.

Everything follows from the ledger, which only grows. A time that is left out is no part of it, so that a clock that was
wrong for a while cannot use up the times that are still to come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from service.schedule import ScheduleConfig, last_launches

MAX_MISSED = 1000
"""Of more times than these the first are not caught up, whatever the setting: a clock may be wrong by years."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """A launch as the ledger has it; all times in UTC."""

    due: datetime
    """The time of the schedule that it is for."""
    began: datetime
    """When it was noted."""
    ended: datetime | None = None
    """None while it runs, or when it was cut off and will be gone on with."""

    def covers(self, time: datetime, now: datetime) -> bool:
        """Whether it had begun by this time, which has passed, and not ended."""
        if self.ended is None:
            return self.began <= time
        # An end in the future was noted by a clock that has been set back since: when it ended is not known.
        return self.began <= time < self.ended <= now


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What becomes of the times that have come and were not launched; each in order."""

    launch: tuple[datetime, ...] = ()
    """To be launched one after the other."""
    overlapped: tuple[datetime, ...] = ()
    """Left out, as the launch before had not ended."""
    late: tuple[datetime, ...] = ()
    """Left out, as they were seen later than the schedule's grace."""
    superseded: tuple[datetime, ...] = ()
    """Left out, as of those that were missed only the latest is wanted."""


def decide(schedule: ScheduleConfig, launched: Sequence[Launched], *, since: datetime, now: datetime) -> Decision:
    """What is to be launched of the times in (since, now].

    Args:
        schedule: of the sweep.
        launched: its whole ledger. A time that stands in it is never launched again.
        since: from when on the schedule counts.
        now: what the clock shows, which may have been set back or forth since anything was noted.
    """
    noted = {one.due for one in launched}
    floor = since
    if schedule.missed != "all":
        floor = max([since, *(due for due in noted if due <= now)])
    times = [time for time in last_launches(schedule, floor, now, MAX_MISSED) if time not in noted]
    covering = {time: [one for one in launched if one.covers(time, now)] for time in times}
    overlapped = [time for time in times if covering[time] and schedule.overlap == "skip"]
    rest = [time for time in times if time not in overlapped]
    late = [time for time in rest if now - _free(time, covering[time]) > schedule.max_lateness]
    rest = [time for time in rest if time not in late]
    first = 0 if schedule.missed == "all" else max(len(rest) - 1, 0)
    return Decision(
        launch=tuple(rest[first:]), overlapped=tuple(overlapped), late=tuple(late), superseded=tuple(rest[:first])
    )


def _free(time: datetime, covering: Sequence[Launched]) -> datetime:
    """When a time could first have been launched: what had to wait for another launch is not late for that."""
    return max([time, *(one.ended for one in covering if one.ended)])
