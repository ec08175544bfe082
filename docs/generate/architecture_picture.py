"""The picture of the architecture: what calls what, and where everything ends up. Boxes and arrows in plain SVG.

Boxes have their own light ground and dark words, so that they are read on light and dark pages alike; arrows have a
grey that is seen on both.
"""

from __future__ import annotations

from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1040, 690
LINE = 17
"""Pixels from one line of words to the next."""
GREY = "#6f7b88"
FILLS = {"user": "#e8eaf0", "service": "#dbe7fb", "science": "#d9f0e1", "kept": "#fbeccf", "seen": "#efe0f7"}
EDGES = {"user": "#8a93a6", "service": "#5b86cf", "science": "#4fa36f", "kept": "#cf9a3c", "seen": "#9a6bb8"}


class Box(NamedTuple):
    """A part: its place, its kind, a title and what it does."""

    left: int
    top: int
    width: int
    height: int
    kind: str
    title: str
    lines: tuple[str, ...] = ()


class Arrow(NamedTuple):
    """Along points (x, y), with words beside its middle."""

    points: tuple[tuple[int, int], ...]
    words: str = ""
    at: tuple[int, int] = (0, 0)


BOXES = (
    Box(20, 20, 210, 84, "user", "sweep.yaml", ("network, data, method, space,", "budget, objectives, resources")),
    Box(270, 20, 310, 84, "service", "bitfront", (
        "check · plan · run · status · front · policy", "promote · export · register · resume …")),
    Box(620, 20, 190, 84, "service", "scheduler, nightly", ("due sweeps; the same", "again, compared")),
    Box(20, 150, 210, 102, "service", "spec, plan, preflight", (
        "everything that can be wrong,", "hours and money,", "before anything runs")),
    Box(270, 150, 310, 102, "service", "driver", (
        "Ray Tune: trials side by side, again if lost", "Optuna: the next settings",
        "early stopping, limits, gauges")),
    Box(620, 150, 190, 102, "service", "front, promotion", ("Pareto front, rules,", "registry, lineage")),
    Box(40, 340, 165, 102, "science", "reference", ("full precision,", "trained once; its", "maps kept for all")),
    Box(235, 340, 165, 102, "science", "search", ("one of ten methods:", "a score for each width", "of each layer")),
    Box(430, 340, 160, 102, "science", "allocate", ("the best sum within", "the budget, exactly")),
    Box(620, 340, 170, 102, "science", "finetune, measure", ("top-1, BOPs, ARD;", "promotions too")),
    Box(40, 470, 750, 84, "science", "quantisers · networks · data · attribution · costs", (
        "PACT, HWGQ, LSQ, DAQ; the same code as a mixture of widths and deployed",
        "exact MACs of a real pass; batches that are functions of seed, epoch and place")),
    Box(40, 580, 750, 66, "science", "export", (
        "finetuned networks as ONNX with QuantizeLinear, AIMET encodings, tables; what onnxruntime makes of them",)),
    Box(850, 150, 170, 150, "kept", "storage: the truth", (
        "a folder for each", "sweep and promotion:", "settings, histories,", "checkpoints, policies,",
        "results, references")),
    Box(850, 350, 170, 102, "seen", "MLflow: a mirror", (
        "runs, nights, registry;", "rebuilt from the", "storage at any time")),
    Box(850, 480, 170, 74, "seen", "pages", ("front.html, trend;", "no network needed")),
    Box(850, 580, 170, 66, "seen", "Grafana", ("gauges of drivers",)),
)  # fmt: skip
ARROWS = (
    Arrow(((230, 62), (270, 62))),
    Arrow(((620, 62), (580, 62))),
    Arrow(((350, 104), (350, 127), (125, 127), (125, 150))),
    Arrow(((425, 104), (425, 150))),
    Arrow(((500, 104), (500, 127), (715, 127), (715, 150))),
    Arrow(((230, 201), (270, 201))),
    Arrow(((425, 252), (425, 318)), "run_trial: in a trial's process, or every worker's", (437, 276)),
    Arrow(((205, 391), (235, 391))),
    Arrow(((400, 391), (430, 391))),
    Arrow(((590, 391), (620, 391))),
    Arrow(((790, 380), (830, 380), (830, 262), (850, 262))),
    Arrow(((850, 190), (810, 190))),
    Arrow(((935, 300), (935, 350))),
    Arrow(((1003, 300), (1003, 325), (1032, 325), (1032, 517), (1020, 517))),
)
GROUPS = ((20, 318, 790, 356, "trainables: the science. Knows nothing of YAML, Ray, Optuna or MLflow"),)
SEAM = (20, 300, 810)


def architecture_picture() -> str:
    """docs/pictures/architecture.svg."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">',
        "<title>Bitfront: a YAML becomes trials, trials become a front, and the storage is the truth</title>",
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>',
        *_seam(),
        *(_group(*group) for group in GROUPS),
        *(_arrow(arrow) for arrow in ARROWS),
        *(_box(box) for box in BOXES),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _box(box: Box) -> str:
    middle = box.left + box.width / 2
    top = box.top + (box.height - LINE * (len(box.lines) + 1)) / 2 + 13
    words = [_words(middle, top, box.title, size=14, weight=600)]
    words += [_words(middle, top + LINE * (row + 1), line, size=12.5) for row, line in enumerate(box.lines)]
    frame = (
        f'<rect x="{box.left}" y="{box.top}" width="{box.width}" height="{box.height}" rx="8" fill="{FILLS[box.kind]}" '
        f'stroke="{EDGES[box.kind]}" stroke-width="1.5"/>'
    )
    return "\n".join([frame, *words])


def _words(x: float, y: float, words: str, *, size: float, weight: int = 400, fill: str = "#1c2430") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="{weight}" text-anchor="middle" fill="{fill}">'
        f"{escape(words)}</text>"
    )


def _arrow(arrow: Arrow) -> str:
    points = " ".join(f"{x},{y}" for x, y in arrow.points)
    line = f'<polyline points="{points}" fill="none" stroke="{GREY}" stroke-width="2" marker-end="url(#head)"/>'
    if not arrow.words:
        return line
    x, y = arrow.at
    return f'{line}\n<text x="{x}" y="{y}" font-size="12.5" fill="{GREY}">{escape(arrow.words)}</text>'


def _group(left: int, top: int, width: int, height: int, words: str) -> str:
    return (
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="10" fill="none" stroke="{EDGES["science"]}" '
        f'stroke-width="1.5" stroke-dasharray="2 4"/>\n'
        f'<text x="{left + width - 10}" y="{top + height - 6}" font-size="12" text-anchor="end" fill="{GREY}">'
        f"{escape(words)}</text>"
    )


def _seam() -> list[str]:
    left, y, right = SEAM
    words = "the seam, trainables.api: settings in, numbers out; no tensors"
    return [
        f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="{GREY}" stroke-width="1.5" stroke-dasharray="7 5"/>',
        f'<text x="{left}" y="{y - 7}" font-size="12.5" fill="{GREY}">{escape(words)}</text>',
    ]
