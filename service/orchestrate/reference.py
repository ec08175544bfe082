"""The full-precision references of a sweep, before its first trial: found, or trained on Ray."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray

from service import driver
from service.files import write_text
from service.launched import Launched
from service.orchestrate.carrier import share_reference
from service.orchestrate.failures import failure_of, unwrapped
from service.orchestrate.worker import Science, make_reference
from service.progress import Progress
from service.records import SweepStore
from service.redaction import traceback_of
from service.working_copy import Place
from trainables.api import ReferenceRecord
from trainables.config import BenchConfig
from trainables.errors import BitfrontError, LostError

STOP_POLL_S = 0.5


class StoppedError(Exception):
    """The reference was not trained to its end, because somebody asked the sweep to stop."""


def prepare_references(
    wanted: Mapping[str, BenchConfig], spec: Launched, store: SweepStore, progress: Progress, science: Science
) -> None:
    """Trains each of the references `wanted`, where there is none, and notes it in the sweep's record.

    One after the other, in this order. Raises a BitfrontError, or StoppedError where somebody asks the sweep to stop
    meanwhile; what was trained until then is kept.
    """
    known = dict(store.sweep().references)
    for number, (key, config) in enumerate(wanted.items(), start=1):
        which = f"reference {number} of {len(wanted)}" if len(wanted) > 1 else "reference"
        share_reference(store, key)
        record = ReferenceRecord.find(store.references, key)
        progress.note(f"{which}: {'found' if record else 'training'} {key} …")
        # Where it was found before, this network and this data were checked against each other.
        if record is None or key not in known:
            record = _ensured(spec, config, store, science)
            share_reference(store, key)
        fresh = f"; fresh, for other classes: {', '.join(record.fresh)}" if record.fresh else ""
        progress.note(f"{which}: {record.top1:.2f} % top-1 in full precision{fresh}")
        known[key] = {**dataclasses.asdict(record), "network": config.network.name, "data": _data(config)}
        store.save_sweep(dataclasses.replace(store.sweep(), references=known))


def _data(config: BenchConfig) -> dict[str, Any]:
    """The data as whoever syncs, from whatever folder, can name them."""
    data = dataclasses.asdict(config.data)
    return {**data, "root": str(Path(data["root"]).expanduser().absolute())} if data.get("root") else data


def _ensured(spec: Launched, config: BenchConfig, store: SweepStore, science: Science) -> ReferenceRecord:
    try:
        return _make_reference(spec, config, store, science)
    except StoppedError:
        raise
    except Exception as error:
        raise _reference_error(store, error) from None


def _reference_error(store: SweepStore, error: Exception) -> BaseException:
    """What the user is told; the traceback of what nobody foresaw is kept."""
    meant = unwrapped(error)
    if isinstance(meant, BitfrontError):
        return meant
    path = store.folder / "reference-error.txt"
    write_text(path, traceback_of(error))
    lines = str(error).strip().splitlines() or [""]
    return LostError(
        f"the reference could not be trained: {failure_of(error)}: {type(error).__name__}: {lines[-1][:300]} "
        f"(all of it in {path}); `bitfront resume {store.folder.name}` goes on after its last epoch."
    )


def _make_reference(spec: Launched, config: BenchConfig, store: SweepStore, science: Science) -> ReferenceRecord:
    """In a process of its own, or by as many workers as a trial has; a request to stop ends it."""
    resources = spec.resources
    if resources.launch_resolved == "train":
        from service.orchestrate.train import make_reference_on_workers

        task = ray.remote(**task_options(spec))(make_reference_on_workers)
        made = task.remote(science, config, spec, sweep=Place.of(store.folder))
    else:
        task = ray.remote(**task_options(spec))(make_reference)
        threads = resources.cpus_per_worker
        made = task.remote(science, config, store=Place.of(store.references), threads=threads, tell=silent)
    found: ReferenceRecord = awaited(made, store)
    return found


def task_options(spec: Launched) -> dict[str, Any]:
    """What Ray is asked for one task: a worker's share where it computes itself, nothing where workers do it for it."""
    resources = spec.resources
    needs: dict[str, float] = {"num_cpus": 0}
    if resources.launch_resolved == "process":
        needs = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}
    return {**needs, "max_retries": spec.limits.retries}


def awaited(
    made: ray.ObjectRef[Any],
    store: SweepStore,
    *,
    seconds: float = math.inf,
    meanwhile: Callable[[], object] = lambda: None,
) -> Any:
    """What a task returns; `meanwhile` is called once while it runs.

    Ends it and raises StoppedError on a request to stop, TimeoutError after so many seconds.
    """
    last = time.monotonic() + seconds
    try:
        meanwhile()
        while not ray.wait([made], timeout=STOP_POLL_S)[0]:
            if driver.stop_requested(store.folder):
                raise StoppedError
            if time.monotonic() > last:
                raise TimeoutError
    except BaseException:
        ray.cancel(made, force=True)
        raise
    return ray.get(made)


def silent(numbers: dict[str, Any]) -> None:
    """Nobody listens to these epochs."""
