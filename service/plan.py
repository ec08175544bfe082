"""What a sweep will take, before it is run: reach, resources, hours, money, and which limits that breaks.

A pure decision on numbers that others measured (`service.estimate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, assert_never

from service.combinations import Combination, typical_config
from service.contribution import ENOUGH, rates
from service.settings import ResourcesConfig, parse_duration
from service.space import Choice, Conditional, Domain, Float, Int, Range, range_of
from service.spec import SweepSpec
from trainables.api import Survey

START_HOURS = {"process": 2.5 / 3600, "train": 15 / 3600}
"""From a trial's turn to its first step: processes, imports, data."""
ROUNDING = 1e-9
"""What floats may lack to a whole number."""


class Span(NamedTuple):
    """At least and at most; equal where nothing is stopped early."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What is known of the trials with one combination of network and data."""

    combination: Combination
    survey: Survey
    hours: float
    """Device-hours of a trial that runs to its end, its other settings in the middle of the space; above 0."""
    reference_hours: float
    """Device-hours of the full-precision reference; 0 where it is trained, or another combination's is the same."""
    finetune_hours: float = 0.0
    """Device-hours of a finetune alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is known of a sweep before it runs. Hours are estimates."""

    spec: SweepSpec
    estimates: tuple[Estimate, ...]
    """One for each combination of network and data."""
    concurrency: int
    """Trials that run at once: as many as are asked for and fit; 0 where none fits."""
    hours_per_trial: float
    """Device-hours of a trial that runs to its end, mean over the combinations."""
    hours_from: str
    """Where they are known from."""
    reference_hours: float
    """Device-hours of all full-precision references that are not trained yet."""
    random_hours: float
    """Device-hours of the gallery's random policy; 0 where it has none."""
    device_hours: Span
    """Of all trials and references, and of the random policy."""
    wall_hours: Span
    limits: Mapping[str, str]
    """Those that are set, as they are written."""
    trials_within_limits: int
    """Trials that run to their end before a limit is reached."""
    warnings: tuple[str, ...]
    """What will not go as it is written."""
    problems: tuple[str, ...]
    """Why the sweep cannot do a single trial; none where it can."""
    launches: tuple[datetime, ...] = ()
    """When its schedule is due next."""

    @property
    def space(self) -> dict[str, str]:
        """Varied settings and their ranges, as people read them."""
        return {name: readable(domain) for name, domain in self.spec.space.items()}

    @property
    def money(self) -> Span:
        """In the spec's currency; 0 where no price is given."""
        return Span(*(hours * self.spec.resources.price_per_device_hour for hours in self.device_hours))


class _Limit(NamedTuple):
    """A limit that is set, with what counts towards it."""

    setting: str
    text: str
    needed: float
    """Hours of all trials; of one for a limit of each."""
    trials: int
    """Trials that fit."""
    first: float
    """Hours until the first trial has ended."""
    beyond: float = 0.0
    """Hours by which trials and random policy together exceed it; of a limit that also holds for the latter."""


def make_plan(
    spec: SweepSpec,
    estimates: Sequence[Estimate],
    *,
    cpus: float,
    gpus: float,
    hours_from: str,
    launches: Sequence[datetime] = (),
) -> Plan:
    """The plan of `spec` on a machine or a cluster with so many CPUs and GPUs.

    Args:
        estimates: one for each of `combinations(spec)`.
        hours_from: such as "measured on one step here".
        launches: when the schedule is due next.
    """
    resources = spec.resources
    fitting = trials_at_once(resources, cpus=cpus, gpus=gpus)
    concurrency = min(resources.concurrency, spec.trials, fitting)
    reference_hours = sum(one.reference_hours for one in estimates)
    hours_per_trial = sum(one.combination.share * one.hours for one in estimates)
    untrained = sum(one.reference_hours > 0 for one in estimates)
    wall = _wall(spec, reference_hours, untrained, hours_per_trial=hours_per_trial, concurrency=concurrency)
    work = _work_if_stopped(spec)
    random_hours = _random_hours(spec, estimates)
    besides = reference_hours + random_hours
    device_hours = Span(*(besides + trials * hours_per_trial for trials in (work, spec.trials)))
    after = random_hours / resources.workers + wall.start if random_hours else 0.0
    longest = wall.all(spec.trials)
    limits = _limits(spec, wall, estimates, hours_per_trial)
    warnings, problems = _judge(limits, spec, fitting=fitting, cpus=cpus, gpus=gpus)
    return Plan(
        spec=spec,
        estimates=tuple(estimates),
        concurrency=concurrency,
        hours_per_trial=hours_per_trial,
        hours_from=hours_from,
        reference_hours=reference_hours,
        random_hours=random_hours,
        device_hours=device_hours,
        wall_hours=Span((wall.stopped(spec.trials, work) if work < spec.trials else longest) + after, longest + after),
        limits={limit.setting: limit.text for limit in limits},
        trials_within_limits=min([spec.trials, *(limit.trials for limit in limits)]) if fitting else 0,
        warnings=tuple(warnings),
        problems=tuple(problems),
        launches=tuple(launches),
    )


def _random_hours(spec: SweepSpec, estimates: Sequence[Estimate]) -> float:
    """Of the gallery's random policy: a finetune on the combination of whichever trial is the knee."""
    if not (spec.gallery.random and spec.gallery.images):
        return 0.0
    return sum(one.combination.share * one.finetune_hours for one in estimates)


def trials_at_once(resources: ResourcesConfig, *, cpus: float, gpus: float) -> int:
    """Trials for which there are CPUs and GPUs. Workers with less than a GPU share one, but never use parts of two."""
    workers = math.floor(cpus / resources.cpus_per_worker + ROUNDING)
    share = resources.gpus_per_worker
    if 0 < share < 1:
        workers = min(workers, math.floor(gpus + ROUNDING) * math.floor(1 / share + ROUNDING))
    elif share:
        workers = min(workers, math.floor(gpus / share + ROUNDING))
    return workers // resources.workers


def readable(domain: Domain) -> str:
    """A range as people read it, with its condition."""
    conditions = domain.when if isinstance(domain, Conditional) else ()
    when = [f"{name} is {' or '.join(map(str, values))}" for name, values in conditions]
    return _readable(range_of(domain)) + (f", where {' and '.join(when)}" if when else "")


def _readable(domain: Range) -> str:
    match domain:
        case Int() as found:
            return f"{found.low} to {found.high}, whole numbers"
        case Float() as found:
            return f"{found.low:g} to {found.high:g}{', log scale' if found.log else ''}"
        case Choice() as found:
            return ("one of " if len(found.values) > 1 else "") + ", ".join(str(value) for value in found.values)
        case _ as unknown:
            assert_never(unknown)


def _work_if_stopped(spec: SweepSpec) -> float:
    """Whole trials' worth of work if each trial that can be stopped is, at the first rung. The first one never is.
    A share of the epochs is what its rule aims at; of few trials the first one and an epoch of each other are more."""
    config, rule = typical_config(spec), spec.early_stopping
    epochs = config.method.search_epochs + config.finetune.epochs
    if rule.name == "hypervolume":
        return max(rule.share * spec.trials, 1 + (spec.trials - 1) / epochs)
    if rule.name == "none" or rule.min_epochs >= epochs:
        return float(spec.trials)
    return 1 + (spec.trials - 1) * rule.min_epochs / epochs


def _few_to_compare(spec: SweepSpec) -> list[str]:
    """A warning where most trials are judged before anything can be foretold."""
    config, rule = typical_config(spec), spec.early_stopping
    if rule.name != "hypervolume" or not config.method.search_epochs:
        return []
    aimed = rates(rule.share, search=config.method.search_epochs, finetune=config.finetune.epochs)
    finetuned = round(spec.trials * aimed.search)
    if finetuned >= 2 * ENOUGH:
        return []
    return [
        f"early_stopping: about {finetuned} of {spec.trials} trials come to their finetune. Until {ENOUGH} have, a "
        "task risk after one epoch decides; a sweep this small may keep no more than one of fewer trials, none stopped."
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wall:
    """Wall time, hours: the references one by one, then rounds of as many trials as run at once."""

    reference: float
    start: float
    """Before each trial."""
    run: float
    """Of a trial that runs to its end."""
    concurrency: int

    def first(self) -> float:
        """Until the first trial has ended."""
        return self.reference + self.start + self.run

    def all(self, trials: int) -> float:
        """Until so many trials have ended, nothing stopped."""
        return self.reference + math.ceil(trials / self.concurrency) * (self.start + self.run)

    def stopped(self, trials: int, work: float) -> float:
        """Until so many trials have ended that do the work of `work` whole ones."""
        rest = (trials * self.start + work * self.run) / self.concurrency
        return max(self.first(), self.reference + rest)

    def trials_in(self, hours: float) -> int:
        """Trials that end within so many hours."""
        rounds = math.floor((hours - self.reference) / (self.start + self.run) + ROUNDING)
        return max(0, rounds) * self.concurrency


def _wall(
    spec: SweepSpec, reference_hours: float, untrained: int, *, hours_per_trial: float, concurrency: int
) -> _Wall:
    workers, start = spec.resources.workers, START_HOURS[spec.resources.launch_resolved]
    return _Wall(
        reference=reference_hours / workers + start * untrained,
        start=start,
        run=hours_per_trial / workers,
        concurrency=max(1, concurrency),
    )


def _limits(spec: SweepSpec, wall: _Wall, estimates: Sequence[Estimate], hours_per_trial: float) -> list[_Limit]:
    limits, found = spec.limits, []
    if limits.device_hours:
        hours = limits.device_hours
        fit = math.floor(hours / hours_per_trial + ROUNDING)
        needed = hours_per_trial * spec.trials
        found.append(_Limit("limits.device_hours", f"{hours:g}", needed, fit, hours_per_trial))
    if limits.wall_time:
        hours = parse_duration(limits.wall_time) / 3600
        fit, needed = wall.trials_in(hours), wall.all(spec.trials)
        # The random policy comes last, and takes what the trials leave of the time.
        beyond = needed + _random_hours(spec, estimates) / spec.resources.workers - hours
        found.append(_Limit("limits.wall_time", limits.wall_time, needed, fit, wall.first(), beyond))
    if limits.trial_time:
        hours = parse_duration(limits.trial_time) / 3600
        share = sum(one.combination.share for one in estimates if one.hours / spec.resources.workers <= hours)
        fit, longest = math.floor(spec.trials * share + ROUNDING), max(one.hours for one in estimates)
        found.append(_Limit("limits.trial_time", limits.trial_time, longest / spec.resources.workers, fit, wall.run))
    return found


def _judge(
    limits: Sequence[_Limit], spec: SweepSpec, *, fitting: int, cpus: float, gpus: float
) -> tuple[list[str], list[str]]:
    """Warnings and problems."""
    warnings, problems = [], []
    asked = spec.resources
    if not fitting:
        problems.append(
            f"resources: a trial asks for {count(asked.workers * asked.cpus_per_worker, 'CPU')} and "
            f"{count(asked.workers * asked.gpus_per_worker, 'GPU')}, there are {count(cpus, 'CPU')} and "
            f"{count(gpus, 'GPU')}; ask for fewer."
        )
    elif fitting < min(asked.concurrency, spec.trials):
        warnings.append(
            f"resources.concurrency: {asked.concurrency} trials at once are asked for, "
            f"{count(cpus, 'CPU')} and {count(gpus, 'GPU')} have room for {fitting}."
        )
    warnings += _few_to_compare(spec)
    for limit in limits:
        hours = _in_device_hours if limit.setting == "limits.device_hours" else duration
        if not limit.trials:
            problems.append(
                f"{limit.setting}: the limit is {limit.text}, but the first trial ends after about "
                f"{hours(limit.first)}; allow more, or make trials shorter."
            )
        elif limit.trials < spec.trials:
            taking = "some trials" if limit.setting == "limits.trial_time" else f"{spec.trials} trials"
            warnings.append(
                f"{limit.setting}: the limit is {limit.text}, but {taking} take about "
                f"{hours(limit.needed)}: about {limit.trials} run to their end."
            )
        elif limit.beyond > 0:
            warnings.append(
                f"{limit.setting}: the limit is {limit.text}, and trials and random policy take about "
                f"{hours(limit.beyond)} more: the sweep's page may stay without a random policy."
            )
    return warnings, problems


def duration(hours: float) -> str:
    """A time in its two largest units: 12 s, 3 min 20 s, 1 h 5 min, 2 d 4 h."""
    seconds = max(1, round(hours * 3600))
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    large = next(place for place, (_, size) in enumerate(units) if seconds >= size)
    name, size = units[large]
    if name == "s":
        return f"{seconds} s"
    smaller, small = units[large + 1]
    # Rounded to the smaller unit first, or 59.6 minutes would be left of an hour.
    count, rest = divmod(round(seconds / small), size // small)
    return f"{count} {name} {rest} {smaller}" if rest else f"{count} {name}"


def _in_device_hours(hours: float) -> str:
    return f"{hours:.3g} device-hours"


def count(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"
