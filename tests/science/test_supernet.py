import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.bops import CostModel
from trainables.config import NetworkConfig
from trainables.counting import measure
from trainables.errors import ConfigError, CoverageError, DivergedError
from trainables.method_config import GmpqConfig
from trainables.models import build_network
from trainables.policy import BitPolicy, LayerBits
from trainables.quantizers.layers import QuantConv2d, QuantLinear, calibrate, quant_layers
from trainables.supernet import Supernet, assign_roles, build_supernet, deploy

CONFIG = GmpqConfig(zeta=0.1, eta=1.0)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 6),
        nn.Linear(6, 4),
    )


def made(net: nn.Module, images: Tensor, **settings: object) -> tuple[Supernet, CostModel]:
    costs = measure(net, images)
    config = GmpqConfig(zeta=0.1, eta=1.0, **settings)
    return build_supernet(net, costs, assign_roles(costs, NetworkConfig(name="net")), config), costs


def quantised(values: Tensor, step: float, low: int, high: int) -> Tensor:
    return torch.clamp(torch.round(values / step), low, high) * step


def test_the_output_is_one_convolution_of_the_mixed_weight_and_the_mixed_activation() -> None:
    net, images = small_net(), torch.randn(5, 3, 8, 8)
    supernet, _ = made(net, images)
    layer = supernet.searched["2"]
    with torch.no_grad():
        layer.mixture.weight_logits.copy_(torch.tensor([0.3, -0.2, 0.9]))
        layer.mixture.act_logits.copy_(torch.tensor([-0.5, 0.4, 0.1]))
    x, (weight, bias) = torch.rand(5, 8, 6, 6) * 8, (net[2].weight, net[2].bias)
    top = float(weight.detach().abs().max())
    pi_w, pi_a = layer.mixture.weight_probs(), layer.mixture.act_probs()
    mixed_weight = sum(
        p * quantised(weight, top / (2 ** (b - 1) - 1), -(2 ** (b - 1) - 1), 2 ** (b - 1) - 1)
        for p, b in zip(pi_w, (2, 3, 4), strict=True)
    )
    mixed_x = sum(p * quantised(x, 6 / (2**b - 1), 0, 2**b - 1) for p, b in zip(pi_a, (2, 3, 4), strict=True))
    torch.testing.assert_close(layer(x), F.conv2d(mixed_x, mixed_weight, bias, groups=4), atol=1e-4, rtol=1e-4)


def test_stem_and_head_stay_float_during_search_and_are_quantised_on_deployment() -> None:
    net, images = small_net(), torch.randn(5, 3, 8, 8)
    supernet, costs = made(net, images)
    assert type(supernet.net[0]) is nn.Conv2d
    assert type(supernet.net[6]) is nn.Linear
    assert list(supernet.searched) == ["2", "5"]
    policy = supernet.choices("net").best
    assert list(policy.bits) == ["0", "2", "5", "6"]
    assert policy.pinned == {"0", "6"}
    assert policy.bits["0"] == policy.bits["6"] == LayerBits(8, 8)
    deployed = deploy(net, costs, policy, "pact")
    assert [type(deployed[i]) for i in (0, 2, 5, 6)] == [QuantConv2d, QuantConv2d, QuantLinear, QuantLinear]
    assert deployed[0].mixture.activations.signed
    assert not deployed[2].mixture.activations.signed


def test_the_float_network_is_left_as_it_was() -> None:
    net, images = small_net(), torch.randn(5, 3, 8, 8)
    before = copy.deepcopy(net.state_dict())
    supernet, costs = made(net, images)
    deploy(net, costs, supernet.choices("net").best, "hwgq")
    assert [type(m) for m in net] == [type(m) for m in small_net()]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    # Same names, so that a float checkpoint fits.
    assert set(before) <= set(supernet.net.state_dict())


def test_the_deployed_layer_has_the_number_of_levels_that_the_policy_says() -> None:
    net, images = small_net(), torch.randn(64, 3, 8, 8)
    supernet, costs = made(net, images)
    with torch.no_grad():
        supernet.searched["2"].mixture.weight_logits[1] = 5.0
        supernet.searched["2"].mixture.act_logits[2] = 5.0
    policy = supernet.choices("net").best
    assert policy.searched["2"] == LayerBits(weight=3, act=4)
    deployed = deploy(net, costs, policy, "pact")
    calibrate(deployed, images)
    x, weight = deployed[2].mixture(torch.rand(64, 8, 6, 6) * 9, deployed[2].weight)
    assert len(weight.unique()) == 7
    assert len(x.unique()) == 16


def test_equal_probabilities_give_the_smaller_width() -> None:
    supernet, _ = made(small_net(), torch.randn(5, 3, 8, 8), weight_bits=(4, 2, 3))
    assert {bits.weight for bits in supernet.choices("net").best.searched.values()} == {2}


def test_expected_bits_are_the_mean_width() -> None:
    supernet, costs = made(small_net(), torch.randn(5, 3, 8, 8))
    for bits in supernet.expected_bits():
        torch.testing.assert_close(bits, torch.tensor([3.0, 3.0]))
    start = sum(9 * costs.work[name].macs for name in supernet.searched)
    assert float(supernet.start) == start
    supernet.searched["5"].mixture.act_logits.data[0] = 20.0
    torch.testing.assert_close(supernet.expected_bits()[1], torch.tensor([3.0, 2.0]))


def test_pinned_patterns_leave_the_search_and_unmatched_ones_are_errors() -> None:
    net = build_network("resnet8", num_classes=10, image_size=32)
    costs = measure(net, torch.randn(2, 3, 16, 16))
    roles = assign_roles(costs, NetworkConfig(name="resnet8", pinned={"*.downsample.*": 4, "conv1": 6}))
    assert roles.pinned == {"conv1": 6, "fc": 8, "layer2.0.downsample.0": 4, "layer3.0.downsample.0": 4}
    assert roles.float_in_search == {"fc"}
    supernet = build_supernet(net, costs, roles, CONFIG)
    assert quant_layers(supernet.net)["conv1"].mixture.weight_bits == (6,)
    assert "layer2.0.downsample.0" not in supernet.searched
    with pytest.raises(ConfigError, match=r"'layer9\.\*' matches no layer; layers are: conv1, layer1\.0\.conv1"):
        assign_roles(costs, NetworkConfig(name="resnet8", pinned={"layer9.*": 4}))
    with pytest.raises(ConfigError, match="leaves no layer to search"):
        assign_roles(costs, NetworkConfig(name="resnet8", pinned={"*": 4}))


def test_resnet18_has_19_searched_layers_and_resnet50_52() -> None:
    for name, count in (("resnet18", 19), ("resnet50", 52)):
        costs = measure(build_network(name, num_classes=10, image_size=32), torch.randn(1, 3, 32, 32))
        assert len(assign_roles(costs, NetworkConfig(name=name)).searched) == count


def test_signed_inputs_of_mobilenets_bottlenecks_are_found() -> None:
    net = build_network("mobilenet_v2", num_classes=10, image_size=32)
    costs = measure(net, torch.randn(2, 3, 32, 32))
    # The expansion of a block reads the linear bottleneck before it, the depthwise convolution a ReLU6.
    assert costs.work["features.3.conv.0.0"].reads_negative
    assert not costs.work["features.3.conv.1.0"].reads_negative


def test_a_layer_with_a_forward_pass_of_its_own_is_refused() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight / self.weight.std(), self.bias)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Standardised(4, 4, 1), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(CoverageError, match=r"1 is a Standardised"):
        made(net, torch.randn(1, 3, 2, 2))


@pytest.mark.parametrize("quantizer", ["pact", "hwgq"])
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "resnet18"])
def test_every_weight_and_logit_of_a_supernet_gets_a_gradient(name: str, quantizer: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    net = build_network(name, num_classes=10, image_size=32)
    supernet, _ = made(net, images, quantizer=quantizer, weight_bits=(2, 4, 8))
    supernet.net(images).square().mean().backward()
    missing = [n for n, p in supernet.net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []
    assert all(float(p.grad.abs().sum()) > 0 for p in supernet.bit_logits())


class Residual(nn.Module):
    """Two stages: in each, two layers that read one activation, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b, self.c = (nn.Conv2d(i, 4, 1) for i in (3, 4, 4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem(images))
        x = F.relu(self.a(x) + self.b(x))
        return self.head((x + self.c(x)).mean((2, 3)))


def test_layers_that_share_an_activation_have_one_quantiser_and_one_vector_of_logits() -> None:
    images = torch.randn(4, 3, 6, 6)
    supernet, costs = made(Residual(), images)
    a, b, c = (supernet.searched[name].mixture for name in "abc")
    assert a.act_logits is b.act_logits
    assert a.activations is b.activations
    assert a.weight_logits is not b.weight_logits
    assert c.act_logits is not a.act_logits
    assert len(supernet.bit_logits()) == 5
    with torch.no_grad():
        b.act_logits.copy_(torch.tensor([0.0, 0.0, 1.0]))
        a.weight_logits.copy_(torch.tensor([0.0, 1.0, 0.0]))
    policy = supernet.choices("net").best
    assert [policy.bits[name] for name in "abc"] == [LayerBits(3, 4), LayerBits(2, 4), LayerBits(2, 2)]
    largest = [1 / 3, 1 / 3, math.e / (2 + math.e)]
    assert supernet.certainty() == pytest.approx((sum(largest) + largest[2] + 1 / 3) / 5)
    deployed = deploy(Residual(), costs, policy, "pact")
    assert deployed.a.mixture.activations is deployed.b.mixture.activations
    # Other bits for a and b, from a policy that knows nothing of groups, need a quantiser each.
    apart = BitPolicy(network="net", bits={**policy.bits, "b": LayerBits(2, 2)}, pinned=policy.pinned)
    assert [deploy(Residual(), costs, apart, "pact").get_submodule(n).mixture.act_bits for n in "ab"] == [(4,), (2,)]


def test_both_layers_of_a_group_move_its_logits_and_its_clip() -> None:
    images = torch.randn(4, 3, 6, 6)
    supernet, _ = made(Residual(), images)
    supernet.net(images).sum().backward()
    together = supernet.searched["a"].mixture.act_logits.grad.clone()
    parts = []
    for alone in ("a", "b"):
        supernet.net.zero_grad()
        x = F.relu(supernet.net.stem(images)).detach()
        outs = {name: supernet.searched[name](x) for name in ("a", "b")}
        mixed = F.relu(sum(out if name == alone else out.detach() for name, out in outs.items()))
        supernet.net.head((mixed + supernet.net.c(mixed)).mean((2, 3))).sum().backward()
        parts.append(supernet.searched["a"].mixture.act_logits.grad.clone())
    torch.testing.assert_close(parts[0] + parts[1], together)
    assert all(float(part.abs().sum()) > 0 for part in parts)


def test_a_pinned_layer_fixes_the_activation_of_its_group_alone() -> None:
    images = torch.randn(4, 3, 6, 6)
    net = Residual()
    costs = measure(net, images)
    roles = assign_roles(costs, NetworkConfig(name="net", pinned={"b": 6}))
    assert roles.fixed_acts == {"stem": 8, "a": 6, "head": 8}
    supernet = build_supernet(net, costs, roles, CONFIG)
    mixture = supernet.searched["a"].mixture
    assert (mixture.act_bits, mixture.weight_bits) == ((6,), (2, 3, 4))
    assert mixture.activations is quant_layers(supernet.net)["b"].mixture.activations
    assert supernet.choices("net").best.bits["a"] == LayerBits(weight=2, act=6)
    torch.testing.assert_close(supernet.expected_bits()[1], torch.tensor([6.0, 3.0]))
    tied = assign_roles(costs, NetworkConfig(name="net", pinned={"c": 5}, tie_residuals=True))
    assert (tied.group_of["c"], tied.fixed_acts["c"]) == ("c", 5)


def test_tied_residuals_share_bits_through_sums() -> None:
    costs = measure(build_network("resnet8", num_classes=10, image_size=16), torch.randn(2, 3, 16, 16))
    free = assign_roles(costs, NetworkConfig(name="resnet8"))
    tied = assign_roles(costs, NetworkConfig(name="resnet8", tie_residuals=True))
    assert free.groups["layer2.0.conv1"] == ["layer2.0.conv1", "layer2.0.downsample.0"]
    assert tied.groups["layer1.0.conv1"] == ["layer1.0.conv1", "layer2.0.conv1", "layer2.0.downsample.0"]


def test_pinned_layers_that_share_an_activation_must_agree() -> None:
    costs = measure(Residual(), torch.randn(4, 3, 6, 6))
    message = r"network\.pinned: a has 4 bits and b has 6, but they share an activation.*give both the same bits"
    with pytest.raises(ConfigError, match=message):
        assign_roles(costs, NetworkConfig(name="net", pinned={"a": 4, "b": 6}))
    assert assign_roles(costs, NetworkConfig(name="net", pinned={"a": 4, "b": 4})).fixed_acts["a"] == 4


def test_tied_sums_share_logits_but_each_activation_has_a_clip_of_its_own() -> None:
    net = build_network("mobilenet_v2", num_classes=10, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    costs = measure(net, images)
    roles = assign_roles(costs, NetworkConfig(name="mobilenet_v2", tie_residuals=True))
    supernet = build_supernet(net, costs, roles, GmpqConfig(zeta=0.1, eta=1.0))
    calibrate(supernet.net, images)
    group = next(members for members in roles.groups.values() if len(members) > 2)
    mixtures = [supernet.searched[name].mixture for name in group]
    assert len({id(mixture.act_logits) for mixture in mixtures}) == 1
    assert len({float(mixture.activations.clip.detach()) for mixture in mixtures}) > 1


def test_bit_logits_that_are_no_numbers_are_a_diverged_search() -> None:
    net = build_network("resnet8", num_classes=10, image_size=16).eval()
    costs = measure(net, torch.randn(2, 3, 16, 16))
    supernet = build_supernet(
        net, costs, assign_roles(costs, NetworkConfig(name="resnet8")), GmpqConfig(zeta=0.1, eta=1.0)
    )
    supernet.bit_logits()[3].data.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"bit logits are no longer finite; try a smaller method\.bit_lr"):
        supernet.choices("resnet8")


@pytest.mark.parametrize("pinned", [{}, {"b": 6}, {"a": 4, "b": 4}])
def test_probabilities_of_all_layers_at_once_are_those_of_each_with_their_gradients(pinned: dict[str, int]) -> None:
    torch.manual_seed(0)
    images, net = torch.randn(4, 3, 6, 6), Residual()
    costs = measure(net, images)
    supernet = build_supernet(net, costs, assign_roles(costs, NetworkConfig(name="net", pinned=pinned)), CONFIG)
    for logits in supernet.bit_logits():
        logits.data.normal_()
    found = []
    for at_once in (False, True):
        supernet.net.zero_grad()
        with supernet.probabilities_at_once() if at_once else nullcontext():
            bits = supernet.expected_bits()
            out = supernet.net(images)
        (out.square().sum() + (bits[0] * bits[1] * supernet.macs).sum()).backward()
        found.append([out, *bits, *(p.grad for p in supernet.net.parameters() if p.grad is not None)])
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-7)
    mixtures = [layer.mixture for layer in supernet.searched.values()]
    by_hand = [
        sum(p * b for p, b in zip(probs.tolist(), widths, strict=True))
        for m in mixtures
        for probs, widths in ((m.weight_probs(), m.weight_bits), (m.act_probs(), m.act_bits))
    ]
    assert torch.stack(supernet.expected_bits(), 1).flatten().tolist() == pytest.approx(by_hand)
    # Whatever happens within: afterwards the logits speak again.
    assert all(m.weight_share is None and m.act_share is None for m in mixtures)
