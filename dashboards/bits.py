"""The bit allocation of a policy as a picture."""

from __future__ import annotations

from pathlib import Path

from trainables.policy_file import PolicyRecord

# Okabe and Ito's blue and orange: told apart by colour-blind readers and in grey print.
WEIGHT_COLOUR, ACT_COLOUR = "#0072B2", "#E69F00"


def draw_bits(record: PolicyRecord, path: Path) -> None:
    """Writes a PNG: a pair of bars for each layer, in order of execution; pinned layers are hatched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names = list(record.policy.bits)
    bits = [record.policy.bits[name] for name in names]
    hatches = ["////" if name in record.policy.pinned else "" for name in names]
    figure = Figure(figsize=(max(6.0, 0.32 * len(names) + 2), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(names))
    width = 0.4
    for shift, colour, heights in (
        (-width / 2, WEIGHT_COLOUR, [b.weight for b in bits]),
        (width / 2, ACT_COLOUR, [b.act for b in bits]),
    ):
        axes.bar(
            [p + shift for p in places], heights, width, color=colour, hatch=hatches, edgecolor="white", linewidth=0.5
        )
    axes.set_xticks(list(places), names, rotation=90, fontsize=8 if len(names) < 40 else 6)
    axes.set_yticks(range(max(max(b) for b in bits) + 1))
    axes.set_ylabel("bits")
    axes.margins(x=0.01)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    title = f"{record.policy.network}, {record.method}, policy {record.policy.hash[:10]}\n{_costs(record)}"
    axes.set_title(title, fontsize=10, loc="left")
    handles = [Patch(color=WEIGHT_COLOUR, label="weights"), Patch(color=ACT_COLOUR, label="activations")]
    handles.append(Patch(facecolor="white", edgecolor="grey", hatch="////", label="pinned"))
    figure.legend(handles=handles, loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, format="png")


def _costs(record: PolicyRecord) -> str:
    """Those that the file has: one that was edited by hand can lack some."""
    forms = {
        "bops_g": "{:.4g} G BOPs",
        "compression": "{:.0f}× less than full precision",
        "storage_mb": "weights {:.4g} MB",
    }
    return ", ".join(form.format(record.costs[name]) for name, form in forms.items() if name in record.costs)
