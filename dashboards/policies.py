"""Policies in the terminal and for programs: layers, costs, differences, and the bits as rows of coloured cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainables.bops import FULL, GIGA
from trainables.method_config import METHOD_CONFIGS, LimpqConfig, SensitivityConfig, SupernetConfig
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

COSTS = (
    ("bops_g", "BOPs G", "{:.4g}"),
    ("bops_paper_g", "paper G", "{:.4g}"),
    ("compression", "× less", "{:.1f}"),
    ("storage_mb", "MB", "{:.4g}"),
    ("storage_mib", "MiB", "{:.4g}"),
    ("float_mb", "float MB", "{:.4g}"),
    ("mean_weight_bits", "w bits", "{:.2f}"),
    ("mean_act_bits", "a bits", "{:.2f}"),
)
"""Of a policy, as they are shown: the paper's BOPs are G as well; MB and MiB are the weights'."""
NONE = "–"
SHADES = dict(
    enumerate(("#440154", "#31688e", "#1f998a", "#35b779", "#6ece58", "#a5db36", "#d2e21b", "#fde725"), start=1)
)
"""Viridis by the logarithm of the bits: told apart by colour-blind readers. More than 8 bits look like 8."""
DARK = (1, 2)
"""Shades on which white is read."""
CELL = 3
"""Characters of a cell, its space included."""
WORK_HEADS = ("kind", "MACs M", "weights k")
"""Columns of the table of layers that a narrow terminal does without."""
UNBOUNDED = 100_000
"""Characters of a line that no table fills."""


def layer_rows(record: PolicyRecord) -> list[dict[str, Any]]:
    """Layers in order of execution: name, weight_bits, act_bits, pinned; with their work, where the file has it.

    Products of two activations, which have no bits of their own, are among them, so that the shares add up to 1.
    """
    policy, work = record.policy, record.work
    if work is None:
        return [{"layer": name, **_bits(bits), "pinned": name in policy.pinned} for name, bits in policy.bits.items()]
    bops = {name: layer.counts(policy.bits.get(name, FULL), searched=False).bops for name, layer in work.work.items()}
    total = sum(bops.values())
    return [
        {
            "layer": name,
            "kind": layer.kind,
            "macs": layer.macs,
            "weights": layer.weights,
            **_bits(policy.bits.get(name)),
            "bops_g": bops[name] / GIGA,
            "bops_share": bops[name] / total,
            "pinned": name in policy.pinned,
        }
        for name, layer in work.work.items()
    ]


def _bits(bits: LayerBits | None) -> dict[str, int | None]:
    return {"weight_bits": bits.weight, "act_bits": bits.act} if bits else {"weight_bits": None, "act_bits": None}


def as_json(name: str, record: PolicyRecord) -> dict[str, Any]:
    """A policy for programs."""
    policy = record.policy
    return {
        "policy": name,
        "hash": policy.hash,
        "network": policy.network,
        "method": record.method,
        "parent": record.parent,
        "changes": list(record.changes),
        "image_size": record.image_size or None,
        "num_classes": record.num_classes or None,
        "costs": dict(record.costs),
        "layers": layer_rows(record),
    }


def header(name: str, record: PolicyRecord) -> str:
    """What the policy is, where it came from, what it costs."""
    policy, costs = record.policy, record.costs
    lines = [f"{name}: {policy.network}, {record.method}, {policy.hash}"]
    if record.parent:
        lines.append(f"made from {record.parent[:10]} by {', '.join(record.changes)}")
    if record.image_size:
        lines.append(f"counted on {record.image_size}×{record.image_size} pixels and {record.num_classes} classes")
    shown = {key: form.format(costs[key]) for key, _, form in COSTS if key in costs}
    parts = [f"{shown['bops_g']} G BOPs"] if "bops_g" in shown else []
    if "bops_paper_g" in shown:
        parts.append(f"{shown['bops_paper_g']} G as the paper counts")
    if "compression" in shown:
        parts.append(f"{shown['compression']}× less than full precision")
    lines.append(", ".join(parts))
    if "storage_mb" in shown:
        floats = f", {shown['float_mb']} MB stay float" if "float_mb" in shown else ""
        lines.append(f"weights {shown['storage_mb']} MB ({shown.get('storage_mib', NONE)} MiB){floats}")
    if "mean_weight_bits" in shown:
        acts = f", {shown['mean_act_bits']} an activation" if "mean_act_bits" in shown else ""
        lines.append(f"on average {shown['mean_weight_bits']} bits a weight{acts}")
    return "\n".join(line for line in lines if line)


def layer_table(record: PolicyRecord, *, width: int) -> Table | Text:
    """A row for each layer; where that is wider than `width`, without the work, then without what is pinned."""
    rows = [
        {
            "#": str(number),
            "layer": row["layer"],
            **({"kind": row["kind"], "MACs M": f"{row['macs'] / 1e6:.3f}"} if record.work else {}),
            **({"weights k": f"{row['weights'] / 1e3:.3f}"} if record.work else {}),
            "w": _cell(row["weight_bits"]),
            "a": _cell(row["act_bits"]),
            **({"BOPs %": f"{100 * row['bops_share']:.1f}"} if record.work else {}),
            "pinned": "pinned" if row["pinned"] else "",
        }
        for number, row in enumerate(layer_rows(record), start=1)
    ]
    for dropped in ((), WORK_HEADS, (*WORK_HEADS, "pinned")):
        heads = [head for head in rows[0] if head not in dropped]
        table = new_table(heads, left=("layer", "kind", "pinned"))
        for row in rows:
            table.add_row(*(row[head] for head in heads))
        if _width(table) <= width:
            break
    return fitted(table, width)


def heat_map(record: PolicyRecord, *, width: int) -> Text:
    """Bits by layer, in order of execution: a row for weights, one for activations, numbered as in the table."""
    from rich.text import Text

    rows = layer_rows(record)
    label = len("activations ")
    per_line = max(1, (width - label) // CELL)
    text = Text()
    for start in range(0, len(rows), per_line):
        part = list(enumerate(rows[start : start + per_line], start=start + 1))
        text.append("\n\n" if start else "")
        text.append(f"{'layer':{label}}{''.join(f'{number:{CELL}}' for number, _ in part)}\n", style="dim")
        for kind, key in (("weights", "weight_bits"), ("activations", "act_bits")):
            text.append(f"{kind:{label}}")
            for _, row in part:
                text.append(f"{_cell(row[key]):>{CELL - 1}} ", style=_shade(row[key]))
            text.append("" if kind == "activations" else "\n")
    return text


def _shade(bits: int | None) -> str:
    if bits is None:
        return "dim"
    return f"{'white' if bits in DARK else 'black'} on {SHADES[min(bits, max(SHADES))]}"


def _cell(bits: int | None) -> str:
    return NONE if bits is None else str(bits)


def cost_table(costs_by_name: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """A row for each policy."""
    shown = [cost for cost in COSTS if all(cost[0] in costs for _, costs in costs_by_name)]
    table = new_table(["policy", *(label for _, label, _ in shown)], left=("policy",))
    for name, costs in costs_by_name:
        table.add_row(name, *(form.format(costs[key]) for key, _, form in shown))
    return table


def cost_difference(ours: Mapping[str, float], theirs: Mapping[str, float], names: tuple[str, str]) -> Table:
    """A row for each cost: both sides, the difference and the ratio of the second to the first."""
    table = new_table(["cost", *names, "difference", "ratio"], left=("cost",))
    for key, label, form in COSTS:
        if key in ours and key in theirs:
            change = theirs[key] - ours[key]
            ratio = f"{theirs[key] / ours[key]:.3f}" if ours[key] else NONE
            table.add_row(label, form.format(ours[key]), form.format(theirs[key]), f"{change:+.4g}", ratio)
    return table


def bits_difference(ours: BitPolicy, theirs: BitPolicy, names: tuple[str, str], *, layers: Iterable[str]) -> Table:
    """Weight/activation bits of both policies, for `layers`; a layer that one side lacks has a dash there."""
    table = new_table(["layer", *names], left=("layer",))
    for name in layers:
        sides = (policy.bits.get(name) for policy in (ours, theirs))
        table.add_row(name, *(f"{bits.weight}/{bits.act}" if bits else NONE for bits in sides))
    return table


def difference(
    ours: PolicyRecord, theirs: PolicyRecord, names: tuple[str, str], *, width: int, everything: bool = False
) -> Group:
    """Both costs, then the bits of the layers that differ; of all layers where `everything` is asked for."""
    from rich.console import Group
    from rich.text import Text

    differing = ours.policy.diff(theirs.policy)
    in_both = set(ours.policy.bits) & set(theirs.policy.bits)
    same = len(in_both) - len(in_both & set(differing))
    parts: list[Table | Text] = [fitted(cost_difference(ours.costs, theirs.costs, names), width), Text("")]
    if ours.policy.network != theirs.policy.network:
        parts.append(Text(f"The networks differ: {ours.policy.network} and {theirs.policy.network}."))
    layers = list(dict.fromkeys([*ours.policy.bits, *theirs.policy.bits])) if everything else list(differing)
    if layers:
        parts.append(fitted(bits_difference(ours.policy, theirs.policy, names, layers=layers), width))
    equal = f"{same} of {len(in_both)} layers have the same bits." if differing else "No layer's bits differ."
    return Group(*parts, Text(equal))


def difference_as_json(ours: PolicyRecord, theirs: PolicyRecord, names: tuple[str, str]) -> dict[str, Any]:
    """Two policies for programs: both hashes and costs, and the layers that differ."""
    differing = ours.policy.diff(theirs.policy)
    return {
        "policies": list(names),
        "hashes": [ours.policy.hash, theirs.policy.hash],
        "networks": [ours.policy.network, theirs.policy.network],
        "costs": [dict(ours.costs), dict(theirs.costs)],
        "layers": {name: [bits._asdict() if bits else None for bits in pair] for name, pair in differing.items()},
    }


@dataclass(frozen=True, slots=True)
class Scale:
    """What a search's scores mean, in words."""

    head: str
    """Of a column of what policies give up."""
    more: str
    """Ends a sentence that begins with a number."""
    best: str
    """Of the best bits."""


def scale_of(method: str) -> Scale:
    """Of the method's scores: a supernet's are log-probabilities, others losses, indicators, or nothing known."""
    config = METHOD_CONFIGS.get(method)
    if config and issubclass(config, SupernetConfig):
        return Scale("nats lost", "nats less probable than the search's most probable bits", "the most probable bits")
    if config and issubclass(config, SensitivityConfig):
        return Scale("loss added", "more estimated loss than the search's best bits", "the bits of the least loss")
    if config is LimpqConfig:
        return Scale(
            "indicators added", "above the least sum of indicators that the widths offer", "the bits of the least sum"
        )
    return Scale("score lost", "below the best score of the search", "the bits of the best score")


def tradeoff_table(solved: Sequence[tuple[PolicyRecord, float]], own: PolicyRecord) -> Table:
    """A row for each policy of one search, with what it gives up; the search's own policy is marked."""
    shown = [cost for cost in COSTS if cost[0] not in ("bops_paper_g", "storage_mib", "float_mb")]
    heads = ["", *(label for _, label, _ in shown), scale_of(own.method).head, "layers changed", "policy"]
    table = new_table(heads, left=("", "policy"))
    for record, score_lost in solved:
        changed = len(own.policy.diff(record.policy))
        costs = (form.format(record.costs[key]) for key, _, form in shown)
        mark = "" if changed else "own"
        table.add_row(mark, *costs, f"{score_lost:.4g}", str(changed), record.policy.hash[:10])
    return table


def solved_as_json(
    record: PolicyRecord, score_lost: float, counted: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """A policy of a search for programs: its content, and what it gives up; in nats where the scores are log π.

    `counted`: its costs as limits count them, where that is not as `costs` does.
    """
    in_nats = {"nats_lost": score_lost} if scale_of(record.method).head == "nats lost" else {}
    return {
        **json.loads(record.to_json()),
        "score_lost": score_lost,
        **in_nats,
        **({"counted": dict(counted)} if counted else {}),
    }


def lost(method: str, score: float) -> str:
    """What a policy of a search gives up."""
    scale = scale_of(method)
    return f"{score:.4g} {scale.more}" if score else scale.best


def fitted(table: Table, width: int) -> Table | Text:
    """The table; where it is wider than `width`, a paragraph for each row instead, with a line for each cell."""
    from rich.text import Text

    if _width(table) <= width:
        return table
    heads = [str(column.header) for column in table.columns]
    label = max(len(head) for head in heads)
    paragraphs = [
        "\n".join(f"{head:{label}}  {cell}".strip() for head, cell in zip(heads, row, strict=True) if cell)
        for row in zip(*(column.cells for column in table.columns), strict=True)
    ]
    return Text("\n\n".join(paragraphs))


def _width(table: Table) -> int:
    """Columns of the terminal that the table takes when no cell is folded."""
    from rich.console import Console

    return Console(width=UNBOUNDED).measure(table).maximum


def new_table(heads: Sequence[str], *, left: Sequence[str]) -> Table:
    """A plain table; the columns `left` are text, the others numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="left" if head in left else "right", overflow="fold")
    return table
