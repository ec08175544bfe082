"""Which of the times that have come are launched: never one twice, none left out that is wanted."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from service.schedule import ScheduleConfig, launches_between
from service.schedule_due import Decision, Launched, decide

BEGIN = datetime(2026, 3, 27, 12, tzinfo=UTC)
DAILY = ScheduleConfig(cron="0 2 * * *")


def at(day: int, hour: float = 2.0) -> datetime:
    """A time of March 2026."""
    return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=day - 1, hours=hour)


def launched(day: int, *, began: float = 2.0, ended: float | None = 3.0) -> Launched:
    """The launch of a day's time, with the hours of that day at which it began and ended."""
    return Launched(due=at(day), began=at(day, began), ended=None if ended is None else at(day, ended))


@pytest.mark.parametrize(
    ("missed", "launch", "superseded"), [("latest", [9], [7, 8]), ("all", [7, 8, 9], []), ("skip", [], [])]
)
def test_what_was_missed_is_caught_up_by_setting(missed: str, launch: list[int], superseded: list[int]) -> None:
    schedule = replace(DAILY, missed=missed)
    found = decide(schedule, [launched(6)], since=at(5), now=at(9, 12))
    assert found.launch == tuple(map(at, launch))
    assert found.superseded == tuple(map(at, superseded))
    assert found.late == (tuple(map(at, [7, 8, 9])) if missed == "skip" else ())


def test_a_launch_may_begin_within_its_grace() -> None:
    skip, hour = replace(DAILY, missed="skip"), replace(DAILY, missed="all", grace="1h")
    assert decide(skip, [], since=at(5), now=at(6, 2.16)).launch == (at(6),)
    assert decide(skip, [], since=at(5), now=at(6, 2.17)).launch == ()
    assert decide(hour, [], since=at(4), now=at(6, 3)) == Decision(launch=(at(6),), late=(at(5),))


def test_a_time_that_comes_while_the_launch_before_runs_is_left_out_or_waits() -> None:
    long = Launched(due=at(5), began=at(5), ended=at(6, 9))
    for before, now in ((replace(long, ended=None), at(6, 2.01)), (long, at(6, 9.01))):
        assert decide(DAILY, [before], since=at(4), now=now) == Decision(overlapped=(at(6),))
        assert decide(replace(DAILY, overlap="wait"), [before], since=at(4), now=now).launch == (at(6),)
    # What has waited is not late for that.
    waiting = replace(DAILY, overlap="wait", missed="skip")
    assert decide(waiting, [long], since=at(4), now=at(6, 9.1)).launch == (at(6),)
    assert decide(waiting, [long], since=at(4), now=at(6, 9.2)).late == (at(6),)
    assert decide(DAILY, [long], since=at(4), now=at(7, 2)).launch == (at(7),)


def test_what_was_missed_before_a_launch_of_the_backlog_began_does_not_overlap_it() -> None:
    schedule = replace(DAILY, missed="all")
    running = Launched(due=at(5), began=at(8), ended=None)
    found = decide(schedule, [running], since=at(4), now=at(9))
    assert found.launch == (at(6), at(7))
    assert found.overlapped == (at(8), at(9))


def test_a_clock_that_was_years_ahead_for_a_while_takes_nothing_from_the_times_to_come() -> None:
    ahead = datetime(2031, 5, 5, 2, tzinfo=UTC)
    wrong = decide(DAILY, [launched(5)], since=at(4), now=ahead)
    assert wrong.launch == (ahead,)
    # It was noted by that clock, and ended by it; then the clock was right again.
    for ended in (None, ahead + timedelta(hours=1), at(6, 1)):
        ledger = [launched(5), Launched(due=ahead, began=ahead, ended=ended)]
        assert decide(DAILY, ledger, since=at(4), now=at(6, 2)).launch == (at(6),)
        assert decide(replace(DAILY, missed="all"), ledger, since=at(4), now=at(6, 2)).launch == (at(6),)
    # It began by the right clock, and ended by the wrong one.
    ledger = [Launched(due=at(5), began=at(5), ended=ahead)]
    assert decide(DAILY, ledger, since=at(4), now=at(6, 2)).launch == (at(6),)


@dataclass
class World:
    """A ledger, a clock that may be set, and one launch at a time: what a scheduler does, without its processes."""

    schedule: ScheduleConfig
    now: datetime = BEGIN
    ledger: list[Launched] = field(default_factory=list)
    dues: list[datetime] = field(default_factory=list)
    """Every launch, in the order in which they were made."""

    def tick(self, runs: list[int]) -> None:
        """A scheduler goes on with what has not ended, then launches; `runs`: minutes that launches take, the last
        of them is cut off. Without any, all that is due ends at once."""
        left = iter(runs)
        while True:
            running = [n for n, one in enumerate(self.ledger) if one.ended is None]
            if running:
                minutes = next(left, None) if runs else 0
                if minutes is None:
                    return
                self.now += timedelta(minutes=minutes)
                self.ledger[running[0]] = replace(self.ledger[running[0]], ended=self.now)
                continue
            due = decide(self.schedule, self.ledger, since=BEGIN, now=self.now).launch[:1]
            if not due:
                return
            assert BEGIN < due[0] <= self.now
            self.dues.append(due[0])
            self.ledger.append(Launched(due=due[0], began=self.now))

    def wanted(self) -> list[datetime]:
        """The times that had to be launched by now, by the settings' definition."""
        times = launches_between(self.schedule, BEGIN, self.now)
        if self.schedule.overlap == "skip":
            times = [
                time
                for time in times
                if time in self.dues or not any(one.covers(time, self.now) for one in self.ledger)
            ]
        times = [time for time in times if time in self.dues or self.now - time <= self.schedule.max_lateness]
        return times if self.schedule.missed == "all" else times[-1:]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize("missed", ["latest", "all", "skip"])
def test_no_restarts_and_clock_jumps_launch_a_time_twice_or_leave_one_out(zone: str, missed: str) -> None:
    rng = random.Random(f"{zone} {missed}")
    count = 0
    for _ in range(6):
        schedule = ScheduleConfig(
            cron=f"{rng.choice(['0', '*/30', '30', '15,45'])} {rng.choice(['*', '*/3', '2', '1,2,3'])} * * *",
            time_zone=zone,
            missed=missed,
            overlap=rng.choice(["skip", "wait"]),
            grace=rng.choice(["", "", "2h", "1d"]),
        )
        world = World(schedule)
        for _ in range(10):
            minutes = rng.choice([1, 1, 10, 45, 240, 1500, -3, -90, -2000])
            world.now = max(world.now + timedelta(minutes=minutes), BEGIN)
            if rng.random() < 0.7:  # or no scheduler runs
                world.tick([rng.choice([0, 1, 30, 300]) for _ in range(rng.randrange(4))])
        world.tick([])
        assert len(world.dues) == len(set(world.dues)), schedule
        assert [time for time in world.wanted() if time not in world.dues] == [], schedule
        count += len(world.dues)
    assert count > 3
