"""Where a sweep stands, as one thing: counted from its storage, whoever asks, whether its driver lives or not."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service import driver
from service.baseline import Baseline
from service.front import find_front
from service.pareto import METRICS
from service.records import STATES, SweepRecord, SweepStore, TrialRecord

SweepState = Literal["running", "finished", "stopped", "stale"]
"""`stale`: its driver is gone without a word, killed or lost with its machine; `bitfront resume` goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A sweep at one moment."""

    name: str
    kind: Literal["search", "finetune"]
    """`finetune`: a promotion."""
    state: SweepState
    end: str
    """Why it is not running, where it said so."""
    owner: str
    created_ms: int
    trials_planned: int
    trials_by_state: Mapping[str, int]
    """Every state, and `stale`: running when the driver was lost. Trials not suggested yet are pending."""
    failures: Mapping[str, int]
    """Failed trials by class."""
    front_size: int
    accuracy: str
    """The metric that tells how good its policies are: top1, map or ap."""
    best_accuracy: float | None
    """Of the policies within the constraints, percent."""
    best_top1: float | None
    """The same in top-1; None of detectors."""
    device_hours: float
    """The trials' so far: neither the references' nor the random policy's."""
    random_policy_hours: float
    """Device-hours of the gallery's random policy; 0 while there is none."""
    seconds_left: float | None
    """At the pace so far; None where that says nothing."""
    next_command: str
    """What goes on with it."""


def standing(store: SweepStore) -> Standing:
    """Counts everything anew."""
    sweep, trials, alive = store.sweep(), store.trials(), driver.alive(store.folder)
    counts = dict.fromkeys((*STATES, "stale"), 0)
    for trial in trials:
        counts["stale" if trial.state == "running" and not alive else trial.state] += 1
    counts["pending"] += sweep.total_trials - len(trials)
    found = find_front(trials, sweep)
    failed = [trial.failure or "error" for trial in trials if trial.state == "failed"]
    complete = sum(trial.final for trial in trials) >= sweep.total_trials
    return Standing(
        name=store.folder.name,
        kind=sweep.kind,
        state=_state(sweep, alive=alive, complete=complete),
        end=sweep.end,
        owner=sweep.owner,
        created_ms=sweep.created_ms,
        trials_planned=sweep.total_trials,
        trials_by_state=counts,
        failures={kind: failed.count(kind) for kind in sorted(set(failed))},
        front_size=len(found.members),
        accuracy=found.accuracy.name,
        best_accuracy=found.best_accuracy,
        best_top1=found.best_top1,
        device_hours=spent_hours(store),
        random_policy_hours=kept.metrics.get("device_hours", 0.0) if (kept := Baseline.find(store.folder)) else 0.0,
        seconds_left=_seconds_left(sweep, trials) if alive else None,
        next_command=next_command(sweep),
    )


def _state(sweep: SweepRecord, *, alive: bool, complete: bool) -> SweepState:
    if alive:
        return "running"
    if not sweep.ended_ms:
        return "stale"
    # One that was extended since, or has trials to run again, has something left to do.
    return "finished" if sweep.end == "finished" and complete else "stopped"


def next_command(sweep: SweepRecord) -> str:
    """What goes on with a sweep that is not running: a limit has to be raised first."""
    for limit, example in (("wall_time", "2d"), ("device_hours", "100")):
        if sweep.end.startswith(f"reached limits.{limit}"):
            if sweep.kind == "finetune":
                return f"promote SWEEP --to TEMPLATE --set limits.{limit}={example}"
            return f"extend {sweep.name} --{limit.replace('_', '-')} {example}"
    return f"resume {sweep.name}"


def spent_hours(store: SweepStore) -> float:
    """Device-hours of all epochs that the trials have reported, those of attempts that were cut off included."""
    return sum(store.spent_hours(trial.trial_id) for trial in store.trials())


def _seconds_left(sweep: SweepRecord, trials: list[TrialRecord]) -> float | None:
    ended = [trial for trial in trials if trial.final and trial.started_ms]
    if not ended:
        return None
    mean_s = sum(trial.ended_ms - trial.started_ms for trial in ended) / 1000 / len(ended)
    running = max(1, sum(trial.state == "running" for trial in trials))
    return mean_s * (sweep.total_trials - len(ended)) / running


def as_json(found: Standing) -> dict[str, Any]:
    """For programs."""
    return dataclasses.asdict(found)


def as_text(found: Standing) -> str:
    """For people, in a few lines."""
    counts = [f"{count} {state}" for state, count in found.trials_by_state.items() if count]
    what = "promotion, " if found.kind == "finetune" else ""
    lines = [f"{found.name}: {what}{found.state}" + (f" ({found.end})" if found.end not in ("", "finished") else "")]
    lines.append(f"  trials   {', '.join(counts)} of {found.trials_planned}")
    if found.failures:
        lines.append(f"  failed   {', '.join(f'{count} {kind}' for kind, count in found.failures.items())}")
    best = "" if found.best_accuracy is None else f", best {METRICS[found.accuracy].told(found.best_accuracy)}"
    policies = "policy" if found.front_size == 1 else "policies"
    lines.append(f"  front    {found.front_size} {policies}{best}")
    left = "" if not found.seconds_left else f", about {clock(found.seconds_left)} left"
    lines.append(f"  spent    {found.device_hours:.3g} device-hours{left}")
    if found.random_policy_hours:
        lines.append(f"           {found.random_policy_hours:.3g} device-hours besides, for the random policy")
    if found.state == "stale":
        lines.append(f"  Its driver is gone; go on with: bitfront resume {found.name}")
    elif found.state == "stopped":
        lines.append(f"  Go on with: bitfront {found.next_command}")
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:40."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def age(created_ms: int) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, time.time() - created_ms / 1000)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"
