"""AIMET encodings: what their format's arithmetic makes of the float network."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.export.networks import deployed
from trainables.errors import ConfigError
from trainables.export.aimet import aimet_encodings
from trainables.export.layer_grids import layer_grids
from trainables.finetuned_model import LoadedModel
from trainables.quantizers.layers import quant_layers


@pytest.fixture(scope="module", params=["pact", "lsq"])
def exported(request: pytest.FixtureRequest) -> tuple[LoadedModel, dict[str, Any], onnx.ModelProto]:
    torch.set_num_threads(1)
    loaded = deployed("resnet8", request.param)
    return (loaded, *aimet_encodings(loaded))


def simulated(values: Any, encoding: dict[str, Any]) -> Any:
    """scale·(q + offset), q = clamp(round(x/scale) − offset) between the codes of min and max."""
    scale = np.float32(encoding["scale"])
    codes = np.round(np.clip(values, encoding["min"], encoding["max"]) / scale)
    q = codes - encoding["offset"]
    assert q.min() >= 0
    assert q.max() <= 2 ** encoding["bitwidth"] - 1
    return scale * (q + encoding["offset"])


def test_weights_are_what_the_network_multiplies(
    exported: tuple[LoadedModel, dict[str, Any], onnx.ModelProto],
) -> None:
    loaded, content, model = exported
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, layer in quant_layers(loaded.net).items():
        (encoding,) = content["param_encodings"][f"{name}.weight"]
        assert encoding["bitwidth"] == loaded.record.policy.bits[name].weight
        quantized = layer.mixture.weights(layer.weight, layer.mixture.weight_probs()).detach().numpy()
        assert np.allclose(simulated(floats[f"{name}.weight"], encoding), quantized, atol=1e-6)


def test_activations_are_encoded_as_each_layer_reads_them(
    exported: tuple[LoadedModel, dict[str, Any], onnx.ModelProto],
) -> None:
    loaded, content, model = exported
    grids = layer_grids(loaded.net)
    read = {node.input[1]: node.input[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    for name, layer in grids.items():
        (encoding,) = content["activation_encodings"][read[f"{name}.weight"]]
        x = torch.linspace(-1.3, 1.3, 501) * layer.act.scale * (layer.act.hi + 1)
        assert np.allclose(simulated(x.numpy(), encoding), layer.act.quantized(x).numpy(), atol=1e-5)
    known = {name for node in model.graph.node for name in node.input}
    assert set(content["activation_encodings"]) <= known


def test_the_graph_beside_is_the_float_network(exported: tuple[LoadedModel, dict[str, Any], onnx.ModelProto]) -> None:
    _, _, model = exported
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["images"]
    assert not {node.op_type for node in model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("quantizer", ["hwgq", "daq"])
def test_grids_without_a_whole_offset_are_refused_with_the_fix(quantizer: Any) -> None:
    with pytest.raises(ConfigError, match=rf"no grid of {quantizer}.*`quantizer: lsq` or `pact`"):
        aimet_encodings(deployed("resnet8", quantizer))
