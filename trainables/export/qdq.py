"""Quantised layers in an ONNX graph: QuantizeLinear and DequantizeLinear around what each layer reads.

    weight        DequantizeLinear(codes)
    activation    DequantizeLinear(QuantizeLinear(Clip(x)))         Clip where the integer type has more codes than x
    half-wave     … of x > 0 ? max(x, scale) : 0                    small positive values go to the first level
    mid-rise      … of x − scale/2, and + scale/2 behind it         behind a MatMul: W's column sums · scale/2

Behind MatMul the constant is added to the product, as onnxruntime takes a MatMul whose weight alone comes from a
DequantizeLinear for one that may round the activation anew, to 8 bits of each block. Biases are nodes of their own, as
it rounds those of a Conv or a Gemm between quantised inputs to multiples of the product of both scales, which is coarse
in few bits.

DEVIATION: QuantizeLinear rounds halves to even, DAQ down; they differ where x lies exactly between two levels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from trainables.errors import ConfigError
from trainables.export.float_graph import Reader, readers_of
from trainables.export.integer_types import ACT_TYPES, MATMUL_TYPES, WEIGHT_TYPES, IntegerType, smallest
from trainables.export.layer_grids import LayerGrids, WeightCodes
from trainables.quantizers.affine import AffineGrid

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """How a layer is in the graph."""

    weight_type: IntegerType
    act_type: IntegerType
    sources: tuple[str, ...]
    """What each run of the layer quantises."""
    reads: tuple[str, ...]
    """The quantised activation that each run of the layer multiplies."""
    shift: float
    """What is missing in those tensors, and is added behind the product."""


@dataclass(slots=True)
class _Graph:
    """Nodes and tensors that are going to be added."""

    model: ModelProto
    opset: int
    before: dict[str, list[NodeProto]] = field(default_factory=dict)
    """By the name of the node in front of which they come."""
    after: dict[str, list[NodeProto]] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    """Names of nodes."""
    shared: dict[tuple[str, AffineGrid], tuple[str, str]] = field(default_factory=dict)
    """Activation and grid -> its DequantizeLinear, and the same with the constant of a mid-rise grid."""
    labels: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> str:
        """`name` at first, then name_1 and so on: for a layer that runs again with something else."""
        number = self.labels[name] = self.labels.get(name, -1) + 1
        return f"{name}_{number}" if number else name

    def node(self, place: list[NodeProto], op: str, inputs: list[str], output: str, **attributes: int) -> str:
        """A new node, by the name of what it makes."""
        from onnx import helper

        place.append(helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes))
        return output

    def constant(self, name: str, values: object, kind: str = "FLOAT") -> str:
        """An initialiser of ONNX's type `kind`."""
        from onnx import TensorProto, helper, numpy_helper

        dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
        array = np.asarray(values).astype(dtype)
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name


def insert_layers(model: ModelProto, grids: dict[str, LayerGrids], *, opset: int) -> dict[str, Stored]:
    """Quantises the layers of `model`, in place, whose inputs `<layer>.weight` become integers. How each is stored."""
    graph = _Graph(model, opset)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
    # In the order of the graph: what several layers read is quantised in front of the first.
    places = {node.name: place for place, node in enumerate(model.graph.node)}
    order = sorted(grids, key=lambda name: _first_place(model, name, places))
    found = {name: _insert(graph, name, grids[name]) for name in order}
    stored = {name: found[name] for name in grids}
    for value in [value for value in model.graph.input if value.name.removesuffix(".weight") in grids]:
        model.graph.input.remove(value)
    nodes = []
    for node in model.graph.node:
        nodes += graph.before.get(node.name, [])
        nodes += [] if node.name in graph.removed else [node]
        nodes += graph.after.get(node.name, [])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)
    return stored


def _first_place(model: ModelProto, name: str, places: dict[str, int]) -> int:
    return min((places[reader.node.name] for reader in readers_of(model, f"{name}.weight")), default=0)


def _insert(graph: _Graph, name: str, layer: LayerGrids) -> Stored:
    readers = readers_of(graph.model, f"{name}.weight")
    if len({reader.transpose is None for reader in readers}) > 1:
        raise ConfigError(f"{name}: its weight is read both ways round in the ONNX graph; use the layer as it is.")
    weight_type = _insert_weight(graph, name, layer.weight, readers)
    act_type = smallest(ACT_TYPES, _act_lo(layer.act), layer.act.hi, opset=graph.opset, what=f"what {name} reads")
    reads, shift = [], 0.0
    for reader in readers:
        dequantized, whole = _insert_activation(graph, name, layer.act, reader, act_type)
        behind = dequantized != whole and reader.node.op_type == "MatMul"
        reads.append(dequantized if behind else whole)
        reader.node.input[0] = reads[-1]
        if behind:
            shift = layer.act.offset * layer.act.scale
            _add_constant(graph, name, layer.weight, reader, shift)
        _move_bias(graph, name, reader)
    sources = tuple(reader.data for reader in readers)
    return Stored(weight_type=weight_type, act_type=act_type, sources=sources, reads=tuple(reads), shift=shift)


def _insert_weight(graph: _Graph, name: str, weight: WeightCodes, readers: list[Reader]) -> IntegerType:
    types = MATMUL_TYPES if any(reader.node.op_type == "MatMul" for reader in readers) else WEIGHT_TYPES
    kind = smallest(types, weight.lo, weight.hi, opset=graph.opset, what=f"{name}.weight")
    codes, turned = weight.codes.numpy(), readers[0].transpose is not None
    inputs = [
        graph.constant(f"{name}.weight_quantized", codes.T if turned else codes, kind.name),
        graph.constant(f"{name}.weight_scale", weight.scale),
        graph.constant(f"{name}.weight_zero_point", 0, kind.name),
    ]
    first = readers[0].transpose or readers[0].node
    output = f"{name}.weight_turned" if turned else f"{name}.weight"
    graph.node(graph.before.setdefault(first.name, []), "DequantizeLinear", inputs, output)
    for reader in readers:
        reader.node.input[reader.weight_input] = output
        if reader.transpose is not None:
            graph.removed.add(reader.transpose.name)
    return kind


def _act_lo(grid: AffineGrid) -> int:
    return 0 if grid.half_wave else grid.lo


def _insert_activation(
    graph: _Graph, name: str, grid: AffineGrid, reader: Reader, kind: IntegerType
) -> tuple[str, str]:
    """The tensors that a layer reads, without and with the constant of a mid-rise grid; those of another layer that
    reads the same."""
    found = graph.shared.get((reader.data, grid))
    if found:
        return found
    place = graph.before.setdefault(reader.node.name, [])
    label, source, lo = graph.label(f"{name}.input"), reader.data, _act_lo(grid)
    if grid.half_wave:
        source = _half_wave(graph, place, label, source, grid.scale)
    half = graph.constant(f"{label}_half", grid.offset * grid.scale) if grid.offset else ""
    if half:
        source = graph.node(place, "Sub", [source, half], f"{label}_shifted")
    if (lo, grid.hi) != (kind.lo, kind.hi):
        ends = [graph.constant(f"{label}_{end}", code * grid.scale) for end, code in (("lowest", lo), ("top", grid.hi))]
        source = graph.node(place, "Clip", [source, *ends], f"{label}_clipped")
    scale, zero = graph.constant(f"{label}_scale", grid.scale), graph.constant(f"{label}_zero_point", 0, kind.name)
    codes = graph.node(place, "QuantizeLinear", [source, scale, zero], f"{label}_quantized")
    made = graph.node(place, "DequantizeLinear", [codes, scale, zero], f"{label}_dequantized")
    whole = graph.node(place, "Add", [made, half], f"{label}_whole") if half else made
    graph.shared[reader.data, grid] = made, whole
    return made, whole


def _half_wave(graph: _Graph, place: list[NodeProto], label: str, source: str, scale: float) -> str:
    zero, first = graph.constant(f"{label}_zero", 0.0), graph.constant(f"{label}_first", scale)
    positive = graph.node(place, "Greater", [source, zero], f"{label}_positive")
    raised = graph.node(place, "Max", [source, first], f"{label}_raised")
    return graph.node(place, "Where", [positive, raised, zero], f"{label}_half_wave")


def _add_constant(graph: _Graph, name: str, weight: WeightCodes, reader: Reader, shift: float) -> None:
    """The product of a constant activation `shift` with the weight, added to what the reader makes."""
    sums = weight.codes.long().sum(dim=0 if reader.transpose is None else 1).numpy().astype(np.float64)
    label = graph.label(f"{name}.constant")
    _add_behind(graph, name, reader, graph.constant(label, sums * weight.scale * shift))


def _move_bias(graph: _Graph, name: str, reader: Reader) -> None:
    """Makes the third input of a Conv or a Gemm, its bias, a node of its own."""
    from onnx import numpy_helper

    node = reader.node
    if len(node.input) < 3 or not node.input[2]:
        return
    bias = node.input.pop()
    if node.op_type == "Conv":
        (tensor,) = [tensor for tensor in graph.model.graph.initializer if tensor.name == bias]
        values = numpy_helper.to_array(tensor).reshape(-1, 1, 1)
        bias = graph.constant(graph.label(f"{name}.bias_of_channels"), values)
    _add_behind(graph, name, reader, bias)


def _add_behind(graph: _Graph, name: str, reader: Reader, summand: str) -> None:
    label, output = graph.label(f"{name}.product"), reader.node.output[0]
    reader.node.output[0] = label
    graph.node(graph.after.setdefault(reader.node.name, []), "Add", [label, summand], output)
