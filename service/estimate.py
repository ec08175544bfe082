"""Device-hours of a sweep's trials before it runs: from recorded trials like them, or from a few steps here."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

from service.combinations import Surveyed, combinations
from service.plan import Estimate, count
from service.records import REFERENCES, SweepStore
from service.spec import SweepSpec, load_spec
from trainables import api
from trainables.api import ReferenceRecord
from trainables.errors import BitfrontError


def estimates_of(spec: SweepSpec, surveyed: Surveyed) -> tuple[list[Estimate], str]:
    """For each combination the hours of a trial and of its reference, and where they are known from.

    Steps are timed only where something is not known already.
    """
    resources, storage = spec.resources, Path(spec.storage.path)
    keys = [one.config.reference_key for one, _ in surveyed]
    trained = {key for key in keys if ReferenceRecord.find(storage / REFERENCES, key)}
    known = recorded_hours(storage, spec)
    unknown = [one.config for one, _ in surveyed if not known or one.config.reference_key not in trained]
    threads, workers = resources.cpus_per_worker, resources.workers
    times = dict(zip(map(id, unknown), api.times(unknown, threads=threads, workers=workers), strict=True))
    found = []
    for (one, survey), key in zip(surveyed, keys, strict=True):
        timed, reference_hours = times.get(id(one.config)), 0.0
        if timed and key not in trained:
            reference_hours = api.reference_hours(one.config, survey, timed, workers=workers)
            # Another combination may need the same one.
            trained.add(key)
        hours = known[0] if known else api.trial_hours(one.config, survey, times[id(one.config)], workers=workers)
        found.append(Estimate(combination=one, survey=survey, hours=hours, reference_hours=reference_hours))
    return found, known[1] if known else "measured on one step here"


def recorded_hours(storage: Path, spec: SweepSpec) -> tuple[float, str] | None:
    """Median device-hours of finished trials like those of `spec` in the same storage, and which they are.

    Alike are trials of equal network, data, method, epochs and resources of a worker. Folders that cannot be read, or
    were written by another version, do not count.
    """
    hours: list[float] = []
    sweeps: list[str] = []
    for path in sorted(storage.glob("*/sweep.json")):
        found = _hours_in(path.parent, spec)
        hours += found
        sweeps += [path.parent.name] if found else []
    if not hours:
        return None
    where = f"sweep {sweeps[0]!r}" if len(sweeps) == 1 else f"{len(sweeps)} sweeps, the last {sweeps[-1]!r}"
    return statistics.median(hours), f"from {count(len(hours), 'trial')} of {where}"


def _hours_in(folder: Path, spec: SweepSpec) -> list[float]:
    store = SweepStore(folder)
    try:
        facts = store.sweep().facts
        # Reading a YAML takes far longer than these two words.
        if (facts.get("network"), facts.get("method")) != (", ".join(spec.names("network")), spec.method_name):
            return []
        if _kind(load_spec(folder / "spec.yaml")) != _kind(spec):
            return []
        done = [trial.metrics for trial in store.trials() if trial.state == "done"]
    except (BitfrontError, OSError, ValueError, TypeError):
        return []
    return [metrics["device_hours"] for metrics in done if metrics.get("device_hours", 0.0) > 0]


def _kind(spec: SweepSpec) -> tuple[object, ...]:
    """What the length of a trial depends on; of epochs that the space varies, their range."""
    config, resources = spec.trial_config(spec.example_settings()), spec.resources
    epochs = {"method.epochs": config.method.epochs, "finetune.epochs": config.finetune.epochs}
    return (
        [(one.config.network, dataclasses.replace(one.config.data, download=False)) for one in combinations(spec)],
        spec.method_name,
        *(spec.space.get(name, number) for name, number in epochs.items()),
        (resources.workers, resources.cpus_per_worker, resources.gpus_per_worker),
    )
