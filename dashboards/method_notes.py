"""What the numbers of a table of methods are, and what is not among them: lines below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.method_table import LABELS, SEARCH_COST, Group, MethodRow, MethodTable
from service.records import TrialRecord
from service.spread import TOLD_APART

LIMITS = {
    "bops_g": "≤ {:.4g} G",
    "bops_paper_g": "≤ {:.4g} G, paper's",
    "compression": "≥ {:.4g} ×",
    "storage_mb": "≤ {:.4g} MB",
    "mean_weight_bits": "≤ {:.4g} bits a weight",
    "mean_act_bits": "≤ {:.4g} bits an activation",
}
"""Limits of a budget, as people read them."""
NAMED = 8
"""Trials that a line names."""


def budget_words(budget: Mapping[str, float]) -> str:
    """All its limits."""
    return ", ".join(LIMITS.get(name, f"{name} {{:g}}").format(limit) for name, limit in budget.items()) or "none"


def group_title(group: Group) -> str:
    """The network on its data, with what else the sweep varies of them."""
    more = "".join(f", {name} {value}" for name, value in group.others.items() if value is not None)
    return f"{group.network} on {group.data}{more}"


def notes(table: MethodTable, unit: str, *, bold: bool = False) -> list[str]:
    """A sentence or two each; `unit` is that of the costs, and `bold` how the best are marked: else by an asterisk."""
    if not table.rows:
        return []
    told = [
        _spread_words(table),
        _best_words(table, "Bold" if bold else "*"),
        _difference_words(table),
        _cost_words(table, unit),
        _baseline_words(table),
        _lost_words(table),
        _beyond_words(table),
    ]
    return [line for line in told if line]


def _spread_words(table: MethodTable) -> str:
    if all(len(row.done) < 2 for row in table.rows):
        return "Each row is one trial: nothing is known of its spread."
    settings = ", ".join(table.besides)
    over = f"over the seeds and over {settings}, in which a row's trials differ" if settings else "over the seeds"
    words = f"Means and sample standard deviations are {over}."
    if any(not row.budget for row in table.rows):
        words += " Without a budget a row's policies cost what they cost: then numbers go from the least to the most."
    return words


def _best_words(table: MethodTable, sign: str) -> str:
    if not any(row.budget for row in table.rows) or len(table.methods) < 2:
        return ""
    if not any(_can_lead(group) for group in table.groups):
        return "Nothing is marked: within no budget have two methods two finished trials or more."
    if not any(row.is_best for row in table.rows):
        return f"Nothing is marked: within no budget is a method told apart from the best by {_RULE}."
    return (
        f"{sign}: within a budget the highest mean top-1, and all that are not told apart from it by {_RULE}. Where "
        "none is told apart none is marked. A rule of thumb, no test."
    )


def _can_lead(group: Group) -> bool:
    """Whether some budget has two rows with a spread."""
    spreads = [budget_words(row.budget) for row in group.rows if row.budget and len(row.done) > 1]
    return len(spreads) > len(set(spreads))


_RULE = (
    f"more than {TOLD_APART:g} standard errors of the difference, √(s₁²/n₁ + s₂²/n₂); a row of one trial has no "
    "spread, and takes no part; where it is above all others nothing is marked"
)


def _difference_words(table: MethodTable) -> str:
    counts = {found.count for row in table.rows for found in row.differences.values()}
    if not counts:
        return ""
    pairs = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return (
        f"Differences to {LABELS.get(table.against, table.against)} are of pairs with the same seed, which share data "
        f"and reference ({pairs} a row), with the sample standard deviation of these differences."
    )


def _cost_words(table: MethodTable, unit: str) -> str:
    done = [trial for row in table.rows for trial in row.done]
    if not any(SEARCH_COST in row.measured for row in table.rows):
        return ""
    whole = [SEARCH_COST in trial.metrics for trial in done]
    what = "all that finding a policy took, maps of the reference that trials share included"
    if not any(whole):
        what = "the trial's own search; maps of the reference that trials share are not among it"
    elif not all(whole):
        what += "; of older trials their own search alone"
    return f"Cost: device time of {what}, in {unit}; finetunes are not among it."


def _baseline_words(table: MethodTable) -> str:
    parts = []
    for group in table.groups:
        full = group.full
        named = f"{group_title(group)}: " if len(table.groups) > 1 else ""
        hours = (
            [] if full.training_hours is None else [f"trained in {full.training_hours:.3g} device-h, by nobody's Cost"]
        )
        floats = [] if full.float_mb is None else [f"{full.float_mb:.3g} MB that stay float in every row come on top"]
        if hours or floats:
            parts.append(f"{named}{'; '.join([*hours, *floats])}")
    return (
        f"Baseline: full precision, 4 bytes a weight. {'. '.join(_sentence(part) for part in parts)}." if parts else ""
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lost_words(table: MethodTable) -> str:
    """Trials that are in no mean."""
    lines = [_lost_of(row) for row in table.rows if len(row.done) < len(row.trials)]
    waiting = table.view.sweep.total_trials - len(table.view.trials)
    if waiting > 0:
        lines.append(f"{waiting} of {table.view.sweep.total_trials} trials not begun")
    return f"In no mean: {'; '.join(lines)}." if lines else ""


def _lost_of(row: MethodRow) -> str:
    lost = [trial for trial in row.trials if trial.state != "done"]
    limits = f" ({budget_words(row.budget)})" if row.budget else ""
    return f"{row.label}{limits} {_named(lost)}"


def _named(trials: Sequence[TrialRecord]) -> str:
    texts = [f"trial {trial.number} {trial.state}{f' ({trial.failure})' if trial.failure else ''}" for trial in trials]
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more


def _beyond_words(table: MethodTable) -> str:
    beyond = len(table.view.found.infeasible)
    if not beyond:
        return ""
    bounds = " and ".join(table.view.sweep.constraints)
    return f"{beyond} finished trials break the sweep's constraints ({bounds}); they are in the means all the same."
