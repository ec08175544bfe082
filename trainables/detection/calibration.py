"""Ranges of a detector's quantisers from one batch, those of layers that run several times included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainables.quantizers.daq import DaqActivations, DaqWeights
from trainables.quantizers.layers import QuantLayer, calibrate, quant_layers

CALIBRATION_IMAGES = 8
"""At most, of a worker's share of the first batch: activations of whole images take much memory."""


@torch.no_grad()
def calibrate_detector(net: nn.Module, images: Sequence[Tensor]) -> None:
    """Sets what all quantisers learn from `images`, each [3, H, W] of 0 to 1.

    A layer that runs on the maps of several levels has one quantiser for all. `calibrate` leaves it with the range of
    the last map, the smallest, so it is set again by all that the layer reads: one such layer after the other, since
    each reads what those before it quantised.
    """
    few = list(images[:CALIBRATION_IMAGES])
    was_training = net.training
    net.eval()
    layers = quant_layers(net)
    runs: list[str] = []
    with _before(layers, lambda name, x: runs.append(name)):
        calibrate(net, few)  # type: ignore[arg-type]  # handed to the network, which takes images of any sizes
    repeated = {layers[name].mixture.activations: name for name in reversed(runs) if runs.count(name) > 1}
    for quantizer, name in reversed(repeated.items()):
        before = quantizer.high.clone() if isinstance(quantizer, DaqActivations) else None
        quantizer.calibrate(_all_read(net, few, {name: layers[name]}))
        if before is not None and isinstance(quantizer, DaqActivations):
            _keep_size(quantizer, before, layers)
    net.train(was_training)


def _keep_size(quantizer: DaqActivations, before: Tensor, layers: dict[str, QuantLayer]) -> None:
    """DAQ's activations are x/u, and the gains of the layers that read them are matched for the u of `before`."""
    for layer in layers.values():
        if layer.mixture.activations is quantizer and isinstance(layer.mixture.weights, DaqWeights):
            layer.mixture.weights.gain.mul_(quantizer.high / before)


def _all_read(net: nn.Module, images: list[Tensor], layers: dict[str, QuantLayer]) -> Tensor:
    read: list[Tensor] = []
    with _before(layers, lambda _, x: read.append(x.flatten())):
        net(images)
    return torch.cat(read)


@contextmanager
def _before(layers: dict[str, QuantLayer], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the context `look` is called with the name and the input of each layer that is about to run."""
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
