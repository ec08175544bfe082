"""What exports and evaluations came to, in lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainables.export.api import Agreement, AimetReport, Evaluation, OnnxReport

USUAL_SHARE = 0.95
"""Of images that have the same class in both."""


def of_onnx(output: Path, report: OnnxReport) -> list[str]:
    """What is in an ONNX file, and how far it agrees with PyTorch."""
    types = Counter(str(layer["weight_type"]).lower() for layer in report.layers.values())
    held = ", ".join(f"{count} in {kind}" for kind, count in sorted(types.items()))
    lines = [
        f"{output}: {report.network}, policy {report.policy_hash[:10]}, {report.bytes / 1e6:.2f} MB, opset "
        f"{report.opset}; weights of {len(report.layers)} layers: {held}"
    ]
    if report.wider:
        wider = ", ".join(f"{what.lower()} ({count})" for what, count in report.wider.items())
        lines.append(f"in wider integers than their bits, clipped to their own range: {wider}")
    if report.agreement is None:
        return [*lines, f"not compared with PyTorch: {report.unchecked}"]
    return lines + _agreement(report.agreement)


def _agreement(found: Agreement) -> list[str]:
    images = "validation images" if found.real else "images of noise (the data set is not here: --data)"
    what = f"the same class for {found.same_class}; logits"
    if found.same_class is None:
        images, what = "images of noise", "entries of the feature maps"
    lines = [
        f"onnxruntime and PyTorch on {found.images} {images}: {what} differ by "
        f"{found.mean_error:.2g} on average and {found.max_error:.2g} at most, the largest: {found.largest_logit:.3g}",
        f"layer by layer on {found.layer_images} of them: {found.ties} of {found.activations} activations rounded the "
        f"other way at ties; what comes to be rounded differs by {found.input_error:.1g} of its largest entry, and "
        f"logits by {found.output_error:.1g}",
    ]
    if found.same_class is not None and found.same_class < USUAL_SHARE * found.images:
        lines.append(
            "that is less than ties explain as a rule, unless layers have 2 bits or little was trained; if "
            "onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL does better, one of its optimisations rounds anew"
        )
    return lines


def of_aimet(output: Path, report: AimetReport) -> list[str]:
    """What is in an encodings file."""
    lines = [
        f"{output}: {report.network}, policy {report.policy_hash[:10]}, encodings of {report.params} weights and "
        f"{report.activations} activations, AIMET's format 0.6.1",
        f"{output.with_suffix('.onnx')}: the float network that they belong to",
    ]
    if report.narrow:
        lines.append(
            f"{len(report.narrow)} layers have fewer than the 4 bits that the format's description allows, such as "
            f"{report.narrow[0]}; what reads them may refuse"
        )
    return lines


def of_evaluation(name: str, found: Evaluation, different: Sequence[str]) -> list[str]:
    """Recorded against measured, metric by metric."""
    lines = [f"{name}: {found.network} on {found.data}"]
    for metric, value in found.measured.items():
        recorded = found.recorded[metric]
        told = "differs" if metric in different else "the same" if recorded == value else "close enough"
        lines.append(f"  {metric:<6} recorded {recorded:.4f}, measured {value:.4f}: {told}")
    if different and found.other_data:
        lines.append("  the data set is not the one that it was measured on: its fingerprint differs")
    elif different:
        lines.append(
            "  another machine or device adds up in another order, which can turn single images; --within allows it"
        )
    return lines
