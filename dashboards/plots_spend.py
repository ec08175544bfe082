"""What a sweep's hours bought: hypervolume as it grew, how accuracy and cost go with ARD, and where the hours went."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.page_colours import series
from dashboards.page_shell import Figure, Section, figure_place
from dashboards.plots_front import KINDS, metric_label
from dashboards.plots_space import log_ticks
from dashboards.tables import facts
from dashboards.trial_data import by_kind
from service.correlation import MIN_POINTS, rank_correlation
from service.growth import Growth, growth, reference_point
from service.pareto import Objective
from service.records import TrialRecord
from service.spend import Spend, TrialSpend, spend
from service.view import SweepView
from trainables.report import Stage

BLUE, ORANGE, PINK = series(0), series(1), series(3)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "2px,7px")
"""7, so that with 8 colours 56 lines look different."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The growth of one sweep."""

    name: str
    steps: Sequence[Growth]
    place: int = 0
    """Among the sweeps of the page: its look."""


def hypervolume_section(view: SweepView) -> tuple[Section, dict[str, Figure]]:
    """Against ended trials and against device-hours."""
    title = {"key": "hypervolume", "title": "Hypervolume"}
    steps, points = growth(view), [trial.metrics for trial in view.found.kept]
    if not points:
        return Section(**title, intro="No policy within the constraints yet: there is no volume.", body=""), {}
    corner = corner_text(reference_point(points, view.found.objectives), view.found.objectives)
    intro = (
        "How much of the box between the best value of each objective and a corner beyond the worst ones the front "
        "dominates: from 0 to 1, higher is better. Where the curve has become flat, more trials of this kind bring "
        f"little. The corner is {html.escape(corner)}."
    )
    lines = [Line(name="", steps=steps)]
    figures = {"growth-trials": growth_figure(lines, "trials"), "growth-hours": growth_figure(lines, "hours")}
    return Section(**title, intro=intro, body=growth_places()), figures


def growth_places() -> str:
    """Where both curves are drawn."""
    return (
        f'<div class="grid">{figure_place("growth-trials", height=320, label="Hypervolume over ended trials")}'
        f"{figure_place('growth-hours', height=320, label='Hypervolume over device-hours')}</div>"
    )


def corner_text(corner: dict[str, float], objectives: Sequence[Objective]) -> str:
    """The corner as people read it."""
    return ", ".join(f"{o.label} {corner[o.name]:.4g}" for o in objectives)


def growth_figure(lines: Sequence[Line], over: str) -> Figure:
    """Steps of each sweep, over 'trials' or 'hours'."""
    title = "trials that ended" if over == "trials" else "device-hours of the trials"
    data = [
        {
            "type": "scatter",
            "mode": "lines" if len(line.steps) > 1 else "lines+markers",
            "name": html.escape(line.name, quote=False),
            "x": [0.0, *(step.trials if over == "trials" else step.device_hours for step in line.steps)],
            "y": [0.0, *(step.hypervolume for step in line.steps)],
            "line": {"shape": "hv", "color": series(line.place), "dash": DASHES[line.place % 7], "width": 2},
            "hovertemplate": f"%{{x:.4g}} {title}<br>hypervolume %{{y:.4f}}<extra>%{{fullData.name}}</extra>",
            "showlegend": len(lines) > 1,
        }
        for line in lines
    ]
    layout = {
        "xaxis": {"title": {"text": title}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "hypervolume, share of the box"}, "rangemode": "tozero"},
        "legend": {"orientation": "h", "y": 1.12},
    }
    return {"data": data, "layout": layout}


def ard_section(view: SweepView) -> tuple[Section, dict[str, Figure]]:
    """Accuracy and BOPs against ARD, of all that is done."""
    title = {"key": "ard", "title": "ARD"}
    done = [trial for trial in view.found.done if "ard" in trial.metrics]
    ards = [trial.metrics["ard"] for trial in done]
    if len(done) < 2:
        return Section(**title, intro="Fewer than two trials are done: there is nothing to compare yet.", body=""), {}
    intro = (
        "The attribution rank difference says how differently the quantised network and the reference look at the "
        "same images; 0 is alike. GMPQ's premise is that policies with a small one generalise. Spearman's ρ says "
        "whether two quantities put the policies into the same order (1), into the opposite one (−1), or into "
        "unrelated ones (0). Its interval takes the policies for independent draws, which those of a search that "
        "learns are not."
    )
    figures, notes = {}, []
    for metric in (view.found.accuracy.name, "bops_g"):
        values = [trial.metrics[metric] for trial in done]
        figures[f"ard-{metric}"] = _scatter(metric, by_kind(view.found))
        notes.append(f"<li>{html.escape(_correlated(metric, ards, values))}</li>")
    places = "".join(
        figure_place(name, height=340, label=f"{name.removeprefix('ard-')} against ARD") for name in figures
    )
    return Section(**title, intro=intro, body=f'<div class="grid">{places}</div><ul>{"".join(notes)}</ul>'), figures


def _correlated(metric: str, ards: Sequence[float], values: Sequence[float]) -> str:
    name, found = metric_label(metric), rank_correlation(ards, values)
    if found is None:
        same = " and ".join(one for one, side in ((name, values), ("ARD", ards)) if len(set(side)) == 1)
        few = f"fewer than {MIN_POINTS} trials say nothing of a correlation"
        why = few if len(ards) < MIN_POINTS else f"no correlation can be given, as all trials have the same {same}"
        return f"{name} and ARD: {why}."
    rho, low, high = (f"{value:+.2f}".replace("-", "−") for value in (found.rho, found.low, found.high))
    if found.low > 0:
        said = f"policies with more ARD have more {name}"
    elif found.high < 0:
        said = f"policies with more ARD have less {name}"
    else:
        said = "the interval holds 0: these trials do not show whether they are related"
    return f"{name} and ARD: ρ = {rho}, 95 % interval {low} to {high}, {found.count} trials; {said}."


MARKS: dict[str, dict[str, Any]] = {
    "beyond": {"size": 8, "symbol": "x-thin-open", "color": "$faint", "line": {"width": 2}},
    "dominated": {"size": 7, "symbol": "circle-open", "color": "$faint", "line": {"width": 1.5}},
    "front": {"size": 9, "symbol": "circle", "color": BLUE, "line": {"width": 1, "color": "$paper"}},
    "knee": {"size": 11, "symbol": "diamond", "color": BLUE, "line": {"width": 1, "color": "$paper"}},
}


def _scatter(metric: str, kinds: Mapping[str, Sequence[TrialRecord]]) -> Figure:
    data: list[dict[str, Any]] = []
    for kind, trials in kinds.items():
        chosen = [trial for trial in trials if "ard" in trial.metrics]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": KINDS[kind],
                "x": [trial.metrics["ard"] for trial in chosen],
                "y": [trial.metrics[metric] for trial in chosen],
                "text": [f"trial {trial.number}" for trial in chosen],
                "hovertemplate": "%{text}<br>ARD %{x:.4g}<br>%{y:.4g}<extra></extra>",
                "marker": MARKS[kind],
                "visible": bool(chosen),
            }
        )
    values = [value for trace in data for value in trace["y"]]
    is_log = metric == "bops_g" and min(values) > 0
    ticks = log_ticks(min(values), max(values)) if is_log and max(values) > min(values) else []
    scale = {"type": "log", **({"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]} if ticks else {})}
    layout = {
        "xaxis": {"title": {"text": metric_label("ard")}},
        "yaxis": {
            "title": {"text": metric_label(metric) + (", log scale" if is_log else "")},
            **(scale if is_log else {}),
        },
        "legend": {"orientation": "h", "y": 1.12},
    }
    return {"data": data, "layout": layout}


def spend_section(view: SweepView) -> tuple[Section, dict[str, Figure]]:
    """By trial, by stage, by front point."""
    title = {"key": "spend", "title": "Spend"}
    found = spend(view)
    if not found.total:
        return Section(**title, intro="No trial has told of an epoch yet: nothing is spent.", body=""), {}
    intro = "Device-hours of each trial, from its first epoch to its last. "
    if view.final:
        intro += "Those of trials that ended without a result (diverged or failed) are grey."
    else:
        intro += (
            "Hours of trials that ended without a policy (pruned, diverged or failed) are grey: early stopping wants "
            "the bars of these to be short."
        )
    per_point = f"{found.per_front_point:.4g} device-h" if found.per_front_point is not None else ""
    going = sum(one.hours for one in found.trials if _going(one))
    shares = ", ".join(f"{100 * share:.0f} % {state}" for state, share in found.by_state.items())
    numbers = facts(
        (
            ("all trials", f"{found.total:.4g} device-h"),
            ("search, with a policy", "" if view.final else f"{_useful_hours(found, 'search'):.4g} device-h"),
            (
                "finetune, with a result" if view.final else "finetune, with a policy",
                f"{_useful_hours(found, 'finetune'):.4g} device-h",
            ),
            ("in trials that have not ended", f"{going:.4g} device-h" if going else ""),
            ("without a result" if view.final else "without a policy", f"{found.cut_off:.4g} device-h"),
            ("for each point of the front", "" if view.final else per_point),
            ("the searches, whole sweeps", _searches(view)),
            ("references, shared", f"{found.references:.4g} device-h" if found.references else ""),
            ("by state of the trial", shares),
        )
    )
    place = figure_place("spend", height=340, label="Device-hours by trial")
    return Section(**title, intro=intro, body=numbers + place), {"spend": _spend_bars(found)}


def _useful_hours(found: Spend, stage: Stage) -> float:
    return sum(one.search if stage == "search" else one.finetune for one in found.trials if _useful(one))


def _searches(view: SweepView) -> str:
    """The device-hours that found the policies of a promotion, where they are known."""
    hours = view.final.search_hours if view.final and view.final.searches else None
    return "" if hours is None else f"{hours:.4g} device-h"


def _useful(one: TrialSpend) -> bool:
    return one.state == "done"


def _going(one: TrialSpend) -> bool:
    return one.state in ("pending", "running")


def _spend_bars(found: Spend) -> Figure:
    numbers = [one.number for one in found.trials]
    parts: list[tuple[str, list[float], str]] = [
        ("search", [one.search if _useful(one) else 0.0 for one in found.trials], BLUE),
        ("finetune", [one.finetune if _useful(one) else 0.0 for one in found.trials], ORANGE),
        ("not ended yet", [one.hours if _going(one) else 0.0 for one in found.trials], PINK),
        ("without a policy", [one.cut_off for one in found.trials], "$faint"),
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": name,
            "x": numbers,
            "y": hours,
            "marker": {"color": colour, "line": {"width": 0}},
            "customdata": [one.state for one in found.trials],
            "hovertemplate": f"trial %{{x}}, %{{customdata}}<br>{name}: %{{y:.4g}} device-h<extra></extra>",
        }
        for name, hours, colour in parts
        if any(hours)
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.15 if len(numbers) <= 200 else 0,
        "xaxis": {"title": {"text": "trial"}, "tickformat": "d", **({"dtick": 1} if len(numbers) <= 20 else {})},
        "yaxis": {"title": {"text": "device-hours"}},
        "legend": {"orientation": "h", "y": 1.12},
        "showlegend": True,
    }
    return {"data": data, "layout": layout}
