"""ONNX files of real networks on real images, run by onnxruntime."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from tests.export.networks import deployed, images_of, mixed_policy
from trainables.counting import measure
from trainables.detection.calibration import calibrate_detector
from trainables.detection.costs import count_detector
from trainables.detection.detectors import build_detector, carried_over
from trainables.detector_config import DetectionDataConfig, DetectorConfig, DetectorNetworkConfig
from trainables.errors import ConfigError
from trainables.export import onnx_model
from trainables.export.agreement import compare
from trainables.export.onnx_model import OnnxNetwork, build_onnx
from trainables.finetune_config import DeployedQuantizer, FinetuneConfig
from trainables.finetuned_model import LoadedModel
from trainables.model_files import ModelCard
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.quantizers.layers import calibrate, quant_layers
from trainables.supernet import deploy

QUANTIZERS: tuple[DeployedQuantizer, ...] = ("pact", "hwgq", "lsq", "daq")
Made = tuple[LoadedModel, OnnxNetwork]


@pytest.fixture(scope="module")
def made() -> dict[str, Made]:
    """resnet8 on digits by quantiser, with a width from 2 to 8 for each layer."""
    torch.set_num_threads(1)
    loaded = {name: deployed("resnet8", name) for name in QUANTIZERS}
    # All of them have the same float weights, and PyTorch's exporter takes seconds.
    float_graph, graphs = onnx_model.float_graph, list[onnx.ModelProto]()

    def kept(*given: Any, **named: Any) -> onnx.ModelProto:
        graphs.append(graphs[0] if graphs else float_graph(*given, **named))
        return onnx.ModelProto.FromString(graphs[0].SerializeToString())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_model, "float_graph", kept)
        return {name: (one, build_onnx(one, opset=21, takes="normalised")) for name, one in loaded.items()}


def run(model: onnx.ModelProto, images: torch.Tensor) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images.numpy()})[0]


def tensors(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def compared(loaded: LoadedModel, built: OnnxNetwork, *, images: int = 128) -> Any:
    card = loaded.card
    shown = images_of("digits", card.image_size, images)
    return compare(built, shown, real=True)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_onnxruntime_computes_what_pytorch_does_but_for_ties(quantizer: str, made: dict[str, Made]) -> None:
    found = compared(*made[quantizer])
    assert found.activations == 8 * sum(work.inputs for work in made[quantizer][0].record.work.layers.values())  # type: ignore[union-attr]
    # float32 sums differ by some 10^-7, and about so many activations are that near to a tie. Half-waves have theirs at
    # zero, where the branches of an untrained block with symmetric weights often cancel.
    assert found.ties <= (2e-3 if quantizer == "hwgq" else 1e-4) * found.activations
    assert found.output_error <= 1e-5
    assert found.input_error <= 1e-5
    assert found.same_class >= 0.98 * found.images
    assert found.mean_error <= 0.01 * found.largest_logit


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_weights_in_the_file_are_those_that_pytorch_multiplies(quantizer: str, made: dict[str, Made]) -> None:
    loaded, built = made[quantizer]
    stored = tensors(built.model)
    for name, layer in quant_layers(loaded.net).items():
        codes = stored[f"{name}.weight_quantized"].astype(np.int32)
        bits = loaded.record.policy.bits[name].weight
        assert len(np.unique(codes)) <= 2**bits
        mixture = layer.mixture
        quantized = mixture.weights(layer.weight, mixture.weight_probs())
        # What DAQ multiplies activations by is in the file's scale.
        expected = quantized.detach().numpy() * mixture.activations.affine().gain
        assert np.allclose(
            codes * stored[f"{name}.weight_scale"], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max()
        )


def test_branches_of_a_block_share_the_pair_of_nodes_of_what_they_read(made: dict[str, Made]) -> None:
    loaded, built = made["lsq"]
    assert loaded.record.work is not None
    activations = {work.reads for work in loaded.record.work.layers.values()}
    operations = [node.op_type for node in built.model.graph.node]
    assert operations.count("QuantizeLinear") == len(activations) < len(loaded.record.policy.bits)
    assert operations.count("DequantizeLinear") == len(activations) + len(loaded.record.policy.bits)


def test_the_graph_takes_any_number_of_images(made: dict[str, Made]) -> None:
    _, built = made["pact"]
    images = images_of("digits", 16, 5)
    together = run(built.model, images)
    assert together.shape == (5, 10)
    assert np.allclose(run(built.model, images[:1]), together[:1], atol=1e-5)


def test_metadata_say_what_the_file_is_and_nothing_of_where_it_was_made(made: dict[str, Made]) -> None:
    loaded, built = made["lsq"]
    facts = {entry.key.removeprefix("bitfront."): entry.value for entry in built.model.metadata_props}
    assert facts["policy_hash"] == loaded.record.policy.hash
    assert (facts["network"], facts["quantizer"], facts["input"]) == ("resnet8", "lsq", "normalised")
    assert json.loads(facts["mean"]) == list(loaded.card.mean)
    assert json.loads(facts["class_names"])[3] == "class 3"
    layers = json.loads(facts["layers"])
    assert {name: (one["weight"], one["act"]) for name, one in layers.items()} == loaded.record.policy.bits
    content = built.model.SerializeToString()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"torch" not in content


def test_a_graph_of_pixels_gives_the_logits_of_the_graph_of_normalised_images(made: dict[str, Made]) -> None:
    loaded, built = made["daq"]
    of_pixels = build_onnx(loaded, opset=21, takes="pixels")
    images, card = images_of("digits", 16, 64), loaded.card
    pixels = images * torch.tensor(card.std).view(-1, 1, 1) + torch.tensor(card.mean).view(-1, 1, 1)
    assert 0 <= float(pixels.min()) < 0.01 < 0.99 < float(pixels.max()) <= 1.0001
    assert (run(of_pixels.model, pixels).argmax(1) == run(built.model, images).argmax(1)).mean() >= 0.98


def test_two_bits_are_stored_in_two_bits_where_the_opset_has_them(made: dict[str, Made]) -> None:
    loaded, _ = made["pact"]
    assert 2 in [bits.weight for bits in loaded.record.policy.bits.values()]
    built = build_onnx(loaded, opset=25, takes="normalised")
    types = {name: one.weight_type.name for name, one in built.stored.items()}
    assert {types[name] for name, bits in loaded.record.policy.bits.items() if bits.weight == 2} == {"INT2"}
    assert compared(loaded, built, images=16).same_class == 16


@pytest.mark.parametrize(
    ("changes", "factor", "message"),
    [
        ("fc.input_scale", 1.02, "fc: onnxruntime rounds .* not at ties"),
        ("fc.weight_scale", 1.001, "the output differs from exact arithmetic"),
        ("fc.bias", 1.5, "the output differs from exact arithmetic"),
        ("layer2.0.conv1.weight_scale", 1.001, r"layer2\.0\.conv2 differs from exact arithmetic"),
    ],
)
def test_a_file_that_computes_something_else_is_told(
    changes: str, factor: float, message: str, made: dict[str, Made]
) -> None:
    loaded, built = made["lsq"]
    changed = onnx.ModelProto.FromString(built.model.SerializeToString())
    (tensor,) = [tensor for tensor in changed.graph.initializer if tensor.name == changes]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    with pytest.raises(ConfigError, match=message):
        compared(loaded, dataclasses.replace(built, model=changed), images=16)


def test_a_network_of_users_that_shares_a_weight_is_refused() -> None:
    loaded = deployed("resnet8", "lsq")
    loaded.net.layer1[0].conv2.weight = loaded.net.layer1[0].conv1.weight  # type: ignore[index, union-attr]
    with pytest.raises(ConfigError, match=r"layer1\.0\.conv[12]\.weight is (not in the ONNX graph|read)"):
        build_onnx(loaded, opset=21, takes="normalised")


LARGE = [
    ("mobilenet_v2", "fashion-mnist", 32),
    ("deit_tiny_patch4", "digits", 16),
    ("vgg16", "fashion-mnist", 32),
]


@pytest.mark.long
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(("network", "data", "image_size"), LARGE)
def test_large_networks_agree_layer_by_layer(
    network: str, data: str, image_size: int, quantizer: DeployedQuantizer
) -> None:
    loaded = deployed(network, quantizer, data=data, image_size=image_size)
    built = build_onnx(loaded, opset=21, takes="normalised")
    images = images_of(data, image_size, 64)
    found = compare(built, images, real=True)
    assert found.activations > 10**5
    assert found.ties <= 2e-3 * found.activations


@pytest.fixture(scope="module")
def detector() -> LoadedModel:
    """Faster R-CNN for images of 64×96 pixels, with fresh weights."""
    torch.manual_seed(0)
    config = DetectorConfig(
        detector=DetectorNetworkConfig(name="fasterrcnn_resnet18", min_size=64, max_size=96),
        data=DetectionDataConfig(format="voc", root="nowhere", train=("2007/trainval",), validation=("2007/test",)),
        finetune=FinetuneConfig(epochs=1, quantizer="lsq"),
    )
    built = build_detector(config.detector, num_classes=3)
    work = count_detector(built.net.eval(), torch.rand(3, 64, 96))
    classifier = mixed_policy("resnet18", image_size=32, num_classes=2, images=torch.randn(8, 3, 32, 32), seed=0)
    policy = carried_over(classifier.policy, built, name=config.detector.name, head_bits=8)
    net = deploy(built.net, work, policy, "lsq").eval()
    calibrate_detector(net, list(torch.rand(2, 3, 64, 96)))
    record = PolicyRecord.measured(policy, work, method="gmpq", settings={}, image_size=0, num_classes=3)
    card = ModelCard(
        task="detection",
        network=config.detector.name,
        num_classes=3,
        image_size=0,
        quantizer="lsq",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        config=json.loads(json.dumps(dataclasses.asdict(config))),
    )
    return LoadedModel(net, card, record)


@pytest.mark.long
def test_of_a_detector_the_backbone_is_exported_when_it_is_asked_for(detector: LoadedModel) -> None:
    built = build_onnx(detector, opset=21, takes="normalised", backbone=True)
    assert [value.name for value in built.model.graph.output] == [f"map_{level}" for level in range(5)]
    assert set(built.grids) == {name for name in detector.record.policy.bits if name.startswith("backbone.")}
    found = compare(built, torch.randn(2, 3, 64, 96), real=False)
    assert found.same_class is None
    assert found.ties <= 1e-4 * found.activations
    with pytest.raises(ConfigError, match=r"fasterrcnn_resnet18 is a detector.*give --backbone"):
        build_onnx(detector, opset=21, takes="normalised")


def test_a_classifier_has_no_backbone_apart(made: dict[str, Made]) -> None:
    with pytest.raises(ConfigError, match=r"resnet8 is a classifier, of which all is exported; leave --backbone out"):
        build_onnx(made["pact"][0], opset=21, takes="normalised", backbone=True)


class _Crossed(torch.nn.Module):
    """Two branches of one activation, of which the one that is defined last runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.late = torch.nn.Conv2d(4, 4, 1)
        self.early = torch.nn.Conv2d(4, 4, 1)
        self.fc = torch.nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = self.early(x) + self.late(x).relu()
        return self.fc(x.mean((2, 3)))


def test_layers_that_are_defined_in_another_order_than_they_run_share_their_pair(made: dict[str, Made]) -> None:
    loaded, _ = made["lsq"]
    torch.manual_seed(0)
    net = _Crossed().eval()
    probe = torch.randn(4, 3, 16, 16)
    work = measure(net, probe)
    policy = BitPolicy(network="crossed", bits={name: LayerBits(4, 4) for name in work.layers})
    quantised = deploy(net, work, policy, "lsq").eval()
    calibrate(quantised, probe)
    record = dataclasses.replace(loaded.record, policy=policy, work=work)
    built = build_onnx(dataclasses.replace(loaded, net=quantised, record=record), opset=21, takes="normalised")
    onnx.checker.check_model(built.model)
    with torch.no_grad():
        expected = quantised(probe)
    assert torch.allclose(torch.from_numpy(run(built.model, probe)), expected, atol=1e-4)
