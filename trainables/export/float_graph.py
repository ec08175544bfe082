"""The float network as an ONNX graph whose quantised weights are still inputs, so that nothing is folded into them."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from trainables.errors import ConfigError
from trainables.export.exported_part import Part
from trainables.quantizers.layers import QuantConv2d, quant_layers

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

INPUT = "images"
_TRANSPOSED = (1, 0)


@dataclass(frozen=True, slots=True)
class Reader:
    """A node that multiplies an activation with a layer's weight."""

    node: NodeProto
    data: str
    """The tensor that holds the activation."""
    weight_input: int
    """Which of the node's inputs is the weight."""
    transpose: NodeProto | None
    """What turns the weight over in between."""


def float_copy(net: nn.Module) -> nn.Module:
    """The network without its quantisers: the same parameters under the same names."""
    plain = copy.deepcopy(net)
    for layer in quant_layers(plain).values():
        del layer.mixture
        layer.__class__ = nn.Conv2d if isinstance(layer, QuantConv2d) else nn.Linear  # type: ignore[assignment]
    return plain


def float_graph(part: Part, *, opset: int, weights: Collection[str]) -> ModelProto:
    """The graph of a `part` without its quantisers, the number of images open, with the parameters `weights` as inputs.

    Constants are folded and needless nodes removed, but not where a weight that will be quantised has a part.
    """
    from onnx import helper
    from onnxscript import optimizer

    with _quiet():
        try:
            program = torch.onnx.export(
                float_copy(part.net),
                (part.example,),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(part.outputs),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ConfigError(
                f"PyTorch cannot turn this network into ONNX: {reason} What its forward pass does must not depend on "
                "pixels or on the number of images; `--format csv` needs no graph."
            ) from None
        assert program is not None
        model = program.model_proto
        for tensor in [tensor for tensor in model.graph.initializer if tensor.name in weights]:
            model.graph.initializer.remove(tensor)
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        model = optimizer.optimize(model)
    _strip(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and optimiser tell of their own inner life."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _strip(model: ModelProto) -> None:
    """Removes what the exporter noted of the Python code and its folders."""
    model.doc_string = ""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for tensor in (*model.graph.initializer, *model.graph.output):
        tensor.ClearField("metadata_props")


def readers_of(model: ModelProto, weight: str) -> list[Reader]:
    """The nodes that multiply with this weight, in order. Raises ConfigError where something else reads it."""
    found = []
    for node in _nodes_reading(model, weight):
        if node.op_type == "Transpose" and _permutation(node) == _TRANSPOSED:
            inner = [(reader, node.output[0], node) for reader in _nodes_reading(model, node.output[0])]
        else:
            inner = [(node, weight, None)]
        for reader, name, transpose in inner:
            place = list(reader.input).index(name)
            if reader.op_type not in ("Conv", "Gemm", "MatMul") or place != 1:
                raise ConfigError(
                    f"{weight} is read by {reader.op_type}, not as the weight of a convolution or a linear layer, in "
                    "the ONNX graph; use nn.Conv2d and nn.Linear as they are."
                )
            found.append(Reader(reader, reader.input[0], place, transpose))
    if not found:
        raise ConfigError(f"{weight} is not in the ONNX graph: two layers share it, or a forward pass never reads it.")
    return found


def _nodes_reading(model: ModelProto, tensor: str) -> list[NodeProto]:
    return [node for node in model.graph.node if tensor in node.input]


def _permutation(node: NodeProto) -> tuple[int, ...]:
    return next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
