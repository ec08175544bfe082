"""What a network offers, and LIMPQ's count of MACs, by hand and by the policy that its authors publish."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from tests.science.resnets import resnet
from trainables import api
from trainables.config import NetworkConfig
from trainables.counting import measure
from trainables.errors import ConfigError
from trainables.method_config import WidthsConfig
from trainables.offer import Offer, unrounded

WIDTHS = (2, 3, 4, 5, 6)
PUBLISHED_WEIGHTS = (
    "6 3 4 5 4 4 5 4 4 5 4 3 4 3 3 3 4 4 3 4 4 3 4 3 2 3 2 3 2 3 3 2 2 3 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2"
)
PUBLISHED_ACTS = (
    "6 4 6 6 6 3 4 6 3 4 5 3 5 5 6 3 4 5 3 4 5 3 4 4 4 6 5 5 4 5 5 4 6 5 3 5 6 3 5 6 3 6 4 4 6 2 6 4 6 6 4 6"
)
"""Of the searched layers of ResNet50: weights and activations of 3 and 4 bits' BOPs, weights 12.2 times smaller."""


@pytest.fixture(scope="module")
def resnet50() -> Offer:
    widths = WidthsConfig(weight_bits=WIDTHS, act_bits=WIDTHS)
    return api.offer(NetworkConfig(name="resnet50", stem_bits=8), widths, image_size=224, num_classes=1000)


def test_every_layer_but_stem_and_head_is_offered_all_widths(resnet50: Offer) -> None:
    choices = resnet50.choices
    assert len(choices.weights) == 52
    assert choices.pinned == {"conv1": 8, "fc": 8}
    assert choices.group_of["layer1.0.downsample.0"] == "layer1.0.conv1"
    assert {scores.widths for scores in [*choices.weights.values(), *choices.acts.values()]} == {WIDTHS}
    tables = resnet("resnet50").work
    assert {name: (work.macs, work.weights, work.inputs) for name, work in resnet50.work.work.items()} == {
        name: (work.macs, work.weights, work.inputs) for name, work in tables.items()
    }


def test_limpqs_macs_of_resnet50_are_those_computed_by_hand(resnet50: Offer) -> None:
    """Stride 2 on 56 pixels: (56 + 2 − 3)/2 + 1 = 28.5, and 28.5² = 812.25; 14.5² = 210.25, 7.5² = 56.25."""
    by_hand = {"conv1": 12_656 * 3 * 64 * 49}
    for stage, pixels in ((2, 812), (3, 210), (4, 56)):
        width = 64 * 2 ** (stage - 1)
        by_hand[f"layer{stage}.0.conv2"] = pixels * width * width * 9
        by_hand[f"layer{stage}.0.downsample.0"] = pixels * (2 * width) * (4 * width)
    for name, exact in resnet50.work.work.items():
        found = resnet50.limpq_work.work[name]
        assert found.macs == by_hand.get(name, exact.macs), name
        assert (found.weights, found.inputs) == (exact.weights, exact.inputs)
    assert resnet50.limpq_work.macs == 4_144_829_440


def test_the_authors_policy_keeps_its_limits_in_their_count_and_not_in_the_exact_one(resnet50: Offer) -> None:
    bits = dict(zip(resnet50.choices.weights, zip(*pairs(), strict=True), strict=True))

    def share(work: dict[str, int]) -> Fraction:
        return Fraction(
            sum(work[name] * weight * act for name, (weight, act) in bits.items()),
            sum(work[name] * 3 * 4 for name in bits),
        )

    limpq, exact = ({name: layer.macs for name, layer in w.work.items()} for w in (resnet50.limpq_work, resnet50.work))
    assert 0.9999 < share(limpq) <= 1
    assert share(exact) > 1
    layers = resnet50.work.layers
    size = sum(layers[name].weights * weight for name, (weight, _) in bits.items())
    size += 8 * (layers["conv1"].weights + layers["fc"].weights)
    assert 12.2 < 32 * resnet50.work.weights / size < 12.21


def pairs() -> tuple[list[int], list[int]]:
    weights, acts = ([int(bits) for bits in text.split()] for text in (PUBLISHED_WEIGHTS, PUBLISHED_ACTS))
    return weights, acts


def test_groups_dilation_padding_and_several_runs_are_counted() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv2d(4, 8, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(2, 1), groups=2)
            self.same = nn.Conv2d(8, 8, 3, padding="same")
            self.valid = nn.Conv2d(8, 4, 3, padding="valid")
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.same(self.same(self.grouped(x)))
            return self.head(self.valid(x).mean(dim=(2, 3)))

    net, probe = Net(), torch.rand(1, 4, 12, 12)
    work = unrounded(net, probe, measure(net, probe)).work
    # Heights (12 + 2 − 4 − 1)/2 + 1 = 5.5, widths (12 + 4 − 4 − 1)/3 + 1 = 14/3; their product is 25.67.
    assert work["grouped"].macs == 25 * 8 * 2 * 15
    assert work["same"].macs == 2 * 5 * 4 * 8 * 8 * 9
    assert work["valid"].macs == 3 * 2 * 4 * 8 * 9
    assert work["head"].macs == 8


def test_a_network_that_does_not_run_on_the_images_is_one_message() -> None:
    widths = WidthsConfig(weight_bits=(2,), act_bits=(2,))
    with pytest.raises(ConfigError, match="vgg16 does not run on 8×8 pixels"):
        api.offer(NetworkConfig(name="vgg16"), widths, image_size=8, num_classes=10)
