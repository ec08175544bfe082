"""Policies carried over to detectors, and what these cost."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trainables.detection.calibration import calibrate_detector
from trainables.detection.costs import _all_proposals, backbone_costs, count_detector, paper_backbone
from trainables.detection.detectors import (
    Detector,
    build_detector,
    carried_over,
    fresh_classifier,
    image_shape,
    layers_of,
)
from trainables.detector_config import DetectorNetworkConfig
from trainables.errors import ConfigError
from trainables.policy import BitPolicy, LayerBits
from trainables.quantizers.layers import quant_layers
from trainables.recount import recount
from trainables.supernet import deploy

SMALL = DetectorNetworkConfig(name="fasterrcnn_resnet18", min_size=64, max_size=96)
SSD = DetectorNetworkConfig(name="ssd300_vgg16")


def policy_of(backbone: str, *, bits: int = 4) -> BitPolicy:
    """All layers at these bits; the first and the last pinned to 8."""
    with torch.device("meta"):
        names = list(layers_of(fresh_classifier(backbone)))
    ends = {names[0], names[-1]}
    return BitPolicy(
        network=backbone,
        bits={name: LayerBits(8, 8) if name in ends else LayerBits(bits, bits) for name in names},
        pinned=frozenset(ends),
    )


@pytest.fixture(scope="module")
def faster_layers() -> dict[str, nn.Module]:
    """Of the classification network, before it is taken apart."""
    torch.manual_seed(0)
    return {"": fresh_classifier("resnet18")}


@pytest.fixture(scope="module")
def faster(faster_layers: dict[str, nn.Module]) -> Detector:
    return built_around(faster_layers, SMALL)


@pytest.fixture(scope="module")
def ssd_layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"": fresh_classifier("vgg16")}


@pytest.fixture(scope="module")
def ssd(ssd_layers: dict[str, nn.Module]) -> Detector:
    return built_around(ssd_layers, SSD)


def built_around(layers: dict[str, nn.Module], config: DetectorNetworkConfig) -> Detector:
    """Exchanges the classification network in `layers` for its layers by name."""
    classifier = layers.pop("")
    layers.update(layers_of(classifier))
    return build_detector(config, num_classes=2, classifier=classifier)


def test_backbones_in_full_precision_cost_what_table_7_says() -> None:
    assert round(paper_backbone("vgg16").full_bops_g, 1) == 27787.7
    assert round(paper_backbone("resnet18").full_bops_g, 1) == 22534.8
    full = {
        name: replace(policy_of(name), bits=dict.fromkeys(policy_of(name).bits, LayerBits(32, 32)))
        for name in ("vgg16", "resnet18")
    }
    assert round(backbone_costs(full["vgg16"], "vgg16")["backbone_bops_g"], 1) == 27787.7
    assert round(backbone_costs(full["resnet18"], "resnet18")["backbone_bops_paper_g"], 1) == 22534.8


def test_the_papers_backbone_at_4_bits_is_64_times_cheaper_and_the_exact_one_has_its_stem_at_8() -> None:
    full = paper_backbone("resnet18")
    costs = backbone_costs(policy_of("resnet18"), "resnet18")
    assert costs["backbone_bops_paper_g"] == pytest.approx(full.full_bops_g / 64)
    stem = full.work["conv1"].macs
    # 64 channels of 300×500 pixels, each of 3·7·7 products and a bias.
    assert stem == 64 * 300 * 500 * 148
    assert costs["backbone_bops_g"] == pytest.approx(((full.macs - stem) * 16 + stem * 64) / 1e9)


@pytest.mark.parametrize(("built", "count"), [("faster", 20), ("ssd", 13)])
def test_layers_are_the_classifiers_own_under_other_names(
    built: str, count: int, request: pytest.FixtureRequest
) -> None:
    detector = request.getfixturevalue(built)
    layers: dict[str, nn.Module] = request.getfixturevalue(f"{built}_layers")
    assert len(detector.places) == count
    assert all(detector.net.get_submodule(place) is layers[name] for name, place in detector.places.items())


def test_bits_are_carried_over_and_all_other_layers_have_the_heads(ssd: Detector) -> None:
    policy = policy_of("vgg16")
    varied = replace(policy, bits={**policy.bits, "features.24": LayerBits(3, 2)})
    carried = carried_over(varied, ssd, name="ssd300_vgg16", head_bits=6)
    assert carried.bits["backbone.features.0"] == LayerBits(8, 8)
    assert carried.bits["backbone.extra.0.1"] == LayerBits(3, 2)
    assert carried.bits["head.classification_head.module_list.5"] == LayerBits(6, 6)
    assert set(carried.searched) == set(ssd.places.values()) - {"backbone.features.0"}
    assert set(carried.bits) == set(layers_of(ssd.net))


def test_a_policy_that_does_not_fit_is_refused_with_both_sides_named(faster: Detector) -> None:
    policy = policy_of("resnet18")
    bits = {name: value for name, value in policy.bits.items() if name != "layer2.0.conv1"}
    with pytest.raises(
        ConfigError, match=r"without a place in it: layer9\.conv1; its layers without bits: layer2\.0\.conv1"
    ):
        carried_over(
            replace(policy, bits={**bits, "layer9.conv1": LayerBits(4, 4)}),
            faster,
            name="fasterrcnn_resnet18",
            head_bits=8,
        )


def test_an_unknown_detector_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown detector 'ssd300'; did you mean 'ssd300_vgg16'"):
        build_detector(replace(SSD, name="ssd300"), num_classes=2)


@pytest.mark.parametrize("head_bits", [8, 32])
def test_the_deployed_detector_costs_what_its_policy_says(faster: Detector, head_bits: int) -> None:
    probe = torch.rand(3, *image_shape(SMALL))
    costs = count_detector(faster.net, probe)
    policy = carried_over(policy_of("resnet18"), faster, name=SMALL.name, head_bits=head_bits)
    deployed = deploy(faster.net, costs, policy, "pact")
    if head_bits == 32:
        assert set(quant_layers(deployed)) == set(faster.places.values())
    with _all_proposals(deployed):
        recounted = recount(deployed, probe[None], searched=policy.searched)
    assert costs.costs(recounted) == costs.of(policy)


def test_the_head_of_faster_r_cnn_is_counted_for_1000_proposals(faster: Detector) -> None:
    costs = count_detector(faster.net, torch.rand(3, *image_shape(SMALL)))
    head = costs.work["roi_heads.box_head.fc6"]
    assert head.macs == 1000 * 256 * 7 * 7 * 1024
    # 64×96 pixels make maps of 16×24, 8×12, 4×6, 2×3 and 1×2.
    assert costs.work["rpn.head.cls_logits"].macs == (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2) * 256 * 3
    assert faster.net.rpn.nms_thresh == 0.7


def test_ssd_has_a_map_of_38_pixels_as_its_third_pooling_rounds_up(ssd: Detector) -> None:
    costs = count_detector(ssd.net, torch.rand(3, 300, 300))
    assert costs.work["backbone.features.17"].macs == 38 * 38 * 512 * 256 * 9
    assert set(costs.layers) == set(layers_of(ssd.net))


def test_a_layer_of_several_levels_is_calibrated_on_all_of_them(faster: Detector) -> None:
    costs = count_detector(faster.net, torch.rand(3, *image_shape(SMALL)))
    policy = carried_over(policy_of("resnet18"), faster, name=SMALL.name, head_bits=8)
    net = deploy(faster.net, costs, policy, "pact")
    calibrate_detector(net, [torch.rand(3, 64, 96)])
    layer = quant_layers(net)["rpn.head.conv.0.0"]
    read: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, args: read.append(args[0].flatten()))
    net.eval()([torch.rand(3, 64, 96)])
    clip = float(layer.mixture.activations.clip.detach())
    assert len(read) == 5
    top = float(torch.cat(read).detach().abs().amax())
    assert 0.3 * top < clip < 1.5 * top
    assert clip > float(read[-1].detach().abs().amax())


def test_a_layer_of_several_levels_keeps_the_size_of_its_output_with_daq(faster: Detector) -> None:
    costs = count_detector(faster.net, torch.rand(3, *image_shape(SMALL)))
    policy = carried_over(policy_of("resnet18"), faster, name=SMALL.name, head_bits=8)
    net = deploy(faster.net, costs, policy, "daq")
    calibrate_detector(net, [torch.rand(3, 64, 96)])
    layer = quant_layers(net)["rpn.head.conv.0.0"]
    ratios: list[float] = []

    def look(_: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        exact = layer._conv_forward(args[0], layer.weight, None)  # type: ignore[operator]
        ratios.append(float((out - layer.bias.view(1, -1, 1, 1)).abs().mean() / exact.abs().mean()))  # type: ignore[union-attr]

    layer.register_forward_hook(look)
    with torch.no_grad():
        net.eval()([torch.rand(3, 64, 96)])
    assert len(ratios) == 5
    assert all(0.5 < ratio < 2 for ratio in ratios)


def test_heads_give_float32_where_autocasting_computes_in_less(faster: Detector) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        logits, deltas = faster.net.rpn.head([torch.rand(1, 256, 4, 4)])
        scores, boxes = faster.net.roi_heads.box_predictor(torch.rand(2, 1024))
        inner = faster.net.rpn.head.conv(torch.rand(1, 256, 4, 4))
    assert inner.dtype == torch.bfloat16
    assert {x.dtype for x in (*logits, *deltas, scores, boxes)} == {torch.float32}
