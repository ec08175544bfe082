"""The methods of a sweep side by side, as a table: for the terminal, as Markdown, JSON and CSV. `plots_methods` has the
page's."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from dashboards.method_notes import budget_words, group_title, notes
from dashboards.policies import NONE, fitted, new_table
from service.method_table import BUDGET_USED, LABELS, SEARCH_COST, Group, MethodRow, MethodTable
from service.spread import Spread

if TYPE_CHECKING:
    from rich.console import Group as Lines
    from rich.table import Table

Form = Literal["text", "markdown", "csv", "json"]
UNITS = (("s", 3600.0, 2 / 60), ("min", 60.0, 2.0), ("h", 1.0, math.inf))
"""Of a search's cost: its name, how many make an hour, and up to how many hours it serves."""
BASELINE, MARK = "Baseline", " *"
TEXT_HEADS = ("Method", "Budget", "Trials")


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A quantity of each row."""

    key: str
    head: str
    short: str
    """The head for terminals."""
    spread: Callable[[MethodRow], Spread | None]
    decimals: int | None = None
    """None: four significant digits."""
    factor: float = 1.0
    """From the record's unit to the one that is shown."""
    signed: bool = False

    def value(self, row: MethodRow) -> float | None:
        """The mean, in the unit that is shown."""
        found = self.spread(row)
        return None if found is None else found.mean * self.factor

    def text(self, row: MethodRow, *, with_spread: bool = True) -> str:
        """As people read it: mean ± deviation; from the least to the most where no budget holds the costs together."""
        found = self.spread(row)
        if found is None:
            return NONE
        if not row.budget and found.least < found.most:
            ends = (found.least, found.most)
            return " to ".join(self.number(end) for end in ends) if with_spread else self.number(found.mean)
        mean = self.number(found.mean)
        if not found.deviation or not with_spread:
            return mean
        places = self._places(found.mean * self.factor)
        return f"{mean} ± {found.deviation * self.factor:.{places}f}"

    def number(self, value: float) -> str:
        """A value in the record's unit."""
        scaled = value * self.factor
        text = f"{scaled:{'+' if self.signed else ''}.{self._places(scaled)}f}"
        return text.replace("-", "−")

    def _places(self, value: float) -> int:
        if self.decimals is not None:
            return self.decimals
        return 0 if not value else min(9, max(0, 3 - math.floor(math.log10(abs(value)))))


def _measured(key: str, head: str, short: str, decimals: int | None = None, factor: float = 1.0) -> Column:
    def spread(row: MethodRow) -> Spread | None:
        return row.measured.get(key)

    return Column(key=key, head=head, short=short, spread=spread, decimals=decimals, factor=factor)


def cost_unit(table: MethodTable) -> tuple[str, float]:
    """One unit for all search costs, and how many make an hour."""
    most = max((row.measured[SEARCH_COST].mean for row in table.rows if SEARCH_COST in row.measured), default=0.0)
    return next((name, factor) for name, factor, up_to in UNITS if most <= up_to)


def columns(table: MethodTable) -> list[Column]:
    """Those that some row has a value for, in the order of the paper's Table 5, with what it lacks among them."""
    unit, factor = cost_unit(table)
    against = LABELS.get(table.against, table.against)
    offered = [
        _measured("storage_mb", "Param. (MB)", "MB"),
        _measured("bops_g", "BOPs (G)", "BOPs G"),
        *([_measured("bops_paper_g", "BOPs, paper's (G)", "paper G")] if _in_papers_bops(table) else []),
        _measured("compression", "Comp. (×)", "×", 1),
        _measured(BUDGET_USED, "used (%)", "used %", 1),
        _measured("top1", "Top-1 (%)", "top-1 %", 2),
        Column(
            key="top1_difference",
            head=f"to {against} (%)",
            short=f"to {against}",
            spread=lambda row: row.differences.get("top1"),
            decimals=2,
            signed=True,
        ),
        _measured("ard", "ARD", "ARD", 3),
        _measured(SEARCH_COST, f"Cost ({unit})", f"cost {unit}", 3 if unit == "h" else 1, factor),
    ]
    return [column for column in offered if any(column.spread(row) for row in table.rows)]


def _in_papers_bops(table: MethodTable) -> bool:
    return any("bops_paper_g" in row.budget for row in table.rows) or "bops_paper_g" in table.view.sweep.objectives


def trials_words(row: MethodRow) -> str:
    """Finished trials, of all."""
    return f"{len(row.done)}/{len(row.trials)}"


def baseline_values(group: Group, shown: Sequence[Column]) -> list[float | None]:
    """Of full precision, in the columns that are shown."""
    known = _full_precision(group)
    return [known.get(column.key) for column in shown]


def _full_precision(group: Group) -> dict[str, float | None]:
    """What is known of it, as policies have it; both ways of counting BOPs give the same."""
    full = group.full
    return {"storage_mb": full.storage_mb, "bops_g": full.bops_g, "bops_paper_g": full.bops_g, "top1": full.top1}


def baseline_texts(group: Group, shown: Sequence[Column]) -> list[str]:
    """The same as people read it."""
    values = zip(shown, baseline_values(group, shown), strict=True)
    return [NONE if value is None else column.number(value) for column, value in values]


def cells(row: MethodRow, shown: Sequence[Column], *, with_spread: bool = True) -> list[str]:
    """Texts of the columns, without marks."""
    return [column.text(row, with_spread=with_spread) for column in shown]


SPARED = ("storage_mb", BUDGET_USED, "compression", "ard", "top1_difference", SEARCH_COST)
"""What narrower terminals do without, in this order."""
WITH_SPREAD = ("top1", "top1_difference", "ard")
"""Columns whose spread is the last to go."""


def as_report(table: MethodTable, *, width: int) -> Lines:
    """For a terminal of `width` characters."""
    from rich.console import Group as Lines
    from rich.text import Text

    if not table.rows:
        return Lines(Text(f"{table.view.sweep.name}: no trial is planned yet, so there is nothing to compare."))
    parts: list[Any] = []
    for group in table.groups:
        parts += [Text(group_title(group), style="bold"), Text(""), _fitting(table, group, width), Text("")]
    return Lines(*parts, Text("\n".join(notes(table, cost_unit(table)[0])), style="dim"))


def as_text(table: MethodTable, *, width: int) -> str:
    """The same as text."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, width=width, file=io.StringIO(), record=True)
    console.print(as_report(table, width=width))
    return console.export_text()


def _fitting(table: MethodTable, group: Group, width: int) -> Any:
    """With as much as has room: without spreads of costs, then with short names and without columns, then a paragraph
    for each row."""
    drawn = _drawn(table, group, spared=None)
    for count in range(len(SPARED) + 1):
        if fitted(drawn, width) is drawn:
            return drawn
        drawn = _drawn(table, group, spared=SPARED[:count])
    return fitted(drawn, width)


def _drawn(table: MethodTable, group: Group, *, spared: Sequence[str] | None) -> Table:
    """`spared`: columns to do without; where there are some methods go by their short names. None: with all spreads."""
    shown = [column for column in columns(table) if column.key not in (spared or ())]
    heads = [*TEXT_HEADS, *(column.short for column in shown)]
    drawn = new_table(heads, left=TEXT_HEADS[:2])
    drawn.add_row(BASELINE, "", "", *(_padded(column, text) for column, text in _baseline(group, shown)))
    before = None
    for row in group.rows:
        if before != row.budget:
            drawn.add_section()
        before = row.budget
        texts = [column.text(row, with_spread=spared is None or column.key in WITH_SPREAD) for column in shown]
        marked = [_padded(column, text, row.is_best) for column, text in zip(shown, texts, strict=True)]
        drawn.add_row(row.method if spared else row.label, budget_words(row.budget), trials_words(row), *marked)
    return drawn


def _baseline(group: Group, shown: Sequence[Column]) -> list[tuple[Column, str]]:
    return list(zip(shown, baseline_texts(group, shown), strict=True))


def _padded(column: Column, text: str, is_best: bool = False) -> str:
    """Numbers stay in line beside a mark."""
    return text if column.key != "top1" else text + (MARK if is_best else " " * len(MARK))


def as_markdown(table: MethodTable) -> str:
    """For people: a table for each network on its data, the best in bold, and what the numbers are."""
    shown, lines = columns(table), [f"# {table.view.sweep.name}", ""]
    for group in table.groups:
        rows = [[*TEXT_HEADS, *(column.head for column in shown)]]
        rows.append(["---", "---", *["---:"] * (len(rows[0]) - 2)])
        rows.append([BASELINE, "", "", *baseline_texts(group, shown)])
        for row in group.rows:
            texts = zip(shown, cells(row, shown), strict=True)
            bold = [f"**{text}**" if row.is_best and column.key == "top1" else text for column, text in texts]
            rows.append([row.label, budget_words(row.budget), trials_words(row), *bold])
        lines += [f"## {group_title(group)}", ""]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        lines.append("")
    if not table.rows:
        lines += ["No trial is planned yet, so there is nothing to compare.", ""]
    told = notes(table, cost_unit(table)[0], bold=True)
    return "\n".join([*lines, *(f"- {note}" for note in told), ""])


def as_json(table: MethodTable) -> dict[str, Any]:
    """For programs: everything, costs in device-hours."""
    sweep = table.view.sweep
    return {
        "sweep": sweep.name,
        "sweep_id": sweep.sweep_id,
        "against": table.against or None,
        "also_varied_within_rows": list(table.besides),
        "groups": [
            {
                "network": group.network,
                "data": group.data,
                "settings": dict(group.others),
                "baseline": asdict(group.full),
                "rows": [_row(row) for row in group.rows],
            }
            for group in table.groups
        ],
        "notes": notes(table, cost_unit(table)[0]),
    }


def _row(row: MethodRow) -> dict[str, Any]:
    return {
        "method": row.method,
        "label": row.label,
        "budget": dict(row.budget),
        "trials": len(row.trials),
        "finished": len(row.done),
        "states": dict(Counter(trial.state for trial in row.trials)),
        "best": row.is_best,
        "measured": {name: asdict(found) for name, found in row.measured.items()},
        "differences": {name: asdict(found) for name, found in row.differences.items()},
        "trial_ids": [trial.trial_id for trial in row.trials],
    }


def as_csv(table: MethodTable) -> str:
    """A line for each row, full precision among them; what it lacks is empty, costs are in device-hours."""
    measured = list(dict.fromkeys(name for row in table.rows for name in row.measured))
    compared = list(dict.fromkeys(name for row in table.rows for name in row.differences))
    others = list(dict.fromkeys(name for group in table.groups for name in group.others))
    heads = [name + end for name in measured for end in ("", "_sd", "_min", "_max")]
    heads += [f"{name}_difference{end}" for name in compared for end in ("", "_sd", "_min", "_max", "_seeds")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = ["method", "budget", "trials", "finished", "best", "against"]
    writer.writerow(["network", "data", *others, *facts, *heads])
    for group in table.groups:
        place = [group.network, group.data, *(group.others.get(name, "") for name in others)]
        full = _full_precision(group)
        known = ["" if (value := full.get(name)) is None else value for name in heads]
        writer.writerow([*place, "baseline", "", "", "", "", "", *known])
        for row in group.rows:
            limits = " ".join(f"{name}={limit:g}" for name, limit in row.budget.items())
            numbers = [value for name in measured for value in _numbers(row.measured.get(name))]
            for name in compared:
                found = row.differences.get(name)
                numbers += [*_numbers(found), found.count if found else ""]
            own = [row.method, limits, len(row.trials), len(row.done), str(row.is_best).lower(), table.against]
            writer.writerow([*place, *own, *numbers])
    return text.getvalue()


def _numbers(found: Spread | None) -> list[float | str]:
    if found is None:
        return [""] * 4
    return [found.mean, "" if found.deviation is None else found.deviation, found.least, found.most]
