"""What of a folder was launched last, and what comes next; read without changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from service.schedule import next_launches
from service.schedule_due import Decision, decide
from service.schedule_folder import ScheduledSweep, read_folder
from service.schedule_ledger import Ledger, Noted, key_of
from service.scheduler import ENDS, JUDGED

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 3
"""Launches of a sweep in each direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStanding:
    """A sweep of the folder."""

    sweep: ScheduledSweep
    last: Sequence[Noted]
    """In order."""
    running: bool
    """Whether a process holds its lock."""
    decision: Decision
    """What a scheduler would do now."""
    next: Sequence[datetime]


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderStanding:
    """A folder of sweeps with schedules."""

    sweeps: Sequence[SweepStanding]
    problems: Sequence[str]
    """What is wrong with its files."""

    def as_json(self) -> dict[str, Any]:
        """For programs; all times in UTC."""
        return {"sweeps": [_as_json(one) for one in self.sweeps], "problems": list(self.problems)}


def read_standing(folder: Path, storage: Path, now: datetime) -> FolderStanding:
    """How a folder stands with a storage."""
    sweeps, problems = read_folder(folder)
    found = []
    for sweep in sweeps:
        ledger = Ledger.of(storage, sweep.name)
        launches = ledger.launches()
        since = ledger.since(sweep.schedule, now, now, write=False)
        found.append(
            SweepStanding(
                sweep=sweep,
                last=launches[-SHOWN:],
                running=ledger.is_locked(),
                decision=decide(sweep.schedule, [one.times for one in launches], since=since, now=now),
                next=next_launches(sweep.schedule, now, SHOWN),
            )
        )
    return FolderStanding(sweeps=found, problems=problems)


def _as_json(one: SweepStanding) -> dict[str, Any]:
    return {
        "name": one.sweep.name,
        "file": str(one.sweep.file),
        "nightly": one.sweep.nightly,
        "cron": one.sweep.schedule.cron,
        "time_zone": one.sweep.schedule.time_zone,
        "due": [due.isoformat() for due in one.decision.launch],
        "next": [time.astimezone(UTC).isoformat() for time in one.next],
        "last": [
            {
                "name": f"{one.sweep.name}-{key_of(noted.due)}",
                "due": noted.due.isoformat(),
                "began": noted.began.isoformat(),
                "ended": noted.ended.isoformat() if noted.ended else None,
                "status": noted.status,
                "end": end_of(one, noted),
            }
            for noted in one.last
        ],
    }


def end_of(standing: SweepStanding, noted: Noted) -> str:
    """How a launch ended, in a word or two."""
    if noted.ended is None:
        return "running" if standing.running else "to be gone on with"
    if noted.status is None:
        return "given up"
    known = dict(ENDS)
    if standing.sweep.nightly:
        known |= {0: "reproduced or new", **JUDGED}
    return known.get(noted.status, f"failed, status {noted.status}")


def as_table(standing: FolderStanding) -> Table:
    """For people, in each sweep's own time zone."""
    from rich.table import Table

    table = Table("sweep", "schedule", "next", "last", "ended")
    for one in standing.sweeps:
        schedule = one.sweep.schedule
        due = [f"{_clock(time, schedule.time_zone)}, due" for time in one.decision.launch]
        coming = [_clock(time, schedule.time_zone) for time in one.next]
        table.add_row(
            one.sweep.name,
            f"{schedule.cron}, {schedule.time_zone}",
            "\n".join([*due, *coming]),
            "\n".join(_clock(noted.due, schedule.time_zone) for noted in one.last) or "–",
            "\n".join(end_of(one, noted) for noted in one.last),
        )
    return table


def _clock(time: datetime, zone: str) -> str:
    return time.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M")
