"""AIMET's quantisation encodings, format version 0.6.1, beside the float network as ONNX.

    value = scale·(q + offset),  q = 0 … 2^bitwidth − 1,  min = scale·offset

An encoding belongs to a tensor of the ONNX graph: weights by their parameter's name, activations by that of the tensor
which a layer reads. Grids of 2^b − 1 levels (`pact`, where signed) are what AIMET calls strictly symmetric: max is one
level lower than q can go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from trainables.errors import ConfigError
from trainables.export.exported_part import exported_part
from trainables.export.float_graph import float_graph, readers_of
from trainables.export.layer_grids import LayerGrids, layer_grids
from trainables.finetuned_model import LoadedModel
from trainables.quantizers.layers import quant_layers

if TYPE_CHECKING:
    from onnx import ModelProto

VERSION = "0.6.1"
FEWEST_BITS = 4
"""Of the format's description."""
OPSET = 18


def aimet_encodings(loaded: LoadedModel, *, backbone: bool = False) -> tuple[dict[str, Any], ModelProto]:
    """The encodings' content, and the float graph whose tensors they name. Raises ConfigError for other grids."""
    part = exported_part(loaded, backbone=backbone)
    grids = layer_grids(part.net)
    _check_grids(grids, loaded.card.quantizer)
    model = float_graph(part, opset=OPSET, weights={f"{name}.weight" for name in grids})
    activations: dict[str, Any] = {}
    for name, layer in grids.items():
        act = layer.act
        encoding = [_encoding(act.scale, act.lo, act.hi, layer.act_bits)]
        for reader in readers_of(model, f"{name}.weight"):
            if activations.setdefault(reader.data, encoding) != encoding:
                raise ConfigError(
                    f"{name} reads the tensor {reader.data} on another grid than a layer before it, and AIMET has one "
                    "encoding for a tensor; give both the same bits with `bitfront policy set`, and finetune again."
                )
    _restore_weights(model, part.net)
    params = {
        f"{name}.weight": [_encoding(one.weight.scale, one.weight.lo, one.weight.hi, one.weight.bits)]
        for name, one in grids.items()
    }
    content = {
        "version": VERSION,
        "activation_encodings": activations,
        "param_encodings": params,
        "quantizer_args": {
            "activation_bitwidth": max(one.act_bits for one in grids.values()),
            "dtype": "int",
            "is_symmetric": "True",
            "param_bitwidth": max(one.weight.bits for one in grids.values()),
            "per_channel_quantization": "False",
            "quant_scheme": "training_range_learning_with_tf_init",
        },
    }
    return content, model


def _check_grids(grids: Mapping[str, LayerGrids], quantizer: str) -> None:
    for name, layer in grids.items():
        levels = layer.weight.hi - layer.weight.lo
        if layer.act.offset or layer.act.half_wave or levels >= 2**layer.weight.bits:
            raise ConfigError(
                f"{name}: AIMET's encodings have no grid of {quantizer}, whose levels lie half a step beside zero or "
                "leave out what is below the first; finetune with `quantizer: lsq` or `pact`, or export ONNX."
            )
        if layer.act.rounding != "half_even":
            raise ConfigError(f"{name}: AIMET's encodings round halves to even; finetune with `quantizer: lsq`.")


def _encoding(scale: float, lo: int, hi: int, bits: int) -> dict[str, Any]:
    return {
        "bitwidth": bits,
        "dtype": "int",
        "is_symmetric": str(lo < 0),
        "max": hi * scale,
        "min": lo * scale,
        "offset": lo,
        "scale": scale,
    }


def _restore_weights(model: ModelProto, net: nn.Module) -> None:
    """Gives the graph the float weights that it had as inputs."""
    from onnx import numpy_helper

    weights = {f"{name}.weight": layer.weight for name, layer in quant_layers(net).items()}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)
        array = weights[value.name].detach().numpy()
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
