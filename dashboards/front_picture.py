"""The Pareto front as a still picture, for where the interactive page cannot be."""

from __future__ import annotations

from pathlib import Path

from service.view import SweepView

INK, FADED = "#1d2733", 0.35
MARKED, OTHERS = 70.0, 32.0
"""Sizes of points, square points."""


def draw_front(view: SweepView, path: Path) -> None:
    """Writes a PNG: top-1 against BOPs, coloured by ARD; the front in full colour, its knee a diamond."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    found = view.found
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shades = [trial.metrics["ard"] for trial in found.done]
    scale = Normalize(min(shades, default=0.0), max(shades, default=1.0))
    members = {trial.trial_id for trial in found.members}
    knee = found.knee.trial_id if found.knee else ""
    for name, marker, size, alpha, trials in (
        ("dominated", "o", OTHERS, FADED, [t for t in found.done if t.trial_id not in members]),
        ("front", "o", MARKED, 1.0, [t for t in found.members if t.trial_id != knee]),
        ("knee", "D", MARKED, 1.0, [t for t in found.members if t.trial_id == knee]),
    ):
        xs, ys = [t.metrics["bops_g"] for t in trials], [t.metrics["top1"] for t in trials]
        colours = [t.metrics["ard"] for t in trials]
        if trials:
            axes.scatter(
                xs, ys, s=size, c=colours, cmap="cividis", norm=scale, alpha=alpha, marker=marker, edgecolors=INK,
                linewidths=0.8, label=name, zorder=2 + alpha,
            )  # fmt: skip
    if found.done:
        axes.set_xscale("log")
        # Ticks of one short decade carry no label otherwise.
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:.3g}")
        axes.tick_params(axis="x", which="both", labelrotation=45, labelsize=8)
        figure.colorbar(ScalarMappable(scale, "cividis"), ax=axes, label="ARD (ranks)")
        axes.legend(fontsize=8, frameon=False, loc="best")
    else:
        axes.text(0.5, 0.5, "no trial is done yet", ha="center", va="center", transform=axes.transAxes)
    axes.set_xlabel("BOPs per image (G, log scale)")
    axes.set_ylabel("validation top-1 (%)")
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{view.sweep.name}: {len(members)} of {len(found.done)} policies on the front", fontsize=10, loc="left"
    )
    figure.savefig(path, dpi=100, format="png")
