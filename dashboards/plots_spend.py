"""What a sweep's hours bought: hypervolume as it grew, how accuracy and cost go with ARD, and where the hours went."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from dashboards.page_shell import Figure, Section, figure_place
from dashboards.plots_front import metric_label
from dashboards.plots_space import log_ticks
from dashboards.tables import facts
from service.correlation import Correlation, rank_correlation
from service.growth import Growth, growth, reference_point
from service.pareto import Objective
from service.spend import Spend, spend
from service.view import SweepView, eligible

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
"""Okabe and Ito's."""


def hypervolume_section(view: SweepView) -> tuple[Section, dict[str, Figure]]:
    """Against ended trials and against device-hours."""
    title = {"key": "hypervolume", "title": "Hypervolume"}
    steps, points = growth(view), [trial.metrics for trial in eligible(view)]
    if not points:
        return Section(**title, intro="No policy within the constraints yet: there is no volume.", body=""), {}
    corner = corner_text(reference_point(points, view.found.objectives), view.found.objectives)
    intro = (
        "How much of the box between the best value of each objective and a corner beyond the worst ones the front "
        "dominates: from 0 to 1, higher is better. Where the curve has become flat, more trials of this kind bring "
        f"little. The corner is {html.escape(corner)}."
    )
    lines = [("", steps, BLUE)]
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


def growth_figure(lines: Sequence[tuple[str, Sequence[Growth], str]], over: str) -> Figure:
    """Steps of each sweep (label, growth, colour), over 'trials' or 'hours'."""
    title = "trials that ended" if over == "trials" else "device-hours of the trials"
    data = [
        {
            "type": "scatter",
            "mode": "lines" if len(steps) > 1 else "lines+markers",
            "name": html.escape(name, quote=False),
            "x": [0.0, *(step.trials if over == "trials" else step.device_hours for step in steps)],
            "y": [0.0, *(step.hypervolume for step in steps)],
            "line": {"shape": "hv", "color": colour, "width": 2},
            "hovertemplate": f"%{{x:.4g}} {title}<br>hypervolume %{{y:.4f}}<extra>%{{fullData.name}}</extra>",
            "showlegend": len(lines) > 1,
        }
        for name, steps, colour in lines
    ]
    layout = {
        "xaxis": {"title": {"text": title}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "hypervolume, share of the box"}, "rangemode": "tozero"},
        "legend": {"orientation": "h", "y": 1.12},
    }
    return {"data": data, "layout": layout}


def ard_section(view: SweepView) -> tuple[Section, dict[str, Figure]]:
    """Top-1 and BOPs against ARD, of all that is done."""
    title = {"key": "ard", "title": "ARD"}
    done = [trial for trial in view.found.done if "ard" in trial.metrics]
    ards = [trial.metrics["ard"] for trial in done]
    if len(done) < 2:
        return Section(**title, intro="Fewer than two trials are done: there is nothing to compare yet.", body=""), {}
    members = {trial.trial_id for trial in view.found.members}
    intro = (
        "The attribution rank difference says how differently the quantised network and the reference look at the "
        "same images; 0 is alike. GMPQ's premise is that policies with a small one generalise. Spearman's ρ says "
        "whether two quantities put the policies into the same order (1), into the opposite one (−1), or into "
        "unrelated ones (0). Its interval takes the policies for independent draws, which those of a search that "
        "learns are not."
    )
    figures, notes = {}, []
    for metric in ("top1", "bops_g"):
        values = [trial.metrics[metric] for trial in done]
        figures[f"ard-{metric}"] = _scatter(
            metric, ards, values, [trial.trial_id in members for trial in done], [trial.number for trial in done]
        )
        notes.append(f"<li>{html.escape(_correlated(metric, rank_correlation(ards, values), len(done)))}</li>")
    places = "".join(
        figure_place(name, height=340, label=f"{name.removeprefix('ard-')} against ARD") for name in figures
    )
    return Section(**title, intro=intro, body=f'<div class="grid">{places}</div><ul>{"".join(notes)}</ul>'), figures


def _correlated(metric: str, found: Correlation | None, count: int) -> str:
    name = metric_label(metric)
    if found is None:
        return (
            f"{name} and ARD: no correlation can be given for {count} trials of which all, or all but a few, are equal."
        )
    rho, low, high = (f"{value:+.2f}".replace("-", "−") for value in (found.rho, found.low, found.high))
    if found.low > 0:
        said = f"policies with more ARD have more {name}"
    elif found.high < 0:
        said = f"policies with more ARD have less {name}"
    else:
        said = "the interval holds 0: these trials do not show whether they are related"
    return f"{name} and ARD: ρ = {rho}, 95 % interval {low} to {high}, {found.count} trials; {said}."


def _scatter(
    metric: str, ards: Sequence[float], values: Sequence[float], on_front: Sequence[bool], numbers: Sequence[int]
) -> Figure:
    data = []
    for name, wanted, colour, opacity in (("dominated", False, GREY, 0.6), ("front", True, BLUE, 1.0)):
        chosen = [i for i, member in enumerate(on_front) if member is wanted]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [ards[i] for i in chosen],
                "y": [values[i] for i in chosen],
                "text": [f"trial {numbers[i]}" for i in chosen],
                "hovertemplate": "%{text}<br>ARD %{x:.4g}<br>%{y:.4g}<extra></extra>",
                "opacity": opacity,
                "marker": {"size": 8, "color": colour, "line": {"width": 1, "color": "$paper"}},
            }
        )
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
    intro = (
        "Device-hours of each trial, from its first epoch to its last. Hours of trials that ended without a policy "
        "(pruned, diverged or failed) are grey: early stopping wants the bars of these to be short."
    )
    per_point = f"{found.per_front_point:.4g} device-h" if found.per_front_point is not None else ""
    shares = ", ".join(f"{100 * share:.0f} % {state}" for state, share in found.by_state.items())
    numbers = facts(
        (
            ("all trials", f"{found.total:.4g} device-h"),
            ("search, with a policy", f"{_useful(found, 'search'):.4g} device-h"),
            ("finetune, with a policy", f"{_useful(found, 'finetune'):.4g} device-h"),
            ("without a policy", f"{found.cut_off:.4g} device-h"),
            ("for each point of the front", per_point),
            ("references, shared", f"{found.references:.4g} device-h" if found.references else ""),
            ("by state of the trial", shares),
        )
    )
    place = figure_place("spend", height=340, label="Device-hours by trial")
    return Section(**title, intro=intro, body=numbers + place), {"spend": _spend_bars(found)}


def _useful(found: Spend, stage: str) -> float:
    return sum(getattr(one, stage) for one in found.trials if not one.cut_off)


def _spend_bars(found: Spend) -> Figure:
    numbers = [one.number for one in found.trials]
    parts: list[tuple[str, list[float], str]] = [
        ("search", [0.0 if one.cut_off else one.search for one in found.trials], BLUE),
        ("finetune", [0.0 if one.cut_off else one.finetune for one in found.trials], ORANGE),
        ("without a policy", [one.cut_off for one in found.trials], GREY),
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
