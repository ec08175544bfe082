"""Promotions: policies of a sweep's front become finetunes by one recipe, each policy once.

A promotion is a sweep in the same storage, named by its template, whose trials are the policies (`service.promoted`).
Its storage says what has been promoted, so that promoting again adds only what is new.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service import driver
from service.files import write_text
from service.front import Front, find_front
from service.promoted import Source, promoted_id, save_sources, sources_of
from service.promotion_rules import select
from service.records import POLICY_FILE, SweepRecord, SweepStore, TrialRecord
from service.revision import revision, version
from service.rules import Gates, Rule
from service.spec import differences
from service.sweeps import RESERVED, list_sweeps, refresh
from service.template import Template, load_template
from service.working_copy import Place
from trainables.errors import ConfigError, StorageError, did_you_mean
from trainables.policy_file import PolicyRecord

TEMPLATE_FILE = "spec.yaml"
Standing = Literal["new", "waiting", "running", "finetuned", "failed", "diverged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A policy that a rule has chosen."""

    record: PolicyRecord
    sources: tuple[Source, ...]
    """The trials of the sweep that found it, the chosen one first."""
    standing: Standing = "new"
    """In the promotion: `waiting` to be finetuned, or to go on; `failed` ones are run again by `rerun-failed`, and
    `diverged` is a result of the recipe."""
    accuracy: float | None = None
    """On the target, where it is finetuned, percent."""

    @property
    def trial_id(self) -> str:
        """Of the promotion's trial."""
        return promoted_id(self.record.policy.hash)


def candidates(
    store: SweepStore, rule: Rule, gates: Gates, *, trials: Sequence[str] = ()
) -> tuple[list[Candidate], list[str]]:
    """The policies that are to be promoted, and of members of the front that a gate holds back why.

    Args:
        store: of the sweep.
        rule: chooses among the front's members that pass the gates.
        gates: pass them all, or only the named trials.
        trials: promote the policies of these instead, on the front or not: numbers or ids.

    Raises ConfigError for trials that are not, StorageError for policies that cannot be read.
    """
    sweep = store.sweep()
    if sweep.kind != "search":
        raise ConfigError(f"{sweep.name} is a promotion itself; promote the sweep that found its policies.")
    found = find_front(store.trials(), sweep)
    named = {trial.trial_id: trial for trial in (_named(found, name, sweep.name) for name in trials)}
    offered = list(named.values() if trials else found.members)
    held = [f"{trial.trial_id}: {gates.reason(trial.metrics)}" for trial in offered if gates.reason(trial.metrics)]
    chosen = [t for t in offered if not gates.reason(t.metrics)] if trials else select(rule, gates, found)
    by_hash: dict[str, list[TrialRecord]] = {}
    for trial in chosen:
        by_hash.setdefault(trial.policy_hash, []).append(trial)
    for trial in found.done:
        if trial.policy_hash in by_hash and trial not in by_hash[trial.policy_hash]:
            by_hash[trial.policy_hash].append(trial)
    storage = str(Place.of(store.folder.parent.resolve()))
    return [
        Candidate(
            record=store.policy(finders[0].trial_id),
            sources=tuple(
                Source(
                    sweep=sweep.name,
                    sweep_id=sweep.sweep_id,
                    storage=storage,
                    trial=one.trial_id,
                    metrics=one.metrics,
                )
                for one in finders
            ),
        )
        for finders in by_hash.values()
    ], held


def _named(found: Front, name: str, sweep: str) -> TrialRecord:
    for trial in found.done:
        if name in (trial.trial_id, str(trial.number)):
            return trial
    known = [trial.trial_id for trial in found.done]
    hint = did_you_mean(name, known) if known else "; none is"
    raise ConfigError(f"--trial {name}: {sweep} has no finished trial of that name{hint}.")


def standing_of(candidate: Candidate, promotion: SweepStore | None, *, accuracy: str) -> Candidate:
    """The candidate with where it stands in the promotion; None where that has not begun."""
    if promotion is None or not (promotion.trial_folder(candidate.trial_id) / "trial.json").exists():
        return candidate
    trial = promotion.trial(candidate.trial_id)
    if trial.state == "done":
        return dataclasses.replace(candidate, standing="finetuned", accuracy=trial.metrics.get(accuracy))
    if trial.final:
        return dataclasses.replace(candidate, standing="diverged" if trial.state == "diverged" else "failed")
    running = trial.state == "running" and driver.alive(promotion.folder)
    return dataclasses.replace(candidate, standing="running" if running else "waiting")


def find_promotion(template: Template, storage: Path) -> SweepStore | None:
    """The promotion of the template's name and recipe; None where there is none yet.

    Raises StorageError where the name is a sweep's, or another recipe's, or where the recipe has another name already:
    the same policy would be finetuned twice.
    """
    folder = storage / template.name
    if template.name in RESERVED:
        raise template.refuse(("name",), f"name is {template.name!r}, which the storage uses itself; choose another")
    refresh(storage, template.name)
    if folder.exists():
        store = SweepStore.open(folder)
        if store.sweep().kind != "finetune":
            raise template.refuse(("name",), f"name is {template.name!r}, as a sweep in {storage} is; choose another")
        changed = differences(stored_template(store).recipe, template.recipe)
        if changed:
            lines = "\n".join(f"  {line}" for line in changed)
            raise StorageError(
                f"{folder} holds a promotion by another recipe. What differs, there -> here:\n{lines}\n"
                f"Give this one another name, or undo the change."
            )
        return store
    for store in list_sweeps(storage):
        if store.sweep().kind == "finetune" and store.sweep().spec_hash == template.recipe_hash:
            raise template.refuse(
                ("name",),
                f"name is {template.name!r}, but the promotion {store.folder.name!r} has the very same recipe; use "
                f"that name, so that no policy is finetuned twice, or change the recipe (its seed, for example)",
            )
    return None


def stored_template(store: SweepStore) -> Template:
    """The template by which a promotion was last begun."""
    return load_template(store.folder / TEMPLATE_FILE)


def enrol(template: Template, storage: Path, chosen: Sequence[Candidate], *, now_ms: int) -> SweepStore:
    """The promotion, with every candidate among its trials; what was there stays as it is, but learns who found it.

    Raises StorageError where another process runs the promotion.
    """
    with _alone_in(storage):
        store = find_promotion(template, storage)
        if store is None:
            store = SweepStore.create(storage, record_of(template, now_ms=now_ms), spec_text=template.text)
    with driver.hold(store.folder):
        # Limits and resources may be others than last time.
        if (store.folder / TEMPLATE_FILE).read_text() != template.text:
            write_text(store.folder / TEMPLATE_FILE, template.text)
        for candidate in chosen:
            _add(store, candidate)
        trials = store.trials()
        networks = dict.fromkeys(store.policy(trial.trial_id).policy.network for trial in trials)
        sweep = store.sweep()
        facts = {**sweep.facts, "network": ", ".join(networks)}
        store.save_sweep(dataclasses.replace(sweep, total_trials=len(trials), facts=facts))
    return store


@contextlib.contextmanager
def _alone_in(storage: Path) -> Iterator[None]:
    """Two that begin promotions by one recipe under different names come one after the other."""
    with (storage / ".promote.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _add(store: SweepStore, candidate: Candidate) -> None:
    folder = store.trial_folder(candidate.trial_id)
    known = sources_of(folder)
    fresh = [source for source in candidate.sources if _key(source) not in {_key(one) for one in known}]
    if fresh or not known:
        save_sources(folder, (*known, *fresh))
    if (folder / "trial.json").exists():
        if store.policy(candidate.trial_id).policy.hash != candidate.record.policy.hash:
            raise StorageError(
                f"{folder} belongs to another policy whose hash begins alike; promote into another name."
            )
        return
    write_text(folder / POLICY_FILE, candidate.record.to_json())
    first = candidate.sources[0]
    settings = {"policy": candidate.record.policy.hash[:12], "found_by": first.name}
    store.plan_trial(candidate.trial_id, number=len(store.trials()), settings=settings)


def _key(source: Source) -> tuple[str, str]:
    return source.sweep_id, source.trial


def record_of(template: Template, *, now_ms: int) -> SweepRecord:
    """What a new promotion's own record says."""
    data = template.sections["data"]
    name = data.name if template.task == "classification" else f"{data.format} {Path(data.root).name}"
    return SweepRecord(
        name=template.name,
        kind="finetune",
        spec_hash=template.recipe_hash,
        facts={"task": template.task, "network": "", "data": name, "recipe": template.recipe_hash[:12]},
        total_trials=0,
        created_ms=now_ms,
        objectives=template.objectives,
        workers=template.resources.workers,
        owner=template.owner,
        tags=template.tags,
        description=template.description,
        revision=revision(Path.cwd()),
        version=version(),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a promotion will do, before it does it."""

    name: str
    candidates: tuple[Candidate, ...]
    held: tuple[str, ...]
    """Members of the front that did not pass a gate, with the reason."""
    hours: Mapping[str, float]
    """Estimated device-hours of each policy that is still to be finetuned, by trial."""
    slots: int
    """Finetunes that run at once."""
    workers: int
    """Devices of each."""
    price: float
    """Of a device-hour; 0: not known."""
    has_reference: bool
    """Whether a full-precision network on the target is trained first, unless it is there."""
    currency: str

    @property
    def launched(self) -> tuple[Candidate, ...]:
        """Those that are finetuned now."""
        return tuple(one for one in self.candidates if one.standing in ("new", "waiting"))

    @property
    def device_hours(self) -> float:
        """Of all that is launched."""
        return sum(self.hours[one.trial_id] for one in self.launched)

    @property
    def wall_hours(self) -> float:
        """Until the last has ended, finetunes being handed out in order."""
        free = [0.0] * self.slots
        for one in self.launched:
            free[free.index(min(free))] += self.hours[one.trial_id] / self.workers
        return max(free)
