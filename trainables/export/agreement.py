"""Whether an ONNX file computes what PyTorch does: run by onnxruntime, as a whole and layer by layer.

Both add up in their own order, so that an activation next to the middle between two levels can be rounded to either.
One such step changes what later layers read, and in a few bits it is not small. So the file is judged layer by layer:
PyTorch is given what onnxruntime's layers read, so that one layer's difference is no other's. Then

    what comes to a quantiser      is as near to float64 arithmetic as PyTorch's own float32, but for a factor
    what a quantiser makes of it   is what its grid says of onnxruntime's own entries, but for ties
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.export.float_graph import INPUT
from trainables.export.onnx_model import OnnxNetwork
from trainables.export.report import Agreement
from trainables.quantizers.affine import AffineGrid
from trainables.quantizers.layers import QuantLayer, quant_layers

if TYPE_CHECKING:
    from onnx import ModelProto

TIE_WIDTH = 1e-4
"""Relative distance from the middle between two levels within which x / scale and x · (1 / scale) may decide."""
NOISE = 20.0
"""Times as far from float64 arithmetic as PyTorch's float32 onnxruntime may be: sums of large products that cancel lose
many digits in any order, but about as many in one as in the other."""
FLOAT_FLOOR = 1e-5
"""Difference that is none, of the largest entry."""
LEVEL_TOLERANCE = 0.01
"""Steps by which a value may miss its level."""
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
    activations, ties, input_error, output_error = _layer_by_layer(built, few, fed)
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
        input_error=input_error,
        output_error=output_error,
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


FAULT = "This is a fault of Bitfront or of onnxruntime; report it with the network's model.json."


class _Forced(nn.Module):
    """In a layer's place of quantisers: notes what comes to it, and gives what onnxruntime's layer read."""

    def __init__(self, name: str, layer: QuantLayer, grid: AffineGrid, runs: list[tuple[Tensor, Tensor]]) -> None:
        """`runs`: of each run of the layer what came to onnxruntime's, and what that read."""
        super().__init__()
        self.name, self.grid, self.runs, self.run = name, grid, runs, 0
        # In a tuple it is no part of the network, and stays in float32 when that becomes float64; so does the weight.
        self.quantizer = (layer.mixture.activations, layer.mixture.act_probs())
        self.gain = layer.mixture.activations.affine().gain
        self.weight = layer.mixture.weights(layer.weight, layer.mixture.weight_probs()).detach()
        self.calibrating = False
        self.came: list[Tensor] = []
        """What came to this layer, by run."""

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What onnxruntime's layer read, and the quantised weight, in the precision of `x`."""
        read = self.runs[self.run][1].reshape(x.shape)
        self.run += 1
        self.came.append(x)
        return read.to(x.dtype) * self.gain, self.weight.to(x.dtype)

    def taken(self) -> list[Tensor]:
        """What came since this was last asked."""
        came, self.came, self.run = self.came, [], 0
        return came

    def check(self, ours: list[Tensor], exact: list[Tensor]) -> tuple[int, float]:
        """Ties, and the largest relative difference of what came, given what came in float32 and in float64."""
        ties, worst = 0, 0.0
        quantizer, probs = self.quantizer
        for x, reference, (came, read) in zip(ours, exact, self.runs, strict=True):
            theirs = came.reshape(x.shape)
            worst = max(worst, check_noise(f"what comes to {self.name}", x, theirs, reference))
            self._check_levels(theirs, read.reshape(x.shape))
            levels = quantizer(x, probs) / self.gain
            ties += int(((levels - read.reshape(x.shape)).abs() > LEVEL_TOLERANCE * self.grid.scale).sum())
        return ties, worst

    def _check_levels(self, came: Tensor, read: Tensor) -> None:
        steps = (self.grid.quantized(came) - read).abs() / self.grid.scale
        moved = steps > LEVEL_TOLERANCE
        places = came[moved] / self.grid.scale - self.grid.offset
        apart = (places - places.floor() - 0.5).abs()
        # What a graph of pixels has normalised itself may lie on the other side of a half-wave's edge at zero.
        apart = torch.minimum(apart, places.abs()) if self.grid.half_wave else apart
        wrong = (steps[moved] > 1 + LEVEL_TOLERANCE) | (apart > TIE_WIDTH * places.abs().clamp_min(1.0))
        if bool(wrong.any()):
            raise ConfigError(
                f"{self.name}: onnxruntime rounds {int(wrong.sum())} activations to another level than its grid says, "
                f"up to {float(steps.max()):.1f} steps away, not at ties: the ONNX graph is not this network. {FAULT}"
            )


def check_noise(what: str, ours: Tensor, theirs: Tensor, exact: Tensor) -> float:
    """Largest difference of PyTorch's and onnxruntime's float32, over the largest entry.

    Raises ConfigError where onnxruntime is further from `exact`, float64, than noise explains.
    """
    largest = float(exact.abs().max()) or 1.0
    noise, error = float((ours - exact).abs().max()), float((theirs - exact).abs().max())
    if not error <= max(NOISE * noise, FLOAT_FLOOR * largest):
        raise ConfigError(
            f"{what} differs from exact arithmetic by {error / largest:.2g} of its largest entry in onnxruntime, by "
            f"{noise / largest:.2g} in PyTorch: the ONNX graph is not this network. {FAULT}"
        )
    return float((ours - theirs).abs().max()) / largest


def _layer_by_layer(built: OnnxNetwork, images: Tensor, fed: Tensor) -> tuple[int, int, float, float]:
    """Activations, ties among them, and the largest relative difference of what comes to a layer, and of outputs."""
    grids, stored = built.grids, built.stored
    both = [name for layer in stored.values() for name in (*layer.sources, *layer.reads) if name != INPUT]
    tensors = list(dict.fromkeys(both))
    outputs, *found = _run(built.model, fed, tensors)
    values = {name: torch.from_numpy(array) for name, array in zip(tensors, found, strict=True)}
    values[INPUT] = images
    net = copy.deepcopy(built.part.net)
    forced: dict[str, _Forced] = {}
    for name, layer in quant_layers(net).items():
        one = stored[name]
        runs = [(values[a], values[b] + one.shift) for a, b in zip(one.sources, one.reads, strict=True)]
        layer.mixture = forced[name] = _Forced(name, layer, grids[name].act, runs)  # type: ignore[assignment]
    ours = torch.from_numpy(_logits(net, images))
    came = {name: layer.taken() for name, layer in forced.items()}
    try:
        exact = torch.from_numpy(_logits(net.double(), images.double()))
    except RuntimeError as error:
        raise ConfigError(
            f"the network does not run in float64, with which both are compared ({error}); keep to the input's "
            "precision in its forward pass, or write the file unchecked with --images 0."
        ) from None
    checked = [layer.check(came[name], layer.taken()) for name, layer in forced.items()]
    output_error = check_noise("the output", ours, torch.from_numpy(outputs), exact)
    activations = sum(x.numel() for runs in came.values() for x in runs)
    return activations, sum(ties for ties, _ in checked), max(worst for _, worst in checked), output_error
