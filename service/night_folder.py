"""Nights in a storage folder: begun once, run by one process at a time, gone on with, read again.

<storage>/nightly/<night>/night.json            which sweeps, when it began
                          driver.lock           who runs it
                          sweeps/<name>/spec.yaml, log.txt, outcome.json, verdict.json
                          report.json, report.md
<storage>/<name>-<night>/                       each sweep as any other

Of a storage that is kept as objects the folder is this machine's working copy, as a sweep's is: who runs the night has
its lease, and carries there what changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service import driver, lease
from service.files import write_json
from service.marks import NIGHTS
from service.nightly_baseline import Outcome
from service.nightly_report import FORMAT, REPORT_FILE, NightReport, SweepReport, read_as, read_report
from service.object_store import patience
from service.replica import replica_of
from service.working_copy import Place
from trainables.errors import ConfigError, StorageError
from trainables.patience import wait_s

NIGHT_FILE, OUTCOME_FILE, VERDICT_FILE, SPEC_FILE, LOG_FILE = (
    "night.json",
    "outcome.json",
    "verdict.json",
    "spec.yaml",
    "log.txt",
)
_NAME = re.compile(r"[0-9a-z][0-9a-z-]{0,39}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A sweep of a night."""

    name: str
    """Of its files: NAME.yaml."""
    file: str
    """Absolute path of its YAML."""
    sweep: str
    """Its name in the storage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Night:
    """What a night is to do."""

    night: str
    started_ms: int
    revision: str = ""
    version: str = ""
    sweeps: tuple[Planned, ...] = ()
    format: int = FORMAT


class NightFolder:
    """A night's folder, which may not be there yet."""

    def __init__(self, storage: Path, night: str) -> None:
        """Raises ConfigError for what is no night's name."""
        if not _NAME.fullmatch(night):
            raise ConfigError(f"--night is {night!r}; give letters a-z, digits and '-', such as 20261122t020000z.")
        self.storage, self.night = storage.absolute(), night
        self.folder = self.storage / NIGHTS / night
        self._replica = replica_of(self.storage)

    def begin(self, night: Night) -> None:
        """Makes the folder, whole or not at all, unless it is there. Raises StorageError where it cannot be written."""
        self._fetch()
        if self.folder.exists():
            return
        unfinished = self.folder.with_name(f".{self.night}.{uuid.uuid4().hex[:8]}")
        try:
            unfinished.mkdir(parents=True)
            _save(unfinished / NIGHT_FILE, night)
            unfinished.rename(self.folder)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not self.folder.exists():
                raise StorageError(f"--storage: {self.storage} cannot be written: {error.strerror}.") from None
        self.carry()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Makes this process the one that runs the night. Raises StorageError where another does."""
        with contextlib.ExitStack() as until_then:
            try:
                until_then.enter_context(driver.hold(self.folder))
                if self._replica is not None:
                    look = f"bitfront nightly show {self.night}"
                    until_then.enter_context(lease.held(self._replica, self._key, look=look))
            except StorageError as error:
                who = str(error).partition(". See")[0].removeprefix(f"{NIGHTS}/")
                raise StorageError(f"night {who}; wait for its end, or give another --night.") from None
            with patience(wait_s()):
                self._fetch()
                try:
                    yield
                finally:
                    # What was judged is there already; a sweep that was cut off has left its log.
                    with contextlib.suppress(StorageError):
                        self.carry()

    @property
    def _key(self) -> str:
        return f"{NIGHTS}/{self.night}"

    def _fetch(self) -> None:
        """What others have pushed of the night is here."""
        if self._replica is not None:
            self._replica.fetch(NIGHTS, self.night)

    def carry(self) -> None:
        """What has changed here is in the storage, where that is kept as objects.

        Raises StorageError where another machine runs the night by now.
        """
        if self._replica is None:
            return
        if self._replica.is_driven_elsewhere(self._key):
            raise StorageError(f"night {self.night} is run elsewhere by now; see: bitfront nightly show {self.night}")
        self._replica.push(NIGHTS, self.night)

    def read(self) -> Night:
        """What the night is to do. Raises StorageError for a night that was never begun."""
        if not (self.folder / NIGHT_FILE).exists():
            raise StorageError(f"{Place.of(self.storage)} has no night {self.night}{_others(self.storage)}")
        return read_as(Night, self.folder / NIGHT_FILE, FORMAT)

    def add(self, sweeps: Sequence[Planned]) -> Night:
        """The night with these sweeps too. Raises StorageError where it has another sweep of the same name."""
        night = self.read()
        known = {one.name: one for one in night.sweeps}
        for one in sweeps:
            if known.setdefault(one.name, one).file != one.file:
                raise StorageError(f"night {self.night} has a sweep {one.name} already, {known[one.name].file}.")
        night = dataclasses.replace(night, sweeps=tuple(known.values()))
        _save(self.folder / NIGHT_FILE, night)
        return night

    def of(self, name: str) -> Path:
        """The folder of a sweep of the night."""
        return self.folder / "sweeps" / name

    def verdict(self, name: str) -> SweepReport | None:
        """A sweep's report, once it was judged."""
        path = self.of(name) / VERDICT_FILE
        return read_as(SweepReport, path) if path.exists() else None

    def save_verdict(self, report: SweepReport) -> None:
        """Ends a sweep of the night."""
        write_json(self.of(report.name) / VERDICT_FILE, dataclasses.asdict(report))

    def outcome(self, name: str) -> Outcome | None:
        """What a sweep came to; None where it left nothing."""
        path = self.of(name) / OUTCOME_FILE
        return read_as(Outcome, path) if path.exists() else None

    def save_outcome(self, name: str, outcome: Outcome) -> None:
        """Keeps it, so that it can be accepted even where the sweep itself was cleaned away."""
        write_json(self.of(name) / OUTCOME_FILE, dataclasses.asdict(outcome))

    def report(self) -> NightReport:
        """The night's report so far. Raises StorageError where there is none."""
        if not (self.folder / REPORT_FILE).exists():
            raise StorageError(f"{Place.of(self.storage)} has no report of a night {self.night}{_others(self.storage)}")
        return read_report(self.folder / REPORT_FILE)


def fetch_nights(storage: Path) -> None:
    """Of a storage that is kept as objects: what other machines have pushed of nights is here."""
    replica = replica_of(storage)
    if replica is not None:
        replica.fetch_all(NIGHTS)


def carry_file(path: Path, storage: Path) -> None:
    """A file of `<storage>/nightly` that belongs to no night is in the storage, where that is kept as objects."""
    replica = replica_of(storage)
    if replica is not None:
        replica.push_file(path)


def nights(storage: Path) -> list[NightFolder]:
    """The nights of a storage that have begun, the first first."""
    found = []
    for path in (storage / NIGHTS).glob(f"[!.]*/{NIGHT_FILE}"):
        # One that is damaged is named when somebody asks for it.
        with contextlib.suppress(StorageError, ConfigError):
            one = NightFolder(storage, path.parent.name)
            found.append((one.read().started_ms, one.night, one))
    return [one for _, _, one in sorted(found, key=lambda each: each[:2])]


def _others(storage: Path) -> str:
    names = [one.night for one in nights(storage)]
    return f"; it has {', '.join(names[-5:])}." if names else "; it has none at all: give --storage."


def _save(path: Path, night: Night) -> None:
    content = dataclasses.asdict(night)
    write_json(path, {"format": content.pop("format"), **content})
