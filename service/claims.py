"""Whether what is said of a sweep's trials holds: orderings between groups of trials, and bands. Plain numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from service.expectations import Claim, Selection, selects
from service.nightly_baseline import TrialOutcome
from service.nightly_report import ClaimFinding
from service.spread import Spread, spread_of


def judge(claim: Claim, trials: Sequence[TrialOutcome]) -> ClaimFinding:
    """What becomes of a claim with these trials, of which those that are done count."""
    done = [trial for trial in trials if trial.state == "done" and selects(claim.at, trial.settings)]
    measured = [trial for trial in done if claim.metric in trial.metrics]
    if done and not measured:
        return _undecided(claim, f"no trial has measured {claim.metric}")
    return _band(claim, measured) if claim.relation == "band" else _order(claim, measured)


def _band(claim: Claim, trials: Sequence[TrialOutcome]) -> ClaimFinding:
    """Whether low ≤ mean ≤ high."""
    values = [trial.metrics[claim.metric] for trial in trials if selects(claim.of, trial.settings)]
    if not values:
        return _undecided(claim, f"no trial{_with(claim.of, claim.at)} is done")
    mean, (low, high) = fmean(values), claim.band
    end = low if abs(mean - low) <= abs(high - mean) else high
    margin = min(mean - low, high - mean)
    return _found(claim, holds=margin >= 0, left=mean, right=end, margin=margin, needed=0.0, pairs=len(values))


def _order(claim: Claim, trials: Sequence[TrialOutcome]) -> ClaimFinding:
    """With the mean m of the pairs' margins and its standard error e:

    less, more: m > by + z·e;  not_less, not_more: m ≥ −by + z·e, where z is `standard_errors`.
    """
    sides = [[trial for trial in trials if selects(side, trial.settings)] for side in (claim.left, claim.than)]
    for side, selection in zip(sides, (claim.left, claim.than), strict=True):
        if not side:
            return _undecided(claim, f"no trial{_with(selection, claim.at)} is done")
    both = [trial.trial for trial in sides[0] if trial in sides[1]]
    if both:
        return _undecided(claim, f"{both[0]} is on both sides: choose them by settings that exclude each other")
    left, right = _paired(claim, *sides)
    margins = _margins(claim, left, right)
    if margins is None:
        return _undecided(claim, "no trial of one side has the other settings of one of the other side")
    if claim.standard_errors and margins.squared_error is None:
        return _undecided(claim, "a standard error takes two pairs; there is one")
    is_strict = claim.relation in ("less", "more")
    error = claim.standard_errors * math.sqrt(margins.squared_error or 0.0)
    needed = (claim.by if is_strict else -claim.by) + error
    return _found(
        claim,
        holds=margins.mean > needed if is_strict else margins.mean >= needed,
        left=fmean(left[key] for key in left if key in right),
        right=fmean(right[key] for key in left if key in right),
        margin=margins.mean,
        needed=needed,
        pairs=margins.count,
    )


def _margins(claim: Claim, left: Mapping[str, float], right: Mapping[str, float]) -> Spread | None:
    """By how much the pairs' left side is ahead, in the claim's direction."""
    sign = -1.0 if claim.relation in ("less", "not_more") else 1.0
    return spread_of([sign * (left[key] - right[key]) for key in left if key in right])


def _paired(
    claim: Claim, ours: Sequence[TrialOutcome], theirs: Sequence[TrialOutcome]
) -> tuple[dict[str, float], dict[str, float]]:
    """Means of both sides by the settings that all trials have and the claim does not choose by."""
    chosen = {*claim.left, *claim.than}
    common = set.intersection(*(set(trial.settings) for trial in (*ours, *theirs))) - chosen

    def means(trials: Sequence[TrialOutcome]) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for trial in trials:
            key = json.dumps({name: trial.settings[name] for name in sorted(common)})
            values.setdefault(key, []).append(trial.metrics[claim.metric])
        return {key: fmean(found) for key, found in values.items()}

    return means(ours), means(theirs)


def _found(
    claim: Claim, *, holds: bool, left: float, right: float, margin: float, needed: float, pairs: int
) -> ClaimFinding:
    return ClaimFinding(
        claim=claim.claim,
        source=claim.source,
        holds=holds,
        left=left,
        right=right,
        margin=margin,
        needed=needed,
        pairs=pairs,
        required=claim.required,
    )


def _undecided(claim: Claim, why: str) -> ClaimFinding:
    return ClaimFinding(claim=claim.claim, source=claim.source, holds=None, required=claim.required, why=why)


def _with(*selections: Selection) -> str:
    named = [f"{name} {_listed(value)}" for selection in selections for name, value in selection.items()]
    return f" with {', '.join(named)}" if named else ""


def _listed(value: object) -> str:
    return " or ".join(map(str, value)) if isinstance(value, tuple) else str(value)
