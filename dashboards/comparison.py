"""How sweeps compare: a summary in the terminal that says who is ahead where, and the same for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dashboards.front import better, joint_as_json, nothing_found, warned
from dashboards.policies import NONE, fitted, new_table
from service.comparison import Ahead, Comparison
from service.pareto import Objective
from service.spend import spend
from service.view import SweepView

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text


INDICATORS = (
    "IGD+: how far the front is behind the other's members on average, a Euclidean distance in the box, whose sides "
    "count 1; 0 is nowhere behind. ε: by how much of those sides it has to improve in every objective to be nowhere "
    "behind; 0 or less is nowhere behind."
)


def as_report(views: Sequence[SweepView], found: Comparison, *, width: int) -> Group:
    """What each sweep has found, who is ahead where, how far apart the fronts are, and what the numbers mean."""
    from rich.console import Group
    from rich.text import Text

    title = f"{' and '.join(found.labels)} on common axes: {better(found.objectives)}"
    parts: list[Table | Text] = [Text(title)]
    if not found.joint:
        return Group(Text(title), *nothing_found(views, found.labels), *warned(found))
    parts += [
        Text(_verdict(found)),
        Text(""),
        fitted(_totals(views, found), width),
        Text(""),
        Text(_box_words(found), style="dim"),
    ]
    if found.ahead and found.cost:
        heading = f"Best {found.quality.label} of the policies that cost no more {found.cost.label}"
        parts += [Text(""), Text(heading), fitted(_leads(found, found.cost), width)]
    parts += [Text(""), Text("How far apart the fronts are"), fitted(_pairs(found), width), Text("")]
    parts.append(Text(INDICATORS, "dim"))
    return Group(*parts, *warned(found))


def _verdict(found: Comparison) -> str:
    """Whose front dominates how much, the most first."""
    order = sorted(range(len(found.labels)), key=lambda place: -found.hypervolumes[place])
    shares = [(found.labels[place], f"{100 * found.hypervolumes[place]:.0f} %") for place in order]
    (first, most), *others = shares
    rest = "".join(f", {label}'s {share}" for label, share in others)
    together = f"{100 * found.joint_hypervolume:.0f} %"
    return f"{first}'s front dominates {most} of the common box{rest}, all together {together}."


def _totals(views: Sequence[SweepView], found: Comparison) -> Table:
    best = f"best {found.quality.label}"
    heads = ["sweep", "done", "front", "of joint front", "hypervolume", best, "device-h"]
    table = new_table(heads, left=("sweep",))
    for place, (label, view) in enumerate(zip(found.labels, views, strict=True)):
        values = [trial.metrics[found.quality.name] for trial in found.fronts[place]]
        table.add_row(
            label,
            str(len(view.found.done)),
            str(len(found.fronts[place])),
            str(sum(owner == place for owner, _ in found.joint)),
            f"{found.hypervolumes[place]:.4f}",
            _number(_best(values, found.quality)),
            f"{spend(view).total:.3g}",
        )
    done = sum(len(view.found.done) for view in views)
    values = [trial.metrics[found.quality.name] for _, trial in found.joint]
    hours = sum(spend(view).total for view in views)
    joint = [str(len(found.joint)), str(len(found.joint)), f"{found.joint_hypervolume:.4f}"]
    table.add_row("together", str(done), *joint, _number(_best(values, found.quality)), f"{hours:.3g}")
    return table


def _best(values: Sequence[float], objective: Objective) -> float | None:
    return (max if objective.direction == "max" else min)(values, default=None)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _box_words(found: Comparison) -> str:
    assert found.box is not None  # as there is a joint front
    far = ", ".join(f"{name} {value:.4g}" for name, value in found.box.reference_point.items())
    return f"Hypervolumes are shares of the box from the best of each objective to {far}."


def _leads(found: Comparison, cost: Objective) -> Table:
    table = new_table([cost.label, "best", f"ahead by, {found.quality.label}"], left=(cost.label, "best"))
    for one in found.ahead:
        table.add_row(range_words(one), lead_words(one, found.labels), gap_words(one))
    return table


def range_words(one: Ahead) -> str:
    """The costs of a range."""
    return f"from {one.low:.4g}" if one.high is None else f"{one.low:.4g} to {one.high:.4g}"


def lead_words(one: Ahead, labels: Sequence[str]) -> str:
    """Who leads there."""
    if one.leader is None:
        return "equal"
    return f"{labels[one.leader]}{', alone' if one.least_gap is None else ''}"


def gap_words(one: Ahead) -> str:
    """By how much."""
    if one.leader is None or one.least_gap is None or one.largest_gap is None:
        return ""
    low, high = f"{one.least_gap:.3g}", f"{one.largest_gap:.3g}"
    return low if low == high else f"{low} to {high}"


def _pairs(found: Comparison) -> Table:
    table = new_table(["front", "against", "equals or beats", "IGD+", "ε"], left=("front", "against"))
    for a, ours in enumerate(found.labels):
        for b, theirs in enumerate(found.labels):
            covered, distance, epsilon = found.coverage[a][b], found.distance[a][b], found.epsilon[a][b]
            if a != b:
                table.add_row(
                    ours,
                    theirs,
                    NONE if covered is None else f"{100 * covered:.0f} %",
                    NONE if distance is None else f"{distance:.4f}",
                    NONE if epsilon is None else f"{epsilon:+.4f}".replace("-", "−"),
                )
    return table


def as_json(views: Sequence[SweepView], found: Comparison) -> dict[str, Any]:
    """A comparison for programs: what `front` tells of the sweeps together, and the measures between them."""
    return {
        **joint_as_json(views, found),
        "epsilon": [list(row) for row in found.epsilon],
        "igd_plus": [list(row) for row in found.distance],
        "coverage": [list(row) for row in found.coverage],
        "cost": found.cost.name if found.cost else None,
        "quality": found.quality.name,
        "ahead": [
            {
                "low": one.low,
                "high": one.high,
                "sweep": None if one.leader is None else found.labels[one.leader],
                "least_gap": one.least_gap,
                "largest_gap": one.largest_gap,
            }
            for one in found.ahead
        ],
    }
