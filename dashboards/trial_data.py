"""What a page knows of each trial: columns that its script draws points, hover texts and details from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.front import Front
from service.records import TrialRecord
from service.view import SweepView
from trainables.policy_file import PolicyRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class PageTrial:
    """A trial that is done, with the policy where the page has it."""

    trial: TrialRecord
    policy: PolicyRecord | None
    sweep: str = ""
    """Label of its sweep, on a page of several."""


def by_kind(found: Front) -> dict[str, list[TrialRecord]]:
    """The trials that are done: 'beyond' a constraint, 'dominated' within them, on the 'front', and its 'knee'."""
    members = {trial.trial_id for trial in found.members}
    beyond = {trial.trial_id for trial in found.infeasible}
    knee = found.knee.trial_id if found.knee else ""
    kinds: dict[str, list[TrialRecord]] = {"beyond": [], "dominated": [], "front": [], "knee": []}
    for trial in found.done:
        own = trial.trial_id
        kind = "knee" if own == knee else "front" if own in members else "beyond" if own in beyond else "dominated"
        kinds[kind].append(trial)
    return kinds


def done_trials(view: SweepView, *, label: str = "") -> list[PageTrial]:
    """All that a page draws of a sweep, by number."""
    return [PageTrial(trial=trial, policy=view.policies.get(trial.trial_id), sweep=label) for trial in view.found.done]


def columns(trials: Sequence[PageTrial]) -> dict[str, Any]:
    """Columns in the order of `trials`; null where a trial has no such setting or metric.

    `bits` has, for trials with a policy, the place in `layers` of what its bits stand for, and weights' and
    activations' bits in that order.
    """
    records = [one.trial for one in trials]
    content: dict[str, Any] = {
        "id": [record.trial_id for record in records],
        "number": [record.number for record in records],
        "hash": [record.policy_hash for record in records],
        "metrics": _columns([record.metrics for record in records]),
        "settings": _columns([record.settings for record in records]),
    }
    if any(one.sweep for one in trials):
        content["sweep"] = [one.sweep for one in trials]
    layers: list[dict[str, Any]] = []
    content["bits"] = {str(i): _bits(one.policy, layers) for i, one in enumerate(trials) if one.policy}
    content["layers"] = layers
    return content


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _bits(record: PolicyRecord, layers: list[dict[str, Any]]) -> list[Any]:
    policy = record.policy
    own = {"network": policy.network, "names": list(policy.bits), "pinned": sorted(policy.pinned)}
    if own not in layers:
        layers.append(own)
    widths = policy.bits.values()
    return [layers.index(own), [width.weight for width in widths], [width.act for width in widths]]
