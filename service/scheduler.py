"""The process that launches a folder's sweeps when they are due: never one time twice, whatever ends it and when.

A time is noted in the ledger (`service.schedule_ledger`) before it is launched. What was noted and has no end is gone
on with, under the same name, so that it continues as any sweep does that was cut off. Schedulers that share a storage
do no harm: a sweep is locked by the one that launches it, and a time that one has noted the others leave alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from service.arguments import INTERRUPT_STATUS, RECORD_BEHIND
from service.marks import NIGHTS
from service.night_folder import VERDICT_FILE
from service.notify import notify
from service.schedule import PUNCTUAL, ScheduleConfig, next_launches
from service.schedule_due import Decision, decide
from service.schedule_folder import ScheduledSweep, read_folder
from service.schedule_ledger import Ledger, key_of, take_lock
from trainables.errors import BitfrontError

POLL_S = 0.5
STOP_S = 110.0
"""A launch that is told to stop ends in order within this time, or by force."""
MAX_LOST = 5
"""A launch whose process is lost so often is given up."""
ENDS = {
    0: "ended well",
    RECORD_BEHIND: "ended well, its record in MLflow is behind",
    INTERRUPT_STATUS: "stopped on request",
}
"""Exit statuses that are no failures."""
JUDGED = {5: "drifted", 3: "broken"}
"""Those of a nightly reproduction that has told people itself what it found."""
NIGHTLY_LOCK = ".nightly.lock"
"""Held by the one nightly reproduction that runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A time of a sweep that this process launches, and the locks for that."""

    sweep: ScheduledSweep
    ledger: Ledger
    due: datetime
    locks: list[int]

    def close(self) -> None:
        """Lets others have the sweep."""
        while self.locks:
            os.close(self.locks.pop())

    @property
    def key(self) -> str:
        """Of the time, as names have it."""
        return key_of(self.due)

    @property
    def name(self) -> str:
        """Of the sweep in the storage."""
        return f"{self.sweep.name}-{self.key}"


@dataclass(kw_only=True, slots=True)
class Scheduler:
    """Looks at the clock, launches, and notes how launches end."""

    folder: Path
    storage: Path
    command: Callable[[Launch], Sequence[str]]
    """What is run for a launch."""
    tell: Callable[[str], None]
    at_once: int = 1
    """Launches that run at the same time; others wait for them."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    stopping: bool = False
    """Set by a signal: nothing more is launched, what runs is told to note where it is, and this process ends."""
    hurrying: bool = False
    """Set by another signal: what has not ended by then is ended by force."""
    failed: bool = False
    """Whether a launch has ended in an error, or something was wrong at the last look."""
    _queue: list[Launch] = field(default_factory=list)
    _running: dict[str, tuple[Launch, subprocess.Popen[bytes]]] = field(default_factory=dict)
    _ledgers: dict[str, Ledger] = field(default_factory=dict)
    _found: tuple[tuple[str, ScheduleConfig], ...] | None = None
    """Sweeps and schedules of the last look."""
    _told: frozenset[str] = frozenset()
    """What was wrong at the last look, so that it is told once."""

    def serve(self) -> None:
        """Launches what is due until `stopping` is set, and waits for what runs then."""
        looked: datetime | None = None
        while not self.stopping:
            # Times have no seconds. A clock that was set, forth or back, is another minute too.
            minute = self.clock().replace(second=0, microsecond=0)
            if self._reap() or minute != looked:
                self._tell_next(self._look(self.clock(), since=self.clock()))
                looked = minute
            self._begin()
            time.sleep(POLL_S)
        self._drain()

    def run_once(self) -> None:
        """Launches what is due now and goes on with what has not ended, and waits for it."""
        now = self.clock()
        # Whatever calls this at a time of the schedule comes a little later.
        self._look(now, since=now - PUNCTUAL)
        while self._queue and not self.stopping:
            self._drain()
            self._look(now, since=now - PUNCTUAL)
        self._drain()

    def _drain(self) -> None:
        """Until what is queued has ended; what only waits when this process is told to stop is for the next."""
        until = math.inf
        while self._running or (self._queue and not self.stopping):
            if self.stopping and until == math.inf:
                self._tell_to_stop()
                until = time.monotonic() + STOP_S
            if self.hurrying or time.monotonic() > until:
                for _, process in self._running.values():
                    process.kill()
            self._begin()
            self._reap()
            time.sleep(POLL_S)
        for launch in self._queue:
            launch.close()
        self._queue.clear()

    def _tell_to_stop(self) -> None:
        names = [launch.name for launch, _ in self._running.values()]
        self.tell(f"stopping {', '.join(names)}; the next start goes on" if names else "stopping")
        for _, process in self._running.values():
            process.terminate()

    def _tell_next(self, sweeps: Sequence[ScheduledSweep]) -> None:
        """What a folder, or a changed one, leads to."""
        found = tuple((sweep.name, sweep.schedule) for sweep in sweeps)
        if found == self._found:
            return
        self._found, now = found, self.clock()
        coming = {sweep.name: (next_launches(sweep.schedule, now, 1)[0], sweep) for sweep in sweeps}
        if not coming:
            self.tell(f"{self.folder} has no sweep with a schedule")
        for name, (due, sweep) in sorted(coming.items(), key=lambda one: one[1][0].astimezone(UTC)):
            self.tell(f"{name}: next at {_local(due, sweep)}")

    def _look(self, now: datetime, *, since: datetime) -> list[ScheduledSweep]:
        """Reads the folder and the ledgers, and queues what is to be launched. What is wrong is told, and is no end."""
        wrong: list[str] = []
        sweeps: list[ScheduledSweep] = []
        try:
            sweeps, wrong = read_folder(self.folder)
        except OSError as error:
            wrong = [f"{self.folder} cannot be read: {error.strerror}"]
        for sweep in sweeps:
            try:
                self._consider(sweep, now, since)
            except (BitfrontError, OSError) as error:
                wrong.append(f"{sweep.name}: {error}")
        for line in wrong:
            if line not in self._told:
                self.tell(line)
        self._told = frozenset(wrong)
        self.failed = self.failed or bool(wrong)
        return sweeps

    def _consider(self, sweep: ScheduledSweep, now: datetime, since: datetime) -> None:
        ledger = self._ledgers.setdefault(sweep.name, Ledger.of(self.storage, sweep.name))
        if sweep.name in self._running or any(launch.sweep.name == sweep.name for launch in self._queue):
            times = [one.times for one in ledger.launches()]
            floor = ledger.since(sweep.schedule, now, since)
            self._tell_left_out(sweep, ledger, decide(sweep.schedule, times, since=floor, now=now), now)
            return
        lock = ledger.lock()
        if lock is None:
            return  # another scheduler's, or a launch that has outlived its own
        due = None
        try:
            due = self._claim(sweep, ledger, now, since)
        finally:
            if due is None:
                os.close(lock)
        if due is not None:
            self._queue.append(Launch(sweep=sweep, ledger=ledger, due=due, locks=[lock]))

    def _claim(self, sweep: ScheduledSweep, ledger: Ledger, now: datetime, since: datetime) -> datetime | None:
        """The time to launch or go on with next, which stands in the ledger; None where there is none."""
        floor, launches = ledger.since(sweep.schedule, now, since), ledger.launches()
        for one in launches:
            if one.ended is None and one.lost < MAX_LOST:
                self.tell(f"{sweep.name}-{key_of(one.due)}: had not ended, goes on")
                return one.due
            if one.ended is None:
                ledger.end(one.due, None, now)
                name, why = f"{sweep.name}-{key_of(one.due)}", f"its process was lost {one.lost} times, it is given up"
                self._tell_failed(name, why, sweep, "")
                launches = ledger.launches()  # it has ended now
        decision = decide(sweep.schedule, [one.times for one in launches], since=floor, now=now)
        self._tell_left_out(sweep, ledger, decision, now)
        return next((due for due in decision.launch if ledger.note(due, now)), None)

    def _tell_left_out(self, sweep: ScheduledSweep, ledger: Ledger, decision: Decision, now: datetime) -> None:
        reasons = {
            "the launch before it had not ended (overlap: skip)": decision.overlapped,
            f"more than {sweep.schedule.max_lateness} late": decision.late,
            "a later one is launched (missed: latest)": decision.superseded,
        }
        for why, times in reasons.items():
            if times and ledger.leave_out(times[-1], why, now):
                more = f" and {len(times) - 1} before it" if len(times) > 1 else ""
                self.tell(f"{sweep.name}: the time {_local(times[-1], sweep)}{more} is left out: {why}")

    def _begin(self) -> None:
        """Launches of the queue, the first first, as many as may run at once."""
        for launch in list(self._queue):
            if len(self._running) == self.at_once or self.stopping:
                return
            if launch.sweep.nightly:
                # Sweeps of one night share its report, and are timed.
                night = take_lock(launch.ledger.folder.parent / NIGHTLY_LOCK)
                if night is None:
                    continue
                launch.locks.append(night)
            self._queue.remove(launch)
            try:
                self._spawn(launch)
            except (BitfrontError, OSError) as error:
                launch.close()
                self._tell_failed(launch.name, f"it could not be launched: {error}", launch.sweep, "")

    def _spawn(self, launch: Launch) -> None:
        """The process has the lock too, so that it is known to run also when this one is killed."""
        log = launch.ledger.log_file(launch.due)
        # Before it begins, so that what can never begin is given up like what is lost.
        launch.ledger.begin_attempt(launch.due, self.clock())
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(launch),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=launch.locks,
                start_new_session=True,  # Ctrl-C is for this process, which tells the others
            )
        self._running[launch.sweep.name] = launch, process
        with contextlib.suppress(OSError):
            launch.ledger.name_process(launch.due, process.pid)
        self.tell(f"{launch.name}: launched, due {_local(launch.due, launch.sweep)}; it prints to {log}")

    def _reap(self) -> bool:
        """Notes what has ended; whether anything has."""
        ended = [one for one in self._running.values() if one[1].poll() is not None]
        for launch, process in ended:
            del self._running[launch.sweep.name]
            try:
                self._note_end(launch, process.returncode)
            except OSError as error:
                self.tell(f"{launch.name}: its end could not be noted: {error}")
                self.failed = True
            finally:
                launch.close()
        return bool(ended)

    def _note_end(self, launch: Launch, status: int) -> None:
        now = self.clock()
        if self.stopping and (status == INTERRUPT_STATUS or status < 0):
            launch.ledger.stop_attempt(launch.due, now)
            self.tell(f"{launch.name}: stopped, to be gone on with")
        elif status < 0:
            self.tell(f"{launch.name}: killed by signal {-status}; it goes on")
        else:
            launch.ledger.end(launch.due, status, now)
            if status in ENDS:
                self.tell(f"{launch.name}: {ENDS[status]}")
            elif status in JUDGED and self._has_verdict(launch):
                self.failed = True
                self.tell(f"{launch.name}: {JUDGED[status]}")
            else:
                last = _last_line(launch.ledger.log_file(launch.due))
                self._tell_failed(launch.name, f"it ended with status {status}", launch.sweep, last)

    def _has_verdict(self, launch: Launch) -> bool:
        """Whether the night has judged the sweep, and has told people."""
        folder = self.storage / NIGHTS / launch.key / "sweeps" / launch.sweep.file.stem
        return launch.sweep.nightly and (folder / VERDICT_FILE).exists()

    def _tell_failed(self, name: str, why: str, sweep: ScheduledSweep, last: str) -> None:
        self.failed = True
        self.tell(f"{name}: failed: {why}{': ' if last else ''}{last}")
        facts = {"sweep": sweep.name, "launch": name, "why": why, "file": str(sweep.file), "said last": last}
        notify(f"A scheduled sweep has failed: {name}", facts={key: value for key, value in facts.items() if value})


def _local(time: datetime, sweep: ScheduledSweep) -> str:
    return time.astimezone(ZoneInfo(sweep.schedule.time_zone)).strftime("%Y-%m-%d %H:%M %Z")


def _last_line(log: Path) -> str:
    """What a launch has said last, shortened."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:300] if said else ""
