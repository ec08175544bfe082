"""Outcomes of a nightly sweep that nobody has run: two methods within two budgets, three seeds, of known means."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from service.expectations import Comparing, Expectations
from service.nightly_baseline import Baseline, Corners, Outcome, TrialOutcome
from service.nightly_report import SweepReport
from service.verdict import Case, judge

SPEC = """\
name: two-methods
network: {name: resnet8}
data: {name: digits, image_size: 16}
reference: {epochs: 1}
method: {epochs: 1, zeta: 0.1}
finetune: {epochs: 1}
space:
  seed: {grid: [0, 1, 2]}
  budget.bops_g: {grid: [0.02, 0.04]}
  method.name: {choice: [edmips, gmpq]}
  method.eta: {fixed: 1.0, when: {method.name: gmpq}}
sampler: {name: grid}
gallery: {images: 0, random: false}
"""
MEANS = {("edmips", 0.02): 90.0, ("gmpq", 0.02): 92.0, ("edmips", 0.04): 94.0, ("gmpq", 0.04): 95.0}
"""Top-1, percent; ARD is 5 less a twentieth of it, BOPs are 0.95 of the budget."""
HERE, ELSEWHERE = {"machine": "a", "torch": "2"}, {"machine": "b", "torch": "2"}
Settings = dict[str, bool | int | float | str]


def outcome(
    noise: random.Random | None = None,
    *,
    night: str = "n1",
    deviation: float = 0.5,
    shift: Mapping[tuple[str, float], float] | float = 0.0,
    seeds: Sequence[int] = (0, 1, 2),
    environment: Mapping[str, str] = HERE,
    step_ratio: float = 0.0,
) -> Outcome:
    """Normal noise of this deviation; without `noise` seed s is (s − 1) deviations off, which is one too."""
    trials = []
    for seed in seeds:
        for (method, budget), mean in MEANS.items():
            moved = shift if isinstance(shift, float) else shift.get((method, budget), 0.0)
            draws = [noise.gauss(0.0, deviation) if noise else deviation * (seed - 1.0) for _ in range(2)]
            settings: Settings = {"seed": seed, "budget.bops_g": budget, "method.name": method}
            metrics = {
                "top1": mean + moved + draws[0],
                "ard": 5.0 - mean / 20 + draws[1] / 10,
                "bops_g": 0.95 * budget,
                "device_hours": random.random(),
            }
            trials.append(
                TrialOutcome(
                    trial=f"t{len(trials):04d}",
                    state="done",
                    settings=settings | ({"method.eta": 1.0} if method == "gmpq" else {}),
                    policy_hash=f"{method} {budget} {seed}",
                    metrics=metrics,
                )
            )
    return Outcome(
        night=night,
        environment=environment,
        objectives=("top1", "bops_g", "ard"),
        planned=len(trials),
        trials=tuple(trials),
        step_ratio=step_ratio,
    )


def baseline(of: Outcome | None = None) -> Baseline:
    """In a box that holds whatever the noise does."""
    box = Corners(ideal=(-100.0, 0.0, 0.0), corner=(-50.0, 0.05, 2.0))
    return Baseline(name="two-methods", accepted_ms=1, spec=SPEC, box=box, outcome=of or outcome())


def judged(
    now: Outcome | None,
    *,
    before: Baseline | None = None,
    comparing: Comparing | None = None,
    expected: Expectations | None = None,
    changed: Sequence[str] = (),
    error: str = "",
) -> SweepReport:
    """The report on a night."""
    expected = expected or Expectations(comparing=comparing or Comparing())
    name = "two-methods"
    return judge(
        Case(name=name, sweep=f"{name}-n2", expected=expected, baseline=before, changed=changed, now=now, error=error)
    )
