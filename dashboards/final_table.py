"""What a promotion came to, as a table: for the terminal, as Markdown, JSON and CSV. `plots_final` has the page's."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dashboards.policies import NONE, fitted, new_table
from service.files import write_text
from service.final_table import SEARCH_ACCURACY, FinalRow, FinalTable, final_table
from service.pareto import METRICS
from service.records import SweepStore

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

FILES = ("final.md", "final.json", "final.csv")
FURTHER = ("top1", "top5", "map", "ap", "ap50", "ap75", "aps", "apm", "apl")
"""What else is told of a target, besides the accuracy."""
COSTS = ("bops_g", "backbone_bops_g", "storage_mb", "ard", "images_per_s")
FORMS = {
    "ard": "{:.3f}",
    "bops_g": "{:.4g}",
    "backbone_bops_g": "{:.4g}",
    "storage_mb": "{:.4g}",
    "images_per_s": "{:.4g}",
}
HOURS = "{:.4g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A number of each policy."""

    key: str
    head: str
    form: str
    value: Callable[[FinalRow], float | None]

    def text(self, row: FinalRow) -> str:
        """The number as people read it."""
        value = self.value(row)
        return NONE if value is None else self.form.format(value)


def _measured(name: str, head: str = "") -> Column:
    def value(row: FinalRow) -> float | None:
        return row.metrics.get(name)

    return Column(key=name, head=head or METRICS[name].label, form=FORMS.get(name, "{:.2f}"), value=value)


def columns(table: FinalTable) -> list[Column]:
    """The numbers that some policy of the table has."""
    searched = SEARCH_ACCURACY.label.replace("(", "in search (")
    head = f"{table.accuracy.name_alone} on target (%)"
    offered = [
        Column(key="search_top1", head=searched, form="{:.2f}", value=lambda row: row.searched),
        _measured(table.accuracy.name, head),
        *(_measured(name) for name in FURTHER if name != table.accuracy.name),
        *(_measured(name) for name in COSTS),
        Column(key="found_hours", head="finding trial (device-h)", form=HOURS, value=lambda row: row.found_hours),
        Column(key="search_hours", head="whole sweep (device-h)", form=HOURS, value=lambda row: row.search_hours),
        Column(key="finetune_hours", head="finetune (device-h)", form=HOURS, value=lambda row: row.finetune_hours),
    ]
    return [column for column in offered if any(column.value(row) is not None for row in table.rows)]


TERMINAL = {
    "search_top1": ("search %", "{:.2f}"),
    "bops_g": ("BOPs G", "{:.4g}"),
    "storage_mb": ("MB", "{:.3g}"),
    "ard": ("ARD", "{:.3f}"),
    "found_hours": ("found h", "{:.3g}"),
    "search_hours": ("sweep h", "{:.3g}"),
    "finetune_hours": ("tune h", "{:.3g}"),
}
"""Columns of the terminal beside the accuracy, with short heads."""
SPARED = ("storage_mb", "search_hours", "found_hours", "ard", "finetune_hours", "bops_g")
"""What narrower terminals do without, in this order."""


def as_table(table: FinalTable, *, width: int = 80) -> Group:
    """For a terminal of `width` characters."""
    from rich.console import Group
    from rich.text import Text

    spared, drawn = 0, fitted(_drawn(table, ()), width)
    while isinstance(drawn, Text) and spared < len(SPARED):
        spared += 1
        drawn = fitted(_drawn(table, SPARED[:spared]), width)
    return Group(Text(title(table)), Text(""), drawn, Text(""), Text(" ".join(remarks(table)), style="dim"))


def _drawn(table: FinalTable, spared: Sequence[str]) -> Table:
    named = {**TERMINAL, table.accuracy.name: (f"{table.accuracy.name_alone.split(',')[0]} %", "{:.2f}")}
    shown = [column for column in columns(table) if column.key in named and column.key not in spared]
    drawn = new_table(["policy", "found by", *(named[column.key][0] for column in shown)], left=("policy", "found by"))
    for row in table.rows:
        cells = (replace(column, form=named[column.key][1]).text(row) for column in shown)
        drawn.add_row(_name(row), found_by(row, most=1), *cells)
    return drawn


def title(table: FinalTable) -> str:
    """What was promoted to what."""
    done = sum(row.trial.state == "done" for row in table.rows)
    facts = table.sweep.facts
    what = f"{facts.get('network', '')} on {facts.get('data', '')}".strip()
    return f"{table.sweep.name}: {done} of {len(table.rows)} promoted policies finetuned, {what}"


def _name(row: FinalRow) -> str:
    mark = " ◆" if row.is_knee else " ·" if row.on_front else ""
    return f"{row.policy_hash[:10]}{mark}{'' if row.trial.state == 'done' else f' ({row.trial.state})'}"


def found_by(row: FinalRow, *, most: int = 3) -> str:
    """Names of the trials, the one that the policy was promoted from first; `most`: of so many by name."""
    names = [source.name for source in row.sources]
    more = f" +{len(names) - most}" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else NONE


def remarks(table: FinalTable) -> list[str]:
    """What the numbers are: marks, hours, and whether the search's order carries over."""
    marks = "◆ is the knee, · others on the front of the target." if any(row.on_front for row in table.rows) else ""
    return [part for part in (marks, hours_words(table), correlation_words(table)) if part]


def hours_words(table: FinalTable) -> str:
    """The device-hours in all, and what they do not have."""
    tuned = f"finetunes {table.finetune_hours:.4g}"
    if not table.searches:
        return f"Device-hours: {tuned}."
    names = ", ".join(search.name for search in table.searches)
    whole = f"{table.search_hours:.4g}" if table.search_hours is not None else "not known, as a storage is gone"
    own = "" if table.found_hours is None else f" ({table.found_hours:.4g} in the trials that found these policies)"
    return f"Device-hours: search {whole} in all of {names}{own}; {tuned}. References are not among them."


def correlation_words(table: FinalTable) -> str:
    """Whether the search's ranking carries over."""
    found, count = table.correlation, len(table.pairs())
    if found is None:
        return "" if count < 2 else f"{count} policies do not say whether the search's order carries over."
    rho, low, high = (f"{value:+.2f}".replace("-", "−") for value in (found.rho, found.low, found.high))
    if found.low > 0:
        said = "the search's order carries over"
    elif found.high < 0:
        said = "the search's order is turned round"
    else:
        said = "the interval holds 0: these policies do not show whether the search's order carries over"
    return (
        f"Accuracy in the search and on the target: Spearman's ρ = {rho}, 95 % interval {low} to {high}, {found.count} "
        f"policies; {said}."
    )


def as_markdown(table: FinalTable) -> str:
    """For people: the table and what its numbers are."""
    shown = columns(table)
    rows = [["policy", "found by", *(column.head for column in shown)]]
    rows.append(["---"] * len(rows[0]))
    rows += [[_name(row), found_by(row), *(column.text(row) for column in shown)] for row in table.rows]
    lines = [f"# {table.sweep.name}", "", title(table), ""]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"{remark}\n" for remark in remarks(table))])


def as_json(table: FinalTable) -> dict[str, Any]:
    """For programs: everything."""
    found = table.correlation
    return {
        "promotion": table.sweep.name,
        "promotion_id": table.sweep.sweep_id,
        "task": table.sweep.facts.get("task", ""),
        "network": table.sweep.facts.get("network", ""),
        "data": table.sweep.facts.get("data", ""),
        "accuracy": table.accuracy.name,
        "policies": [_policy(row) for row in table.rows],
        "searches": [
            {"sweep": one.name, "sweep_id": one.sweep_id, "data": one.data, "device_hours": one.device_hours}
            for one in table.searches
        ],
        "search_device_hours": table.search_hours,
        "found_device_hours": table.found_hours,
        "finetune_device_hours": table.finetune_hours,
        "rank_correlation": None
        if found is None
        else {"rho": found.rho, "low": found.low, "high": found.high, "policies": found.count},
    }


def _policy(row: FinalRow) -> dict[str, Any]:
    return {
        "trial": row.trial.trial_id,
        "number": row.trial.number,
        "state": row.trial.state,
        "policy_hash": row.policy_hash,
        "found_by": [
            {"sweep": one.sweep, "sweep_id": one.sweep_id, "trial": one.trial, "metrics": dict(one.metrics)}
            for one in row.sources
        ],
        "search_top1": row.searched,
        "metrics": dict(row.metrics),
        "on_front": row.on_front,
        "knee": row.is_knee,
        "found_device_hours": row.found_hours,
        "found_share_of_sweep": row.share,
        "sweep_device_hours": row.search_hours,
        "finetune_device_hours": row.finetune_hours,
    }


def as_csv(table: FinalTable) -> str:
    """A line for each policy; what it lacks is empty."""
    shown, text = columns(table), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["policy_hash", "trial", "state", "on_front", "knee", "found_by", *(column.key for column in shown)]
    )
    for row in table.rows:
        marks = [str(row.on_front).lower(), str(row.is_knee).lower()]
        values = [column.value(row) for column in shown]
        names = " ".join(source.name for source in row.sources)
        numbers = ["" if value is None else value for value in values]
        writer.writerow([row.policy_hash, row.trial.trial_id, row.trial.state, *marks, names, *numbers])
    return text.getvalue()


def write_final(store: SweepStore) -> FinalTable:
    """Writes the table into the promotion's folder: final.md, final.json, final.csv."""
    table = final_table(store)
    texts: Mapping[str, str] = dict(
        zip(FILES, (as_markdown(table), json.dumps(as_json(table), indent=2) + "\n", as_csv(table)), strict=True)
    )
    for name, text in texts.items():
        write_text(store.folder / name, text)
    return table
