"""What a promotion came to, on its page: the final table, and whether the search's ranking carries over."""

from __future__ import annotations

import html
from typing import Any

from dashboards.final_table import Column, columns, correlation_words, found_by, hours_words
from dashboards.page_shell import Figure, Section, figure_place
from dashboards.plots_front import KINDS
from dashboards.plots_spend import MARKS
from dashboards.tables import Cell, table
from service.final_table import SEARCH_ACCURACY, FinalRow, FinalTable
from service.view import SweepView


def final_section(view: SweepView) -> tuple[Section, dict[str, Figure]]:
    """Every promoted policy with its origin, its worth and its hours."""
    final = view.final
    title = {"key": "final", "title": "Final table"}
    if final is None or not final.rows:
        return Section(**title, intro="No policy is promoted yet.", body=""), {}
    intro = (
        "Each promoted policy: which trials found it, what it was worth on the data set of the search, and what it is "
        "worth on the target after its finetune. The hours are device-hours: those of the trial that found it, search "
        "and finetune; those of that trial's whole sweep, as only a whole search finds it; and those of the finetune. "
        f"{html.escape(hours_words(final))}"
    )
    return Section(**title, intro=intro, body=_table(final)), {}


def _table(final: FinalTable) -> str:
    shown = columns(final)
    rows = [[_policy(row), _origin(row), *(_number(column, row) for column in shown)] for row in final.rows]
    heads = ["policy", "found by", *(column.head for column in shown)]
    return table(heads, rows, caption="Promoted policies, cheapest first; ◆ is the knee. Heads sort.")


def _policy(row: FinalRow) -> Cell:
    name = f"{row.policy_hash[:10]}{' ◆' if row.is_knee else ''}"
    if row.trial.state != "done":
        return Cell(f"{name} ({row.trial.state})")
    return Cell(name, row.trial.number, row.trial.trial_id)


def _origin(row: FinalRow) -> Cell:
    return Cell(found_by(row), runs=tuple(f"{source.sweep_id}/{source.trial}" for source in row.sources[:3]))


def _number(column: Column, row: FinalRow) -> Cell:
    value = column.value(row)
    return Cell(column.text(row)) if value is None else Cell(column.text(row), value)


def transfer_section(view: SweepView) -> tuple[Section, dict[str, Figure]] | None:
    """Accuracy on the target against accuracy in the search; None where fewer than two policies have both."""
    final = view.final
    pairs = final.pairs() if final else []
    if final is None or len(pairs) < 2:
        return None
    searched = html.escape(", ".join(sorted({search.data for search in final.searches if search.data})))
    intro = (
        f"Each point is a policy: its {html.escape(SEARCH_ACCURACY.name_alone)} on the data set of the search"
        f"{f' ({searched})' if searched else ''}, and its "
        f"{html.escape(final.accuracy.name_alone)} on the target ({html.escape(view.sweep.facts.get('data', ''))}). "
        "The search ranks policies on its own data; where the points rise from left to right its ranking holds on the "
        f"target. {html.escape(correlation_words(final))}"
    )
    place = figure_place("transfer", height=380, label="Accuracy on the target against accuracy in the search")
    return Section(key="transfer", title="Search and target", intro=intro, body=place), {"transfer": _scatter(final)}


def _scatter(final: FinalTable) -> Figure:
    data: list[dict[str, Any]] = []
    for kind in ("dominated", "front", "knee"):
        chosen = [pair for pair in final.pairs() if _kind(pair[0]) == kind]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": KINDS[kind],
                "x": [searched for _, searched, _ in chosen],
                "y": [target for _, _, target in chosen],
                "text": [f"{row.policy_hash[:10]}, {html.escape(found_by(row))}" for row, _, _ in chosen],
                "hovertemplate": "%{text}<br>search %{x:.2f}<br>target %{y:.2f}<extra></extra>",
                "marker": MARKS[kind],
                "visible": bool(chosen),
            }
        )
    layout = {
        "xaxis": {"title": {"text": f"{SEARCH_ACCURACY.name_alone} in the search (%)"}},
        "yaxis": {"title": {"text": f"{final.accuracy.name_alone} on the target (%)"}},
        "legend": {"orientation": "h", "y": 1.12},
    }
    return {"data": data, "layout": layout}


def _kind(row: FinalRow) -> str:
    return "knee" if row.is_knee else "front" if row.on_front else "dominated"
