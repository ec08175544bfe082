"""Quantised layers in small ONNX graphs made by hand, against the grids' definition."""

import dataclasses
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from trainables.errors import ConfigError
from trainables.export.layer_grids import LayerGrids, WeightCodes
from trainables.export.qdq import insert_layers
from trainables.quantizers.affine import AffineGrid
from trainables.quantizers.hwgq import normal_step

WIDTH = 6
Kind = Literal["Conv", "MatMul", "Gemm", "turned MatMul"]
GRIDS = {
    "unsigned of 3 bits": AffineGrid(scale=0.37, lo=0, hi=7),
    "unsigned of 8 bits": AffineGrid(scale=0.01, lo=0, hi=255),
    "signed of 2 bits": AffineGrid(scale=0.9, lo=-2, hi=1),
    "signed of 4 bits without the lowest": AffineGrid(scale=0.2, lo=-7, hi=7),
    "signed of 12 bits": AffineGrid(scale=0.003, lo=-2048, hi=2047),
    "mid-rise of 3 bits": AffineGrid(scale=0.586, lo=-4, hi=3, offset=0.5),
    "mid-rise of 8 bits": AffineGrid(scale=0.0308, lo=-128, hi=127, offset=0.5),
    "half-wave of 1 bit": AffineGrid(scale=normal_step(1, half=True), lo=1, hi=1, half_wave=True),
    "half-wave of 4 bits": AffineGrid(scale=normal_step(4, half=True), lo=1, hi=15, half_wave=True),
}


def layer(grid: AffineGrid, kind: Kind, *, bits: int = 3) -> LayerGrids:
    """WIDTH channels to two, of which the second has the most negative code."""
    codes = (torch.arange(2 * WIDTH, dtype=torch.int32).reshape(2, WIDTH) % 7 - 3).clamp(-(2 ** (bits - 1)), 1)
    codes[1, 0] = -(2 ** (bits - 1))
    codes = codes[:, :, None, None] if kind == "Conv" else codes.T if kind == "MatMul" else codes
    weight = WeightCodes(codes=codes, scale=0.11, lo=-(2 ** (bits - 1)), hi=2 ** (bits - 1) - 1, bits=bits)
    return LayerGrids(weight=weight, act=grid, act_bits=4)


def graph(kind: Kind, *, readers: int = 1) -> onnx.ModelProto:
    """x -> y0, y1 …, each by a layer `a`, `b` … whose weight is an input."""
    shape = [2, WIDTH, 1, 1] if kind == "Conv" else [WIDTH, 2] if kind == "MatMul" else [2, WIDTH]
    rest = [1, 1] if kind == "Conv" else []
    nodes, names = [], "ab"[:readers]
    for number, name in enumerate(names):
        weight = f"{name}.weight"
        if kind == "turned MatMul":
            nodes.append(helper.make_node("Transpose", [weight], [f"{name}.turned"], perm=[1, 0]))
            weight = f"{name}.turned"
        attributes = {"transB": 1} if kind == "Gemm" else {}
        op = "MatMul" if kind == "turned MatMul" else kind
        nodes.append(helper.make_node(op, ["x", weight], [f"y{number}"], **attributes))
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["n", WIDTH, *rest])]
    inputs += [value(f"{name}.weight", TensorProto.FLOAT, shape) for name in names]
    outputs = [value(f"y{number}", TensorProto.FLOAT, ["n", 2, *rest]) for number in range(readers)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs))
    model.opset_import[0].version, model.ir_version = 21, 10
    return model


def run(model: onnx.ModelProto, x: Any) -> list[Any]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


@pytest.mark.parametrize("kind", ["Conv", "MatMul", "Gemm", "turned MatMul"])
@pytest.mark.parametrize("name", GRIDS)
def test_a_layer_multiplies_the_values_of_its_grids(kind: Kind, name: str) -> None:
    grid = GRIDS[name]
    one = layer(grid, kind)
    # Beyond both ends, zero and the smallest positive number among them; no halves of a step.
    x = torch.linspace(-1.7, 1.7, 40 * WIDTH) * (grid.hi + 1.13) * grid.scale
    x[:3] = torch.tensor([0.0, 1e-30, -1e-30])
    x = x.reshape(40, WIDTH)
    values = grid.quantized(x)
    weight = one.weight.codes.float().squeeze() * one.weight.scale
    expected = values @ (weight if kind == "MatMul" else weight.T)
    model = graph(kind)
    insert_layers(model, {"a": one}, opset=21)
    fed = x.reshape(40, WIDTH, 1, 1).numpy() if kind == "Conv" else x.numpy()
    (found,) = run(model, fed)
    assert np.abs(found.reshape(40, 2) - expected.numpy()).max() <= 2e-6 * float(expected.abs().max())


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_biases_are_added_as_they_are(kind: Kind) -> None:
    """Where a node has its bias, onnxruntime rounds that to multiples of both scales' product: here 0.11."""
    model, one = graph(kind), layer(AffineGrid(scale=1.0, lo=0, hi=3), kind)
    one = dataclasses.replace(one, weight=dataclasses.replace(one.weight, codes=one.weight.codes.abs().clamp_max(3)))
    bias = np.array([0.3, 0.16], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    node = model.graph.node[0]
    node.input.append("bias")
    node.output[0] = "before"
    # It does so before a Relu and another layer's QuantizeLinear.
    model.graph.node.append(helper.make_node("Relu", ["before"], ["between"]))
    attributes = {"transB": 1} if kind == "Gemm" else {}
    model.graph.node.append(helper.make_node(kind, ["between", "b.weight"], ["y0"], **attributes))
    shape = [2, 2, 1, 1] if kind == "Conv" else [2, 2]
    model.graph.input.append(helper.make_tensor_value_info("b.weight", TensorProto.FLOAT, shape))
    identity = WeightCodes(codes=torch.eye(2, dtype=torch.int32).reshape(shape), scale=1.0, lo=-2, hi=1, bits=2)
    fine = AffineGrid(scale=0.01, lo=0, hi=255)
    insert_layers(model, {"a": one, "b": LayerGrids(weight=identity, act=fine, act_bits=8)}, opset=21)
    x = torch.arange(4 * WIDTH).reshape(4, WIDTH).float() % 2
    weight = one.weight.codes.float().squeeze() * one.weight.scale
    expected = fine.quantized((x @ weight.T + torch.from_numpy(bias)).relu())
    (found,) = run(model, x.reshape(4, WIDTH, 1, 1).numpy() if kind == "Conv" else x.numpy())
    assert np.allclose(found.reshape(4, 2), expected.numpy(), atol=1e-6)
    assert 0 < float(expected.min()) < float(expected.max()) < fine.hi * fine.scale


def test_layers_that_read_one_activation_on_one_grid_share_a_pair_of_nodes() -> None:
    model = graph("Conv", readers=2)
    stored = insert_layers(
        model,
        {"a": layer(GRIDS["mid-rise of 3 bits"], "Conv"), "b": layer(GRIDS["mid-rise of 3 bits"], "Conv")},
        opset=21,
    )
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1
    assert stored["a"].reads == stored["b"].reads
    first, second = run(model, np.ones((1, WIDTH, 1, 1), np.float32))
    assert np.array_equal(first, second)


def test_layers_that_read_one_activation_on_two_grids_have_a_pair_each() -> None:
    model = graph("Conv", readers=2)
    insert_layers(
        model,
        {"a": layer(GRIDS["unsigned of 3 bits"], "Conv"), "b": layer(GRIDS["unsigned of 8 bits"], "Conv")},
        opset=21,
    )
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 2
    run(model, np.ones((1, WIDTH, 1, 1), np.float32))


@pytest.mark.parametrize(
    ("kind", "bits", "opset", "expected"),
    [("Conv", 2, 25, "INT2"), ("MatMul", 2, 25, "INT4"), ("Conv", 2, 21, "INT4"), ("Conv", 4, 21, "INT4"),
     ("Conv", 5, 21, "INT8"), ("Conv", 3, 20, "INT8"), ("Conv", 9, 21, "INT16")],
)  # fmt: skip
def test_weights_are_in_the_narrowest_integers_that_the_opset_has_and_the_node_can_read(
    kind: Kind, bits: int, opset: int, expected: str
) -> None:
    model = graph(kind)
    stored = insert_layers(model, {"a": layer(GRIDS["unsigned of 3 bits"], kind, bits=bits)}, opset=opset)
    assert stored["a"].weight_type.name == expected
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "a.weight_quantized"]
    assert tensor.data_type == getattr(TensorProto, expected)


def test_codes_that_no_integer_of_the_opset_holds_are_refused_with_the_fix() -> None:
    weight = WeightCodes(codes=torch.zeros(2, WIDTH, dtype=torch.int32), scale=1.0, lo=-255, hi=255, bits=8)
    one = LayerGrids(weight=weight, act=GRIDS["unsigned of 3 bits"], act_bits=3)
    with pytest.raises(ConfigError, match=r"a\.weight has codes from -255 to 255.*give --opset 21\."):
        insert_layers(graph("Gemm"), {"a": one}, opset=18)


def test_a_weight_that_something_else_reads_is_refused() -> None:
    model = graph("Gemm")
    model.graph.node.append(helper.make_node("Add", ["a.weight", "a.weight"], ["twice"]))
    with pytest.raises(ConfigError, match=r"a\.weight is read by Add"):
        insert_layers(model, {"a": layer(GRIDS["unsigned of 3 bits"], "Gemm")}, opset=21)
