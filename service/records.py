"""A sweep's own storage: the one place that says where the sweep stands.

    <storage>/<sweep>/
        spec.yaml                     the sweep as its author wrote it
        sweep.json                    name, hash of the spec, when it began and ended, trials planned
        study.journal                 the sampler's study (Optuna)
        rungs.jsonl                   what early stopping has decided, by what, in order
        trials/<trial>/trial.json     number, settings, attempts, when it began
                       history.jsonl  a line for each finished epoch
                       checkpoint.pt  where a trial that was cut off goes on; checkpoint-1.pt, the one before
                       policy.json, bits.png; choices.json, what the policy was chosen from
                       error.txt of a failed trial
                       result.json    written last: a trial with a result is finished, for good
        front.json, front.md, front.png, front.html, log.txt
        driver.lock, stop             who runs the sweep, and that it should end
    <storage>/references/             the full-precision references, shared by the sweeps
    <storage>/mlflow.db, artifacts/   the embedded tracking store, a mirror

Files appear whole or not at all; a finished trial is never written again. Drivers and workers wait for a storage that
is full, read-only or gone (`trainables.patience`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from service import lease
from service.files import append, append_line, printable, read_lines, write_json, write_once, write_text
from service.marks import REFERENCES, SWEEP, SWEEP_FILE, TRIALS
from service.replica import ReplacedError, Replica, replica_of
from trainables.choices import Choices
from trainables.errors import StorageError
from trainables.patience import patiently
from trainables.policy_file import PolicyRecord
from trainables.report import EpochReport, Stage, checkpoint_files

State = Literal["pending", "running", "done", "pruned", "diverged", "failed"]
"""`pending`: suggested, and not running; a trial that was cut off is pending again. `pruned`: stopped early.
`diverged`: a loss left the finite numbers, a result of the settings. The last four are final."""
STATES: tuple[State, ...] = ("pending", "running", "done", "pruned", "diverged", "failed")
STAGES: tuple[Stage, ...] = ("search", "finetune")
Failure = Literal["", "out of memory", "nan", "user error", "lost worker", "timed out", "pre-empted", "error"]
"""Why a trial failed (or diverged: `nan`)."""
LOG_FILE = "log.txt"
CHECKPOINT_FILE = "checkpoint.pt"
POLICY_FILE = "policy.json"
CHOICES_FILE = "choices.json"
P = ParamSpec("P")
R = TypeVar("R")
_EPOCH_KEYS = {"time_ms", "stage", "epoch", "metrics"}
"""Of a line that tells of an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """A trial as the storage knows it."""

    trial_id: str
    number: int
    """In order of suggestion, from 0."""
    state: State
    settings: Mapping[str, Any]
    """What the space gave this trial."""
    started_ms: int = 0
    """When the first attempt began; 0 before."""
    ended_ms: int = 0
    """0 until it is final."""
    attempts: int = 0
    """How often it was started."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Empty unless done."""
    policy_hash: str = ""
    failure: Failure = ""
    error: str = ""
    reference: str = ""
    """Key of the full-precision reference that it is compared with, from its first attempt on; empty before, and in
    older records."""

    @property
    def final(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in ("pending", "running")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRecord:
    """A sweep as the storage knows it."""

    name: str
    spec_hash: str
    facts: Mapping[str, str]
    """What tells this sweep from others: network, data, method, sampler …"""
    total_trials: int
    """Trials planned; `extend` adds to them."""
    created_ms: int
    kind: Literal["search", "finetune"] = "search"
    """`finetune`: its trials are finetunes of policies that searches found (`service.promoted`)."""
    ended_ms: int = 0
    """When it was last closed; 0 while it runs, or when its driver was killed."""
    end: str = ""
    """Why it was last closed: 'finished', or what stopped it."""
    running_s: float = 0.0
    """Time that all its runs have taken, up to the last close."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Limits that `extend` has set, instead of the spec's."""
    objectives: tuple[str, ...] = ("top1", "bops_g", "ard")
    constraints: tuple[str, ...] = ()
    workers: int = 1
    """Devices that a trial holds."""
    owner: str = ""
    references: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The records of its full-precision references by their keys, as each is known, with network and data."""
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    revision: str = ""
    """Git commit of the folder where it was begun, with "-dirty" where files differed; empty outside a repository."""
    version: str = ""
    """Of Bitfront, when it was begun."""

    @property
    def full_precision(self) -> str:
        """Top-1 in full precision, as people read it; empty until it is known."""
        found = sorted(record["top1"] for record in self.references.values() if "top1" in record)
        if len(found) > 1:
            return f"{found[0]:.2f} to {found[-1]:.2f} % top-1, {len(found)} references"
        return f"{found[0]:.2f} % top-1" if found else ""

    @property
    def sweep_id(self) -> str:
        """Unique among all sweeps, also when a name is used again elsewhere."""
        return f"{self.name}@{self.created_ms}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RungRecord:
    """What early stopping knew of a trial at a rung and decided: all that a new driver needs to go on from it."""

    trial_id: str
    epoch: int
    """Through all stages, from 1."""
    stage: str
    values: Sequence[float] = ()
    """What the epoch told of the objectives, as losses."""
    goes_on: bool | None = None
    """None in older records: it is decided again."""
    reason: str = ""
    settings: Mapping[str, Any] | None = None
    """The trial's; None in older records."""
    risk: float | None = None
    """Task risk, of an epoch of the search that told it."""
    excess: Sequence[float] = ()
    """By how much the epoch's metrics exceed each constraint on them, in units of its bound."""
    ended: bool = False
    """Instead: the trial, which had gone on, has diverged or failed after this epoch."""


class NameTakenError(StorageError):
    """Another process has begun a sweep of this name in the same moment."""


def _patient(
    method: Callable[Concatenate[SweepStore, P], R],
) -> Callable[Concatenate[SweepStore, P], R]:
    """What reads or writes the sweep's folder, and does so again once the storage is back."""

    @functools.wraps(method)
    def waiting(store: SweepStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return patiently(lambda: method(store, *args, **kwargs), store.folder, SWEEP_FILE)

    return waiting


class SweepStore:
    """Reads and writes one sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._workers = 0
        """Of a trial; 0 until it is asked for. It never changes, and is not read again for each of many trials."""
        self._final: dict[str, TrialRecord] = {}
        """Final trials never change, so they are read once."""

    @classmethod
    def create(
        cls, storage: Path, sweep: SweepRecord, *, spec_text: str, beside: Mapping[str, str] | None = None
    ) -> SweepStore:
        """A new folder for the sweep, whole or not at all, with more texts `beside` its spec. Raises NameTakenError."""
        folder, replica = storage / sweep.name, replica_of(storage)
        unfinished = storage / f".{sweep.name}.{uuid.uuid4().hex[:8]}"
        try:
            (unfinished / "trials").mkdir(parents=True)
            for name, text in {**(beside or {}), "spec.yaml": spec_text}.items():
                write_text(unfinished / name, text)
            cls(unfinished).save_sweep(sweep)
            if replica is not None:
                with lease.held(replica, sweep.name):
                    if not replica.create(unfinished, sweep.name):
                        raise NameTakenError(f"{replica.url} has a sweep {sweep.name!r} already.")
            unfinished.rename(folder)
        except StorageError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if folder.exists():
                raise NameTakenError(f"{folder} exists already.") from None
            raise StorageError(f"storage.path: {storage} cannot be written: {error.strerror}.") from None
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> SweepStore:
        """An existing sweep's folder."""
        store = cls(folder)
        store.sweep()
        return store

    @property
    def references(self) -> Path:
        """Where the storage's full-precision references are."""
        return self.folder.parent / REFERENCES

    @property
    def replica(self) -> Replica | None:
        """What carries the storage, where it is kept as objects; the folder is this machine's working copy then."""
        return replica_of(self.folder.parent)

    def refresh(self, trial_id: str) -> None:
        """What another machine has finished writing of a trial is here when this returns; but for a checkpoint."""
        if self.replica is not None:
            self.replica.fetch(self.folder.name, f"{TRIALS}/{trial_id}", checkpoint=False)
            return
        # A network file system may remember for a minute that there was no such file; a change of ours makes it look.
        probe = self.trial_folder(trial_id) / f".look.{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):
            probe.touch()
            probe.unlink()

    def push(self, trial_id: str, *, guarded: bool = False) -> None:
        """Carries what has changed of a trial to the storage, where that is kept as objects.

        Raises ReplacedError where another attempt has gone on with it; what that has written is here then. `guarded`:
        also where only other files than trial.json have changed here.
        """
        if self.replica is None:
            return
        try:
            self.replica.push(self.folder.name, f"{TRIALS}/{trial_id}", guarded=guarded)
        except ReplacedError:
            self.refresh(trial_id)
            raise

    @_patient
    def sweep(self) -> SweepRecord:
        """The sweep's own record."""
        return _read_record(SweepRecord, self.folder / SWEEP_FILE, _as_today)

    @_patient
    def save_sweep(self, sweep: SweepRecord) -> None:
        """Replaces the sweep's own record."""
        write_json(self.folder / SWEEP_FILE, dataclasses.asdict(sweep))

    def trial_folder(self, trial_id: str) -> Path:
        """The trial's folder; an id that could leave the sweep's folder is refused."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", trial_id):
            raise StorageError(f"{trial_id!r} is not a trial's name: letters, digits, '_', '-' and '.' only.")
        return self.folder / "trials" / trial_id

    def plan_trial(self, trial_id: str, *, number: int, settings: Mapping[str, Any]) -> TrialRecord:
        """Notes what a trial will be, before anything is done for it."""
        planned = TrialRecord(trial_id=trial_id, number=number, state="pending", settings=settings)
        if self.replica is not None:
            # The study first, as on a disk.
            self.replica.push(self.folder.name, SWEEP)
        self._save_trial(planned)
        return planned

    def start_trial(self, trial_id: str, *, now_ms: int, reference: str = "") -> TrialRecord:
        """Notes that an attempt at a planned trial begins; `reference` is the key of what it is compared with."""
        planned = self.trial(trial_id)
        started_ms = planned.started_ms or now_ms
        begun = dataclasses.replace(
            planned,
            state="running",
            attempts=planned.attempts + 1,
            started_ms=started_ms,
            ended_ms=0,
            reference=reference or planned.reference,
        )
        self._save_trial(begun)
        return begun

    @_patient
    def interrupt_trial(self, trial_id: str) -> None:
        """Notes that a running trial was cut off: it is pending, and goes on from its checkpoint when started again."""
        for _ in range(3):
            if self.replica is not None and self.result(trial_id) is None:
                # It may have begun, or have been begun again, on another machine since.
                self.refresh(trial_id)
            begun = self.trial(trial_id)
            if begun.state != "running":
                return
            with contextlib.suppress(ReplacedError):
                self._save_trial(dataclasses.replace(begun, state="pending"))
                return

    def reopen_trial(self, trial_id: str) -> None:
        """Makes a failed trial pending again; what its attempt left is kept beside."""
        folder, record = self.trial_folder(trial_id), self.trial(trial_id)
        if record.state != "failed":
            raise StorageError(f"{trial_id} is {record.state}; only a failed trial is run again.")
        self._save_trial(
            dataclasses.replace(record, state="pending", ended_ms=0, failure="", error="", metrics={}, policy_hash="")
        )
        if (folder / "error.txt").exists():
            (folder / "error.txt").rename(folder / f"error-{record.attempts}.txt")
        (folder / "result.json").rename(folder / f"failed-{record.attempts}.json")
        self._final.pop(trial_id, None)

    def failed_before(self, trial_id: str) -> list[TrialRecord]:
        """What the trial's attempts that were run again after a failure had ended with, the first first."""
        now = self.trial(trial_id)
        kept = [self.trial_folder(trial_id) / f"failed-{number}.json" for number in range(1, now.attempts + 1)]
        found = [_read_record(TrialRecord, path) for path in kept if path.exists()]
        # Not the one that stands: whoever wanted it run again was cut off.
        return [record for record in found if not (now.final and record.attempts == now.attempts)]

    @_patient
    def append_epoch(self, trial_id: str, epoch: EpochReport, *, seconds: float, now_ms: int) -> None:
        """Adds a line to the trial's history, unless an attempt that was cut off has told of this epoch before.

        `seconds` is the time since the last line, or since the attempt began. A clock that was set back stands still.
        """
        known = self.history(trial_id)
        if any((line["stage"], line["epoch"]) == (epoch.stage, epoch.epoch) for line in known):
            return
        time_ms = max([now_ms, *(line["time_ms"] for line in known[-1:])])
        content = {"time_ms": time_ms, "seconds": seconds, **dataclasses.asdict(epoch)}
        append_line(self.trial_folder(trial_id) / "history.jsonl", content)

    @_patient
    def append_rung(self, rung: RungRecord) -> None:
        """Notes what was decided at a rung of early stopping, and by what, or that a trial came to nothing."""
        append_line(self.folder / "rungs.jsonl", dataclasses.asdict(rung))

    @_patient
    def rungs(self) -> list[RungRecord]:
        """Everything that `append_rung` has noted, in its order."""
        names = {f.name for f in dataclasses.fields(RungRecord)}
        return [
            RungRecord(**{name: value for name, value in line.items() if name in names})
            for line in read_lines(self.folder / "rungs.jsonl")
            if line.keys() >= {"trial_id", "epoch", "stage", "values"}
        ]

    @_patient
    def finish_trial(self, record: TrialRecord) -> TrialRecord:
        """Writes the trial's result, unless it has one: the first is kept, and returned.

        Raises ReplacedError where another machine has begun another attempt.
        """
        # A clock that was set back stands still: no trial ends before what it has told of.
        told = [line["time_ms"] for line in self.history(record.trial_id)[-1:]]
        ended_ms = max([record.ended_ms, record.started_ms, *told])
        record = dataclasses.replace(record, error=printable(record.error), ended_ms=ended_ms)
        write_once(self.trial_folder(record.trial_id) / "result.json", dataclasses.asdict(record))
        if record.state != "failed":
            for path in self.checkpoints(record.trial_id):
                path.unlink(missing_ok=True)
        self.push(record.trial_id, guarded=True)
        return self.trial(record.trial_id)

    def checkpoint(self, trial_id: str) -> Path:
        """Where the trial goes on from."""
        return self.trial_folder(trial_id) / CHECKPOINT_FILE

    def checkpoints(self, trial_id: str) -> tuple[Path, ...]:
        """All files of its checkpoint, whether they are there or not."""
        return checkpoint_files(self.checkpoint(trial_id))

    def _save_trial(self, record: TrialRecord) -> None:
        self._write_trial(record)
        self.push(record.trial_id)

    @_patient
    def _write_trial(self, record: TrialRecord) -> None:
        folder = self.trial_folder(record.trial_id)
        # Not its parents: a storage that is gone must not be found half there when it comes back.
        folder.mkdir(exist_ok=True)
        write_json(folder / "trial.json", dataclasses.asdict(record))

    @_patient
    def save_policy(self, trial_id: str, record: PolicyRecord) -> None:
        """Writes the trial's policy file."""
        write_text(self.trial_folder(trial_id) / POLICY_FILE, record.to_json())

    @_patient
    def save_choices(self, trial_id: str, choices: Choices) -> None:
        """Writes what the trial's policy was chosen from."""
        write_text(self.trial_folder(trial_id) / CHOICES_FILE, choices.to_json())

    @_patient
    def choices(self, trial_id: str) -> Choices:
        """Reads what the trial's policy was chosen from. Raises StorageError for a trial that does not say."""
        path = self.trial_folder(trial_id) / CHOICES_FILE
        if not path.exists():
            raise StorageError(
                f"{self.folder.name}/{trial_id} has no {CHOICES_FILE}: it was finished by a version of Bitfront that "
                f"did not keep what the bits were chosen from; run the search again, as a sweep of another name."
            )
        return Choices.load(path)

    @_patient
    def policy(self, trial_id: str) -> PolicyRecord:
        """Reads the trial's policy file."""
        return PolicyRecord.load(self.trial_folder(trial_id) / POLICY_FILE)

    @_patient
    def trial(self, trial_id: str) -> TrialRecord:
        """The trial as it stands. Raises StorageError for one that was never planned."""
        if trial_id in self._final:
            return self._final[trial_id]
        folder = self.trial_folder(trial_id)
        result = folder / "result.json"
        if not result.exists():
            return _read_record(TrialRecord, folder / "trial.json")
        self._final[trial_id] = _read_record(TrialRecord, result)
        return self._final[trial_id]

    def result(self, trial_id: str) -> TrialRecord | None:
        """The final trial's record, None while it has none."""
        record = self.trial(trial_id)
        return record if record.final else None

    @_patient
    def trials(self) -> list[TrialRecord]:
        """All trials that were planned, by number."""
        folders = (self.folder / "trials").iterdir()
        # A folder without a file in it is of a driver that was killed in that moment.
        names = [f.name for f in folders if f.name in self._final or (f / "trial.json").exists()]
        return sorted((self.trial(name) for name in names), key=lambda record: record.number)

    @_patient
    def history(self, trial_id: str) -> list[dict[str, Any]]:
        """The trial's epochs: time_ms, seconds, stage, epoch, epochs, metrics. What a crash has torn does not count."""
        lines = read_lines(self.trial_folder(trial_id) / "history.jsonl")
        return [line for line in lines if line.keys() >= _EPOCH_KEYS]

    def stage_hours(self, trial_id: str) -> dict[str, float]:
        """Device-hours by stage of all epochs that the trial has reported, also in attempts that were cut off.

        Histories of earlier versions have no times: a stage whose history tells none has what the result says of it.
        """
        measured = self.trial(trial_id).metrics
        hours = {s: measured[f"{s}_device_hours"] for s in STAGES if f"{s}_device_hours" in measured}
        seconds: dict[str, float] = {}
        for line in self.history(trial_id):
            hours.setdefault(line["stage"], 0.0)
            if "seconds" in line:
                seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + line["seconds"]
        self._workers = self._workers or self.sweep().workers
        return hours | {stage: spent * self._workers / 3600 for stage, spent in seconds.items()}

    def spent_hours(self, trial_id: str) -> float:
        """The sum of `stage_hours`."""
        return sum(self.stage_hours(trial_id).values(), 0.0)

    @_patient
    def log(self, line: str) -> None:
        """Adds a line, with the time, to the sweep's log."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n"
        append(self.folder / LOG_FILE, line.encode("utf-8", "backslashreplace"))


def now_ms() -> int:
    """Unix time, milliseconds, as records have it."""
    return time.time_ns() // 1_000_000


def _as_today(content: dict[str, Any]) -> dict[str, Any]:
    """A sweep's record as it is today: earlier versions wrote the reference of a sweep that has one on its own."""
    one = content.pop("reference", {})
    # JSON has no tuples.
    tuples: dict[str, Any] = {name: tuple(content[name]) for name in ("objectives", "constraints") if name in content}
    return {**content, **tuples, "references": {**({one["key"]: one} if one else {}), **content.get("references", {})}}


def _read_record(kind: type[R], path: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> R:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist: {path.parent} is not a sweep's storage.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read: {error}.") from None
    try:
        return kind(**change(content))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise StorageError(f"{path} is damaged, or of another version of Bitfront.") from None
