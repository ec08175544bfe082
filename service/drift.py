"""What has changed between a baseline and a night, and how much of that the seeds explain. Plain numbers.

Notation: a group is the trials that differ in their seed alone, n of them tonight and n₀ in the baseline; s₀ is the
sample standard deviation within the baseline's groups, pooled over all of them, with ν₀ degrees of freedom. Under the
hypothesis that nothing has changed, and that results are normal with one deviation in all groups,
(mean − mean₀)/(s₀·√(1/n + 1/n₀)) has Student's t distribution with ν₀ degrees of freedom. By Bonferroni's inequality K
comparisons, each at the level α/K, call something drifted with a probability of at most α. Tonight has no part in s₀: a
trial that collapses would widen what it is allowed. What a seed does to both nights alike makes differences smaller.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, variance

from scipy.special import stdtrit

from service.comparison import additive_epsilon
from service.expectations import HYPERVOLUME, MEASURED, SEED, TIMED, Comparing
from service.hypervolume import Box, Values
from service.nightly_baseline import Baseline, Outcome, TrialOutcome, as_box
from service.nightly_report import ChangedPolicy, Finding, Policies, Setting

FRONT_DISTANCE, STEP_RATIO, FINISHED, DIVERGED = "front_distance", "step_ratio", "finished trials", "diverged trials"
ROUNDING = 1e-9
"""Share of a number by which it may differ through the order of a sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """Values of one quantity, in the baseline and tonight."""

    where: Mapping[str, Setting]
    before: tuple[float, ...]
    now: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Of the means, now less before."""
        return fmean(self.now) - fmean(self.before)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One quantity in all groups, with the baseline's spread."""

    what: str
    groups: tuple[Sides, ...]

    @property
    def repeated(self) -> list[tuple[float, ...]]:
        """The baseline's groups with more than one value."""
        return [side.before for side in self.groups if len(side.before) > 1]

    @property
    def freedom(self) -> int:
        """ν₀ = Σ (n₀ − 1), over the baseline's groups."""
        return sum(len(values) - 1 for values in self.repeated)

    @property
    def spread(self) -> float | None:
        """s₀ = √(Σ (n₀ − 1)·s_g² / ν₀); 0 where the baseline's repetitions never differ, None without repetitions.

        With 0 seeds have no part in it, and whatever moves has changed.
        """
        if not self.freedom:
            return None
        if all(max(values) == min(values) for values in self.repeated):
            return 0.0
        return math.sqrt(sum((len(values) - 1) * variance(values) for values in self.repeated) / self.freedom)

    @property
    def num_comparisons(self) -> int:
        """Each group, and of several groups their mean; none where nothing spreads: nothing is left to chance."""
        return (len(self.groups) + (len(self.groups) > 1)) if self.spread else 0


def key_of(settings: Mapping[str, Setting]) -> str:
    """Equal for equal settings; true is not 1."""
    return json.dumps(settings, sort_keys=True)


def without_seed(trial: TrialOutcome) -> dict[str, Setting]:
    """The settings of the trial's group."""
    return {name: value for name, value in trial.settings.items() if name != SEED}


def matched(before: Sequence[TrialOutcome], now: Sequence[TrialOutcome]) -> list[tuple[TrialOutcome, TrialOutcome]]:
    """Trials with the same settings; of several with the same ones the first with the first, and so on."""
    left: dict[str, list[TrialOutcome]] = {}
    for trial in before:
        left.setdefault(key_of(trial.settings), []).append(trial)
    return [(left[key].pop(0), trial) for trial in now if left.get(key := key_of(trial.settings))]


def quantity(what: str, before: Sequence[TrialOutcome], now: Sequence[TrialOutcome]) -> Quantity:
    """A metric of the finished trials, in the groups that both have."""
    sides = [_by_group(what, before), _by_group(what, now)]
    wheres = {key_of(without_seed(trial)): without_seed(trial) for trial in now}
    return Quantity(
        what=what,
        groups=tuple(
            Sides(where=wheres[key], before=tuple(sides[0][key]), now=tuple(values))
            for key, values in sides[1].items()
            if key in sides[0]
        ),
    )


def _by_group(metric: str, trials: Sequence[TrialOutcome]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for trial in trials:
        if trial.state == "done" and metric in trial.metrics:
            found.setdefault(key_of(without_seed(trial)), []).append(trial.metrics[metric])
    return found


def by_spread(quantities: Sequence[Quantity], comparing: Comparing) -> list[Finding]:
    """All comparisons, of each quantity first that of all groups together."""
    total = sum(one.num_comparisons for one in quantities)
    return [finding for one in quantities for finding in _findings(one, comparing, total)]


def _findings(one: Quantity, comparing: Comparing, total: int) -> list[Finding]:
    spread, groups = one.spread, one.groups
    quantile = float(stdtrit(one.freedom, 1 - comparing.false_alarms / (2 * total))) if spread else 0.0
    floor = comparing.floor(one.what)

    def finding(where: Mapping[str, Setting], before: float, now: float, per_spread: float) -> Finding:
        """`per_spread`: the standard error of the difference over s."""
        difference = now - before
        rounding = ROUNDING * max(abs(before), abs(now))
        allowed = max(floor, quantile * (spread or 0.0) * per_spread)
        return Finding(
            what=one.what,
            where=where,
            baseline=before,
            now=now,
            difference=difference,
            spread=spread,
            times_spread=abs(difference) / spread if spread else None,
            allowed=allowed,
            drifted=not abs(difference) <= allowed + rounding,  # also what is no number
        )

    found = [
        finding(g.where, fmean(g.before), fmean(g.now), math.sqrt(1 / len(g.before) + 1 / len(g.now))) for g in groups
    ]
    if len(groups) > 1:
        squares = sum(1 / len(g.before) + 1 / len(g.now) for g in groups)
        before, now = fmean(fmean(g.before) for g in groups), fmean(fmean(g.now) for g in groups)
        found.insert(0, finding({}, before, now, math.sqrt(squares) / len(groups)))
    return found


def vanished(before: Outcome, now: Outcome, comparing: Comparing) -> list[Finding]:
    """What the baseline's finished trials have measured and the same trials of tonight have not, by group."""
    lacking: dict[tuple[str, str], Finding] = {}
    for old, new in matched(before.done, now.done):
        for name in comparing.metrics:
            if name in old.metrics and name not in new.metrics:
                where = without_seed(new)
                mean = fmean(_by_group(name, before.trials)[key_of(where)])
                lacking[name, key_of(where)] = Finding(what=name, where=where, baseline=mean, drifted=True)
    return list(lacking.values())


def compared(baseline: Baseline, now: Outcome, comparing: Comparing) -> list[Quantity]:
    """The metrics, and the hypervolume of each seed's front."""
    metrics = [quantity(name, baseline.outcome.trials, now.trials) for name in comparing.metrics]
    volumes = [hypervolumes(baseline, outcome) for outcome in (baseline.outcome, now)]
    if all(volumes):
        sides = Sides(where={}, before=tuple(volumes[0].values()), now=tuple(volumes[1].values()))
        metrics.append(Quantity(what=HYPERVOLUME, groups=(sides,)))
    return [one for one in metrics if one.groups]


def box(baseline: Baseline) -> Box | None:
    """That of the baseline's hypervolumes."""
    return as_box(baseline.box, baseline.outcome.objectives) if baseline.box else None


def _by_seed(outcome: Outcome) -> dict[str, list[TrialOutcome]]:
    """Trials within the constraints; where no seed is varied all have one."""
    found: dict[str, list[TrialOutcome]] = {}
    for trial in outcome.kept():
        found.setdefault(_seed_of(trial), []).append(trial)
    return found


def _seed_of(trial: TrialOutcome) -> str:
    return str(trial.settings.get(SEED, ""))


def hypervolumes(baseline: Baseline, outcome: Outcome) -> dict[str, float]:
    """By seed: what its trials dominate, as a share of the baseline's box; 0 where none is within the constraints."""
    within = box(baseline)
    if within is None:
        return {}
    nothing = {_seed_of(trial): 0.0 for trial in outcome.trials}
    return nothing | {
        seed: within.share([trial.metrics for trial in trials]) for seed, trials in _by_seed(outcome).items()
    }


def front_distance(baseline: Baseline, now: Outcome) -> tuple[float, float | None] | None:
    """How far tonight's fronts are from the baseline's of the same seed, and the baseline's seeds from each other.

    Both are means of max(I_ε+(A, B), I_ε+(B, A)), objectives scaled to the baseline's box: the least shift in every
    objective after which neither is behind the other. What is not on a front changes neither. The second is None with
    a single seed; all is None where the nights share no seed, or a seed has no front any more.
    """
    within = box(baseline)
    if within is None:
        return None
    before, after = (
        {seed: [within.scaled(trial.metrics) for trial in trials] for seed, trials in _by_seed(outcome).items()}
        for outcome in (baseline.outcome, now)
    )
    lost = {_seed_of(trial) for trial in now.trials} & set(before) - set(after)
    apart = [_apart(before[seed], points) for seed, points in after.items() if seed in before]
    if lost or not apart:
        return None
    seeds = [_apart(a, b) for a, b in combinations(before.values(), 2)]
    return fmean(apart), fmean(seeds) if seeds else None


def _apart(ours: Sequence[Values], theirs: Sequence[Values]) -> float:
    both = (additive_epsilon(ours, theirs), additive_epsilon(theirs, ours))
    return max(value for value in both if value is not None)


def numbers(trial: TrialOutcome) -> dict[str, float]:
    """What a trial measured, times and speeds aside."""
    return {name: value for name, value in trial.metrics.items() if name not in TIMED}


def is_identical(before: Outcome, now: Outcome) -> bool:
    """Whether every trial has the same policy and the same numbers, to the last bit."""
    pairs = matched(before.trials, now.trials)
    return len(pairs) == len(before.trials) == len(now.trials) and all(
        (old.state, old.policy_hash, numbers(old)) == (new.state, new.policy_hash, numbers(new)) for old, new in pairs
    )


def bit_for_bit(found: Sequence[Finding], baseline: Baseline, now: Outcome, comparing: Comparing) -> list[Finding]:
    """The same findings, drifted wherever a number of the group has changed at all; and metrics besides that have."""
    pairs = matched(baseline.outcome.done, now.done)
    changed = {
        (name, key_of(where))
        for old, new in pairs
        for where in (without_seed(new), {})
        for name in set(numbers(old)) | set(numbers(new))
        if old.metrics.get(name) != new.metrics.get(name)
    }
    judged = [_exact(one, (one.what, key_of(one.where)) in changed) for one in found]
    besides = [name for name in MEASURED if name not in comparing.metrics and (name, key_of({})) in changed]
    rest = [quantity(name, baseline.outcome.trials, now.trials) for name in besides]
    more = [finding for finding in by_spread([one for one in rest if one.groups], comparing) if not finding.where]
    return judged + [_exact(one, True) for one in more]


def _exact(finding: Finding, changed: bool) -> Finding:
    return replace(finding, allowed=0.0, drifted=changed or (finding.what == HYPERVOLUME and bool(finding.difference)))


def policies(before: Outcome, now: Outcome) -> Policies:
    """How many matched trials have the policy that they had, and which do not."""
    pairs = matched(before.trials, now.trials)
    changed = tuple(
        ChangedPolicy(trial=new.trial, baseline=old.policy_hash, now=new.policy_hash)
        for old, new in pairs
        if old.policy_hash != new.policy_hash
    )
    same = sum(1 for old, new in pairs if old.policy_hash and old.policy_hash == new.policy_hash)
    return Policies(same=same, changed=changed)


def counts(before: Outcome, now: Outcome) -> list[Finding]:
    """Whether other trials have finished, or diverged, than in the baseline; nothing where they are the same ones."""
    found = []
    for what, state in ((FINISHED, "done"), (DIVERGED, "diverged")):
        old, new = (sorted(key_of(t.settings) for t in side.trials if t.state == state) for side in (before, now))
        if old != new:
            found.append(
                Finding(
                    what=what,
                    baseline=float(len(old)),
                    now=float(len(new)),
                    difference=float(len(new) - len(old)),
                    allowed=0.0,
                    drifted=True,
                )
            )
    return found
