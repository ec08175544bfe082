"""Who found a registered policy: what its version keeps of them in a tag, and tells in its description. No MLflow.

A network's version keeps the trials that found its policy likewise; its description tells what it reaches itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.pareto import METRICS, accuracy_among
from trainables.policy_file import PolicyRecord

LIMIT = 5000
"""Characters of a description, and of a tag: what MLflow's tables on PostgreSQL and MySQL take."""
MAX_FINDERS = 20
MORE = "more"
LABELS = {name: metric.label for name, metric in METRICS.items()} | {
    "full_bops_g": "BOPs in full precision (G)",
    "float_mb": "weights that stay float (MB)",
}
"""Costs as people read them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """The trials that found one policy."""

    found: Mapping[str, Mapping[str, Any]]
    """By SWEEP_ID/TRIAL: run (EXPERIMENT/RUN), top1 (%), ard, place in its sweep, front (whether it is on it)."""
    more: Mapping[str, int] = field(default_factory=dict)
    """Number of others by sweep id."""

    @classmethod
    def read(cls, text: str) -> Lineage:
        """As `as_json` has written it; of no text an empty one."""
        found = json.loads(text or "{}")
        return cls(more=found.pop(MORE, {}), found=found)

    def as_json(self) -> str:
        """For a tag."""
        return json.dumps({**self.found, **({MORE: self.more} if self.more else {})})

    @property
    def on_front(self) -> bool:
        """Whether the policy is on some sweep's front."""
        return any(finding.get("front", False) for finding in self.found.values())

    def with_sweep(self, sweep_id: str, found: Mapping[str, Mapping[str, Any]]) -> Lineage:
        """With all of a sweep's trials that found the policy, by SWEEP_ID/TRIAL."""
        more = {sweep: count for sweep, count in self.more.items() if sweep != sweep_id}
        return Lineage(found={**self.found, **found}, more=more)

    def best(self, count: int) -> Lineage:
        """With no more than `count` by name: those on a front first, then those with the best top-1."""

        def merit(key: str) -> tuple[bool, float]:
            return bool(self.found[key].get("front", False)), self.found[key]["top1"]

        kept = set(sorted(self.found, key=merit, reverse=True)[:count])
        more = dict(self.more)
        for key in self.found.keys() - kept:
            sweep = key.rpartition("/")[0]
            more[sweep] = more.get(sweep, 0) + 1
        found = {key: finding for key, finding in self.found.items() if key in kept}
        return Lineage(found=found, more=dict(sorted(more.items())))

    def fitted(self, record: PolicyRecord) -> Lineage:
        """With as many by name as MLflow has room for, beside all else that the description says."""
        for count in range(MAX_FINDERS, 1, -1):
            kept = self.best(count)
            if max(len(kept.as_json()), len(kept.description(record))) <= LIMIT:
                return kept
        return self.best(1)

    def description(self, record: PolicyRecord) -> str:
        """What the policy reaches, what it costs and who found it: Markdown, with links to the runs in MLflow's UI."""
        best = max(found["top1"] for found in self.found.values())
        costs = [(LABELS.get(name, name), value) for name, value in record.costs.items()]
        rows = [
            f"| [{key}](#/experiments/{found['run'].replace('/', '/runs/')}) "
            f"| {found['top1']:.2f} | {found['ard']:.3f} | {found['place']} |"
            for key, found in self.found.items()
        ]
        return "\n".join(
            [
                f"{best:.2f} % top-1 at {record.costs['bops_g']:.4g} G BOPs: bits for {record.policy.network}, "
                f"searched by {record.method}.",
                "",
                "| cost | |",
                "|---|---|",
                *(f"| {label} | {value:.6g} |" for label, value in costs),
                "",
                "| found by | top-1 (%) | ARD | in its sweep |",
                "|---|---|---|---|",
                *rows,
                *([f"\nand {sum(self.more.values())} more"] if self.more else []),
            ]
        )


def network_description(
    metrics: Mapping[str, float], what: str, *, finetune: tuple[str, str], found: Mapping[str, Mapping[str, Any]]
) -> str:
    """What a network reaches, what it costs, where it comes from: Markdown, with links to the runs in MLflow's UI.

    Args:
        metrics: measured on the target.
        what: network and data.
        finetune: PROMOTION_ID/TRIAL, and its run (EXPERIMENT/RUN).
        found: by SWEEP_ID/TRIAL of the trials that found its policy: run, empty where it is not known, and top1 (%).
    """
    accuracy = accuracy_among(metrics)
    key, run = finetune
    measured = [f"| {metric.label} | {metrics[name]:.6g} |" for name, metric in METRICS.items() if name in metrics]
    lines = [
        f"{accuracy.told(metrics[accuracy.name])} at {metrics['bops_g']:.4g} G BOPs: {what}, finetuned as "
        f"[{key}](#/experiments/{run.replace('/', '/runs/')}).",
        "",
        "| on the target | |",
        "|---|---|",
        *measured,
        "",
        "| policy found by | top-1 in the search (%) |",
        "|---|---|",
    ]
    rows = [
        f"| {_linked(finder, str(one['run']))} | " + (f"{one['top1']:.2f} |" if "top1" in one else "|")
        for finder, one in found.items()
    ]
    for count in range(min(len(rows), MAX_FINDERS), -1, -1):
        more = [f"\nand {len(rows) - count} more"] if count < len(rows) else []
        text = "\n".join([*lines, *rows[:count], *more])
        if len(text) <= LIMIT:
            break
    return text


def _linked(key: str, run: str) -> str:
    return f"[{key}](#/experiments/{run.replace('/', '/runs/')})" if run else key
