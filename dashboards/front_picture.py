"""The Pareto front as a still picture, for where the interactive page cannot be."""

from __future__ import annotations

from pathlib import Path

from dashboards.trial_data import by_kind
from service.pareto import METRICS
from service.view import SweepView

INK, FAINT, FADED = "#1d2733", "#5a6674", 0.35
MARKED, OTHERS = 70.0, 32.0
"""Sizes of points, square points."""


def draw_front(view: SweepView, path: Path) -> None:
    """Writes a PNG: accuracy against BOPs, coloured by ARD; the front in full colour, its knee a diamond.

    Crosses are beyond a constraint.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    found = view.found
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Of detectors there is no ARD, and in its place how large they are.
    shade = "ard" if all("ard" in trial.metrics for trial in found.done) else "storage_mb"
    shades = [trial.metrics[shade] for trial in found.done]
    scale = Normalize(min(shades, default=0.0), max(shades, default=1.0))
    kinds = by_kind(found)
    for kind, name, marker, size, alpha in (
        ("beyond", "beyond a constraint", "x", OTHERS, 1.0),
        ("dominated", "dominated", "o", OTHERS, FADED),
        ("front", "front", "o", MARKED, 1.0),
        ("knee", "knee", "D", MARKED, 1.0),
    ):
        trials = kinds[kind]
        xs, ys = [t.metrics["bops_g"] for t in trials], [t.metrics[found.accuracy.name] for t in trials]
        colours = [t.metrics[shade] for t in trials]
        if kind == "beyond" and trials:
            axes.scatter(xs, ys, s=size, c=FAINT, marker=marker, linewidths=1.2, label=name, zorder=2)
        elif trials:
            axes.scatter(
                xs, ys, s=size, c=colours, cmap="cividis", norm=scale, alpha=alpha, marker=marker, edgecolors=INK,
                linewidths=0.8, label=name, zorder=2 + alpha,
            )  # fmt: skip
    if found.done:
        axes.set_xscale("log")
        # Ticks of one short decade carry no label otherwise.
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:.3g}")
        axes.tick_params(axis="x", which="both", labelrotation=45, labelsize=8)
        figure.colorbar(ScalarMappable(scale, "cividis"), ax=axes, label=METRICS[shade].label)
        axes.legend(fontsize=8, frameon=False, loc="best")
    else:
        axes.text(0.5, 0.5, "no trial is done yet", ha="center", va="center", transform=axes.transAxes)
    axes.set_xlabel("BOPs per image (G, log scale)")
    axes.set_ylabel(f"validation {found.accuracy.label}")
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{view.sweep.name}: {len(found.members)} of {len(found.done)} policies on the front", fontsize=10, loc="left"
    )
    figure.savefig(path, dpi=100, format="png")
