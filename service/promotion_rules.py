"""Which policies of a front are promoted: a rule (`service.rules`), and gates before it. Pure decisions.

A rule chooses among the members of the front that pass the gates; a dominated policy is promoted by name alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from service.front import Front
from service.hypervolume import Box
from service.pareto import METRICS, knee
from service.records import TrialRecord
from service.rules import Gates, Rule
from trainables.errors import ConfigError

SUBSETS = 20_000
"""Of how many subsets the best is found by trying all; of more, step by step."""


def select(rule: Rule, gates: Gates, found: Front) -> list[TrialRecord]:
    """The members of the front that the rule promotes, cheapest first."""
    passed = [trial for trial in found.members if not gates.reason(trial.metrics)]
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
