"""The verdict on one sweep of a night: reproduced, new, drifted or broken, and in one sentence why. Plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from service import drift
from service.claims import judge as judge_claim
from service.expectations import HYPERVOLUME, Expectations
from service.findings import found_between
from service.nightly_baseline import Baseline, Outcome, box_of
from service.nightly_report import (
    BaselineFacts,
    ClaimFinding,
    Commit,
    Finding,
    Policies,
    Setting,
    SweepReport,
    Verdict,
)

MEANS = ("top1", "bops_g", "ard")
"""Metrics whose means over all finished trials every report has."""
MAX_NAMED = 3
"""Of a list in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One sweep of a night, and all that it is judged by."""

    name: str
    sweep: str
    """Its name in the storage."""
    expected: Expectations = field(default_factory=Expectations)
    baseline: Baseline | None = None
    changed: Sequence[str] = ()
    """What differs between the baseline's sweep and this one, a line each."""
    now: Outcome | None = None
    """None where it left none."""
    error: str = ""
    """What went wrong while it ran, or with its baseline; empty."""
    revisions: tuple[Commit, ...] = ()

    @property
    def comparable(self) -> Baseline | None:
        """The baseline, where it is of the same sweep and there is something to compare with it."""
        return None if self.changed or self.now is None or not self.now.done else self.baseline


def judge(case: Case) -> SweepReport:
    """The sweep's report."""
    baseline, now = case.comparable, case.now
    same_environment = bool(
        case.baseline and now and now.environment and now.environment == case.baseline.outcome.environment
    )
    is_exact = case.expected.comparing.match == "identical" and same_environment
    findings = found_between(baseline, now, case.expected, is_exact=is_exact) if now else []
    claims = tuple(judge_claim(claim, now.trials) for claim in case.expected.claims) if now else ()
    changed = drift.policies(baseline.outcome, now) if baseline and now else Policies()
    report = SweepReport(
        name=case.name,
        sweep=case.sweep,
        verdict="new",
        reason="",
        baseline=_facts(case.baseline),
        environment=dict(now.environment) if now else {},
        same_environment=same_environment,
        identical=bool(baseline and now and drift.is_identical(baseline.outcome, now)),
        revisions=case.revisions,
        findings=tuple(findings),
        claims=claims,
        policies=changed,
        metrics=_metrics(case, findings),
        error=case.error,
    )
    return _with_verdict(case, report, is_exact=is_exact)


def _facts(baseline: Baseline | None) -> BaselineFacts | None:
    if baseline is None:
        return None
    outcome = baseline.outcome
    return BaselineFacts(night=outcome.night, revision=outcome.revision, accepted_ms=baseline.accepted_ms)


def _metrics(case: Case, findings: Sequence[Finding]) -> dict[str, float]:
    now = case.now
    if now is None:
        return {}
    names = dict.fromkeys((*MEANS, *case.expected.comparing.metrics))
    values = {name: [t.metrics[name] for t in now.done if name in t.metrics] for name in names}
    found = {name: fmean(measured) for name, measured in values.items() if measured}
    volumes = _volumes(case, now)
    if volumes:
        found[HYPERVOLUME] = fmean(volumes)
    told = {one.what: one.now for one in findings if one.what in (drift.FRONT_DISTANCE, drift.STEP_RATIO)}
    return found | {name: value for name, value in told.items() if value is not None}


def _volumes(case: Case, now: Outcome) -> list[float]:
    """Of each seed's front: in the baseline's box, or in its own where there is none."""
    if case.comparable:
        return list(drift.hypervolumes(case.comparable, now).values())
    own = Baseline(name=case.name, accepted_ms=0, spec="", box=box_of(now), outcome=now)
    return list(drift.hypervolumes(own, now).values())


def _with_verdict(case: Case, report: SweepReport, *, is_exact: bool) -> SweepReport:
    verdict, reason = _verdict(case, report, is_exact=is_exact)
    return replace(report, verdict=verdict, reason=reason, warnings=tuple(_warnings(case, report)))


def _verdict(case: Case, report: SweepReport, *, is_exact: bool) -> tuple[Verdict, str]:
    broken = _what_broke(case)
    if broken:
        return "broken", broken
    drifted = _what_drifted(case, report, is_exact=is_exact)
    if drifted:
        return "drifted", "; ".join(drifted)
    held = _held(report.claims)
    if case.baseline is None:
        return "new", f"there is no baseline yet{held}"
    if report.identical:
        return (
            "reproduced",
            f"all {report.policies.same} policies and every number are the baseline's to the last bit{held}",
        )
    environment = "" if report.same_environment else ", in another environment"
    return "reproduced", f"nothing has left the baseline by more than the seeds explain{environment}{held}"


def _held(claims: Sequence[ClaimFinding]) -> str:
    """How many hold, required or not."""
    count, total = sum(claim.holds is True for claim in claims), len(claims)
    if not claims:
        return ""
    if count < total:
        return f"; {count} of {total} claims hold"
    return f"; {total} claims hold" if total > 1 else "; its claim holds"


def _what_broke(case: Case) -> str:
    if case.error:
        return case.error.splitlines()[0]
    now = case.now
    if now is None:
        return "it left no result"
    failed = [trial.trial for trial in now.trials if trial.state == "failed"]
    if failed:
        return f"{_counted(failed, 'trial')} failed: {_named(failed)}"
    unfinished = now.planned - sum(trial.state in ("done", "pruned", "diverged") for trial in now.trials)
    if unfinished > 0:
        return f"{unfinished} of {now.planned} trials have not ended"
    diverged = _newly_diverged(case.comparable, now)
    if diverged:
        return f"{_counted(diverged, 'trial')} diverged: {_named(diverged)}"
    return "" if now.done else "no trial is done"


def _newly_diverged(baseline: Baseline | None, now: Outcome) -> list[str]:
    known = [] if baseline is None else [t.settings for t in baseline.outcome.trials if t.state == "diverged"]
    before = {drift.key_of(settings) for settings in known}
    return [t.trial for t in now.trials if t.state == "diverged" and drift.key_of(t.settings) not in before]


def _what_drifted(case: Case, report: SweepReport, *, is_exact: bool) -> list[str]:
    told = []
    if case.changed:
        told.append(f"the sweep has changed since its baseline ({_named(case.changed)}): accept anew")
    told += _told_findings(report.drifted)
    told += _told_identity(case, report, is_exact=is_exact)
    refuted = [claim for claim in report.claims if claim.required and claim.holds is False]
    if refuted:
        told.append(f"does not hold: {_named([_claimed(claim) for claim in refuted])}")
    open_ones = [claim for claim in report.claims if claim.required and claim.holds is None]
    if open_ones:
        told.append(f"could not be judged: {_named([f'{claim.claim} ({claim.why})' for claim in open_ones])}")
    return told


def _told_identity(case: Case, report: SweepReport, *, is_exact: bool) -> list[str]:
    """Of a sweep that is to be the same to the last bit: what of it is not, or whether nobody knows."""
    if case.expected.comparing.match != "identical" or case.comparable is None or report.identical:
        return []
    unmeasured = [
        who
        for who, outcome in (("tonight's", case.now), ("the baseline's", case.comparable.outcome))
        if outcome and not outcome.environment
    ]
    if unmeasured:
        return [f"could not be judged to the last bit: {' and '.join(unmeasured)} environment is not known"]
    if not is_exact:
        return []
    count = len(report.policies.changed)
    if count:
        return [f"{count} of {count + report.policies.same} policies have changed"]
    return [] if report.drifted else ["what was measured is not the baseline's to the last bit"]


def _told_findings(drifted: Sequence[Finding]) -> list[str]:
    """The largest first, measured by what was allowed; how many more there are."""
    ordered = sorted(drifted, key=lambda one: (one.what not in (drift.FINISHED, drift.DIVERGED), -_excess(one)))
    rest = len(ordered) - MAX_NAMED
    return [told(one) for one in ordered[:MAX_NAMED]] + ([f"{rest} more numbers"] if rest > 0 else [])


def _excess(finding: Finding) -> float:
    if finding.times_spread is not None:
        return finding.times_spread
    return float("inf") if finding.difference or finding.now is None else 0.0


def told(finding: Finding) -> str:
    """A finding that has drifted, in words."""
    where = f" of {where_of(finding.where)}" if finding.where else ""
    if finding.now is None:
        lost = "was not measured" if finding.baseline is not None else "could not be judged by its limit"
        return f"{finding.what}{where} {lost}"
    if finding.baseline is None or finding.difference is None:
        return f"{finding.what}{where} is {finding.now:.4g}, beyond its limit"
    if finding.what == drift.FRONT_DISTANCE:
        return f"{finding.what} is {finding.now:.4g}, beyond its limit of {finding.allowed:.4g}"
    size = f"{finding.difference:+.4g} from {finding.baseline:.4g}"
    spreads = f", {finding.times_spread:.1f} times the seeds' spread" if finding.times_spread is not None else ""
    return f"{finding.what}{where} {size}{spreads}"


def where_of(where: Mapping[str, Setting]) -> str:
    """A group in words: its settings."""
    return ", ".join(f"{name} {value}" for name, value in where.items())


def _claimed(claim: ClaimFinding) -> str:
    return f"{claim.claim} ({claim.source}; margin {claim.margin:.4g}, needed {claim.needed:.4g})"


def _warnings(case: Case, report: SweepReport) -> list[str]:
    found = []
    baseline, now = case.comparable, case.now
    if now and not now.environment:
        found.append("neither environment nor step ratio could be measured: see its log")
    elif baseline and now and not report.same_environment:
        found.append(f"another environment than the baseline's ({_named(_moved(baseline.outcome, now))})")
        if case.expected.comparing.match == "identical":
            found[-1] += ": judged by the seeds' spread instead of bit for bit"
    if baseline and now:
        known = {one.what for one in report.findings}
        lacking = [name for name in case.expected.comparing.metrics if name not in known]
        if lacking:
            found.append(f"the baseline has no {_named(lacking)} to compare with: accept anew")
    for one in report.findings:
        if one.what == drift.STEP_RATIO and one.allowed is not None and abs(one.difference or 0.0) > one.allowed:
            found.append(f"the step ratio went from {one.baseline:.3g} to {one.now:.3g}")
    quiet = [claim.claim for claim in report.claims if not claim.required and not claim.holds]
    if quiet:
        found.append(f"does not hold, and need not: {_named(quiet)}")
    if any(one.spread is None and one.what in case.expected.comparing.metrics for one in report.findings):
        found.append("no setting has two seeds, so that nothing is known of their spread: every difference counts")
    return found


def _moved(before: Outcome, now: Outcome) -> list[str]:
    names = dict.fromkeys((*before.environment, *now.environment))
    return [
        f"{name}: {before.environment.get(name, 'unknown')} → {now.environment.get(name, 'unknown')}"
        for name in names
        if before.environment.get(name) != now.environment.get(name)
    ]


def _counted(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def _named(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMED
    return "; ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
