"""Bits of the front's policies by layer, as heat maps."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from dashboards.page_shell import Figure, Section, figure_place
from dashboards.policies import SHADES
from service.records import TrialRecord
from service.view import SweepView
from trainables.policy import BitPolicy

MOST = max(SHADES)
ROW, SPARE = 16, 190
"""Pixels of a policy, and of all that is around the map."""
MAX_HEIGHT = 900
MANY_LAYERS = 60
"""More have no room for their names."""
Member = tuple[TrialRecord, BitPolicy]


def bits_section(view: SweepView) -> tuple[Section, dict[str, Figure]]:
    """Two maps, weights and activations, for each network of the front."""
    title = {"key": "bits", "title": "Bits"}
    members = [
        (trial, view.policies[trial.trial_id].policy) for trial in view.found.members if trial.trial_id in view.policies
    ]
    if not members:
        why = (
            "The front has no policy yet."
            if not view.found.members
            else "The policies' files are missing, or cannot be read."
        )
        return Section(**title, intro=why, body=""), {}
    groups: dict[tuple[str, tuple[str, ...]], list[Member]] = {}
    for trial, policy in members:
        groups.setdefault((policy.network, tuple(policy.bits)), []).append((trial, policy))
    figures: dict[str, Figure] = {}
    parts = []
    for at, ((network, layers), group) in enumerate(groups.items()):
        parts.append(f"<h3>{html.escape(network)}</h3>" if len(groups) > 1 else "")
        parts.append(_key(group))
        places = []
        for side in ("weights", "activations"):
            name = f"bits-{at}-{side}"
            figures[name] = _map(group, layers, side)
            height = min(MAX_HEIGHT, SPARE + ROW * len(group))
            places.append(figure_place(name, height=height, label=f"Bits of {side} by layer and policy, {network}"))
        parts.append(f'<div class="grid">{"".join(places)}</div>')
    intro = (
        "Each row is a policy of the front, from the fewest BOPs at the top to the most, and each column a layer, from "
        "the network's input to its output. Dark is few bits. ▼ marks layers that the sweep has pinned: their bits "
        "were not searched."
    )
    return Section(**title, intro=intro, body="".join(parts)), figures


def _key(group: Sequence[Member]) -> str:
    widths = sorted({width for _, policy in group for bits in policy.bits.values() for width in bits})
    items = "".join(f'<span><i style="background:{_shade(width)}"></i>{width}</span>' for width in widths)
    return f'<p class="key"><span>bits:</span>{items}</p>'


def _shade(width: int) -> str:
    return SHADES[min(width, MOST)]


def _map(group: Sequence[Member], layers: Sequence[str], side: str) -> Figure:
    rows = [f"trial {trial.number}" for trial, _ in group]
    # The page's script makes the hover texts, of which there are tens of thousands.
    heat = {
        "type": "heatmap",
        "z": [[pair.weight if side == "weights" else pair.act for pair in policy.bits.values()] for _, policy in group],
        "meta": {
            "columns": [_layer(name, group) for name in layers],
            "rows": [_policy(trial) for trial, _ in group],
        },
        "hovertemplate": f"%{{text}}<br>{side}: %{{z}} bits<extra></extra>",
        "colorscale": _steps(),
        "zmin": 0.5,
        "zmax": MOST + 0.5,
        "showscale": False,
        "xgap": 1 if len(layers) <= MANY_LAYERS else 0,
        "ygap": 1 if len(group) <= 40 else 0,
    }
    pinned = [i for i, name in enumerate(layers) if any(name in policy.pinned for _, policy in group)]
    marks = {
        "type": "scatter",
        "mode": "markers",
        "x": pinned,
        "y": [-0.5 - _strip(group) / 2] * len(pinned),
        "marker": {"symbol": "triangle-down", "size": 9, "color": "$ink"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return {"data": [heat, marks], "layout": _layout(layers, rows, side)}


def _strip(rows: Sequence[object]) -> float:
    """Height, in rows, of the place for marks above the map."""
    return 0.3 + 0.035 * len(rows)


def _layer(name: str, group: Sequence[Member]) -> str:
    pinned = ", pinned" if any(name in policy.pinned for _, policy in group) else ""
    return f"<b>{html.escape(name, quote=False)}</b>{pinned}"


def _policy(trial: TrialRecord) -> str:
    bops = trial.metrics.get("bops_g")
    cost = f", {bops:.4g} G BOPs" if bops is not None else ""
    return f"trial {trial.number}{cost}<br>policy {trial.policy_hash[:10]}"


def _steps() -> list[list[Any]]:
    """Whole numbers have one colour each."""
    steps: list[list[Any]] = []
    for width, colour in SHADES.items():
        steps += [[(width - 1) / MOST, colour], [width / MOST, colour]]
    return steps


def _layout(layers: Sequence[str], rows: Sequence[str], side: str) -> dict[str, Any]:
    every = max(1, -(-len(rows) // 45))
    columns = {
        "tickvals": list(range(len(layers))),
        "ticktext": [html.escape(name, quote=False) for name in layers],
        "tickangle": -90,
        "tickfont": {"size": 10 if len(layers) <= 30 else 8},
        "showticklabels": len(layers) <= MANY_LAYERS,
        "title": {"text": "" if len(layers) <= MANY_LAYERS else "layer"},
        "showgrid": False,
        "zeroline": False,
        "range": [-0.5, len(layers) - 0.5],
    }
    return {
        "title": {"text": f"{side}, bits", "font": {"size": 13}, "x": 0.02},
        "xaxis": columns,
        "yaxis": {
            "tickvals": list(range(0, len(rows), every)),
            "ticktext": list(rows[::every]),
            "tickfont": {"size": 10},
            "range": [len(rows) - 0.5, -0.5 - _strip(rows)],
            "showgrid": False,
            "zeroline": False,
        },
        "margin": {"l": 70, "r": 10, "t": 50, "b": 90},
    }
