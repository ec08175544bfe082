"""What a night's comparison with the baseline has found, number by number, and what of it is beyond a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service import drift
from service.expectations import HYPERVOLUME, Expectations, Limits
from service.nightly_baseline import Baseline, Outcome
from service.nightly_report import Finding


def found_between(baseline: Baseline | None, now: Outcome, expected: Expectations, *, is_exact: bool) -> list[Finding]:
    """All findings; with `is_exact` whatever is not the baseline's to the last bit has drifted."""
    found: list[Finding] = []
    if baseline:
        comparing = expected.comparing
        found = drift.by_spread(drift.compared(baseline, now, comparing), comparing)
        if is_exact:
            found = drift.bit_for_bit(found, baseline, now, comparing)
        before = baseline.outcome
        found = [*drift.counts(before, now), *drift.vanished(before, now, comparing), *found]
        found = _with_volume(found, expected.limits) + _distance(baseline, now, expected.limits)
    return [*found, *_step_ratio(baseline, now, expected)]


def unknown(what: str) -> Finding:
    """A limit was asked for, and there is no number to judge by it: that is no way to keep it."""
    return Finding(what=what, drifted=True)


def _with_volume(found: Sequence[Finding], limits: Limits) -> list[Finding]:
    if not limits.hypervolume:
        return list(found)
    known = [one for one in found if one.what == HYPERVOLUME]
    judged = [
        replace(one, drifted=True) if one in known and not (one.now or 0.0) >= limits.hypervolume else one
        for one in found
    ]
    return judged if known else [*judged, unknown(HYPERVOLUME)]


def _distance(baseline: Baseline, now: Outcome, limits: Limits) -> list[Finding]:
    found, limit = drift.front_distance(baseline, now), limits.front_distance
    if found is None:
        return [unknown(drift.FRONT_DISTANCE)] if limit else []
    apart, seeds = found
    return [
        Finding(
            what=drift.FRONT_DISTANCE,
            baseline=0.0,
            now=apart,
            difference=apart,
            spread=seeds,
            times_spread=apart / seeds if seeds else None,
            allowed=limit or None,
            drifted=bool(limit) and apart > limit,
        )
    ]


def _step_ratio(baseline: Baseline | None, now: Outcome, expected: Expectations) -> list[Finding]:
    limit = expected.limits.step_ratio
    if not now.step_ratio:
        return [unknown(drift.STEP_RATIO)] if limit else []
    before = (baseline.outcome.step_ratio if baseline else 0.0) or None
    band = None if before is None else expected.comparing.step_ratio_band * before
    return [
        Finding(
            what=drift.STEP_RATIO,
            baseline=before,
            now=now.step_ratio,
            difference=None if before is None else now.step_ratio - before,
            allowed=band,
            drifted=bool(limit) and now.step_ratio > limit,
        )
    ]
