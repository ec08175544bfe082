"""A sweep's own storage: the one place that says where the sweep stands.

    <storage>/<sweep>/
        spec.yaml                     the sweep as its author wrote it
        sweep.json                    name, hash of the spec, when it began and ended, trials planned
        trials/<trial>/trial.json     number, settings, when it began
                       history.jsonl  a line for each finished epoch
                       policy.json, bits.png; error.txt of a failed trial
                       result.json    written last: a trial with a result is finished, for good
        front.json, front.md, front.html
    <storage>/references/             the full-precision references, shared by the sweeps
    <storage>/mlflow.db, artifacts/   the embedded tracking store, a mirror

Files appear whole or not at all; a finished trial is never written again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainables.errors import StorageError
from trainables.policy import PolicyRecord
from trainables.report import EpochReport

State = Literal["running", "done", "diverged", "failed"]
REFERENCES = "references"
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """A trial as the storage knows it."""

    trial_id: str
    number: int
    """In order of suggestion, from 0."""
    state: State
    settings: Mapping[str, Any]
    """What the space gave this trial."""
    started_ms: int
    ended_ms: int = 0
    """0 while running."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Empty unless done."""
    policy_hash: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRecord:
    """A sweep as the storage knows it."""

    name: str
    spec_hash: str
    facts: Mapping[str, str]
    """What tells this sweep from others: network, data, method, sampler …"""
    total_trials: int
    created_ms: int
    ended_ms: int = 0
    """0 until the sweep has been closed."""
    reference: Mapping[str, Any] = field(default_factory=dict)
    """The full-precision reference's record, once it is known."""
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    @property
    def sweep_id(self) -> str:
        """Unique among all sweeps, also when a name is used again elsewhere."""
        return f"{self.name}@{self.created_ms}"


class SweepStore:
    """Reads and writes one sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, storage: Path, sweep: SweepRecord, *, spec_text: str) -> SweepStore:
        """A new folder for the sweep; a name that is taken gets -2, -3 … so that nothing finished is lost."""
        try:
            storage.mkdir(parents=True, exist_ok=True)
            folder = _new_folder(storage, sweep.name)
            (folder / "trials").mkdir()
        except OSError as error:
            raise StorageError(f"storage.path: {storage} cannot be written: {error.strerror}.") from None
        store = cls(folder)
        write_text(folder / "spec.yaml", spec_text)
        store.save_sweep(dataclasses.replace(sweep, name=folder.name))
        return store

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
        return _read_record(SweepRecord, self.folder / "sweep.json")

    def save_sweep(self, sweep: SweepRecord) -> None:
        """Replaces the sweep's own record."""
        write_json(self.folder / "sweep.json", dataclasses.asdict(sweep))

    def trial_folder(self, trial_id: str) -> Path:
        """The trial's folder; an id that could leave the sweep's folder is refused."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", trial_id):
            raise StorageError(f"{trial_id!r} is not a trial's name: letters, digits, '_', '-' and '.' only.")
        return self.folder / "trials" / trial_id

    def start_trial(self, trial_id: str, *, number: int, settings: Mapping[str, Any], now_ms: int) -> None:
        """Notes that a trial began; the history of an attempt that was cut off is dropped."""
        folder = self.trial_folder(trial_id)
        if (folder / "result.json").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history.jsonl").unlink(missing_ok=True)
        begun = TrialRecord(trial_id=trial_id, number=number, state="running", settings=settings, started_ms=now_ms)
        write_json(folder / "trial.json", dataclasses.asdict(begun))

    def append_epoch(self, trial_id: str, epoch: EpochReport, *, now_ms: int) -> None:
        """Adds a line to the trial's history."""
        line = json.dumps({"time_ms": now_ms, **dataclasses.asdict(epoch)}, allow_nan=False)
        with (self.trial_folder(trial_id) / "history.jsonl").open("a") as history:
            history.write(line + "\n")

    def finish_trial(self, record: TrialRecord) -> None:
        """Writes the trial's result, unless it has one: the first is kept."""
        path = self.trial_folder(record.trial_id) / "result.json"
        if not path.exists():
            write_json(path, dataclasses.asdict(record))

    def save_policy(self, trial_id: str, record: PolicyRecord) -> None:
        """Writes the trial's policy file."""
        write_text(self.trial_folder(trial_id) / "policy.json", record.to_json())

    def policy(self, trial_id: str) -> PolicyRecord:
        """Reads the trial's policy file."""
        return PolicyRecord.load(self.trial_folder(trial_id) / "policy.json")

    def result(self, trial_id: str) -> TrialRecord | None:
        """The finished trial's record, None while it has none."""
        path = self.trial_folder(trial_id) / "result.json"
        return _read_record(TrialRecord, path) if path.exists() else None

    def trials(self) -> list[TrialRecord]:
        """All trials that began, by number."""
        found = []
        for folder in (self.folder / "trials").iterdir():
            if (folder / "result.json").exists():
                found.append(_read_record(TrialRecord, folder / "result.json"))
            elif (folder / "trial.json").exists():
                found.append(_read_record(TrialRecord, folder / "trial.json"))
        return sorted(found, key=lambda record: record.number)

    def history(self, trial_id: str) -> list[dict[str, Any]]:
        """The trial's epochs: time_ms, stage, epoch, epochs, metrics. A line cut off by a crash does not count."""
        path = self.trial_folder(trial_id) / "history.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


def _new_folder(storage: Path, name: str) -> Path:
    for number in range(1, 100_000):
        folder = storage / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise StorageError(f"{storage} holds too many sweeps named {name!r}; choose another name.")


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all, and survives a power cut."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with unfinished.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object of finite numbers, strings and the like."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _read_record(kind: type[R], path: Path) -> R:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist: {path.parent} is not a sweep's storage.") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}.") from None
    try:
        return kind(**content)
    except TypeError:
        raise StorageError(f"{path} is damaged, or of another version of Bitfront.") from None
