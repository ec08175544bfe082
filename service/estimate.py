"""Device-hours of a sweep's trials before it runs: from recorded trials like them, or from a few steps here."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

from service.plan import count, typical_config
from service.records import REFERENCES, SweepStore
from service.spec import SweepSpec, load_spec
from trainables import api
from trainables.api import ReferenceRecord, Survey
from trainables.errors import BitfrontError


def estimate_hours(spec: SweepSpec, survey: Survey) -> tuple[float, float, str]:
    """Device-hours of a trial and of the reference (0 where it has been trained), and where they are known from."""
    config, resources, storage = typical_config(spec), spec.resources, Path(spec.storage.path)
    trained = ReferenceRecord.find(storage / REFERENCES, config.reference_key)
    known = recorded_hours(storage, spec)
    if trained and known:
        return known[0], 0.0, known[1]
    times = api.time_steps(config, threads=resources.cpus_per_worker, workers=resources.workers)
    hours, source = known or (
        api.trial_hours(config, survey, times, workers=resources.workers),
        "measured on one step here",
    )
    reference = 0.0 if trained else api.reference_hours(config, survey, times, workers=resources.workers)
    return hours, reference, source


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
        if (facts.get("network"), facts.get("method")) != (spec.network.name, spec.method_name):
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
        spec.network,
        dataclasses.replace(spec.data, download=False),
        spec.method_name,
        *(spec.space.get(name, number) for name, number in epochs.items()),
        (resources.workers, resources.cpus_per_worker, resources.gpus_per_worker),
    )
