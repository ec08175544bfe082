"""Maps against Grad-CAM by automatic differentiation of the whole network; ranks and ARD against their definitions."""

import itertools
import math

import pytest
import torch
import torchvision
from scipy.stats import rankdata
from torch import Tensor, nn

from trainables.attribution import (
    Attribution,
    among_top_pixels,
    entropy,
    normalise,
    random_rank_difference,
    rank_difference,
    ranks,
    top_pixels,
    upsample,
)
from trainables.config import NetworkConfig
from trainables.counting import measure
from trainables.errors import CoverageError
from trainables.method_config import GmpqConfig
from trainables.policy import BitPolicy, LayerBits
from trainables.quantizers.layers import calibrate
from trainables.supernet import assign_roles, build_supernet, deploy


def features() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()]


def pooled_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def flat_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 10),
        nn.Tanh(),
        nn.Linear(10, 4),
    )


def grad_cam(net: nn.Sequential, images: Tensor, labels: Tensor, depth: int) -> Tensor:
    """Eqs 2-3 as they stand, differentiating through `depth` modules of features."""
    features = net[:depth](images).detach().requires_grad_()
    logits = net[depth:](features)
    (grad,) = torch.autograd.grad(logits[torch.arange(len(labels)), labels].sum(), features)
    return normalise((grad.mean((2, 3), keepdim=True) * features).sum(1).relu().detach())


@pytest.mark.parametrize(("make", "closed"), [(pooled_net, True), (flat_net, False)])
def test_maps_equal_grad_cam_by_autograd(make, closed: bool) -> None:
    net = make()
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 1])
    attribution = Attribution(net, images)
    maps = attribution.maps(net(images), labels)
    assert attribution.closed_form is closed
    assert attribution.feature_layer == "3"
    torch.testing.assert_close(maps, grad_cam(net, images, labels, 4), atol=1e-6, rtol=0)
    assert float(maps.detach().sum(dim=(1, 2)).max()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_networks_have_the_closed_form(name: str) -> None:
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=10).eval()
    images, labels = torch.randn(3, 3, 64, 64), torch.tensor([1, 2, 3])
    attribution = Attribution(net, images)
    assert attribution.closed_form
    logits = net(images)
    features = attribution._out
    (grad,) = torch.autograd.grad(logits[torch.arange(3), labels].sum(), features, retain_graph=True)
    expected = normalise((grad.mean((2, 3), keepdim=True) * features).sum(1).relu())
    torch.testing.assert_close(attribution.maps(logits, labels), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [pooled_net, flat_net])
def test_the_gradient_of_a_map_reaches_every_weight_and_is_right(make) -> None:
    net = make().double()
    images, labels = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1])
    attribution = Attribution(net, images)
    weight = net[0].weight
    target = torch.rand(2, 4, 4, dtype=torch.float64)

    def loss() -> Tensor:
        return (attribution.maps(net(images), labels) * target).sum()

    (grad,) = torch.autograd.grad(loss(), weight)
    for index in [(0, 0, 0, 0), (3, 1, 2, 1), (7, 2, 1, 1)]:
        step = 1e-6
        with torch.no_grad():
            weight[index] += step
        above = loss().item()
        with torch.no_grad():
            weight[index] -= 2 * step
        below = loss().item()
        with torch.no_grad():
            weight[index] += step
        assert float(grad[index]) == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("make", [pooled_net, flat_net])
def test_observing_a_frozen_network_gives_the_same_maps_as_constants(make) -> None:
    net = make()
    images, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2])
    expected = grad_cam(net, images, labels, 4)
    net.requires_grad_(False)
    attribution = Attribution(net, images)
    logits, maps, _ = attribution.observe(net, images, labels)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(logits, net(images))
    assert not maps.requires_grad


def test_a_network_that_pools_to_one_pixel_at_once_cannot_be_attributed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(CoverageError, match=r"images of 4×4 pixels the last convolution, 0, leaves a map of one pixel"):
        Attribution(net, torch.randn(1, 3, 4, 4))
    with pytest.raises(CoverageError, match="no convolution"):
        Attribution(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.randn(1, 3, 4, 4))


def test_ranks_equal_scipys_average_ranks_of_the_largest_first() -> None:
    torch.manual_seed(0)
    values = torch.randint(0, 6, (50, 17)).double()
    expected = torch.tensor(rankdata(-values.numpy(), axis=1))
    assert torch.equal(ranks(values), expected)


def test_top_pixels_break_ties_by_position() -> None:
    assert top_pixels(torch.tensor([[0.0, 2.0, 0.0, 2.0, 0.0]]), 3).tolist() == [[1, 3, 0]]


def maps_with(order: Tensor) -> Tensor:
    return order.reshape(1, 1, -1).double()


def test_ard_of_equal_maps_and_of_any_power_is_zero() -> None:
    torch.manual_seed(0)
    maps = torch.rand(10, 6, 6, dtype=torch.float64)
    maps[:, :2] = 0.0
    for power in (0.3, 1.0, 3.0):
        assert rank_difference(maps**power, maps, top_k=30).tolist() == [0.0] * 10


@pytest.mark.parametrize("pixels", [4, 10, 36])
def test_ard_of_the_reversed_order_is_half_the_pixels(pixels: int) -> None:
    order = torch.arange(pixels) + 1
    assert float(rank_difference(maps_with(order.flip(0)), maps_with(order), top_k=pixels)) == pixels / 2


def test_ard_of_a_random_permutation_is_the_closed_form_on_average() -> None:
    reference = maps_with(torch.arange(6))
    found = [
        float(rank_difference(maps_with(torch.tensor(order)), reference, top_k=6))
        for order in itertools.permutations(range(6))
    ]
    assert sum(found) / len(found) == pytest.approx(random_rank_difference(6)) == (36 - 1) / 18


def test_ard_compares_only_the_pixels_that_the_reference_ranks_highest() -> None:
    reference = torch.tensor([[[9.0, 8.0, 7.0, 1.0, 2.0]]])
    quantized = torch.tensor([[[5.0, 3.0, 4.0, 99.0, 50.0]]])
    assert float(rank_difference(quantized, reference, top_k=3)) == pytest.approx(2 / 3)


def test_entropy_is_that_of_a_distribution() -> None:
    uniform, certain = torch.full((1, 4, 5), 1 / 20), torch.zeros(1, 4, 5)
    certain[0, 2, 3] = 1.0
    assert float(entropy(uniform)) == pytest.approx(math.log(20))
    assert float(entropy(certain)) == 0.0


def test_upsampling_is_bilinear_and_keeps_the_sum() -> None:
    flat = torch.full((1, 2, 2), 0.25)
    torch.testing.assert_close(upsample(flat, 8), torch.full((1, 8, 8), 1 / 64))
    slope = upsample(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), 4) * 4
    torch.testing.assert_close(slope[0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_a_supernet_whose_head_is_quantised_learns_from_its_attribution() -> None:
    """VGG-like: the head is differentiated through searched linear layers, twice."""
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    net = nn.Sequential(*features(), *head)
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    costs = measure(net, images)
    config = GmpqConfig(zeta=0.1, eta=1.0)
    supernet = build_supernet(net, costs, assign_roles(costs, NetworkConfig(name="net")), config)
    assert list(supernet.searched) == ["2", "5", "7"]
    attribution = Attribution(supernet.net, images)
    assert not attribution.closed_form
    maps = attribution.maps(supernet.net(images), labels)
    (maps * torch.rand_like(maps)).sum().backward()
    for name in ("2", "5", "7"):
        layer = supernet.searched[name]
        assert float(layer.weight.grad.abs().sum()) > 0
        assert float(layer.mixture.weight_logits.grad.abs().sum()) > 0


def test_a_deployed_network_is_attributed_through_its_quantised_head() -> None:
    net = pooled_net()
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    costs = measure(net, images)
    for quantizer in ("pact", "hwgq"):
        bits = dict.fromkeys(costs.layers, LayerBits(8, 8))
        deployed = deploy(net, costs, BitPolicy(network="net", bits=bits), quantizer)
        calibrate(deployed, images)
        deployed.requires_grad_(False)
        attribution = Attribution(deployed, images)
        maps = attribution.observe(deployed, images, labels).maps
        assert not attribution.closed_form
        if quantizer == "pact":
            # Eight bits are nearly float.
            torch.testing.assert_close(maps, grad_cam(net, images, labels, 4), atol=0.02, rtol=0)


@pytest.mark.parametrize(("pixels", "top_k"), [(16, 6), (16, 16), (16, 40), (300, 299), (300, 1)])
def test_a_pixel_is_among_the_top_where_a_stable_sort_puts_it_there(pixels: int, top_k: int) -> None:
    random = torch.Generator().manual_seed(0)
    # Few values, so that many pixels are equal at the last place, and maps that are all zero.
    maps = torch.relu(torch.randint(-3, 4, (50, pixels), generator=random).float())
    maps[:3] = 0.0
    among = torch.zeros(50, pixels, dtype=torch.bool).scatter(1, top_pixels(maps, top_k), value=True)
    assert torch.equal(among_top_pixels(maps, top_k), among)
    assert among.sum(1).unique().tolist() == [min(top_k, pixels)]
