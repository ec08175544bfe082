"""The process that launches: real files, real processes, a clock that the tests set."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from service import scheduler as scheduler_module
from service.cli import main
from service.cli_scheduler import command_of
from service.schedule_ledger import Ledger, key_of
from service.scheduler import MAX_LOST, Launch, Scheduler

SWEEP = """\
name: {name}
network: {{name: resnet8}}
data: {{name: digits, image_size: 16}}
reference: {{epochs: 1}}
method: {{name: uniform}}
finetune: {{epochs: 1}}
space: {{seed: {{choice: [0, 1]}}}}
trials: 1
schedule: {{cron: {cron}{more}}}
"""
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
DUE = datetime(2026, 3, 10, 2, tzinfo=UTC)
FOR_TEST = "from pathlib import Path; import sys, time, os, signal; "


def at(day: int, hour: float = 12.0) -> datetime:
    """A time of March 2026."""
    return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=day - 1, hours=hour)


class Place:
    """A folder of sweeps, a storage, a clock, and what the launches do: each writes a line, then its own code runs."""

    def __init__(self, root: Path) -> None:
        self.sweeps, self.storage, self.done = root / "sweeps", root / "storage", root / "done.txt"
        self.sweeps.mkdir()
        self.now = at(8)
        self.code: dict[str, str] = {}
        """By the beginning of a launch's name."""
        self.lines: list[str] = []

    def add(self, name: str, cron: str = "0 2 * * *", more: str = "") -> Path:
        """A sweep of the folder, due at 2 o'clock."""
        path = self.sweeps / f"{name}.yaml"
        path.write_text(SWEEP.format(name=name, cron=cron, more=more))
        return path

    def command(self, launch: Launch) -> Sequence[str]:
        """Writes the launch's name to a file that all share."""
        code = next((code for name, code in self.code.items() if launch.name.startswith(name)), "")
        write = f"f = open({str(self.done)!r}, 'a'); f.write({launch.name + chr(10)!r}); f.close(); "
        return [sys.executable, "-c", FOR_TEST + write + code]

    def scheduler(self, **settings: int) -> Scheduler:
        """A new process' view."""
        return Scheduler(
            folder=self.sweeps, storage=self.storage, command=self.command, tell=self.lines.append,
            clock=lambda: self.now, **settings,
        )  # fmt: skip

    def once(self, now: datetime) -> list[str]:
        """What `--once` launches at a time."""
        self.now = now
        before = self.launched
        self.scheduler().run_once()
        return self.launched[len(before) :]

    @property
    def launched(self) -> list[str]:
        """Names of launches, in order, as often as a process began for them."""
        return self.done.read_text().split() if self.done.exists() else []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(scheduler_module, "POLL_S", 0.01)
    return Place(tmp_path)


def name_of(sweep: str, day: int) -> str:
    """A launch's."""
    return f"{sweep}-{key_of(at(day, 2))}"


def test_a_schedule_counts_from_when_it_was_first_seen_and_each_time_is_launched_once(place: Place) -> None:
    place.add("a")
    assert place.once(at(8)) == []
    assert place.once(at(9, 2)) == [name_of("a", 9)]
    assert place.once(at(9, 3)) == place.once(at(8, 23)) == place.once(at(9, 2)) == []
    assert place.once(at(12)) == [name_of("a", 12)]
    # Another line is another schedule, which catches nothing up; nor does the old one when it is back.
    place.add("a", cron="0 11 * * *")
    assert place.once(at(12, 13)) == []
    place.add("a")
    assert place.once(at(13, 2.1)) == [name_of("a", 13)]


def test_crontab_that_comes_a_little_late_launches_the_first_time_that_it_sees(place: Place) -> None:
    place.add("a")
    assert place.once(at(9, 2.05)) == [name_of("a", 9)]


def test_all_that_was_missed_is_launched_one_after_the_other(place: Place) -> None:
    place.add("a", more=", missed: all")
    assert place.once(at(8)) == []
    assert place.once(at(11)) == [name_of("a", day) for day in (9, 10, 11)]
    assert place.once(at(11, 13)) == []


def test_a_broken_file_is_told_with_its_place_once_and_holds_up_no_other(place: Place) -> None:
    place.once(at(8))
    (place.sweeps / "bad.yaml").write_text(SWEEP.format(name="bad", cron="61 2 * * *", more=""))
    (place.sweeps / "twice.yaml").write_text(SWEEP.format(name="a", cron="0 3 * * *", more=""))
    (place.sweeps / "_base.yaml").write_text("epochs: 3\n")
    (place.sweeps / "a.expect.yaml").write_text("claims: []\n")
    place.add("a")
    place.add("n" * 48)
    scheduler = place.scheduler()
    for minute in range(3):
        scheduler._look(at(9, 2) + timedelta(minutes=minute), since=at(9, 1))
    scheduler._drain()
    assert place.launched == [name_of("a", 9)]
    assert scheduler.failed
    told = [line for line in place.lines if "yaml" in line]
    assert len(told) == 3
    assert told[0].startswith(f"{place.sweeps / 'bad.yaml'}:9:18: schedule.cron is '61 2 * * *'")
    assert "name has 48 characters; give up to 47" in told[1]
    assert "name is 'a', as in" in told[2]


def test_what_ends_badly_is_noted_told_and_notified(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(scheduler_module, "notify", lambda text, *, facts: said.append((text, facts)))
    for name, status in {"a": 0, "b": 5, "c": 2, "d": 4, "e": 130, "f": 3, "g": 3}.items():
        place.add(name)
        place.code[name] = f"print('{name} says'); sys.exit({status})"
    for nightly in "bfg":
        (place.sweeps / f"{nightly}.baseline.json").write_text("{}")
        judged = place.storage / "nightly" / key_of(at(9, 2)) / "sweeps" / nightly / "verdict.json"
        judged.parent.mkdir(parents=True)
        if nightly != "g":  # whose night ended before there was a verdict
            judged.write_text("{}")
    scheduler = place.scheduler()
    scheduler._look(at(9, 2), since=at(9, 1))
    scheduler._drain()
    assert [(text, facts["said last"]) for text, facts in said] == [
        (f"A scheduled sweep has failed: {name_of('c', 9)}", "c says"),
        (f"A scheduled sweep has failed: {name_of('g', 9)}", "g says"),
    ]
    ends = {name: Ledger.of(place.storage, name).launches()[0].status for name in "abcdefg"}
    assert ends == {"a": 0, "b": 5, "c": 2, "d": 4, "e": 130, "f": 3, "g": 3}
    assert f"{name_of('b', 9)}: drifted" in place.lines
    assert f"{name_of('f', 9)}: broken" in place.lines
    assert place.once(at(9, 3)) == []


KILLED = """
import os, signal
from datetime import datetime
from pathlib import Path
from service.scheduler import Scheduler

def die(launch):
    os.kill(os.getpid(), signal.SIGKILL)

now = datetime.fromisoformat({now!r})
Scheduler(folder=Path({sweeps!r}), storage=Path({storage!r}), command=die, tell=print, clock=lambda: now).run_once()
"""


def test_a_launch_that_was_noted_by_a_killed_scheduler_is_launched_by_the_next(place: Place) -> None:
    place.add("a")
    place.once(at(8))
    code = KILLED.format(now=at(9, 2).isoformat(), sweeps=str(place.sweeps), storage=str(place.storage))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    noted = Ledger.of(place.storage, "a").launches()
    assert [(one.due, one.ended) for one in noted] == [(at(9, 2), None)]
    assert place.launched == []
    # Later than another time, which comes next.
    assert place.once(at(10)) == [name_of("a", 9)]
    assert place.once(at(11, 2)) == [name_of("a", 11)]


def test_a_launch_that_outlives_its_scheduler_is_waited_for(place: Place) -> None:
    place.add("a")
    place.once(at(8))
    goes_on = place.storage / "go-on"
    place.code["a"] = f"\nwhile not Path({str(goes_on)!r}).exists(): time.sleep(0.01)"
    killed = place.scheduler()
    place.now = at(9, 2)
    killed._look(place.now, since=place.now)
    killed._begin()
    _until(lambda: place.launched)
    for launch, _ in killed._running.values():
        launch.close()  # as the system does with a process that is killed
    assert place.once(at(9, 2.1)) == place.once(at(10)) == []
    goes_on.touch()
    _until(lambda: not Ledger.of(place.storage, "a").is_locked())
    # How it ended nobody knows: it is asked again, and what has ended says so at once.
    assert place.once(at(11)) == [name_of("a", 9)]
    killed._reap()
    assert place.once(at(12)) == [name_of("a", 12)]


def test_a_process_that_is_lost_is_begun_again_and_given_up_in_the_end(place: Place) -> None:
    place.add("a")
    place.code["a"] = "os.kill(os.getpid(), signal.SIGKILL)"
    place.once(at(8))
    assert place.once(at(9, 2)) == [name_of("a", 9)] * MAX_LOST
    assert [(one.status, one.lost) for one in Ledger.of(place.storage, "a").launches()] == [(None, MAX_LOST)]
    place.code.clear()
    assert place.once(at(10, 2)) == [name_of("a", 10)]


def test_stopping_tells_what_runs_to_stop_and_the_next_start_goes_on(place: Place) -> None:
    place.add("a")
    place.add("b")
    place.once(at(8))
    place.code["a"] = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); print('on', flush=True); time.sleep(60)"
    scheduler = place.scheduler()
    place.now = at(9, 2)
    scheduler._look(place.now, since=place.now)
    scheduler._begin()
    log = Ledger.of(place.storage, "a").log_file(at(9, 2))
    _until(lambda: "on" in log.read_text())
    scheduler.stopping = True
    scheduler._drain()
    assert place.launched == [name_of("a", 9)]
    (noted,) = Ledger.of(place.storage, "a").launches()
    assert (noted.ended, noted.lost) == (None, 0)
    place.code.clear()
    assert place.once(at(9, 3)) == [name_of("a", 9), name_of("b", 9)]


def test_an_end_that_is_damaged_is_one_and_holds_up_no_other_time(place: Place) -> None:
    place.add("a")
    place.once(at(8))
    assert place.once(at(9, 2)) == [name_of("a", 9)]
    ended = Ledger.of(place.storage, "a").folder / f"{key_of(at(9, 2))}.ended.json"
    ended.write_text("")
    assert place.once(at(9, 3)) == []
    assert place.once(at(10, 2)) == [name_of("a", 10)]
    # What cannot be read for a while is not taken for missing: nothing is launched, and that is told.
    ended.unlink()
    ended.mkdir()
    assert place.once(at(11, 2)) == []
    assert any(line.startswith("a: ") and "Is a directory" in line for line in place.lines)


def test_a_launch_that_can_never_begin_is_told_and_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(scheduler_module, "notify", lambda text, *, facts: said.append(facts["why"]))
    place.add("a")
    place.once(at(8))
    monkeypatch.setattr(Place, "command", lambda self, launch: [str(self.storage / "no such program")])
    assert place.once(at(9, 2)) == []
    assert [why.startswith("it could not be launched") for why in said] == [True] * MAX_LOST + [False]
    assert said[-1] == f"its process was lost {MAX_LOST} times, it is given up"
    monkeypatch.undo()
    assert place.once(at(10, 2)) == [name_of("a", 10)]


def test_a_second_signal_and_a_limit_end_what_does_not_stop(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("a")
    place.code["a"] = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    place.once(at(8))
    for day, (hurrying, limit) in {9: (True, 60.0), 10: (False, 0.05)}.items():
        monkeypatch.setattr(scheduler_module, "STOP_S", limit)
        scheduler, place.now = place.scheduler(), at(day, 2)
        scheduler._look(place.now, since=place.now)
        scheduler._begin()
        log = Ledger.of(place.storage, "a").log_file(at(9, 2))
        _until(lambda log=log, day=day: log.exists() and log.read_text().count("on") == day - 8)
        scheduler.stopping, scheduler.hurrying = True, hurrying
        scheduler._drain()
        (noted,) = Ledger.of(place.storage, "a").launches()
        assert (noted.ended, noted.lost) == (None, 0)


def test_who_only_looks_does_not_keep_a_sweep_from_being_launched(place: Place) -> None:
    place.add("a")
    place.once(at(8))
    looking = os.open(Ledger.of(place.storage, "a").folder / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.08, os.close, [looking]).start()
    assert place.once(at(9, 2)) == [name_of("a", 9)]


def test_two_schedulers_on_one_storage_launch_a_time_once(place: Place) -> None:
    for name in "abcd":
        place.add(name, more=", missed: all")
    place.once(at(8))
    ready = place.storage / "ready"
    code = f"""
import sys, time
from datetime import datetime
from pathlib import Path
from service import scheduler
scheduler.POLL_S = 0.005
now = datetime.fromisoformat({at(12).isoformat()!r})
write = "f = open({str(place.done)!r}, 'a'); f.write('NAME\\\\n'); f.close()"
command = lambda launch: [sys.executable, "-c", write.replace("NAME", launch.name)]
one = scheduler.Scheduler(folder=Path({str(place.sweeps)!r}), storage=Path({str(place.storage)!r}), command=command,
                          tell=print, clock=lambda: now, at_once=2)
while not Path({str(ready)!r}).exists():
    time.sleep(0.001)
for _ in range(4):
    one.run_once()
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    time.sleep(0.5)
    ready.touch()
    assert [one.communicate()[1] for one in both] == [b"", b""]
    assert sorted(place.launched) == sorted(name_of(name, day) for name in "abcd" for day in (9, 10, 11, 12))


def test_nightly_reproductions_run_one_at_a_time_also_those_of_another_scheduler(place: Place) -> None:
    for name in "ab":
        place.add(name)
        (place.sweeps / f"{name}.expect.yaml").write_text("claims: []\n")
        mark = place.storage / "runs"
        place.code[name] = f"m = Path({str(mark)!r}); assert not m.exists(); m.touch(); time.sleep(0.2); m.unlink()"
    place.once(at(8))
    place.now = at(9, 2)
    scheduler = place.scheduler(at_once=2)
    scheduler.run_once()
    assert [Ledger.of(place.storage, name).launches()[0].status for name in "ab"] == [0, 0]


def test_a_damaged_ledger_counts_by_its_names_and_a_storage_that_cannot_be_written_is_told(place: Place) -> None:
    place.add("a")
    place.once(at(8))
    folder = Ledger.of(place.storage, "a").folder
    (folder / f"{key_of(at(9, 2))}.json").write_text("")
    (folder / f"{key_of(at(9, 2))}.ended.json").write_text('{"status": 0, "ended_ms": 1773108000000}')
    (folder / "20269999t020000z.json").write_text("{}")
    assert place.once(at(9, 3)) == []
    (folder / "schedule.json").write_text("[3]")
    assert place.once(at(10, 2)) == [name_of("a", 10)]
    folder.rename(folder.with_name("kept"))
    folder.write_text("no folder")
    assert place.once(at(11, 2)) == []
    assert any(line.startswith("a: ") and "exists" in line for line in place.lines)


def test_a_scheduler_that_serves_follows_its_clock_and_ends_when_told(place: Place) -> None:
    place.add("a", cron="'* * * * *'")
    scheduler = place.scheduler()
    ticks = iter([at(8, 2), *(at(8, 2) + timedelta(seconds=10 * n) for n in range(400))])

    def clock() -> datetime:
        scheduler.stopping = len(place.launched) >= 3
        place.now = next(ticks) if not scheduler._running else place.now
        return place.now

    scheduler.clock = clock
    scheduler.serve()
    times = [key_of(at(8, 2) + timedelta(minutes=minute)) for minute in (1, 2, 3)]
    assert place.launched == [f"a-{time}" for time in times]
    assert place.lines[0].startswith("a: next at 2026-03-08 02:0")


def test_commands_are_those_that_people_would_type(place: Place) -> None:
    path = place.add("a")
    scheduler = place.scheduler()
    scheduler._look(at(9, 2), since=at(9, 1))
    (launch,) = scheduler._queue
    settings = ["--set", f"name={launch.name}", "--set", f'storage.path="{place.storage}"']

    def command(**places: str) -> Sequence[str]:
        return command_of(launch, place.storage, **{"address": "", "submit": "", **places})[3:]

    assert command() == ["run", str(path), *settings]
    assert command(address="auto") == ["run", str(path), *settings, "--address", "auto"]
    assert command(submit="http://h:8265") == ["submit", str(path), *settings, "--address", "http://h:8265", "--wait"]
    begun = place.storage / launch.name / "sweep.json"
    begun.parent.mkdir()
    begun.write_text("{}")
    assert command() == ["resume", launch.name, "--storage", str(place.storage)]
    object.__setattr__(launch.sweep, "nightly", True)
    nightly = ["nightly", str(path), "--night", key_of(at(9, 2)), "--storage", str(place.storage)]
    assert command(submit="http://h:8265") == [*nightly, "--submit", "http://h:8265"]
    launch.close()


def test_a_dry_run_shows_next_and_last_launches_and_writes_nothing(place: Place) -> None:
    place.add("a", more=", time_zone: Europe/Berlin")
    place.code["a"] = "sys.exit(1)"
    place.once(at(8))
    place.once(at(9, 2))
    before = sorted(place.storage.rglob("*"))
    shown = CliRunner().invoke(main, ["scheduler", str(place.sweeps), "--storage", str(place.storage), "--dry-run"])
    assert shown.exit_code == 0
    assert "failed, status 1" in shown.output
    assert "2026-03-09 02:00" in shown.output
    told = CliRunner().invoke(
        main, ["scheduler", str(place.sweeps), "--storage", str(place.storage), "--dry-run", "--json"]
    )
    (one,) = json.loads(told.output)["sweeps"]
    assert (one["name"], len(one["next"]), [last["status"] for last in one["last"]]) == ("a", 3, [1])
    assert sorted(place.storage.rglob("*")) == before


def test_the_folder_and_where_it_runs_are_checked(tmp_path: Path) -> None:
    told = CliRunner().invoke(main, ["scheduler", str(tmp_path / "none")])
    assert told.exit_code == 2
    assert "does not exist" in told.output
    told = CliRunner().invoke(main, ["scheduler", str(tmp_path), "--address", "auto", "--submit", "http://h:8265"])
    assert told.exit_code == 2
    assert "--address or --submit" in told.output


def _until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
