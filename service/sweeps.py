"""Sweeps in a storage folder: begun or found again by name, extended, run again, cleaned."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import shutil
from pathlib import Path

from service import driver
from service.combinations import references
from service.marks import NIGHTS, REFERENCES, SWEEP_FILE
from service.merge import read_sweep, reveal
from service.records import NameTakenError, SweepRecord, SweepStore
from service.reference_replica import fetch_samples
from service.replica import replica_of
from service.revision import revision, version
from service.settings import StorageConfig, TrackingConfig
from service.space import points
from service.spec import PROMOTE_FILE, SweepSpec, differences, load_spec
from service.validate import build
from service.varied import section
from service.working_copy import Place, located
from trainables.api import ReferenceRecord
from trainables.errors import ConfigError, StorageError, did_you_mean

TRAIN_FOLDER, TUNE_FOLDER = "train", "tune"
"""Ray's own notes, of no use once its processes are gone."""
RESERVED = (REFERENCES, NIGHTS, "artifacts", "mlflow.db", "schedule")
"""Names in a storage folder that no sweep can have."""


def open_sweep(spec: SweepSpec, *, now_ms: int) -> SweepStore:
    """The folder of the sweep `spec`: a new one, or that of the same sweep begun before.

    Raises StorageError that says what differs where the name belongs to another sweep.
    """
    storage = _storage(spec)
    folder = storage / spec.name
    if spec.name in RESERVED:
        raise ConfigError(f"name is {spec.name!r}, which the storage uses itself; choose another.")
    refresh(storage, spec.name)
    if not folder.exists():
        with contextlib.suppress(NameTakenError):
            beside = {PROMOTE_FILE: spec.promotion.text} if spec.promotion else {}
            record = record_of(spec, now_ms=now_ms)
            return SweepStore.create(storage, record, spec_text=spec.text, beside=beside)
    store = SweepStore.open(folder)
    if store.sweep().kind != "search":
        raise StorageError(f"{folder} holds a promotion of this name; give the sweep another one.")
    old = load_spec(folder / "spec.yaml")
    changed = differences(old.identity, spec.identity)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        only_more = all(line.startswith("trials:") for line in changed) and spec.trials > store.sweep().total_trials
        hint = f"or run more of the same with: bitfront extend {spec.name} --trials {spec.trials}" if only_more else ""
        raise StorageError(
            f"{folder} holds another sweep of this name. What differs, there -> here:\n{lines}\n"
            f"Give this one another name{', ' + hint if hint else ', or undo the change'}."
        )
    return store


def _storage(spec: SweepSpec) -> Path:
    return located(spec.storage.path)


def refresh(storage: Path, name: str) -> None:
    """Of a storage kept as objects: what other machines have pushed of a sweep is here, with its sample images."""
    replica = replica_of(storage)
    if replica is None:
        return
    replica.fetch_sweep(name)
    with contextlib.suppress(StorageError):
        for key in SweepStore(storage / name).sweep().references:
            fetch_samples(replica, storage / REFERENCES / key)


def is_finished(spec: SweepSpec) -> bool:
    """Whether the storage has a sweep of this name that ran to its end."""
    refresh(_storage(spec), spec.name)
    with contextlib.suppress(StorageError):
        return SweepStore(_storage(spec) / spec.name).sweep().end == "finished"
    return False


def is_driven(spec: SweepSpec) -> bool:
    """Whether the storage has a sweep of this name that another process runs."""
    return driver.alive(_storage(spec) / spec.name)


def lacks_reference(spec: SweepSpec) -> bool:
    """Whether a process on this machine, without a GPU, will train a full-precision reference first.

    One with a GPU learns which when its task comes; an import may look before.
    """
    if spec.resources.launch_resolved != "process" or spec.resources.gpus_per_worker:
        return False
    store = _storage(spec) / REFERENCES
    return any(ReferenceRecord.find(store, key) is None for key in references(spec))


def record_of(spec: SweepSpec, *, now_ms: int) -> SweepRecord:
    """What a new sweep's own record says."""
    return SweepRecord(
        name=spec.name,
        spec_hash=spec.hash,
        facts={
            "network": ", ".join(spec.names("network")),
            "data": ", ".join(spec.names("data")),
            "method": spec.method_name,
            "sampler": spec.sampler.name,
            "trials": str(spec.trials),
            "seed": str(spec.seed),
        },
        total_trials=spec.trials,
        created_ms=now_ms,
        objectives=tuple(objective.name for objective in spec.objectives),
        constraints=tuple(str(constraint) for constraint in spec.constraints),
        workers=spec.resources.workers,
        owner=spec.owner,
        tags=spec.tags,
        description=spec.description,
        revision=revision(Path.cwd()),
        version=version(),
    )


def find_sweep(storage: Path, name: str) -> SweepStore:
    """The sweep of this name. Raises StorageError with the names that there are."""
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        refresh(storage, name)
    if not (storage / name / SWEEP_FILE).exists() or "/" in name:
        names = [store.folder.name for store in list_sweeps(storage)]
        if not names:
            raise StorageError(f"{Place.of(storage)} holds no sweep; run one, or give --storage.")
        raise StorageError(f"{Place.of(storage)} holds no sweep {name!r}{did_you_mean(name, names)}.")
    return SweepStore.open(storage / name)


def list_sweeps(storage: Path) -> list[SweepStore]:
    """All sweeps of a storage folder, by the time of their beginning."""
    if not storage.is_dir():
        return []
    replica = replica_of(storage)
    if replica is not None:
        for name in replica.sweep_names():
            replica.fetch_sweep(name)
    found = []
    for path in storage.glob("[!.]*/sweep.json"):
        # One that is damaged, or of another version, is named when somebody asks for it.
        with contextlib.suppress(StorageError):
            store = SweepStore(path.parent)
            found.append((store.sweep().created_ms, path.parent.name, store))
    return [store for _, _, store in sorted(found, key=lambda one: one[:2])]


def stored_spec(store: SweepStore) -> SweepSpec:
    """The spec that a sweep was begun with, and what `extend` has changed since."""
    spec, sweep = load_spec(store.folder / "spec.yaml"), store.sweep()
    return with_extensions(spec, store.folder.parent, sweep)


def stored_tracking(store: SweepStore) -> TrackingConfig:
    """Where the runs of a sweep, or of a promotion, are recorded."""
    source, _ = read_sweep(store.folder / "spec.yaml")
    content = reveal(source, "tracking", section(source, "tracking"))
    source.raise_problems()
    return build(TrackingConfig, content)


def with_extensions(spec: SweepSpec, storage: Path, sweep: SweepRecord) -> SweepSpec:
    """`spec` with the trials and limits that the sweep has now, in the storage where it is."""
    return dataclasses.replace(
        spec,
        trials=sweep.total_trials,
        limits=dataclasses.replace(spec.limits, **sweep.limits),
        storage=StorageConfig(path=str(Place.of(storage))),
    )


def extend(store: SweepStore, *, trials: str, wall_time: str, device_hours: float | None) -> SweepRecord:
    """More trials (`+20`, or 60 in all) or larger limits for a sweep that is not running."""
    with driver.hold(store.folder):
        found = extended(store, trials=trials, wall_time=wall_time, device_hours=device_hours)
        store.save_sweep(found)
        return found


def extended(store: SweepStore, *, trials: str, wall_time: str, device_hours: float | None) -> SweepRecord:
    """What a sweep's record would say after `extend`. Raises ConfigError where these are no trials or limits for it."""
    sweep, spec = store.sweep(), stored_spec(store)
    total = _total(trials, sweep.total_trials)
    if spec.sampler.name == "grid" and total > (num_points := len(points(spec.space))):
        raise ConfigError(f"--trials is {trials}, but the grid has {num_points} points; give no more than that.")
    if device_hours is not None and not math.isfinite(device_hours):
        raise ConfigError(f"--device-hours is {device_hours}; give a positive number, or 0 for no limit.")
    given = {"wall_time": wall_time or None, "device_hours": device_hours}
    limits = {**sweep.limits, **{name: value for name, value in given.items() if value is not None}}
    dataclasses.replace(spec.limits, **limits)  # refuses what is no limit
    return dataclasses.replace(sweep, total_trials=total, limits=limits)


def _total(trials: str, planned: int) -> int:
    if not trials:
        return planned
    number = trials.removeprefix("+")
    if not re.fullmatch("[0-9]{1,9}", number):
        raise ConfigError(f"--trials is {trials!r}; give how many more (+20), or how many in all (60).")
    total = int(number) + (planned if trials.startswith("+") else 0)
    if total < planned:
        raise ConfigError(f"--trials is {trials}, but {planned} are planned already; nothing is taken away.")
    return total


def rerun_failed(store: SweepStore) -> list[str]:
    """Makes the failed trials of a sweep that is not running pending again; their names."""
    with driver.hold(store.folder):
        failed = [trial.trial_id for trial in store.trials() if trial.state == "failed"]
        for trial_id in failed:
            store.reopen_trial(trial_id)
        return failed


def clean(store: SweepStore) -> int:
    """Removes what a sweep that is not running needs no more: Ray's notes, checkpoints of final trials. Bytes freed."""
    with driver.hold(store.folder):
        freed = 0
        for name in (TUNE_FOLDER, TRAIN_FOLDER):
            freed += _size(store.folder / name)
            shutil.rmtree(store.folder / name, ignore_errors=True)
        for trial in store.trials():
            for checkpoint in store.checkpoints(trial.trial_id) if trial.final else ():
                if checkpoint.exists():
                    freed += checkpoint.stat().st_size
                    checkpoint.unlink()
        if store.replica is not None:
            final = [trial.trial_id for trial in store.trials() if trial.final]
            freed = store.replica.clean(store.folder.name, final=final, folders=(TUNE_FOLDER, TRAIN_FOLDER))
        return freed


def remove(store: SweepStore) -> None:
    """Deletes a sweep that is not running, with all that it found; its MLflow runs and the references stay."""
    with driver.hold(store.folder):
        # Out of the list at once, even where deleting is cut off.
        doomed = store.folder.with_name(f".{store.folder.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        if store.replica is not None:
            store.replica.remove(store.folder.name)
        store.folder.rename(doomed)
        shutil.rmtree(doomed)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
