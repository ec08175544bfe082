"""Which policies of a front are promoted: a rule, and gates before it. Pure decisions on plain numbers.

    knee                    the member nearest to the ideal point
    all                     every member
    top 3 by top1           the best three by a metric
    within bops_g <= 0.03   every member within a budget
    hypervolume 3           the three members that together dominate most

A rule chooses among the members of the front that pass the gates; a dominated policy is promoted by name alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from service.front import Front
from service.hypervolume import Box
from service.pareto import METRICS, Constraint, knee, parse_constraint
from service.records import TrialRecord
from trainables.errors import ConfigError, did_you_mean

SUBSETS = 20_000
"""Of how many subsets the best is found by trying all; of more, step by step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule, read."""

    kind: Literal["knee", "all", "top", "within", "hypervolume"]
    count: int = 0
    metric: str = ""
    budget: Constraint | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """What a policy must have reached in its search; 0: no gate."""

    min_top1: float = 0.0
    """Percent, on the data set of the search."""
    max_ard: float = 0.0
    """Ranks."""

    def reason(self, trial: TrialRecord) -> str:
        """Why the trial's policy does not pass; empty where it does."""
        top1, ard = trial.metrics["top1"], trial.metrics["ard"]
        if top1 < self.min_top1:
            return f"top-1 {top1:.2f} % is below {self.min_top1:g} %"
        return f"ARD {ard:.3f} is above {self.max_ard:g}" if self.max_ard and ard > self.max_ard else ""


def parse_rule(text: str) -> Rule:
    """Reads a rule. Raises ConfigError with what would be right."""
    words = text.split()
    if text.strip() in ("knee", "all"):
        return Rule(kind="knee" if words[0] == "knee" else "all")
    top = re.fullmatch(r"top\s+([1-9][0-9]{0,5})\s+by\s+(\w+)", text.strip())
    if top:
        if top[2] not in METRICS:
            raise ConfigError(f"rule: unknown metric {top[2]!r}{did_you_mean(top[2], METRICS)}")
        return Rule(kind="top", count=int(top[1]), metric=top[2])
    if words[:1] == ["within"]:
        try:
            return Rule(kind="within", budget=parse_constraint(text.strip().removeprefix("within")))
        except ConfigError as error:
            raise ConfigError(f"rule: {str(error).removeprefix('constraints: ')}") from None
    subset = re.fullmatch(r"hypervolume\s+([1-9][0-9]{0,5})", text.strip())
    if subset:
        return Rule(kind="hypervolume", count=int(subset[1]))
    raise ConfigError(
        f"rule: found {text!r}; expected knee, all, 'top 3 by top1', 'within bops_g <= 0.03' or 'hypervolume 3'"
    )


def select(rule: Rule, gates: Gates, found: Front) -> list[TrialRecord]:
    """The members of the front that the rule promotes, cheapest first."""
    passed = [trial for trial in found.members if not gates.reason(trial)]
    chosen = _chosen(rule, passed, found)
    return [trial for trial in passed if trial.trial_id in {one.trial_id for one in chosen}]


def _chosen(rule: Rule, passed: list[TrialRecord], found: Front) -> Sequence[TrialRecord]:
    match rule.kind:
        case "all":
            return passed
        case "knee":
            nearest = knee([trial.metrics for trial in passed], found.objectives)
            return [] if nearest is None else [passed[nearest]]
        case "top":
            sign = -1 if METRICS[rule.metric].direction == "max" else 1
            # Of equal ones the first trial's.
            order = sorted(passed, key=lambda trial: (sign * _measured(trial, rule.metric), trial.number))
            return _distinct(order)[: rule.count]
        case "within":
            assert rule.budget is not None  # as `parse_rule` makes it
            _measured_by_all(passed, rule.budget.metric)
            return [trial for trial in passed if rule.budget.violation(trial.metrics) <= 0]
        case "hypervolume":
            return _largest(_distinct(passed), rule.count, found)


def _measured(trial: TrialRecord, metric: str) -> float:
    _measured_by_all([trial], metric)
    return trial.metrics[metric]


def _measured_by_all(trials: Sequence[TrialRecord], metric: str) -> None:
    for trial in trials:
        if metric not in trial.metrics:
            raise ConfigError(
                f"rule: {trial.trial_id} has no {metric}; it was measured: {', '.join(sorted(trial.metrics))}"
            )


def _distinct(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The first trial of each policy: a policy that several found counts once."""
    return list({trial.policy_hash: trial for trial in reversed(trials)}.values())[::-1]


def _largest(members: list[TrialRecord], count: int, found: Front) -> Sequence[TrialRecord]:
    """The `count` members that dominate the largest share of the box around the sweep's policies.

    Exactly, where there are at most SUBSETS subsets; else each time the member that adds most, which reaches at least
    1 − 1/e of the best subset's share, as hypervolume is submodular (Nemhauser, Wolsey and Fisher 1978).
    """
    if len(members) <= count:
        return members
    box = Box.around([trial.metrics for trial in found.kept], found.objectives)

    def share(subset: Sequence[TrialRecord]) -> float:
        return box.share([trial.metrics for trial in subset])

    if math.comb(len(members), count) <= SUBSETS:
        return max(combinations(members, count), key=share)
    chosen: list[TrialRecord] = []
    while len(chosen) < count:
        rest = [trial for trial in members if trial not in chosen]
        chosen.append(max(rest, key=lambda trial: share([*chosen, trial])))
    return chosen
