"""A sweep's own storage: the one place that says where the sweep stands.

    <storage>/<sweep>/
        spec.yaml                     the sweep as its author wrote it
        sweep.json                    name, hash of the spec, when it began and ended, trials planned
        study.journal                 the sampler's study (Optuna)
        rungs.jsonl                   what early stopping has decided, by what, in order
        trials/<trial>/trial.json     number, settings, attempts, when it began
                       history.jsonl  a line for each finished epoch
                       checkpoint.pt  where a trial that was cut off goes on
                       policy.json, bits.png; choices.json, what the policy was chosen from
                       error.txt of a failed trial
                       result.json    written last: a trial with a result is finished, for good
        front.json, front.md, front.png, front.html, log.txt
        driver.lock, stop             who runs the sweep, and that it should end
    <storage>/references/             the full-precision references, shared by the sweeps
    <storage>/mlflow.db, artifacts/   the embedded tracking store, a mirror

Files appear whole or not at all; a finished trial is never written again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainables.choices import Choices
from trainables.errors import StorageError
from trainables.policy_file import PolicyRecord
from trainables.report import EpochReport, Stage

State = Literal["pending", "running", "done", "pruned", "diverged", "failed"]
"""`pending`: suggested, and not running; a trial that was cut off is pending again. `pruned`: stopped early.
`diverged`: a loss left the finite numbers, a result of the settings. The last four are final."""
STATES: tuple[State, ...] = ("pending", "running", "done", "pruned", "diverged", "failed")
STAGES: tuple[Stage, ...] = ("search", "finetune")
Failure = Literal["", "out of memory", "nan", "user error", "lost worker", "timed out", "pre-empted", "error"]
"""Why a trial failed (or diverged: `nan`)."""
REFERENCES = "references"
CHECKPOINT_FILE = "checkpoint.pt"
POLICY_FILE = "policy.json"
CHOICES_FILE = "choices.json"
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


class SweepStore:
    """Reads and writes one sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._final: dict[str, TrialRecord] = {}
        """Final trials never change, so they are read once."""

    @classmethod
    def create(
        cls, storage: Path, sweep: SweepRecord, *, spec_text: str, beside: Mapping[str, str] | None = None
    ) -> SweepStore:
        """A new folder for the sweep, whole or not at all, with more texts `beside` its spec. Raises NameTakenError."""
        folder = storage / sweep.name
        unfinished = storage / f".{sweep.name}.{uuid.uuid4().hex[:8]}"
        try:
            (unfinished / "trials").mkdir(parents=True)
            for name, text in {**(beside or {}), "spec.yaml": spec_text}.items():
                write_text(unfinished / name, text)
            cls(unfinished).save_sweep(sweep)
            unfinished.rename(folder)
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

    def sweep(self) -> SweepRecord:
        """The sweep's own record."""
        found = _read_record(SweepRecord, self.folder / "sweep.json", _with_references)
        # JSON has no tuples.
        return dataclasses.replace(found, objectives=tuple(found.objectives), constraints=tuple(found.constraints))

    def save_sweep(self, sweep: SweepRecord) -> None:
        """Replaces the sweep's own record."""
        write_json(self.folder / "sweep.json", dataclasses.asdict(sweep))

    def trial_folder(self, trial_id: str) -> Path:
        """The trial's folder; an id that could leave the sweep's folder is refused."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", trial_id):
            raise StorageError(f"{trial_id!r} is not a trial's name: letters, digits, '_', '-' and '.' only.")
        return self.folder / "trials" / trial_id

    def plan_trial(self, trial_id: str, *, number: int, settings: Mapping[str, Any]) -> TrialRecord:
        """Notes what a trial will be, before anything is done for it."""
        planned = TrialRecord(trial_id=trial_id, number=number, state="pending", settings=settings)
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

    def interrupt_trial(self, trial_id: str) -> None:
        """Notes that a running trial was cut off: it is pending, and goes on from its checkpoint when started again."""
        begun = self.trial(trial_id)
        if begun.state == "running":
            self._save_trial(dataclasses.replace(begun, state="pending"))

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

    def append_epoch(self, trial_id: str, epoch: EpochReport, *, seconds: float, now_ms: int) -> None:
        """Adds a line to the trial's history, unless an attempt that was cut off has told of this epoch before.

        `seconds` is the time since the last line, or since the attempt began.
        """
        if any((line["stage"], line["epoch"]) == (epoch.stage, epoch.epoch) for line in self.history(trial_id)):
            return
        content = {"time_ms": now_ms, "seconds": seconds, **dataclasses.asdict(epoch)}
        _append_line(self.trial_folder(trial_id) / "history.jsonl", content)

    def append_rung(self, rung: RungRecord) -> None:
        """Notes what was decided at a rung of early stopping, and by what, or that a trial came to nothing."""
        _append_line(self.folder / "rungs.jsonl", dataclasses.asdict(rung))

    def rungs(self) -> list[RungRecord]:
        """Everything that `append_rung` has noted, in its order."""
        names = {f.name for f in dataclasses.fields(RungRecord)}
        return [
            RungRecord(**{name: value for name, value in line.items() if name in names})
            for line in _read_lines(self.folder / "rungs.jsonl")
            if line.keys() >= {"trial_id", "epoch", "stage", "values"}
        ]

    def finish_trial(self, record: TrialRecord) -> TrialRecord:
        """Writes the trial's result, unless it has one: the first is kept, and returned."""
        record = dataclasses.replace(record, error=printable(record.error))
        write_once(self.trial_folder(record.trial_id) / "result.json", dataclasses.asdict(record))
        if record.state != "failed":
            self.checkpoint(record.trial_id).unlink(missing_ok=True)
        return self.trial(record.trial_id)

    def checkpoint(self, trial_id: str) -> Path:
        """Where the trial goes on from."""
        return self.trial_folder(trial_id) / CHECKPOINT_FILE

    def _save_trial(self, record: TrialRecord) -> None:
        folder = self.trial_folder(record.trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "trial.json", dataclasses.asdict(record))

    def save_policy(self, trial_id: str, record: PolicyRecord) -> None:
        """Writes the trial's policy file."""
        write_text(self.trial_folder(trial_id) / POLICY_FILE, record.to_json())

    def save_choices(self, trial_id: str, choices: Choices) -> None:
        """Writes what the trial's policy was chosen from."""
        write_text(self.trial_folder(trial_id) / CHOICES_FILE, choices.to_json())

    def choices(self, trial_id: str) -> Choices:
        """Reads what the trial's policy was chosen from. Raises StorageError for a trial that does not say."""
        path = self.trial_folder(trial_id) / CHOICES_FILE
        if not path.exists():
            raise StorageError(
                f"{self.folder.name}/{trial_id} has no {CHOICES_FILE}: it was finished by a version of Bitfront that "
                f"did not keep what the bits were chosen from; run the search again, as a sweep of another name."
            )
        return Choices.load(path)

    def policy(self, trial_id: str) -> PolicyRecord:
        """Reads the trial's policy file."""
        return PolicyRecord.load(self.trial_folder(trial_id) / POLICY_FILE)

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

    def trials(self) -> list[TrialRecord]:
        """All trials that were planned, by number."""
        folders = (self.folder / "trials").iterdir()
        # A folder without a file in it is of a driver that was killed in that moment.
        names = [f.name for f in folders if f.name in self._final or (f / "trial.json").exists()]
        return sorted((self.trial(name) for name in names), key=lambda record: record.number)

    def history(self, trial_id: str) -> list[dict[str, Any]]:
        """The trial's epochs: time_ms, seconds, stage, epoch, epochs, metrics. What a crash has torn does not count."""
        lines = _read_lines(self.trial_folder(trial_id) / "history.jsonl")
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
        workers = self.sweep().workers
        return hours | {stage: spent * workers / 3600 for stage, spent in seconds.items()}

    def spent_hours(self, trial_id: str) -> float:
        """The sum of `stage_hours`."""
        return sum(self.stage_hours(trial_id).values(), 0.0)

    def log(self, line: str) -> None:
        """Adds a line, with the time, to the sweep's log."""
        with (self.folder / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def _append_line(path: Path, content: Mapping[str, Any]) -> None:
    line = json.dumps(content, allow_nan=False)
    with path.open("ab") as file:
        # A line that a crash cut off must not run into this one.
        torn = file.tell() and not path.read_bytes().endswith(b"\n")
        file.write(f"{chr(10) if torn else ''}{line}\n".encode())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def printable(text: str) -> str:
    """The text with what no encoding has, such as a file name's undecodable bytes, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all, and survives a power cut."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def write_once(path: Path, content: Mapping[str, Any]) -> None:
    """Writes as `write_json`, unless the file is there: of several writers the first one's is kept."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    write_json(unfinished, content)
    with contextlib.suppress(FileExistsError):
        os.link(unfinished, path)
    unfinished.unlink()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object of finite numbers, strings and the like."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _with_references(content: dict[str, Any]) -> dict[str, Any]:
    """A sweep's record as it is today: earlier versions wrote the reference of a sweep that has one on its own."""
    one = content.pop("reference", {})
    return {**content, "references": {**({one["key"]: one} if one else {}), **content.get("references", {})}}


def _read_record(kind: type[R], path: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> R:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist: {path.parent} is not a sweep's storage.") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}.") from None
    try:
        return kind(**change(content))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise StorageError(f"{path} is damaged, or of another version of Bitfront.") from None
