"""Device-hours of a sweep's trials before it runs: from recorded trials like them, or from a few steps here."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

from service.combinations import Surveyed, combinations, subject
from service.marks import REFERENCES
from service.plan import Estimate, count
from service.records import SweepStore
from service.spec import SweepSpec, load_spec
from service.working_copy import located
from trainables import api
from trainables.api import ReferenceRecord
from trainables.config import TrialConfig
from trainables.errors import BitfrontError
from trainables.method_config import method_name

MEASURED = "measured on one step here"
SEARCH_LENGTHS = ("epochs", "evaluations", "fraction", "images", "probes", "tune_steps")
"""Settings of methods that say how long a search is."""


def estimates_of(spec: SweepSpec, surveyed: Surveyed) -> tuple[list[Estimate], str]:
    """For each combination the hours of a trial and of its reference, and where they are known from.

    Steps are timed only where something is not known already, and once for all that share a reference and a method.
    """
    resources, storage = spec.resources, located(spec.storage.path)
    keys = [one.config.reference_key for one, _ in surveyed]
    trained = {key for key in keys if ReferenceRecord.find(storage / REFERENCES, key)}
    known, recorded_in = recorded_hours(storage, spec)
    finetunes, _ = recorded_hours(storage, spec, metric="finetune_device_hours") if known else ({}, "")
    unknown: dict[tuple[str, str], TrialConfig] = {}
    for (one, _), key in zip(surveyed, keys, strict=True):
        if _subject(one.config) not in known or key not in trained:
            unknown.setdefault((key, method_name(one.config.method)), one.config)
    threads, workers = resources.cpus_per_worker, resources.workers
    times = dict(zip(unknown, api.times(list(unknown.values()), threads=threads, workers=workers), strict=True))
    found = []
    for (one, survey), key in zip(surveyed, keys, strict=True):
        method, hours, reference_hours = method_name(one.config.method), known.get(_subject(one.config)), 0.0
        finetune_hours = finetunes.get(_subject(one.config), 0.0)
        if key not in trained:
            reference_hours = api.reference_hours(one.config, survey, times[key, method], workers=workers)
            # Another combination may need the same one.
            trained.add(key)
        if hours is None:
            hours = api.trial_hours(one.config, survey, times[key, method], workers=workers)
            finetune_hours = api.finetune_hours(one.config, survey, times[key, method], workers=workers)
        found.append(
            Estimate(
                combination=one,
                survey=survey,
                hours=hours,
                reference_hours=reference_hours,
                finetune_hours=finetune_hours,
            )
        )
    are_known = [_subject(one.config) in known for one, _ in surveyed]
    if all(are_known):
        return found, recorded_in
    return found, f"{recorded_in}, others {MEASURED}" if any(are_known) else MEASURED


def recorded_hours(storage: Path, spec: SweepSpec, *, metric: str = "device_hours") -> tuple[dict[str, float], str]:
    """Median device-hours of finished trials like those of `spec` in the same storage, and which they are.

    By network and data, each trial's own. Alike are trials of equal method, epochs and resources of a worker. Folders
    that cannot be read, or were written by another version, do not count.
    """
    hours: dict[str, list[float]] = {}
    sweeps: list[str] = []
    wanted = {_subject(one.config) for one in combinations(spec)}
    for path in sorted(storage.glob("*/sweep.json")):
        found = [(about, number) for about, number in _hours_in(path.parent, spec, metric) if about in wanted]
        for about, number in found:
            hours.setdefault(about, []).append(number)
        sweeps += [path.parent.name] if found else []
    if not hours:
        return {}, ""
    where = f"sweep {sweeps[0]!r}" if len(sweeps) == 1 else f"{len(sweeps)} sweeps, the last {sweeps[-1]!r}"
    num_trials = sum(map(len, hours.values()))
    medians = {about: statistics.median(numbers) for about, numbers in hours.items()}
    return medians, f"from {count(num_trials, 'trial')} of {where}"


def _hours_in(folder: Path, spec: SweepSpec, metric: str) -> list[tuple[str, float]]:
    """Network and data, and device-hours, of each finished trial of a sweep whose trials are like those of `spec`."""
    store = SweepStore(folder)
    try:
        facts = store.sweep().facts
        # Reading a YAML takes far longer than these two words.
        networks = set(facts.get("network", "").split(", "))
        if facts.get("method") != spec.method_name or not networks.intersection(spec.names("network")):
            return []
        stored = load_spec(folder / "spec.yaml")
        if _kind(stored) != _kind(spec):
            return []
        done = [trial for trial in store.trials() if trial.state == "done"]
        found = [(_subject(stored.trial_config(t.settings)), t.metrics.get(metric, 0.0)) for t in done]
    except (BitfrontError, OSError, ValueError, TypeError):
        return []
    return [(about, hours) for about, hours in found if hours > 0]


def _subject(config: TrialConfig) -> str:
    """Network, data and method of a trial, wherever the data come from."""
    return subject(dataclasses.replace(config, data=dataclasses.replace(config.data, download=False)))


def _kind(spec: SweepSpec) -> tuple[object, ...]:
    """What the length of a trial depends on; of lengths that the space varies, their range."""
    resources = spec.resources
    searches = [
        (method_name(config.method), *((spec.space.get(f"method.{key}"), value) for key, value in _lengths(config)))
        for config in spec.example_configs()
    ]
    finetunes = spec.space.get("finetune.epochs", spec.example_configs()[0].finetune.epochs)
    return (
        *searches,
        finetunes,
        (resources.workers, resources.cpus_per_worker, resources.gpus_per_worker),
    )


def _lengths(config: TrialConfig) -> list[tuple[str, object]]:
    return [(key, getattr(config.method, key)) for key in SEARCH_LENGTHS if hasattr(config.method, key)]
