"""Whether an ONNX file computes what PyTorch does: run by onnxruntime, as a whole and layer by layer.

Both add up in their own order, so that an activation next to the middle between two levels can be rounded to either.
One such step changes what later layers read, and in a few bits it is not small. So the file is judged layer by layer:
PyTorch is given what onnxruntime's layers read, and each quantiser must come to the same level but for ties.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.export.float_graph import INPUT
from trainables.export.onnx_model import OnnxNetwork
from trainables.export.report import Agreement
from trainables.quantizers.affine import AffineGrid
from trainables.quantizers.layers import quant_layers

if TYPE_CHECKING:
    from onnx import ModelProto

TIE_WIDTH = 1e-3
"""Relative distance from the middle between two levels within which float32 sums in another order may decide: some
10^-6 a layer, and more behind normalisations of small values."""
LOGIT_TOLERANCE = 1e-4
"""Of the largest logit: how far the logits may be apart where all layers read the same."""
LAYER_IMAGES = 8
BATCH = 32
"""Images that are run together."""


def compare(
    built: OnnxNetwork,
    images: Tensor,
    *,
    real: bool,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Agreement:
    """Runs both on `images` [N, 3, S, S], normalised; with `mean` and `std` [3] the graph is given pixels.

    Raises ConfigError where a difference is none of rounding.
    """
    fed = images if mean is None or std is None else images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    net, model = built.part.net, built.model
    (theirs,), ours = _run(model, fed, []), _logits(net, images)
    errors = np.abs(ours - theirs)
    few, fed = images[:LAYER_IMAGES], fed[:LAYER_IMAGES]
    activations, ties, layer_error = _layer_by_layer(built, few, fed)
    return Agreement(
        images=len(images),
        real=real,
        same_class=int((ours.argmax(1) == theirs.argmax(1)).sum()) if built.part.outputs == ("logits",) else None,
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        largest_logit=float(np.abs(ours).max()),
        layer_images=len(few),
        activations=activations,
        ties=ties,
        layer_error=layer_error,
    )


@torch.no_grad()
def _logits(net: nn.Module, images: Tensor) -> Any:
    """[N, classes]; of feature maps all entries of an image in a row, [N, entries]."""
    return np.concatenate([_rows(net(batch)) for batch in images.split(BATCH)])


def _rows(found: Any) -> Any:
    maps = [np.asarray(one) for one in (found if isinstance(found, list | tuple) else [found])]
    return np.concatenate([one.reshape(len(one), -1) for one in maps], axis=1)


def _run(model: ModelProto, images: Tensor, tensors: list[str]) -> list[Any]:
    """The graph's outputs in rows and then `tensors`, as onnxruntime computes them with its own settings."""
    import onnx
    import onnxruntime

    outputs = [value.name for value in model.graph.output]
    if tensors:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of optimisations that it leaves out
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [session.run([*outputs, *tensors], {INPUT: batch.numpy()}) for batch in images.split(BATCH)]
    rows = np.concatenate([_rows(one[: len(outputs)]) for one in found])
    return [rows, *(np.concatenate(parts) for parts in zip(*(one[len(outputs) :] for one in found), strict=True))]


class _Forced(nn.Module):
    """In a layer's place of quantisers: compares what it would read with what onnxruntime's layer reads, takes that."""

    def __init__(self, name: str, mixture: nn.Module, grid: AffineGrid, reads: list[Tensor]) -> None:
        super().__init__()
        self.name, self.mixture, self.grid, self.reads = name, mixture, grid, reads
        self.calibrating = False
        self.activations, self.ties = 0, 0

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What onnxruntime's layer reads, and the quantised weight."""
        ours, quantized_weight = self.mixture(x, weight)
        gain = self.mixture.activations.affine().gain  # type: ignore[union-attr, operator]
        theirs = self.reads.pop(0).reshape(x.shape)
        steps = (ours / gain - theirs).abs() / self.grid.scale
        moved = steps > 0.01
        self._check(x[moved], steps[moved])
        self.activations += x.numel()
        self.ties += int(moved.sum())
        return theirs * gain, quantized_weight

    def _check(self, x: Tensor, steps: Tensor) -> None:
        places = x / self.grid.scale - self.grid.offset
        # A half-wave grid has its edge at zero instead of half a step.
        nearest = (places - places.floor() - 0.5).abs()
        nearest = torch.minimum(nearest, places.abs()) if self.grid.half_wave else nearest
        wrong = (steps > 1.01) | (nearest > TIE_WIDTH * places.abs().clamp_min(1.0))
        if bool(wrong.any()):
            raise ConfigError(
                f"{self.name}: onnxruntime rounds {int(wrong.sum())} activations to another level than PyTorch, up to "
                f"{float(steps[wrong].max()):.1f} steps away and not at ties: the ONNX graph is not this network. "
                "This is a fault of Bitfront or of onnxruntime; report it with the network's model.json."
            )


def _layer_by_layer(built: OnnxNetwork, images: Tensor, fed: Tensor) -> tuple[int, int, float]:
    """Activations, ties among them, and the largest difference of logits where PyTorch reads onnxruntime's."""
    net, model, grids, stored = built.part.net, built.model, built.grids, built.stored
    tensors = list(dict.fromkeys(name for layer in stored.values() for name in layer.reads))
    logits, *found = _run(model, fed, tensors)
    values = {name: torch.from_numpy(array) for name, array in zip(tensors, found, strict=True)}
    layers, forced = quant_layers(net), {}
    for name, layer in layers.items():
        reads = [values[tensor] + stored[name].shift for tensor in stored[name].reads]
        forced[name] = _Forced(name, layer.mixture, grids[name].act, reads)
    try:
        for name, layer in layers.items():
            layer.mixture = forced[name]  # type: ignore[assignment]
        error = float(np.abs(_logits(net, images) - logits).max())
    finally:
        for name, layer in layers.items():
            layer.mixture = forced[name].mixture  # type: ignore[assignment]
    largest = float(np.abs(logits).max())
    if not error <= LOGIT_TOLERANCE * largest:
        raise ConfigError(
            f"onnxruntime's logits differ from PyTorch's by {error:.2g} where all layers read the same; the largest "
            f"is {largest:.2g}: the ONNX graph is not this network. This is a fault of Bitfront or of onnxruntime; "
            "report it with the network's model.json."
        )
    return sum(one.activations for one in forced.values()), sum(one.ties for one in forced.values()), error
