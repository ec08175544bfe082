"""The methods of a sweep on its page: the table, and top-1 against BOPs and against the search's cost."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.method_notes import budget_words, group_title, notes
from dashboards.method_table import (
    BASELINE,
    MARK,
    Column,
    baseline_texts,
    baseline_values,
    columns,
    cost_unit,
    trials_words,
)
from dashboards.page_colours import series
from dashboards.page_shell import Figure, Section, figure_place
from dashboards.plots_space import log_ticks
from dashboards.tables import Cell, table
from service.method_table import LABELS, SEARCH_COST, SEED, Group, MethodRow, MethodTable, method_table, search_cost
from service.records import TrialRecord
from service.spread import Spread
from service.view import SweepView

SYMBOLS = (
    "circle", "square", "triangle-up", "diamond", "cross", "star", "hexagon", "triangle-down", "pentagon", "x",
)  # fmt: skip
INK = ("uniform", "random")
"""Drawn in the colour of text, so that every other method has one of the series' colours for itself."""
MIN_WIDTH = 760
"""Of the figure, pixels: narrower screens scroll."""
GAP = 0.04
"""Between the two sides and the middle, as a share of the width."""


@dataclass(frozen=True, slots=True)
class _Side:
    """What a half of the figure has across."""

    axis: str
    """Plotly's name of it."""
    key: str
    """Among what is measured of a row."""
    title: str
    factor: float
    """From the record's unit to the one that is shown."""
    of: Callable[[TrialRecord], float | None]
    """The value of a trial, in the record's unit."""


def methods_section(view: SweepView) -> tuple[Section, dict[str, Figure]] | None:
    """None where the sweep has one method alone, or no trial yet."""
    found = method_table(view)
    if len(found.methods) < 2:
        return None
    intro = (
        "The methods of this sweep side by side: same network, data, budgets and finetune, another search. A small "
        "point is a trial, a large one the mean of a method within a budget, with its sample standard deviations as "
        "bars: on the left against BOPs, on the right against what the search cost. Click a name in the key to hide a "
        "method."
    )
    body = ""
    figures: dict[str, Figure] = {}
    for place, group in enumerate(found.groups):
        title = f"<h3>{html.escape(group_title(group))}</h3>" if len(found.groups) > 1 else ""
        name = f"methods-{place}"
        figures[name] = _figure(found, group)
        label = f"Top-1 by method against BOPs and search cost, {group_title(group)}"
        body += title + figure_place(name, height=500, label=label, min_width=MIN_WIDTH) + _table(found, group)
    lines = "".join(f'<p class="note">{html.escape(line)}</p>' for line in notes(found, cost_unit(found)[0]))
    return Section(key="methods", title="Methods", intro=intro, body=body + lines), figures


def _table(found: MethodTable, group: Group) -> str:
    shown = columns(found)
    heads = ["Method", "Budget", "Trials", *(column.head for column in shown)]
    numbers = zip(baseline_texts(group, shown), baseline_values(group, shown), strict=True)
    full = [Cell(BASELINE), Cell(""), Cell(""), *(Cell(text, value) for text, value in numbers)]
    rows = [[Cell(row.label), *_place(row), *(_cell(column, row) for column in shown)] for row in group.rows]
    return table(heads, [full, *rows], caption=f"{group_title(group)}, largest budgets first. Heads sort.")


def _place(row: MethodRow) -> tuple[Cell, Cell]:
    return Cell(budget_words(row.budget)), Cell(trials_words(row), float(len(row.done)))


def _cell(column: Column, row: MethodRow) -> Cell:
    mark = MARK if row.is_best and column.key == "top1" else ""
    return Cell(column.text(row) + mark, column.value(row))


def _figure(found: MethodTable, group: Group) -> Figure:
    """Top-1 against BOPs, and beside it, with the same key, against the search's cost where that is known."""
    unit, factor = cost_unit(found)
    sides = [_Side("x", "bops_g", "BOPs (G)", 1.0, lambda trial: trial.metrics.get("bops_g"))]
    if any(SEARCH_COST in row.measured for row in group.rows):
        cost = f"cost of the search ({unit})"
        sides.append(_Side("x2", SEARCH_COST, cost, factor, lambda trial: search_cost(found.view, trial)))
    data: list[dict[str, Any]] = []
    axes = {}
    for number, side in enumerate(sides):
        drawn = [trace for place, method in enumerate(found.methods) for trace in _traces(group, method, place, side)]
        low, high = number / len(sides), (number + 1) / len(sides)
        gap = GAP if len(sides) > 1 else 0.0
        axes[f"xaxis{number + 1 if number else ''}"] = {
            **_scale(side.title, [x for trace in drawn for x in trace["x"]]),
            "domain": [low + gap * number, high - gap * (1 - number)],
            "anchor": "y",
        }
        data += drawn
    layout = {
        **axes,
        "yaxis": {"title": {"text": "top-1 (%)"}},
        "legend": {"orientation": "h", "y": 1.03, "yanchor": "bottom"},
        "margin": {"t": 30, "b": 60},
        "showlegend": True,
        **_full_precision(group, sides),
    }
    return {"data": data, "layout": layout}


def _traces(group: Group, method: str, place: int, side: _Side) -> list[dict[str, Any]]:
    """A method's trials and its means."""
    known = [row for row in group.rows if row.method == method and {"top1", side.key} <= set(row.measured)]
    symbol, colour = look(method)
    return [_trials(known, place, side, symbol, colour), _means(known, place, side, symbol, colour)]


def look(method: str) -> tuple[str, str]:
    """Symbol and colour, the same on every page."""
    order = list(LABELS)
    place = order.index(method) if method in order else len(order)
    return SYMBOLS[place % len(SYMBOLS)], "$ink" if method in INK else series(len(order) - 1 - place)


def _decades(values: Sequence[float]) -> list[float]:
    """Ticks of a log scale; none where it would not serve."""
    return log_ticks(min(values), max(values)) if values and 0 < min(values) < max(values) else []


def _scale(title: str, values: Sequence[float]) -> dict[str, Any]:
    ticks = _decades(values)
    if not ticks:
        return {"title": {"text": title}}
    marks = {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"title": {"text": f"{title}, log scale"}, "type": "log", **marks}


def _trials(rows: Sequence[MethodRow], place: int, side: _Side, symbol: str, colour: str) -> dict[str, Any]:
    """Small points, which the key does not name."""
    found = [(row, trial, x) for row in rows for trial in row.done if (x := side.of(trial)) is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "xaxis": side.axis,
        "x": [x * side.factor for _, _, x in found],
        "y": [trial.metrics["top1"] for _, trial, _ in found],
        "text": [f"{_name(row)}, trial {trial.number}{_seed(trial)}" for row, trial, _ in found],
        "hovertemplate": f"%{{text}}<br>{side.title} %{{x:.4g}}<br>top-1 %{{y:.2f}} %<extra></extra>",
        "marker": {"symbol": symbol, "size": 6, "color": colour, "opacity": 0.45},
        "legendgroup": str(place),
        "showlegend": False,
    }


def _name(row: MethodRow) -> str:
    budget = f", {budget_words(row.budget)}" if row.budget else ""
    return html.escape(f"{row.label}{budget}")


def _seed(trial: TrialRecord) -> str:
    return f", seed {trial.settings[SEED]}" if SEED in trial.settings else ""


def _means(rows: Sequence[MethodRow], place: int, side: _Side, symbol: str, colour: str) -> dict[str, Any]:
    """Large points with bars, joined along the budgets."""
    tops, xs = [row.measured["top1"] for row in rows], [row.measured[side.key] for row in rows]
    return {
        "type": "scatter",
        "mode": "markers+lines",
        "name": html.escape(rows[0].label) if rows else "",
        "xaxis": side.axis,
        "x": [one.mean * side.factor for one in xs],
        "y": [one.mean for one in tops],
        "error_y": _bars(tops, 1.0, colour),
        "error_x": _bars(xs, side.factor, colour),
        "text": [f"{_name(row)}, mean of {len(row.done)} of {len(row.trials)} trials" for row in rows],
        "hovertemplate": f"%{{text}}<br>{side.title} %{{x:.4g}}<br>top-1 %{{y:.2f}} %<extra></extra>",
        "marker": {
            "symbol": symbol,
            "size": 11,
            "color": colour,
            "line": {"width": 1, "color": "$ink"},
        },
        "line": {"color": colour, "width": 1},
        "legendgroup": str(place),
        "showlegend": bool(rows) and side.axis == "x",
    }


def _bars(found: Sequence[Spread], factor: float, colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "array": [(one.deviation or 0.0) * factor for one in found],
        "color": colour,
        "thickness": 1,
    }


def _full_precision(group: Group, sides: Sequence[_Side]) -> dict[str, Any]:
    top1 = group.full.top1
    if top1 is None:
        return {}
    line = {"type": "line", "x0": 0, "x1": 1, "y0": top1, "y1": top1, "layer": "below"}
    style = {"line": {"color": "$accent", "width": 1.5, "dash": "dot"}}
    note = {"text": f"full precision {top1:.2f} %", "x": 0, "xref": "x domain", "y": top1, "xanchor": "left"}
    return {
        "shapes": [{**line, **style, "xref": f"{side.axis} domain"} for side in sides],
        "annotations": [{**note, "yanchor": "bottom", "showarrow": False, "font": {"color": "$accent", "size": 11}}],
    }
