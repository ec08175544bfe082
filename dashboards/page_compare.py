"""Several sweeps on common axes, as one page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from dashboards.front import better
from dashboards.page_colours import series
from dashboards.page_shell import Figure, Section, document, figure_place
from dashboards.plots_front import CIVIDIS, axes_of, choices, constraint_lines, metrics_of, reference_lines, scale
from dashboards.plots_spend import Line, corner_text, growth_figure, growth_places
from dashboards.sweep_facts import heading
from dashboards.tables import Cell, number, table
from dashboards.trial_data import PageTrial, columns, done_trials
from service.comparison import Ahead, Comparison, compare, labels_of
from service.growth import growth
from service.view import SweepView

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "cross", "star", "hexagon")
"""7, so that with 8 colours 56 sweeps look different."""
SIGNS = ("●", "■", "▲", "◆", "✚", "★", "⬢")
"""The symbols in a text."""


def compare_page(views: Sequence[SweepView], *, labels: Sequence[str] | None = None) -> str:
    """The page of several sweeps; `labels` stand for their names. Raises ConfigError without a common objective."""
    names = list(labels or labels_of(views))
    found = compare(views)
    trials = [one for view, name in zip(views, names, strict=True) for one in done_trials(view, label=name)]
    growing, figures = _growth_section(views, names, found)
    sections = [
        _front_section(views, names, found, trials),
        growing,
        _table_section(names, found),
        _sweeps(views, names),
    ]
    content = {
        "trials": columns(trials),
        "front": _front_content(views, names, found, trials) if trials else None,
        "scales": {"points": scale(CIVIDIS)},
    }
    title = " and ".join(names) if len(names) < 4 else f"{len(names)} sweeps"
    warnings = "".join(f"<li>{html.escape(warning)}</li>" for warning in found.warnings)
    notes = f'<ul class="warnings">{warnings}</ul>' if warnings else ""
    header = f"<header><h1>{html.escape(title)}</h1>{notes}</header>"
    return document(title=f"{title} – compared", header=header, sections=sections, figures=figures, content=content)


def look(place: int) -> dict[str, str]:
    """Shape and colour of the sweep at this place."""
    return {"symbol": SYMBOLS[place % len(SYMBOLS)], "colour": series(place)}


def _front_content(
    views: Sequence[SweepView], names: Sequence[str], found: Comparison, trials: Sequence[PageTrial]
) -> dict[str, Any]:
    """As `plots_front.front_content`, with groups for each sweep."""
    groups: list[dict[str, Any]] = []
    place = 0
    for at, (view, name) in enumerate(zip(views, names, strict=True)):
        mine = range(place, place + len(view.found.done))
        place += len(mine)
        members = {trial.trial_id for trial in found.fronts[at]}
        beyond = {trial.trial_id for trial in view.found.infeasible}
        kinds = {i: _kind(trials[i].trial.trial_id, members, beyond) for i in mine}
        for kind, suffix in (("beyond", ", beyond a constraint"), ("dominated", ", dominated"), ("front", "")):
            chosen = [i for i in mine if kinds[i] == kind]
            if chosen:
                group = {"name": name + suffix, "sweep": name, "kind": kind, "members": chosen, **look(at)}
                groups.append(group)
    # Fronts lie above what they dominate, of all sweeps.
    groups.sort(key=lambda group: group["kind"] == "front")
    return {
        **axes_of(found.objectives, [one.trial for one in trials]),
        "groups": groups,
        "knee": None,
        "constraints": _common_constraints(views),
        "references": _references(views, names),
        **metrics_of(trials),
    }


def _references(views: Sequence[SweepView], names: Sequence[str]) -> list[dict[str, Any]]:
    """Lines of the references; sweeps that have the same share one."""
    sharing: dict[float, list[str]] = {}
    for view, name in zip(views, names, strict=True):
        for line in reference_lines(view.sweep):
            sharing.setdefault(line["top1"], []).append(name)
    lines = []
    for top1, sharers in sorted(sharing.items()):
        whose = f", {', '.join(sharers)}" if len(sharers) < len(views) else ""
        lines.append({"name": f"full precision {top1:.2f} %{whose}", "top1": top1})
    return lines


def _kind(trial_id: str, members: set[str], beyond: set[str]) -> str:
    return "front" if trial_id in members else "beyond" if trial_id in beyond else "dominated"


def _common_constraints(views: Sequence[SweepView]) -> list[dict[str, Any]]:
    common = [text for text in views[0].sweep.constraints if all(text in view.sweep.constraints for view in views)]
    return constraint_lines(common)


def _front_section(
    views: Sequence[SweepView], names: Sequence[str], found: Comparison, trials: Sequence[PageTrial]
) -> Section:
    title = {"key": "front", "title": "Fronts"}
    if not trials:
        return Section(**title, intro="No trial of these sweeps is done yet: there is no front.", body="")
    intro = (
        f"Each point is a policy, in the shape and colour of its sweep. Better is: "
        f"{html.escape(better(found.objectives))}. Full points are the front of their sweep, faded ones are dominated "
        "in it. Click a name in the key to hide what it stands for, and a point, or choose a trial above, for all that "
        "is known of it."
    )
    plot = figure_place("front", height=580, label="Fronts of the sweeps")
    details = (
        '<aside id="details" aria-live="polite" aria-label="Selected trial"><p>Click a point, or choose a trial above, '
        "and its settings, metrics and bits stand here.</p></aside>"
    )
    axes = axes_of(found.objectives, [one.trial for one in trials])
    selects = choices(axes, metrics_of(trials)["metrics"], names=("y", "x"))
    return Section(**title, intro=intro, body=f'{selects}<div class="split">{plot}{details}</div>')


def _growth_section(
    views: Sequence[SweepView], names: Sequence[str], found: Comparison
) -> tuple[Section, dict[str, Figure]]:
    title = {"key": "hypervolume", "title": "Hypervolume"}
    if found.box is None:
        return Section(**title, intro="No policy within the constraints yet: there is no volume.", body=""), {}
    corner = corner_text(found.box.reference_point, found.objectives)
    intro = (
        "How much of the box around the policies of all sweeps each front dominates: from 0 to 1, higher is better. "
        "All are measured from one corner, so that their curves can be compared: over hours, which sweep is cheaper; "
        f"over trials, which needs fewer. The corner is {html.escape(corner)}."
    )
    lines = [
        Line(name=name, steps=growth(view, box=found.box), place=i)
        for i, (view, name) in enumerate(zip(views, names, strict=True))
    ]
    figures = {"growth-trials": growth_figure(lines, "trials"), "growth-hours": growth_figure(lines, "hours")}
    return Section(**title, intro=intro, body=growth_places()), figures


def _table_section(names: Sequence[str], found: Comparison) -> Section:
    intro = (
        "Hypervolume as above. For a sweep against each other one: ε, by what share of the box it has to improve in "
        "every objective to be nowhere behind (less is better, 0 or less is nowhere behind); IGD+, how far it is "
        "behind the other front on average (less is better); and the share of the other front that it reaches or "
        "beats (more is better)."
    )
    single = [
        [
            Cell(name),
            number(float(len(found.fronts[i])), str(len(found.fronts[i]))),
            number(found.hypervolumes[i], f"{found.hypervolumes[i]:.4f}"),
            number(float(sum(place == i for place, _ in found.joint))),
        ]
        for i, name in enumerate(names)
    ]
    own = table(
        ["sweep", "on its front", "hypervolume", "of these on the joint front"],
        single,
        caption=f"Each sweep; the joint front of all has hypervolume {found.joint_hypervolume:.4f}.",
    )
    pairs = [
        [
            Cell(ours),
            Cell(theirs),
            _share(found.epsilon[i][j]),
            _share(found.distance[i][j]),
            _percent(found.coverage[i][j]),
        ]
        for i, ours in enumerate(names)
        for j, theirs in enumerate(names)
        if i != j
    ]
    both = table(["sweep", "against", "ε", "IGD+", "reaches"], pairs, caption="Each sweep against each other one.")
    return Section(
        key="comparison",
        title="Comparison",
        intro=intro,
        body=f'<div class="tables">{own}{both}{_ahead_table(names, found)}</div>',
    )


def _share(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:+.4f}".replace("-", "−"), value)


def _percent(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{100 * value:.0f} %", value)


def _ahead_table(names: Sequence[str], found: Comparison) -> str:
    if found.cost is None or not found.ahead:
        return ""
    rows = [[_from(one), _to(one), Cell(_leader(one, names)), _gap(one)] for one in found.ahead]
    return table(
        [f"from {found.cost.label}", "to", "ahead", f"by, {found.quality.label}"],
        rows,
        caption=f"Who has the better {found.quality.label} at no more {found.cost.label}, from the cheapest policy on.",
    )


def _from(one: Ahead) -> Cell:
    return Cell(f"{one.low:.4g}", one.low)


def _to(one: Ahead) -> Cell:
    return Cell("∞" if one.high is None else f"{one.high:.4g}", 1e300 if one.high is None else one.high)


def _leader(one: Ahead, names: Sequence[str]) -> str:
    return "level" if one.leader is None else names[one.leader]


def _gap(one: Ahead) -> Cell:
    if one.least_gap is None or one.largest_gap is None:
        return Cell("alone")
    low, high = f"{one.least_gap:.3g}", f"{one.largest_gap:.3g}"
    return Cell(low if low == high else f"{low} to {high}")


def _sweeps(views: Sequence[SweepView], names: Sequence[str]) -> Section:
    """Each sweep's own facts."""
    parts = []
    for at, (view, name) in enumerate(zip(views, names, strict=True)):
        colour = f"var(--{series(at).removeprefix('$')})"
        sign = f'<span style="color:{colour}" aria-hidden="true">{SIGNS[at % len(SIGNS)]}</span>'
        parts.append(f"<h3>{sign} {html.escape(name)}</h3>{heading(view)}")
    intro = "What was compared: each sweep's settings, trials and hours."
    return Section(key="sweeps", title="Sweeps", intro=intro, body="".join(parts))
