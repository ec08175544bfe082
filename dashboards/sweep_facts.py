"""What heads a page: who a sweep is, where it stands, what it trades off."""

from __future__ import annotations

import html
from datetime import UTC, datetime

from dashboards.front import counts
from dashboards.tables import facts
from service.view import SweepView


def heading(view: SweepView) -> str:
    """Description and facts; HTML."""
    about = f'<p class="intro">{html.escape(view.sweep.description)}</p>' if view.sweep.description else ""
    return about + facts(sweep_facts(view))


def sweep_facts(view: SweepView) -> list[tuple[str, str]]:
    """Names with what they are; some may be empty."""
    sweep = view.sweep
    objectives = ", ".join(f"{o.label} {'↑' if o.direction == 'max' else '↓'}" for o in view.found.objectives)
    return [
        *((key, value) for key, value in sweep.facts.items() if key != "trials"),
        ("policies found by", ", ".join(one.name for one in view.final.searches) if view.final else ""),
        ("owner", sweep.owner),
        ("tags", ", ".join(f"{key}: {value}" for key, value in sweep.tags.items())),
        ("trials", counts(view.sweep, view.found)),
        ("on the front", str(len(view.found.members))),
        ("objectives", objectives),
        ("constraints", " and ".join(sweep.constraints)),
        ("full precision", sweep.full_precision),
        ("device-hours of the trials", f"{sum(view.hours.values()):.4g}"),
        ("began", moment(sweep.created_ms)),
        ("ended", ", ".join(filter(None, (moment(sweep.ended_ms), sweep.end))) if sweep.ended_ms else "not yet"),
    ]


def moment(time_ms: int) -> str:
    """A time in UTC, as everybody reads it."""
    return datetime.fromtimestamp(time_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
