"""Verdicts: against closed forms, by simulation of nights, and case by case."""

import math
import random
from dataclasses import replace
from statistics import fmean
from typing import Literal

import pytest
from scipy.special import nctdtr, stdtrit

from service.drift import compared, front_distance, quantity
from service.expectations import Claim, Comparing, Expectations, Limits
from service.nightly_baseline import Outcome, TrialOutcome
from service.nightly_report import Finding, SweepReport
from tests.service.outcomes import ELSEWHERE, MEANS, baseline, judged, outcome

QUIET = Comparing(metrics=("top1", "ard"), floors={"top1": 0.0})


def finding(report: SweepReport, what: str, **where: object) -> Finding:
    """The only one of this group; without settings that of all."""
    settings = {name.replace("__", "."): value for name, value in where.items()}
    (found,) = [
        f
        for f in report.findings
        if f.what == what and settings.items() <= f.where.items() and (settings or not f.where)
    ]
    return found


def changed(now: Outcome, number: int, **changes: object) -> Outcome:
    """The outcome with one trial that is otherwise."""
    trials = list(now.trials)
    trials[number] = replace(trials[number], **changes)
    return replace(now, trials=tuple(trials))


def test_a_group_may_leave_the_baseline_by_students_quantile_times_the_baselines_standard_error() -> None:
    """Four groups of seeds at −s, 0, s: ν₀ = 4·2 = 8; top1 and ard have 5 comparisons each, the hypervolume one."""
    report = judged(outcome(), before=baseline(), comparing=replace(QUIET, false_alarms=0.02))
    found = finding(report, "top1", method__name="gmpq", budget__bops_g=0.02)
    quantile = stdtrit(8, 1 - 0.02 / (2 * 11))
    assert found.spread == pytest.approx(0.5)
    assert found.allowed == pytest.approx(quantile * 0.5 * math.sqrt(2 / 3))
    # The mean over four groups has half of a group's error.
    assert finding(report, "top1").allowed == pytest.approx(quantile * 0.5 * math.sqrt(2 / 3) / 2)
    assert finding(report, "ard", method__name="gmpq", budget__bops_g=0.02).spread == pytest.approx(0.05)


@pytest.mark.parametrize(("times_allowed", "verdict"), [(0.99, "reproduced"), (1.01, "drifted"), (-1.01, "drifted")])
def test_a_shift_is_drift_just_beyond_what_is_allowed(times_allowed: float, verdict: str) -> None:
    group = ("gmpq", 0.02)
    allowed = finding(
        judged(outcome(), before=baseline(), comparing=QUIET), "top1", method__name="gmpq", budget__bops_g=0.02
    ).allowed
    assert allowed is not None
    report = judged(outcome(shift={group: times_allowed * allowed}), before=baseline(), comparing=QUIET)
    assert report.verdict == verdict
    if verdict == "drifted":
        (drifted,) = report.drifted
        assert drifted.where == {"budget.bops_g": 0.02, "method.name": "gmpq", "method.eta": 1.0}
        assert drifted.difference == pytest.approx(times_allowed * allowed)
        assert drifted.times_spread == pytest.approx(abs(times_allowed) * allowed / 0.5)
        assert "top1 of budget.bops_g 0.02, method.name gmpq" in report.reason
        assert "times the seeds' spread" in report.reason


def test_unequal_groups_of_the_baseline_are_pooled_by_their_degrees_of_freedom() -> None:
    def trials(*values: float) -> list[TrialOutcome]:
        return [
            TrialOutcome(trial=str(n), state="done", settings={"seed": n, "x": x}, metrics={"top1": value})
            for n, (x, value) in enumerate(values)  # type: ignore[misc]
        ]

    before = trials((0, 2.0), (0, 4.0), (0, 9.0), (1, 5.0), (1, 7.0), (2, 1.0))  # type: ignore[arg-type]
    now = trials((0, 1.0), (0, 90.0), (1, 5.0), (2, 3.0))  # type: ignore[arg-type]
    found = quantity("top1", before, now)
    # Sums of squares 26 and 2 with 2 and 1 degrees of freedom; single values tell none.
    assert found.freedom == 3
    assert found.spread == pytest.approx(math.sqrt(28 / 3))


@pytest.mark.parametrize("fall", [3.0, 9.0, 50.0, 90.0])
def test_one_seed_that_collapses_is_drift_however_far_it_falls(fall: float) -> None:
    """Nothing of tonight is part of the spread, or a seed that falls would widen what it is allowed."""
    before, now = outcome(random.Random(3), deviation=0.2), outcome(random.Random(4), deviation=0.2)
    assert judged(now, before=baseline(before), comparing=QUIET).verdict == "reproduced"
    metrics = now.trials[5].metrics
    fallen = changed(now, 5, metrics={**metrics, "top1": metrics["top1"] - fall})
    report = judged(fallen, before=baseline(before), comparing=QUIET)
    assert report.verdict == "drifted"
    assert finding(report, "top1", method__name="gmpq", budget__bops_g=0.02).drifted


def test_nights_without_a_change_drift_no_more_often_than_is_said() -> None:
    draw, nights, share = random.Random(0), 300, 0.05
    comparing = replace(QUIET, false_alarms=share)
    verdicts = [
        judged(outcome(draw, environment=ELSEWHERE), before=baseline(outcome(draw)), comparing=comparing).verdict
        for _ in range(nights)
    ]
    error = math.sqrt(share * (1 - share) / nights)
    drifted = verdicts.count("drifted") / nights
    assert drifted <= share + 3 * error
    # Bonferroni's bound is not far from the truth: a test that calls nothing drift would be none.
    assert drifted >= share / 3


def test_a_shift_of_one_group_is_caught_as_often_as_the_noncentral_distribution_says() -> None:
    draw, nights, spreads = random.Random(1), 150, 4.5
    where = ("edmips", 0.04)
    caught = []
    for _ in range(nights):
        now = outcome(draw, shift={where: 0.5 * spreads})
        report = judged(now, before=baseline(outcome(draw)), comparing=QUIET)
        caught.append(finding(report, "top1", method__name="edmips", budget__bops_g=0.04).drifted)
    noncentral = spreads / math.sqrt(2 / 3)
    power = 1 - nctdtr(8, noncentral, stdtrit(8, 1 - 0.01 / 22))
    assert 0.5 < power < 0.95
    assert fmean(caught) == pytest.approx(power, abs=4 * math.sqrt(power * (1 - power) / nights))


def test_a_small_shift_of_everything_is_caught_by_the_mean_over_groups_where_no_group_shows_it() -> None:
    draw, nights = random.Random(2), 50
    reports = [judged(outcome(draw, shift=1.1), before=baseline(outcome(draw)), comparing=QUIET) for _ in range(nights)]
    by_mean = fmean(finding(report, "top1").drifted for report in reports)
    by_group = fmean(any(f.drifted and f.where for f in report.findings) for report in reports)
    assert by_mean > 0.5
    assert by_group < by_mean - 0.2


def test_what_never_spreads_may_not_move_at_all_and_rounding_is_no_move() -> None:
    now = outcome()
    bops = [replace(t, metrics={**t.metrics, "bops_g": t.metrics["bops_g"] * (1 + 1e-12)}) for t in now.trials]
    assert judged(replace(now, trials=tuple(bops)), before=baseline()).verdict == "reproduced"
    report = judged(changed(now, 3, metrics={**now.trials[3].metrics, "bops_g": 0.0381}), before=baseline())
    assert report.verdict == "drifted"
    assert {f.what for f in report.drifted} == {"bops_g"}
    assert {f.spread for f in report.drifted} == {0.0}


def test_a_floor_lets_small_differences_pass_whatever_the_spread() -> None:
    before, now = outcome(deviation=1e-6), outcome(deviation=1e-6, shift={("gmpq", 0.02): 0.25})
    assert judged(now, before=baseline(before)).verdict == "drifted"
    floors = Comparing(floors={"top1": 0.3, "hypervolume": 0.1})
    assert judged(now, before=baseline(before), comparing=floors).verdict == "reproduced"


def test_with_one_seed_every_difference_beyond_the_floor_is_drift_and_the_report_says_why() -> None:
    before = outcome(seeds=(1,))
    assert judged(outcome(seeds=(1,)), before=baseline(before)).verdict == "reproduced"
    report = judged(outcome(seeds=(1,), shift=0.2), before=baseline(before))
    assert report.verdict == "drifted"
    assert finding(report, "top1").spread is None
    assert any("no setting has two seeds" in warning for warning in report.warnings)


def test_bit_for_bit_catches_one_changed_number_here_and_lets_the_spread_decide_elsewhere() -> None:
    comparing, now = Comparing(match="identical"), outcome(night="n2")
    same = judged(now, before=baseline(), comparing=comparing)
    assert (same.verdict, same.identical, same.same_environment) == ("reproduced", True, True)
    assert "to the last bit" in same.reason
    trial = now.trials[5]
    nearly = changed(now, 5, metrics={**trial.metrics, "ard": math.nextafter(trial.metrics["ard"], 9.0)})
    report = judged(nearly, before=baseline(), comparing=comparing)
    assert (report.verdict, report.identical) == ("drifted", False)
    assert {f.what for f in report.drifted} <= {"ard", "hypervolume"}
    assert finding(report, "ard", method__name="gmpq", budget__bops_g=0.02).times_spread == pytest.approx(
        0.0, abs=1e-12
    )
    elsewhere = judged(replace(nearly, environment=ELSEWHERE), before=baseline(), comparing=comparing)
    assert (elsewhere.verdict, elsewhere.same_environment) == ("reproduced", False)
    assert "machine: a → b" in elsewhere.warnings[0]
    assert "judged by the seeds' spread instead of bit for bit" in elsewhere.warnings[0]


def test_bit_for_bit_looks_at_policies_and_at_numbers_that_are_not_compared_but_not_at_times() -> None:
    comparing, now = Comparing(match="identical", metrics=("top1",)), outcome()
    other = judged(changed(now, 2, policy_hash="another"), before=baseline(), comparing=comparing)
    assert other.verdict == "drifted"
    assert "1 of 12 policies have changed" in other.reason
    (policy,) = other.policies.changed
    assert (policy.trial, policy.now) == ("t0002", "another")
    report = judged(
        changed(now, 2, metrics={**now.trials[2].metrics, "ard": 9.0}), before=baseline(), comparing=comparing
    )
    assert [f.what for f in report.drifted if f.what == "ard"] == ["ard"]
    timed = changed(now, 2, metrics={**now.trials[2].metrics, "device_hours": 9.0})
    assert judged(timed, before=baseline(), comparing=comparing).verdict == "reproduced"


def test_another_policy_is_told_but_no_drift_where_the_spread_decides() -> None:
    report = judged(changed(outcome(), 2, policy_hash="another"), before=baseline())
    assert report.verdict == "reproduced"
    assert (report.policies.same, len(report.policies.changed)) == (11, 1)
    assert not report.identical


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (None, "left no result"),
        (replace(outcome(), trials=outcome().trials[:7]), "5 of 12 trials have not ended"),
        (changed(outcome(), 0, state="failed", metrics={}), "1 trial failed: t0000"),
        (changed(outcome(), 0, state="running", metrics={}), "1 of 12 trials have not ended"),
        (changed(outcome(), 1, state="diverged", metrics={}), "1 trial diverged: t0001"),
    ],
)
def test_a_sweep_that_did_not_end_well_is_broken(now: Outcome | None, reason: str) -> None:
    for before in (None, baseline()):
        report = judged(now, before=before)
        assert report.verdict == "broken"
        assert reason in report.reason


def test_an_error_is_the_verdict_whatever_the_numbers_say() -> None:
    report = judged(outcome(), before=baseline(), error="bitfront: no such file\nmore")
    assert (report.verdict, report.reason, report.error) == (
        "broken",
        "bitfront: no such file",
        "bitfront: no such file\nmore",
    )


def test_what_has_diverged_in_the_baseline_may_diverge_again_and_what_ends_otherwise_is_drift() -> None:
    diverged = changed(outcome(), 1, state="diverged", metrics={})
    assert judged(diverged, before=baseline(diverged)).verdict == "reproduced"
    report = judged(outcome(), before=baseline(diverged))
    assert report.verdict == "drifted"
    assert {f.what for f in report.drifted} == {"finished trials", "diverged trials"}


def test_a_baseline_that_lacks_trials_is_drift_that_says_how_many() -> None:
    before = replace(outcome(), trials=outcome().trials[:8])
    report = judged(outcome(), before=baseline(before))
    assert report.verdict == "drifted"
    found = finding(report, "finished trials")
    assert (found.baseline, found.now) == (8.0, 12.0)


def test_a_changed_sweep_is_not_compared_and_the_reason_says_what_to_do() -> None:
    report = judged(outcome(shift=5.0), before=baseline(), changed=["method.zeta: 0.1 -> 0.2"])
    assert report.verdict == "drifted"
    assert report.reason == "the sweep has changed since its baseline (method.zeta: 0.1 -> 0.2): accept anew"
    assert report.findings == ()


def test_without_a_baseline_a_sweep_is_new_and_has_a_hypervolume_of_its_own() -> None:
    report = judged(outcome())
    assert (report.verdict, report.baseline) == ("new", None)
    assert 0 < report.metrics["hypervolume"] < 1
    assert report.metrics["top1"] == pytest.approx(fmean(MEANS.values()))


def test_the_step_ratio_only_warns_unless_it_has_a_limit() -> None:
    before, now = baseline(outcome(step_ratio=2.0)), outcome(step_ratio=2.6)
    report = judged(now, before=before)
    assert report.verdict == "reproduced"
    assert report.warnings == ("the step ratio went from 2 to 2.6",)
    assert judged(outcome(step_ratio=2.4), before=before).warnings == ()
    limited = Expectations(limits=Limits(step_ratio=2.5))
    assert judged(now, before=before, expected=limited).verdict == "drifted"
    assert judged(now, expected=limited).verdict == "drifted"
    assert "step_ratio is 2.6, beyond its limit" in judged(now, expected=limited).reason


def test_the_front_distance_is_the_shift_that_puts_equal_seeds_on_one_front() -> None:
    """All top-1 lower by 2.5 of a box 50 high: every front has to shift by 0.05."""
    before = baseline(outcome(deviation=0.0, seeds=(0, 1)))
    apart, seeds = front_distance(before, outcome(deviation=0.0, shift=-2.5, seeds=(0, 1))) or (None, None)
    assert apart == pytest.approx(0.05)
    assert seeds == pytest.approx(0.0)
    limited = Expectations(comparing=QUIET, limits=Limits(front_distance=0.04))
    report = judged(outcome(deviation=0.0, shift=-2.5, seeds=(0, 1)), before=before, expected=limited)
    assert report.metrics["front_distance"] == pytest.approx(0.05)
    assert finding(report, "front_distance").drifted
    assert front_distance(before, outcome(seeds=(7,))) is None


def test_the_hypervolume_is_that_of_each_seeds_front_in_the_baselines_box() -> None:
    before = baseline(outcome(deviation=0.0))
    found = compared(before, outcome(deviation=0.0), Comparing())[-1]
    # Two steps in BOPs; in top-1 from 50 and in ARD to 2 of the box: gmpq at 0.02 G, then at 0.04 G.
    small = (0.05 - 0.019) / 0.05 * (92 - 50) / 50 * (2 - 0.4) / 2
    large = (0.05 - 0.038) / 0.05 * (95 - 50) / 50 * (2 - 0.25) / 2
    both = (0.05 - 0.038) / 0.05 * (92 - 50) / 50 * (2 - 0.4) / 2
    assert found.what == "hypervolume"
    assert found.groups[0].now == pytest.approx([small + large - both] * 3)
    least = Expectations(limits=Limits(hypervolume=0.9))
    report = judged(outcome(deviation=0.0), before=before, expected=least)
    assert [f.what for f in report.drifted] == ["hypervolume"]


@pytest.mark.parametrize("match", ["spread", "identical"])
def test_a_metric_that_is_not_measured_any_more_is_drift(match: Literal["spread", "identical"]) -> None:
    now, comparing = outcome(), Comparing(match=match)
    without = [{name: v for name, v in t.metrics.items() if name != "ard"} for t in now.trials]
    nowhere = replace(now, trials=tuple(replace(t, metrics=m) for t, m in zip(now.trials, without, strict=True)))
    in_one = changed(now, 5, metrics=without[5])
    for lacking, groups in ((nowhere, 4), (in_one, 1)):
        report = judged(lacking, before=baseline(), comparing=comparing)
        assert report.verdict == "drifted"
        assert "was not measured" in report.reason
        assert sum(one.what == "ard" and one.now is None and one.drifted for one in report.findings) == groups


def test_bit_for_bit_nothing_may_be_missing_of_what_is_not_compared() -> None:
    comparing, now = Comparing(match="identical", metrics=("top1",)), outcome()
    before = baseline(replace(now, trials=tuple(replace(t, metrics={**t.metrics, "top5": 99.0}) for t in now.trials)))
    report = judged(now, before=before, comparing=comparing)
    assert (report.verdict, report.identical) == ("drifted", False)
    assert report.reason == "what was measured is not the baseline's to the last bit"


def test_a_number_that_is_none_is_drift() -> None:
    now = outcome()
    report = judged(changed(now, 5, metrics={**now.trials[5].metrics, "ard": math.nan}), before=baseline())
    assert report.verdict == "drifted"


def test_bit_for_bit_cannot_be_judged_where_an_environment_is_not_known() -> None:
    comparing, nowhere = Comparing(match="identical"), outcome(environment={})
    changed_now = changed(nowhere, 2, policy_hash="another")
    report = judged(changed_now, before=baseline(), comparing=comparing)
    assert report.verdict == "drifted"
    assert "could not be judged to the last bit: tonight's environment is not known" in report.reason
    assert "could be measured: see its log" in report.warnings[0]
    report = judged(changed_now, before=baseline(nowhere), comparing=comparing)
    assert "tonight's and the baseline's environment is not known" in report.reason
    assert judged(nowhere, before=baseline(), comparing=Comparing()).verdict == "reproduced"


def test_a_limit_that_cannot_be_judged_is_not_kept() -> None:
    unmeasured = judged(outcome(), expected=Expectations(limits=Limits(step_ratio=4.0)))
    assert unmeasured.verdict == "drifted"
    assert "step_ratio could not be judged by its limit" in unmeasured.reason
    bounded = outcome()
    before = baseline(replace(bounded, constraints=("top1 >= 80",)))
    low = replace(outcome(shift=-30.0), constraints=("top1 >= 80",))
    limits = Limits(front_distance=0.5, hypervolume=0.5)
    report = judged(low, before=before, expected=Expectations(limits=limits))
    assert {"front_distance", "hypervolume"} <= {f.what for f in report.drifted}
    assert finding(report, "hypervolume").now == 0.0
    no_box = replace(before, box=None)
    report = judged(low, before=no_box, expected=Expectations(limits=limits))
    assert [f.now for f in report.drifted if f.what in ("front_distance", "hypervolume")] == [None, None]


def test_a_seed_without_a_trial_within_the_constraints_dominates_nothing() -> None:
    constraints = ("top1 >= 80",)
    before = baseline(replace(outcome(), constraints=constraints))
    now = outcome()
    fallen = [replace(t, metrics={**t.metrics, "top1": 1.0}) if t.settings["seed"] == 2 else t for t in now.trials]
    found = compared(before, replace(now, constraints=constraints, trials=tuple(fallen)), Comparing())[-1]
    assert found.groups[0].now[2] == 0.0
    assert found.groups[0].now[:2] == found.groups[0].before[:2]


def test_the_reason_counts_the_claims_that_hold_and_not_those_that_need_not() -> None:
    def claim(*, than: str, more: str) -> Claim:
        return Claim(
            claim="x", source="y", metric="top1", more={"method.name": more}, than={"method.name": than}, required=False
        )

    true, false = claim(more="gmpq", than="edmips"), claim(more="edmips", than="gmpq")
    for claims, told in (((true, false), "; 1 of 2 claims hold"), ((false,), "; 0 of 1 claims hold")):
        assert judged(outcome(), expected=Expectations(claims=claims)).reason.endswith(told)
    assert judged(outcome(), expected=Expectations(claims=(true,))).reason.endswith("; its claim holds")
