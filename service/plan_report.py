"""The plan of a sweep as people and programs read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from service.pareto import METRICS
from service.plan import Estimate, Plan, Span, count, duration
from trainables.api import Survey


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON takes it: {"low": …, "high": …} for what has two ends."""
    spec, resources = plan.spec, plan.spec.resources
    return {
        "sweep": spec.name,
        "trials": spec.trials,
        "method": spec.method_name,
        "network": ", ".join(spec.names("network")),
        "data": ", ".join(spec.names("data")),
        "objectives": [objective.name for objective in spec.objectives],
        "constraints": [str(constraint) for constraint in spec.constraints],
        "budget": dict(spec.fixed["budget"]),
        "space": plan.space,
        **(_survey_json(plan.estimates[0].survey) if len(plan.estimates) == 1 else {}),
        "combinations": [
            {
                "network": one.combination.config.network.name,
                "data": one.combination.config.data.name,
                "settings": dict(one.combination.settings),
                "hours_per_trial": one.hours,
                "reference_hours": one.reference_hours,
                **_survey_json(one.survey),
            }
            for one in plan.estimates
        ],
        "workers": resources.workers,
        "cpus_per_trial": resources.workers * resources.cpus_per_worker,
        "gpus_per_trial": resources.workers * resources.gpus_per_worker,
        "concurrency": plan.concurrency,
        "hours_per_trial": plan.hours_per_trial,
        "hours_from": plan.hours_from,
        "reference_hours": plan.reference_hours,
        "random_policy_hours": plan.random_hours,
        "device_hours": plan.device_hours._asdict(),
        "wall_hours": plan.wall_hours._asdict(),
        "money": plan.money._asdict(),
        "currency": resources.currency,
        "limits": dict(plan.limits),
        "trials_within_limits": plan.trials_within_limits,
        "warnings": list(plan.warnings),
        "problems": list(plan.problems),
        "next_launches": [launch.isoformat() for launch in plan.launches],
    }


def _survey_json(survey: Survey) -> dict[str, Any]:
    return {
        "searched_layers": list(survey.searched),
        "full_bops_g": survey.full_bops_g,
        "reach": {name: reach._asdict() for name, reach in survey.reach.items()},
    }


def as_text(plan: Plan) -> str:
    """The plan in lines for the terminal."""
    spec = plan.spec
    subjects = " on ".join(", ".join(spec.names(place)) for place in ("network", "data"))
    lines = [
        ("trials", f"{spec.trials} of {spec.method_name}: {subjects}"),
        ("objectives", ", ".join(objective.name for objective in spec.objectives)),
        *(("constraint", str(constraint)) for constraint in spec.constraints),
        *(("budget", f"{name}: {limit:g}") for name, limit in spec.fixed["budget"].items() if limit),
        *(("varied", f"{name}: {text}") for name, text in plan.space.items()),
        *_reaches(plan.estimates),
        *_cost_lines(plan),
        *(("limit", f"{name}: {text}") for name, text in plan.limits.items()),
        *(("due", f"{launch:%a %Y-%m-%d %H:%M %Z}") for launch in plan.launches),
    ]
    width = max(len(head) for head, _ in lines)
    told = [f"warning: {text}" for text in plan.warnings] + [f"problem: {text}" for text in plan.problems]
    return "\n".join([spec.name, *(f"  {head:{width}}  {text}" for head, text in lines), *told])


def _reaches(estimates: Sequence[Estimate]) -> Iterator[tuple[str, str]]:
    """Costs of every combination; its hours alone where those of another method are the same, and told already."""
    told: dict[tuple[object, ...], str] = {}
    for one in estimates:
        survey, config = one.survey, one.combination.config
        key = (repr((config.network, config.data)), survey.searched, tuple(survey.reach.items()))
        if key in told:
            yield one.combination.label, f"the same costs as {told[key]}; a trial about {duration(one.hours)}"
        else:
            told[key] = one.combination.label
            yield from _reach_lines(one, alone=len(estimates) == 1)


def _reach_lines(one: Estimate, *, alone: bool) -> list[tuple[str, str]]:
    """What its policies can cost; of one among several in a line of its own."""
    survey = one.survey
    layers = f"{len(survey.searched)} searched, {survey.full_bops_g:.4g} G BOPs in full precision"
    reach = {METRICS[name].label: f"{ends.low:.4g} to {ends.high:.4g}" for name, ends in survey.reach.items()}
    if alone:
        return [("layers", layers), *reach.items()]
    costs = ", ".join(f"{label} {text}" for label, text in reach.items())
    return [(one.combination.label, f"{layers}; {costs}; a trial about {duration(one.hours)}")]


def _cost_lines(plan: Plan) -> list[tuple[str, str]]:
    resources, workers = plan.spec.resources, plan.spec.resources.workers
    needs = [count(workers, "worker"), count(workers * resources.cpus_per_worker, "CPU")]
    if resources.gpus_per_worker:
        needs.append(count(workers * resources.gpus_per_worker, "GPU"))
    untrained = sum(one.reference_hours > 0 for one in plan.estimates)
    several = f"{count(untrained, 'full-precision network')}, " if len(plan.estimates) > 1 else ""
    reference = f"{several}about {duration(plan.reference_hours / workers)}" if untrained else "trained already"
    lines = [
        ("reference", reference),
        ("a trial", f"{', '.join(needs)}; about {duration(plan.hours_per_trial / workers)}, {plan.hours_from}"),
        ("at once", count(plan.concurrency, "trial")),
        *(
            [("random policy", f"one finetune, about {duration(plan.random_hours / workers)}")]
            if plan.random_hours
            else []
        ),
        ("device-hours", "about " + _ends(plan.device_hours, lambda hours: f"{hours:.3g}")),
        ("wall time", "about " + _ends(plan.wall_hours, duration)),
    ]
    if plan.money.high:
        lines.append(("money", f"about {_ends(plan.money, lambda money: f'{money:.2f}')} {resources.currency}"))
    return lines


def _ends(span: Span, text: Callable[[float], str]) -> str:
    low, high = text(span.low), text(span.high)
    return high if low == high else f"{low} to {high}"
