"""One number of a sweep, night by night, marked by its verdicts, on the band around the accepted baseline."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dashboards.page_shell import Figure
from dashboards.plots_front import metric_label
from dashboards.tables import short
from service.nightly_report import Finding, NightReport, SweepReport, Verdict
from service.pareto import METRICS

SHOWN = ("top1", "bops_g", "ard", "hypervolume", "front_distance", "step_ratio")
"""The first figures of a sweep, in this order; what else a sweep compares follows."""
LABELS = {
    "hypervolume": "hypervolume, share of the box",
    "front_distance": "front distance to the baseline",
    "step_ratio": "search step / plain step",
}
TICKS = 4
"""Nights that are named below a small figure."""
PADDING = 0.08
"""Of the values' range, above and below."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a verdict is marked: by shape and colour."""

    symbol: str
    colour: str
    sign: str
    """The symbol in a text."""


LOOKS: dict[Verdict, Look] = {
    "reproduced": Look("circle", "$series-1", "●"),
    "new": Look("circle-open", "$series-1", "○"),
    "drifted": Look("diamond", "$series-6", "◆"),
    "broken": Look("x", "$ink", "✖"),
}


@dataclass(frozen=True, slots=True)
class _Band:
    """What the accepted baseline allows on nights that follow one another."""

    first: int
    last: int
    """Places of the nights."""
    baseline: float
    allowed: float

    @property
    def ends(self) -> tuple[float, float]:
        """Nothing that is shown is ever negative."""
        return max(0.0, self.baseline - self.allowed), self.baseline + self.allowed


def metric_names(course: Sequence[tuple[NightReport, SweepReport]]) -> list[str]:
    """Numbers that some night of the sweep knows."""
    known = {name for _, sweep in course for name in sweep.metrics}
    return [name for name in SHOWN if name in known] + sorted(known - set(SHOWN))


def trend_figure(course: Sequence[tuple[NightReport, SweepReport]], metric: str) -> Figure:
    """A small figure: nights one after the other, evenly, as the time between them says nothing."""
    found = [(place, report, sweep) for place, (report, sweep) in enumerate(course) if metric in sweep.metrics]
    looks = [LOOKS[sweep.verdict] for _, _, sweep in found]
    values = [sweep.metrics[metric] for _, _, sweep in found]
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [place for place, _, _ in found],
        "y": values,
        "text": [_hover(report, sweep, metric) for _, report, sweep in found],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": "$series-1", "width": 1},
        "marker": {
            "symbol": [look.symbol for look in looks],
            "color": [look.colour for look in looks],
            "size": 9,
            "line": {"width": 1.5, "color": [look.colour for look in looks]},
        },
        "showlegend": False,
    }
    bands = _bands(course, metric)
    layout = {
        "title": {
            "text": html.escape(LABELS.get(metric) or _metric_label(metric)),
            "font": {"size": 13},
            "x": 0,
            "y": 0.97,
        },
        "xaxis": {"range": [-0.6, len(course) - 0.4], "showgrid": False, "zeroline": False, **_ticks(course)},
        "yaxis": {"range": _range(values, bands), "nticks": 5, "zeroline": False},
        "shapes": [shape for band in bands for shape in _shapes(band)],
        "margin": {"l": 50, "r": 24, "t": 34, "b": 40},
    }
    return {"data": [trace], "layout": layout}


def _metric_label(metric: str) -> str:
    return metric_label(metric) if metric in METRICS else metric


def night_name(report: NightReport) -> str:
    """When the night began, as people read it."""
    return f"{_when(report):%Y-%m-%d %H:%M} UTC"


def _when(report: NightReport) -> datetime:
    return datetime.fromtimestamp(report.started_ms / 1000, tz=UTC)


def _overall(sweep: SweepReport, metric: str) -> Finding | None:
    """The metric over all trials, beside the baseline."""
    return next((one for one in sweep.findings if one.what == metric and not one.where), None)


def _bands(course: Sequence[tuple[NightReport, SweepReport]], metric: str) -> list[_Band]:
    """Those of nights with the same baseline are one."""
    bands: list[_Band] = []
    for place, (_, sweep) in enumerate(course):
        one = _overall(sweep, metric)
        if one is None or one.baseline is None:
            continue
        here = _Band(place, place, one.baseline, one.allowed or 0.0)
        before = bands[-1] if bands else None
        if before and (before.last, before.baseline, before.allowed) == (place - 1, here.baseline, here.allowed):
            bands[-1] = _Band(before.first, place, here.baseline, here.allowed)
        else:
            bands.append(here)
    return bands


def _shapes(band: _Band) -> list[dict[str, Any]]:
    across = {"x0": band.first - 0.5, "x1": band.last + 0.5, "layer": "below"}
    low, high = band.ends
    filled = {"type": "rect", "y0": low, "y1": high, "fillcolor": "$accent", "opacity": 0.16, "line": {"width": 0}}
    line = {
        "type": "line",
        "y0": band.baseline,
        "y1": band.baseline,
        "line": {"color": "$accent", "width": 1.5, "dash": "dot"},
    }
    return [{**across, **filled}, {**across, **line}]


def _range(values: Sequence[float], bands: Sequence[_Band]) -> list[float]:
    """Of the axis: shapes alone do not widen it."""
    ends = [*values, *(end for band in bands for end in band.ends)]
    low, high = min(ends), max(ends)
    # Of equal values a hundredth of them, or one where they are 0, is shown around them.
    pad = PADDING * (high - low) or 0.01 * abs(high) or 1.0
    return [low - pad, high + pad]


def _ticks(course: Sequence[tuple[NightReport, SweepReport]]) -> dict[str, Any]:
    """At most `TICKS`, evenly; with the time of day where two nights have one date."""
    times = [_when(report) for report, _ in course]
    pattern = "%b %d" if len({time.date() for time in times}) == len(times) else "%b %d<br>%H:%M"
    last = len(times) - 1
    steps = min(TICKS, len(times)) - 1
    places = sorted({round(last * step / steps) for step in range(steps + 1)}) if steps else [0]
    texts = [times[place].strftime(pattern) for place in places]
    return {"tickmode": "array", "tickvals": places, "ticktext": texts, "ticklabeloverflow": "allow"}


def _hover(report: NightReport, sweep: SweepReport, metric: str) -> str:
    lines = [night_name(report), sweep.verdict, f"{metric} {short(sweep.metrics[metric], 6)}"]
    one = _overall(sweep, metric)
    if one and one.baseline is not None:
        allowed = f" ± {short(one.allowed)}" if one.allowed is not None else ""
        lines.append(f"baseline {short(one.baseline, 6)}{allowed}")
    lines.append(f"revision {report.revision[:10] or 'unknown'}")
    return "<br>".join(map(html.escape, lines))
