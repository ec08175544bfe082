"""When a sweep is due, and which of the times that have come are launched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from service.schedule import ScheduleConfig, last_launches, launches_between, next_launches

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
CHANGES = {
    "Europe/Berlin": (datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)),
    "America/New_York": (datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)),
    "Australia/Lord_Howe": (datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
}
"""When the clocks change; on Lord Howe Island by half an hour."""
MINUTE = timedelta(minutes=1)


def random_cron(rng: random.Random) -> str:
    """A line whose minutes and hours are lists, steps or stars, on all days, some weekdays or a day of the month."""
    minute = rng.choice(["*", "*/5", "*/7", "0", "30", "15,45", "5-10", str(rng.randrange(60))])
    hour = rng.choice(["*", "*/2", "1", "2", "3", "1,2,3", "1-4", str(rng.randrange(24))])
    return f"{minute} {hour} {rng.choice(['* * *', '* * *', '* * sun', '* * 1-6', '29 * *', '*/2 * *'])}"


def shows(cron: str, clock: datetime) -> bool:
    """Whether a clock's minute is one of the line's, of those that `random_cron` makes."""
    minute, hour, day, _, weekday = cron.split()
    is_day = _has(day, clock.day, 1, 31) and (
        weekday == "*" or clock.isoweekday() % 7 in {"sun": {0}, "1-6": set(range(1, 7))}[weekday]
    )
    return is_day and _has(minute, clock.minute, 0, 59) and _has(hour, clock.hour, 0, 23)


def _has(field: str, value: int, low: int, high: int) -> bool:
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = (f"{low}-{high}" if span == "*" else span if "-" in span else f"{span}-{span}").partition("-")
        if value in range(int(first), int(last) + 1, int(step or 1)):
            return True
    return False


def minute_by_minute(schedule: ScheduleConfig, after: datetime, until: datetime) -> Iterator[datetime]:
    """The definition: every minute that passes is looked at, with what the zone's clock has shown before."""
    zone = ZoneInfo(schedule.time_zone)
    with_star = schedule.cron.startswith("*") or schedule.cron.split()[1].startswith("*")
    at = after - timedelta(days=1)
    # From a moment at which the clock shows something for the first time.
    shown = (at - MINUTE).astimezone(zone).replace(tzinfo=None)
    while at <= until:
        clock = at.astimezone(zone).replace(tzinfo=None)
        if with_star:
            due = shows(schedule.cron, clock)
        else:
            # What was jumped over is due now; what the clock shows again is not.
            due, passing = False, shown + MINUTE
            while passing <= clock:
                due, passing = due or shows(schedule.cron, passing), passing + MINUTE
            shown = max(shown, clock)
        if due and at > after:
            yield at
        at += MINUTE


@pytest.mark.parametrize("zone", ZONES)
def test_launches_equal_a_walk_through_every_minute_where_the_clocks_change(zone: str) -> None:
    rng = random.Random(zone)
    for change in CHANGES[zone]:
        for _ in range(8):
            schedule = ScheduleConfig(cron=random_cron(rng), time_zone=zone)
            after = change + rng.randrange(-900, 100) * MINUTE
            until = after + rng.randrange(1200) * MINUTE
            assert launches_between(schedule, after, until) == list(minute_by_minute(schedule, after, until)), schedule


@pytest.mark.parametrize("zone", ["UTC", *ZONES[:2]])
def test_launches_of_a_year_are_those_of_cronsim_where_clocks_change_by_an_hour(zone: str) -> None:
    rng, begin = random.Random(zone), datetime(2026, 1, 1, tzinfo=ZoneInfo(zone))
    for _ in range(10):
        cron = f"{rng.randrange(60)} {rng.randrange(24)} {rng.choice(['* * *', '* * sun', '1 * *', '*/3 * *'])}"
        theirs = CronSim(cron, begin)
        ours = launches_between(ScheduleConfig(cron=cron, time_zone=zone), begin, begin + timedelta(days=364))
        assert ours == [next(theirs).astimezone(UTC) for _ in ours], cron
        assert len(ours) >= 12


def test_a_time_that_does_not_exist_comes_after_the_gap_and_one_that_comes_twice_comes_once() -> None:
    schedule = ScheduleConfig(cron="30 2 * * *", time_zone="Europe/Berlin")
    spring = launches_between(schedule, datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 29, 12, tzinfo=UTC))
    assert spring == [datetime(2026, 3, 29, 1, tzinfo=UTC)]
    # From between the two: it has been already.
    autumn = [datetime(2026, 10, 25, 0, minute, tzinfo=UTC) for minute in (29, 45)]
    late = datetime(2026, 10, 25, 12, tzinfo=UTC)
    assert launches_between(schedule, autumn[0], late) == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC)]
    assert launches_between(schedule, autumn[1], late) == []
    every = ScheduleConfig(cron="*/30 2 * * *", time_zone="Europe/Berlin")
    assert len(launches_between(every, autumn[0] - timedelta(hours=1), late)) == 4
    assert len(launches_between(every, autumn[1], late)) == 2  # of the second time only


def test_the_first_and_the_last_launches_are_those_of_the_whole_list() -> None:
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
    for cron in ("0 0 29 2 *", "0 4 * * sat", "10 */8 1,15 * *"):
        schedule = ScheduleConfig(cron=cron, time_zone="America/New_York")
        whole = launches_between(schedule, begin, end)
        assert last_launches(schedule, begin, end, 3) == whole[-3:]
        assert [one.astimezone(UTC) for one in next_launches(schedule, begin, 3)][: len(whole)] == whole[:3]
    assert last_launches(ScheduleConfig(), begin, end, 3) == launches_between(ScheduleConfig(), begin, end) == []
