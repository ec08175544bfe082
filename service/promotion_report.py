"""A promotion's plan, for the terminal and for programs."""

from __future__ import annotations

from typing import Any

from service.plan import count, duration
from service.promotion import Candidate, Plan


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON has it."""
    return {
        "promotion": plan.name,
        "policies": [
            {
                "trial": one.trial_id,
                "policy": one.record.policy.hash,
                "network": one.record.policy.network,
                "found_by": [source.name for source in one.sources],
                "search": dict(one.sources[0].metrics),
                "standing": one.standing,
                "accuracy": one.accuracy,
                "device_hours": plan.hours.get(one.trial_id),
            }
            for one in plan.candidates
        ],
        "held_back": list(plan.held),
        "launched": [one.trial_id for one in plan.launched],
        "device_hours": plan.device_hours,
        "wall_hours": plan.wall_hours,
        "money": plan.device_hours * plan.price if plan.price else None,
        "currency": plan.currency,
    }


def as_text(plan: Plan) -> str:
    """The plan in lines for the terminal."""
    policies = "1 policy" if len(plan.candidates) == 1 else f"{len(plan.candidates)} policies"
    lines = [f"{plan.name}: {policies}, {len(plan.launched)} to finetune"]
    lines += [_line(one, plan) for one in plan.candidates]
    lines += [f"  held back   {reason}" for reason in plan.held]
    if plan.launched:
        cost = f"about {plan.device_hours:.3g} device-hours, {duration(plan.wall_hours)}"
        if plan.price:
            cost += f", {plan.device_hours * plan.price:.2f} {plan.currency}"
        besides = ", besides the full-precision reference where it is not trained yet" if plan.has_reference else ""
        lines.append(f"  cost        {cost}{besides}")
    return "\n".join(lines)


def _line(one: Candidate, plan: Plan) -> str:
    found, first = one.sources[0].metrics, one.sources[0].name
    others = f" and {count(len(one.sources) - 1, 'other')}" if len(one.sources) > 1 else ""
    text = f"{first}{others}: top-1 {found['top1']:.2f} %, {found['bops_g']:.4g} G BOPs, ARD {found['ard']:.3f}"
    if one.standing == "finetuned":
        return f"  finetuned   {text} -> {one.accuracy:.2f} %"
    if one.standing in ("new", "waiting"):
        what = "to finetune" if one.standing == "new" else "to go on"
        return f"  {what:11} {text}; about {duration(plan.hours[one.trial_id] / plan.workers)}"
    hint = f"; run it again with: bitfront rerun-failed {plan.name}" if one.standing == "failed" else ""
    return f"  {one.standing:11} {text}{hint}"
