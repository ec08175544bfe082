"""What a promotion will do and what that will cost, before anything is launched."""

from __future__ import annotations

from collections.abc import Sequence

from service.promotion import Candidate, Plan, candidates, find_promotion, standing_of
from service.records import SweepStore
from service.rules import Gates, Rule
from service.template import Template
from trainables import api


def plan_promotion(
    template: Template, sweep: SweepStore, rule: Rule, gates: Gates, *, trials: Sequence[str] = ()
) -> Plan:
    """The plan of promoting from `sweep`; a few steps are timed for each network that is still to be finetuned.

    Raises a BitfrontError for what would fail later: layers, data, batches, names.
    """
    storage, resources = sweep.folder.parent, template.resources
    chosen, held = candidates(sweep, rule, gates, trials=trials)
    promotion = find_promotion(template, storage)
    found = [standing_of(candidate, promotion, accuracy=template.accuracy) for candidate in chosen]
    hours: dict[str, float] = {}
    by_network: dict[str, float] = {}
    for one in found:
        if one.standing not in ("new", "waiting"):
            continue
        network = one.record.policy.network
        if network not in by_network:
            by_network[network] = _hours(template, one)
        hours[one.trial_id] = by_network[network]
    return Plan(
        name=template.name,
        candidates=tuple(found),
        held=tuple(held),
        hours=hours,
        slots=resources.concurrency,
        workers=resources.workers,
        price=resources.price_per_device_hour,
        has_reference=template.task == "classification",
        currency=resources.currency,
    )


def _hours(template: Template, candidate: Candidate) -> float:
    """Device-hours of a finetune; the same for all policies of a network, whose bits change no step's length."""
    resources = template.resources
    survey = api.survey_finetune(
        template.config(candidate.record),
        candidate.record,
        threads=resources.cpus_per_worker,
        workers=resources.workers,
    )
    return survey.device_hours
