"""The space of a sweep: what each trial was given and what came of it, and which settings matter."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.page_colours import RAMPS, TONES, Paper, series
from dashboards.page_shell import Figure, Section, figure_place
from dashboards.plots_front import axes_of, metric_label, scale
from dashboards.tables import short_names
from service.importance import MIN_TRIALS, importances
from service.pareto import METRICS
from service.records import TrialRecord
from service.space import Choice, Domain, Float, Int, range_of
from service.view import SweepView

STEPS = 200
"""Places of a continuous axis: a brush ends at one of them. Most have no text."""
ABSENT = "not set"
LABEL_LENGTH = 16
"""Characters of a category that an axis has room for."""
AXIS_WIDTH = 118
"""Pixels from one axis to the next at least; the figure scrolls where there are more."""
MANY_VALUES = 24
"""Numbers that are a category each, so that every one can be read."""
LOG_METRICS = ("bops_g", "bops_paper_g", "compression", "storage_mb", "storage_mib", "device_hours")
FADED = 0.75
"""Share of the paper in a dominated line's colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A dimension of the parallel coordinates."""

    label: str
    values: list[float]
    ticks: list[tuple[float, str]]
    """Where a brush can end, and what is written there; most have no text."""
    low: float
    high: float

    @property
    def figure(self) -> dict[str, Any]:
        """In Plotly's words."""
        return {
            "label": _written(self.label),
            "values": self.values,
            "range": [self.low, self.high],
            "tickvals": [place for place, _ in self.ticks],
            "ticktext": [f"{text}{_unseen(i)}" for i, (_, text) in enumerate(self.ticks)],
        }


def _unseen(place: int) -> str:
    """A text without width, of its own for each place: Plotly takes ticks with one text for one tick."""
    return "".join("\u200b\u200c"[int(bit)] for bit in f"{place:b}")


def space_section(view: SweepView) -> tuple[Section, dict[str, Figure]]:
    """Parallel coordinates of the trials that are done."""
    done = view.found.done
    names = varied(done)
    if len(done) < 2 or not names:
        why = "Fewer than two trials are done" if len(done) < 2 else "All trials have the same settings"
        return Section(key="space", title="Space", intro=f"{why}: there is nothing to compare yet.", body=""), {}
    first = axes_of(view.found.objectives, done)["y"]
    axes = [_setting_axis(name, label, done, view.space) for name, label in zip(names, short_names(names), strict=True)]
    axes += [_metric_axis(o.name, done) for o in view.found.objectives]
    intro = (
        "Each line is a trial that is done: its settings on the left, what came of them on the right. Full lines "
        f"are the front, faded ones are not; the colour is {html.escape(metric_label(first))}. Drag along an axis to "
        "keep only the lines that pass there, click it to have all back, and drag a name to move its axis. "
        f"“{ABSENT}” stands where a setting had no value, as another one ruled it out."
    )
    values = [trial.metrics[first] for trial in done]
    key = (
        f'<p class="key"><span>{html.escape(metric_label(first))}: {min(values):.4g} '
        f'<i class="ramp"></i> {max(values):.4g}</span></p>'
    )
    place = figure_place(
        "space", height=460, label="Parallel coordinates of the trials", min_width=AXIS_WIDTH * len(axes)
    )
    return Section(key="space", title="Space", intro=intro, body=key + place), {"space": _lines(view, axes, values)}


def varied(trials: Sequence[TrialRecord]) -> list[str]:
    """Settings that are not the same in all trials; one that some trials lack differs."""
    names = dict.fromkeys(name for trial in trials for name in trial.settings)
    return [name for name in names if len({repr(trial.settings.get(name)) for trial in trials}) > 1]


def _lines(view: SweepView, axes: Sequence[Axis], values: Sequence[float]) -> Figure:
    """Plotly draws lines of a higher colour value above: the front has the upper half of the scale."""
    members = {trial.trial_id for trial in view.found.members}
    low, high = min(values), max(values)
    shades = [(value - low) / (high - low) * 0.98 if high > low else 0.5 for value in values]
    colour = [
        shade + 1.02 if trial.trial_id in members else shade
        for shade, trial in zip(shades, view.found.done, strict=True)
    ]
    trace = {
        "type": "parcoords",
        "dimensions": [axis.figure for axis in axes],
        "line": {"color": colour, "cmin": 0, "cmax": 2, "colorscale": "$lines", "showscale": False},
        "labelfont": {"size": 12, "color": "$ink"},
        "tickfont": {"size": 11, "color": "$ink"},
        "rangefont": {"size": 1, "color": "rgba(0,0,0,0)"},
        "unselected": {"line": {"color": "$line", "opacity": 0.25}},
        "labelside": "top",
    }
    return {"data": [trace], "layout": {"margin": {"l": 80, "r": 60, "t": 50, "b": 24}}}


def lines_scales() -> dict[Paper, list[list[Any]]]:
    """Plotly's scale for each paper: below the middle dominated lines, which fade into it, above it the front's."""
    return {
        name: _halves([_mixed(colour, TONES[name]["paper"]) for colour in ramp], ramp) for name, ramp in RAMPS.items()
    }


def _halves(faded: Sequence[str], full: Sequence[str]) -> list[list[Any]]:
    lower = [[place / 2.01, colour] for place, colour in scale(faded)]
    return lower + [[0.5 + place / 2, colour] for place, colour in scale(full)]


def _mixed(colour: str, paper: str) -> str:
    parts = [(int(colour[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round((1 - FADED) * own + FADED * other):02x}" for own, other in parts)


def _metric_axis(name: str, trials: Sequence[TrialRecord]) -> Axis:
    values = [trial.metrics[name] for trial in trials]
    log = name in LOG_METRICS and min(values) > 0 and max(values) > 3 * min(values)
    direction = "↑" if name in METRICS and METRICS[name].direction == "max" else "↓"
    return _continuous(f"{metric_label(name)} {direction}", values, min(values), max(values), log=log)


def _setting_axis(name: str, label: str, trials: Sequence[TrialRecord], space: Mapping[str, Domain]) -> Axis:
    values = [trial.settings.get(name) for trial in trials]
    present = [value for value in values if value is not None]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)
    domain = range_of(space[name]) if name in space else None
    if not numeric or isinstance(domain, Choice) or (domain is None and len(set(present)) <= MANY_VALUES):
        listed = domain.values if isinstance(domain, Choice) else ()
        return _categories(label, values, listed)
    low, high = min(present), max(present)
    if isinstance(domain, Float | Int):
        low, high = min(low, domain.low), max(high, domain.high)
    log = isinstance(domain, Float) and domain.log
    return _continuous(label, values, low, high, log=log, whole=isinstance(domain, Int))


def _categories(label: str, values: Sequence[Any], listed: Sequence[Any]) -> Axis:
    """A place for each value: numbers in order, words as the space lists them; at the bottom those without one."""
    present = list(dict.fromkeys(value for value in values if value is not None))
    order = [value for value in listed if value in present] or present
    order += [value for value in present if value not in order]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in order):
        order.sort()
    texts = short_texts([str(value).lower() if isinstance(value, bool) else _plain(value) for value in order])
    # By equality: trials of a setting that takes fractions have 0.0 where the space lists 0.
    places: dict[Any, float] = {value: float(i) for i, value in enumerate(order)}
    ticks = [(float(i), text) for i, text in enumerate(texts)]
    if None in values:
        places[None] = -1.0
        ticks.insert(0, (-1.0, ABSENT))
    low, high = ticks[0][0], ticks[-1][0]
    return Axis(
        label=label,
        values=[places[value] for value in values],
        ticks=ticks,
        low=low - 0.3 * (low == high),
        high=high + 0.3 * (low == high),
    )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def short_texts(texts: Sequence[str]) -> list[str]:
    """Texts of at most LABEL_LENGTH characters, or whole where two would become one."""
    half = LABEL_LENGTH // 2
    cut = [text if len(text) <= LABEL_LENGTH else f"{text[: half - 1]}…{text[-half:]}" for text in texts]
    return [whole if cut.count(one) > 1 else one for one, whole in zip(cut, texts, strict=True)]


def _written(text: str) -> str:
    """As Plotly's labels take it, which read some HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _continuous(
    label: str, values: Sequence[float | None], low: float, high: float, *, log: bool, whole: bool = False
) -> Axis:
    if high == low:
        low, high = (low / 1.1, high * 1.1) if log else (low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0))
    turn = math.log10 if log else float
    ends = turn(low), turn(high)
    span = ends[1] - ends[0]
    written = {turn(tick): f"{tick:g}" for tick in (log_ticks(low, high) if log else linear_ticks(low, high))}
    between = () if whole else (ends[0] + span * i / STEPS for i in range(STEPS + 1))
    places = range(math.ceil(low), math.floor(high) + 1) if whole and span <= STEPS else between
    ticks = {float(place): "" for place in places} | written
    bottom = ends[0]
    if None in values:
        bottom = ends[0] - 0.12 * span
        ticks[bottom] = ABSENT
    return Axis(
        label=label + (" (log)" if log else ""),
        values=[bottom if value is None else turn(value) for value in values],
        ticks=sorted(ticks.items()),
        low=bottom,
        high=ends[1],
    )


def linear_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers between the ends, about so many."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """1, 2, 5, 10, … between the ends, fewer over many decades; both ends where there is no such number."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [
            factor * 10.0**d for d in decades for factor in factors if low * 0.999 <= factor * 10.0**d <= high * 1.001
        ]
        if len(ticks) <= most:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / most)]
    return ticks if len(ticks) > 1 else linear_ticks(low, high)


def importance_section(view: SweepView) -> tuple[Section, dict[str, Figure]]:
    """Bars for each objective."""
    count = len(view.found.done)
    title = {"key": "importance", "title": "Importance"}
    if count < MIN_TRIALS:
        why = f"{count} of at least {MIN_TRIALS} trials are done: fewer say nothing about which settings matter."
        return Section(**title, intro=why, body=""), {}
    found_shares = importances(view)
    shares = {name: found for name, found in found_shares.items() if found}
    said = [html.escape(_nothing(name, view.found.done)) for name, found in found_shares.items() if not found]
    if not shares:
        return Section(**title, intro=" ".join(said), body=""), {}
    intro = (
        f"How each objective of the {count} trials that are done goes with single settings: for each setting its "
        "share of what the settings explain one by one (main effects of a functional ANOVA of a random forest), so "
        "that the shares of an objective add up to 100 %. What settings do only together, and what none explains, is "
        "no part of it. They say nothing about direction, and hold within the ranges of this sweep only."
    )
    caveat = "".join(f'<p class="note">{line}</p>' for line in said)
    if count < 50:
        caveat += (
            f'<p class="note">{count} trials are few: with other trials of the same space the shares can differ by '
            "tens of points. A setting with a small share may still matter together with others.</p>"
        )
    figures = {f"importance-{name}": _bars(name, found) for name, found in shares.items()}
    height = 90 + 30 * max(map(len, shares.values()))
    places = "".join(
        figure_place(f"importance-{name}", height=height, label=f"Importance for {metric_label(name)}")
        for name in shares
    )
    return Section(**title, intro=intro, body=f'<div class="grid thirds">{places}</div>{caveat}'), figures


def _nothing(metric: str, trials: Sequence[TrialRecord]) -> str:
    """Why no setting has a share of this objective."""
    label = metric_label(metric)
    if len({trial.metrics[metric] for trial in trials if metric in trial.metrics}) < 2:
        return f"{label}: all trials have the same."
    names = varied(trials)
    if not names:
        return f"{label}: all trials have the same settings."
    if all(sum(name in trial.settings for trial in trials) < MIN_TRIALS for name in names):
        return f"{label}: fewer than {MIN_TRIALS} trials have the settings that vary."
    return f"{label}: nothing can be said, as the settings foretell nothing of trials which the forest has not seen."


def _bars(name: str, shares: Mapping[str, float]) -> Figure:
    settings = list(shares)[::-1]
    percent = [100 * shares[setting] for setting in settings]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": percent,
        "y": [_written(label) for label in short_names(settings)],
        "text": [f"{share:.0f} %" for share in percent],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
        "marker": {"color": series(0)},
    }
    layout = {
        "title": {"text": metric_label(name), "font": {"size": 13}, "x": 0.02},
        "xaxis": {
            "range": [0, min(118, max(percent) * 1.25)],
            "title": {"text": "share of what single settings explain, %"},
        },
        "yaxis": {"type": "category"},
        "margin": {"l": 90, "r": 30, "t": 36, "b": 44},
    }
    return {"data": [trace], "layout": layout}
