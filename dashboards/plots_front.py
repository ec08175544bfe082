"""The front of one sweep or of several: what the page's script draws as points, and the table below."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from dashboards.front import COLUMNS, better, columns_of, settings_of
from dashboards.page_shell import Section, figure_place
from dashboards.tables import Cell, number, short_names, table
from dashboards.trial_data import PageTrial, by_kind
from service.front import Front
from service.pareto import ACCURACIES, METRICS, Objective, accuracy_among, parse_constraint
from service.records import SweepRecord, TrialRecord
from service.view import SweepView

CIVIDIS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")
"""Even steps of lightness, read alike with and without colour blindness (Nuñez et al. 2018)."""
OTHERS = {
    "float_mb": "biases and normalisation, float (MB)",
    "full_bops_g": "BOPs in full precision (G)",
    "attribution_pixels": "pixels of the attribution map",
    "reference_top1": "top-1 of the reference (%)",
    "search_device_hours": "device-hours of the search",
    "search_cost_hours": "device-hours of the search, with shared maps in full",
    "finetune_device_hours": "device-hours of the finetune",
}
"""Metrics that are no objectives, as people read them."""


KINDS = {
    "beyond": "beyond a constraint",
    "dominated": "dominated",
    "front": "front",
    "knee": "knee of the front",
}
"""Trials that are done, in the order in which they are drawn."""


def scale(colours: Sequence[str]) -> list[list[Any]]:
    """Plotly's form of a colour scale with even steps."""
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


def metric_label(name: str) -> str:
    """A metric as people read it, with its unit."""
    return METRICS[name].label if name in METRICS else OTHERS.get(name, name)


def axes_of(objectives: Sequence[Objective], trials: Sequence[TrialRecord] = ()) -> dict[str, str]:
    """Metrics that the front is drawn by at first: y against x, and the colour.

    Accuracy against BOPs by ARD where these are objectives; others take the places that are left in their order. Where
    the trials have no ARD the colour is the size of the weights.
    """
    names = [objective.name for objective in objectives]
    has_ard = not trials or any("ard" in trial.metrics for trial in trials)
    default = next((name for name in ACCURACIES if any(name in t.metrics for t in trials)), ACCURACIES[0])
    accuracy = accuracy_among(names, default).name
    places = {"y": accuracy, "x": "bops_g", "colour": "ard" if has_ard else "storage_mb"}
    chosen = {place: name for place, name in places.items() if name in names}
    left = [name for name in names if name not in chosen.values()]
    for place in places:
        if place not in chosen and left:
            chosen[place] = left.pop(0)
    return {place: chosen.get(place, name) for place, name in places.items()}


def front_content(found: Front, sweep: SweepRecord, trials: Sequence[PageTrial]) -> dict[str, Any]:
    """What the script needs for one sweep's front; trials are meant by their places."""
    place = {one.trial.trial_id: i for i, one in enumerate(trials)}
    return {
        **axes_of(found.objectives, found.done),
        "groups": [
            {"name": KINDS[kind], "kind": kind, "members": [place[trial.trial_id] for trial in chosen]}
            for kind, chosen in by_kind(found).items()
            if chosen
        ],
        "knee": place[found.knee.trial_id] if found.knee else None,
        "constraints": constraint_lines(sweep.constraints),
        "references": reference_lines(sweep),
        **metrics_of(trials),
    }


def constraint_lines(constraints: Sequence[str]) -> list[dict[str, Any]]:
    """Constraints as the script draws them."""
    parsed = [parse_constraint(text) for text in constraints]
    return [{"metric": one.metric, "relation": one.relation, "bound": one.bound} for one in parsed]


def reference_lines(sweep: SweepRecord) -> list[dict[str, Any]]:
    """The full-precision references' top-1; of more than three the best and the worst."""
    found = sorted({record["top1"] for record in sweep.references.values() if "top1" in record})
    shown = found if len(found) <= 3 else [found[0], found[-1]]
    return [{"name": f"full precision {top1:.2f} %", "top1": top1} for top1 in shown]


def metrics_of(trials: Sequence[PageTrial]) -> dict[str, Any]:
    """Labels of all metrics that there are, in the order of METRICS, and those of the hover."""
    known = {name for one in trials for name in one.trial.metrics}
    ordered = [*(name for name in METRICS if name in known), *sorted(known - set(METRICS))]
    return {
        "metrics": {name: metric_label(name) for name in ordered},
        "hover": [name for name, _, _ in COLUMNS if name in known],
    }


def front_section(view: SweepView, trials: Sequence[PageTrial]) -> Section:
    """Points to look at, and the table of the front."""
    found = view.found
    if not found.done:
        return Section(key="front", title="Front", intro="No trial is done yet: there is no front.", body="")
    axes = axes_of(found.objectives, found.done)
    bounds = ""
    if view.sweep.constraints:
        bounds = (
            " Crosses break a constraint and are never on the front; where a constraint is on an axis, its side that "
            "breaks it is shaded."
        )
    intro = (
        f"Each point is a policy. Better is: {html.escape(better(found.objectives))}. Full points are the front, and ◆ "
        "is its knee; faded ones are dominated: another policy is nowhere worse and somewhere better."
        f"{bounds} Point at a policy for its settings and bits, and click it, or choose its trial above, for all that "
        "is known of it. Click a name in the key to hide what it stands for. On the scale of colours dark is less."
    )
    plot = figure_place("front", height=580, label="Front: the policies by two metrics, coloured by a third")
    details = (
        '<aside id="details" aria-live="polite" aria-label="Selected trial"><p>Click a point, or a number in the first '
        "column of the table, or choose a trial above, and its settings, metrics, bits and run stand here.</p></aside>"
    )
    body = f'{choices(axes, metrics_of(trials)["metrics"])}<div class="split">{plot}{details}</div>{front_table(found)}'
    return Section(key="front", title="Front", intro=intro, body=body)


def choices(axes: Mapping[str, str], metrics: Mapping[str, str], *, names: Sequence[str] = ("y", "x", "colour")) -> str:
    """Selects for the axes and for a trial, whose options the script adds; and whether a click opens a run."""
    labels = {"y": "Up", "x": "Across", "colour": "Colour"}
    selects = "".join(
        f'<label>{labels[name]}<select id="axis-{name}">{_options(metrics, axes[name])}</select></label>'
        for name in names
    )
    trial = '<label>Trial<select id="trial"><option value="">none</option></select></label>'
    opens = '<label hidden><input type="checkbox" id="opens" checked> a click opens the run, too</label>'
    return f'<div class="choices">{selects}{trial}{opens}</div>'


def _options(metrics: Mapping[str, str], chosen: str) -> str:
    return "".join(
        f'<option value="{html.escape(name)}"{" selected" if name == chosen else ""}>{html.escape(label)}</option>'
        for name, label in metrics.items()
    )


def front_table(found: Front) -> str:
    """The members, cheapest first."""
    if not found.members:
        return "<p>No policy keeps the constraints: the front is empty.</p>"
    names, known = sorted(settings_of(found.members)), columns_of(found.members)
    extra = [o for o in found.objectives if o.name not in {key for key, _, _ in COLUMNS}]
    heads = ["trial", *(label for _, label, _ in known), *(o.label for o in extra), *short_names(names), "policy"]
    rows = [
        [
            Cell(f"{trial.number}{' ◆' if trial is found.knee else ''}", trial.number, trial.trial_id),
            *(number(trial.metrics.get(key, ""), _formed(form, trial.metrics.get(key))) for key, _, form in known),
            *(number(trial.metrics.get(o.name, "")) for o in extra),
            *(number(trial.settings.get(name, "–")) for name in names),
            Cell(trial.policy_hash[:10]),
        ]
        for trial in found.members
    ]
    return table(heads, rows, caption="Policies of the front; ◆ is the knee. Heads sort.")


def _formed(form: str, value: float | None) -> str:
    return "–" if value is None else form.format(value)
