"""The Pareto front of a sweep, or of several, as a table, as JSON, Markdown and CSV. `page` draws it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dashboards import final_table as final
from dashboards.policies import NONE, fitted, new_table
from dashboards.tables import short_names
from service.comparison import Comparison
from service.front import Front
from service.pareto import METRICS, Objective
from service.records import SweepRecord, TrialRecord
from service.view import SweepView

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

COLUMNS = (
    ("top1", "top-1 %", "{:.2f}"),
    ("map", "mAP %", "{:.2f}"),
    ("ap", "AP %", "{:.2f}"),
    ("bops_g", "BOPs G", "{:.4g}"),
    ("compression", "× smaller", "{:.0f}"),
    ("storage_mb", "weights MB", "{:.4g}"),
    ("ard", "ARD", "{:.3f}"),
    ("ard_normalised", "ARD norm.", "{:.3f}"),
    ("device_hours", "device-h", "{:.4f}"),
)
"""In their order; a table has those that its policies have."""
NARROW = 5
"""Columns that a terminal of 80 characters has room for."""
REPEATED = ("policy",)
"""Settings that say again what a table's other columns say."""
NAMED = 8
"""Trials that a line names."""


def as_json(sweep: SweepRecord, found: Front) -> dict[str, Any]:
    """For programs: the objectives and every member of the front with settings, metrics and policy hash."""
    return {
        "sweep": sweep.name,
        "objectives": [{"name": o.name, "direction": o.direction} for o in found.objectives],
        "constraints": list(sweep.constraints),
        "trials_done": len(found.done),
        "infeasible": [trial.trial_id for trial in found.infeasible],
        "unfinished": dict(found.unfinished),
        "knee": found.knee.trial_id if found.knee else None,
        "front": [
            {
                "trial": trial.trial_id,
                "number": trial.number,
                "policy_hash": trial.policy_hash,
                "settings": dict(trial.settings),
                "metrics": dict(trial.metrics),
            }
            for trial in found.members
        ],
    }


def columns_of(trials: Sequence[TrialRecord]) -> list[tuple[str, str, str]]:
    """Those of `COLUMNS` that some trial has a value for: key, head, form."""
    return [column for column in COLUMNS if any(column[0] in trial.metrics for trial in trials)]


def settings_of(trials: Sequence[TrialRecord]) -> list[str]:
    """Names of the settings that a table shows, in the trials' order."""
    return [name for name in dict.fromkeys(n for trial in trials for n in trial.settings) if name not in REPEATED]


def rows(found: Front, *, wide: bool = True) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the front's table; the knee is marked. Without `wide` it fits 80 characters."""
    names = sorted(settings_of(found.members)) if wide else []
    columns = columns_of(found.members)[: None if wide else NARROW]
    heads = ["trial", *(label for _, label, _ in columns), *short_names(names), "policy"]
    cells = [
        [
            f"{trial.number}{' ◆' if trial is found.knee else ''}",
            *(form.format(trial.metrics[key]) if key in trial.metrics else NONE for key, _, form in columns),
            *(_short(trial.settings.get(name, "")) for name in names),
            trial.policy_hash[:10],
        ]
        for trial in found.members
    ]
    return heads, cells


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_markdown(sweep: SweepRecord, found: Front) -> str:
    """A summary with the front's table, for people who read the parent run."""
    lines = [f"# {sweep.name}", ""]
    if sweep.description:
        lines += [sweep.description, ""]
    lines += [f"- **{key}**: {value}" for key, value in sweep.facts.items()]
    if sweep.full_precision:
        lines.append(f"- **full-precision reference**: {sweep.full_precision}")
    lines += [f"- **trials**: {counts(sweep, found)}", ""]
    if not found.members:
        return "\n".join([*lines, "No trial is done yet: there is no front."]) + "\n"
    heads, cells = rows(found)
    table = [heads, ["---"] * len(heads), *cells]
    bounds = f" Only policies with {' and '.join(sweep.constraints)}." if sweep.constraints else ""
    lines += ["## Pareto front", "", f"{better(found.objectives)}; ◆ is the knee.{bounds}", ""]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table)]) + "\n"


def counts(sweep: SweepRecord, found: Front) -> str:
    """Trials by state, of those that are planned."""
    parts = [f"{len(found.done)} done of {sweep.total_trials}"]
    if found.infeasible:
        parts.append(f"{len(found.infeasible)} of them beyond a constraint")
    return ", ".join([*parts, *(f"{count} {state}" for state, count in found.unfinished.items())])


def as_table(found: Front, title: str, *, rows_shown: int | None = None) -> Table:
    """The front for the terminal; its cheapest `rows_shown` members, or all."""
    from rich.table import Table

    heads, cells = rows(found, wide=False)
    table = Table(title=title, title_justify="left", caption="◆ knee of the front", caption_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if head in ("trial", "policy") else "right", no_wrap=True)
    for row in cells[:rows_shown]:
        table.add_row(*row)
    return table


def better(objectives: Sequence[Objective]) -> str:
    """The objectives, and which way each is better."""
    return ", ".join(f"{o.label} {'up' if o.direction == 'max' else 'down'}" for o in objectives)


def as_report(views: Sequence[SweepView], found: Comparison, *, width: int) -> Group:
    """The front of one sweep, or of several together, for the terminal: members, knee, hypervolume, counts."""
    from rich.console import Group
    from rich.text import Text

    if not found.joint:
        return Group(*nothing_found(views, found.labels), *warned(found))
    pairs = zip(views, found.labels, strict=True)
    lines = [f"{_title(view, label)}: {counts(view.sweep, view.found)}" for view, label in pairs]
    if len(views) > 1:
        shares = [f"{sum(o == place for o, _ in found.joint)} of {label}" for place, label in enumerate(found.labels)]
        lines.append(f"Pareto front of {len(found.joint)} policies together: {', '.join(shares)}")
    bounds = " and ".join(dict.fromkeys(text for view in views for text in view.sweep.constraints))
    lines.append(f"{better(found.objectives)}{f'; only policies with {bounds}' if bounds else ''}")
    table = member_table(found, width=width)
    notes = [*unreadable(views, found.labels), *warned(found)]
    finals = [part for view in views if view.final for part in (Text(""), final.as_table(view.final, width=width))]
    return Group(Text("\n".join(lines)), Text(""), table, Text(""), Text(_worth(found)), *notes, *finals)


def _title(view: SweepView, label: str) -> str:
    reference = f", full precision {view.sweep.full_precision}" if view.sweep.full_precision else ""
    return f"{label}: front of {len(view.found.members)}{reference}"


def nothing_found(views: Sequence[SweepView], labels: Sequence[str]) -> list[Text]:
    """Why there is no front, a line for each sweep."""
    from rich.text import Text

    lines = []
    for view, label in zip(views, labels, strict=True):
        bounds = f" with {' and '.join(view.sweep.constraints)}" if view.found.done else ""
        what = f"no policy{bounds}" if bounds else "no trial is done yet"
        lines.append(Text(f"{label}: {what}, so there is no front ({counts(view.sweep, view.found)})."))
    return lines


def unreadable(views: Sequence[SweepView], labels: Sequence[str]) -> list[Text]:
    """A paragraph for each sweep with members whose bits nobody can show, with the first one's reason."""
    from rich.text import Text

    lines = []
    for view, label in zip(views, labels, strict=True):
        numbers = [str(trial.number) for trial in view.found.members if trial.trial_id in view.unreadable]
        if numbers:
            named = ", ".join(numbers) if len(numbers) <= NAMED else f"{', '.join(numbers[:NAMED])} …"
            which = (
                f"the policy of trial {named}" if len(numbers) == 1 else f"{len(numbers)} policies, of trials {named},"
            )
            reason = next(iter(view.unreadable.values()))
            lines.append(Text(f"\n! {label}: {which} cannot be read: {reason}", style="yellow"))
    return lines


def warned(found: Comparison) -> list[Text]:
    """What keeps the sweeps' numbers from meaning the same, a paragraph each."""
    from rich.text import Text

    return [Text(f"\n! {warning}", style="yellow") for warning in found.warnings]


def _worth(found: Comparison) -> str:
    assert found.box is not None  # as there is a joint front
    ideal, far = (
        ", ".join(f"{name} {value:.4g}" for name, value in point.items())
        for point in (found.box.ideal_point, found.box.reference_point)
    )
    return f"◆ knee. Hypervolume {found.joint_hypervolume:.4f} of the box from {ideal} to {far}."


def member_table(found: Comparison, *, width: int) -> Table | Text:
    """A row for each member of the front of all, cheapest first, with as much as has room in `width`."""
    members = [trial for _, trial in found.joint]
    settings, known = settings_of(members), [key for key, _, _ in columns_of(members)]
    names = list(dict.fromkeys([*known, *(o.name for o in found.objectives)]))
    few = [name for name in names if name in known[:NARROW] or METRICS[name] in found.objectives]
    objectives = [o.name for o in found.objectives]
    for metrics, extra, with_hash in ((names, settings, True), (names, [], True), (few, [], True), (few, [], False)):
        table = _members(found, metrics, extra, with_hash=with_hash)
        if fitted(table, width) is table:
            return table
    return fitted(_members(found, objectives, [], with_hash=False), width)


def _members(found: Comparison, metrics: Sequence[str], settings: Sequence[str], *, with_hash: bool) -> Table:
    known = {key: (label, form) for key, label, form in COLUMNS}
    columns = [(name, *known.get(name, (METRICS[name].label, "{:.4g}"))) for name in metrics]
    heads = ["policy", *(label for _, label, _ in columns), *short_names(settings)]
    table = new_table([*heads, *(["hash"] if with_hash else [])], left=("policy", "hash"))
    for place, trial in found.joint:
        table.add_row(
            f"{policy_name(found, place, trial)}{' ◆' if found.knee == (place, trial) else ''}",
            *(form.format(trial.metrics[name]) if name in trial.metrics else NONE for name, _, form in columns),
            *(_short(trial.settings.get(name, NONE)) for name in settings),
            *([trial.policy_hash[:10]] if with_hash else []),
        )
    return table


def policy_name(found: Comparison, place: int, trial: TrialRecord) -> str:
    """A member as the commands of `policy` take it: SWEEP/NUMBER."""
    return f"{found.labels[place]}/{trial.number}"


def joint_as_json(views: Sequence[SweepView], found: Comparison) -> dict[str, Any]:
    """The front of one sweep, or of several together, for programs."""
    box = found.box
    return {
        "sweeps": [
            {
                "sweep": label,
                "folder": str(view.folder),
                "trials_planned": view.sweep.total_trials,
                "trials_done": len(view.found.done),
                "infeasible": [trial.trial_id for trial in view.found.infeasible],
                "unfinished": dict(view.found.unfinished),
                "unreadable_policies": dict(view.unreadable),
                "constraints": list(view.sweep.constraints),
                "front": [trial.trial_id for trial in members],
                "hypervolume": volume,
                "device_hours": sum(view.hours.values(), 0.0),
                **({"final": final.as_json(view.final)} if view.final else {}),
            }
            for label, view, members, volume in zip(found.labels, views, found.fronts, found.hypervolumes, strict=True)
        ],
        "objectives": [{"name": o.name, "direction": o.direction} for o in found.objectives],
        "ideal_point": box.ideal_point if box else None,
        "reference_point": box.reference_point if box else None,
        "hypervolume": found.joint_hypervolume,
        "hypervolume_in_units": found.joint_hypervolume * box.volume if box else 0.0,
        "knee": policy_name(found, *found.knee) if found.knee else None,
        "front": [_member(found, place, trial) for place, trial in found.joint],
        "warnings": list(found.warnings),
    }


def _member(found: Comparison, place: int, trial: TrialRecord) -> dict[str, Any]:
    return {
        "policy": policy_name(found, place, trial),
        "sweep": found.labels[place],
        "trial": trial.trial_id,
        "number": trial.number,
        "policy_hash": trial.policy_hash,
        "settings": dict(trial.settings),
        "metrics": dict(trial.metrics),
    }


def as_csv(found: Comparison) -> str:
    """A line for each member of the front of all, with all metrics and settings; what a member lacks is empty."""
    metrics = list(dict.fromkeys(name for _, trial in found.joint for name in trial.metrics))
    settings = list(dict.fromkeys(name for _, trial in found.joint for name in trial.settings))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = ["policy", "sweep", "trial", "number", "knee", "policy_hash"]
    writer.writerow([*own, *(metrics or [o.name for o in found.objectives]), *settings])
    for place, trial in found.joint:
        member = _member(found, place, trial)
        writer.writerow(
            [
                *(str(found.knee == (place, trial)).lower() if name == "knee" else member[name] for name in own),
                *(trial.metrics.get(name, "") for name in metrics),
                *(trial.settings.get(name, "") for name in settings),
            ]
        )
    return text.getvalue()
