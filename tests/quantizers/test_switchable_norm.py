"""One module with n sets against n plain modules, and which of a network's batch normalisations have sets."""

import copy

import pytest
import torch
from torch import nn

from trainables.models import build_network
from trainables.quantizers.switchable_norm import SwitchableBatchNorm, switch_norms


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(5),
        nn.BatchNorm2d(5, momentum=None, eps=1e-3),
        nn.BatchNorm2d(5, affine=False),
        nn.BatchNorm2d(5, track_running_stats=False),
    ],
    ids=["plain", "mean over all batches", "neither scale nor shift", "no statistics"],
)
def test_each_set_is_a_batch_normalisation_of_its_own(norm: nn.BatchNorm2d) -> None:
    torch.manual_seed(0)
    if norm.affine:
        norm.weight.data.uniform_(0.5, 2)
    switchable = SwitchableBatchNorm(norm, 3)
    plain = [copy.deepcopy(norm) for _ in range(3)]
    for place in (2, 0, 2, 2):
        x, upstream = torch.randn(4, 5, 3, 3) * (place + 1), torch.randn(4, 5, 3, 3)
        inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
        switchable.choose(place)
        ours, theirs = switchable(inputs[0]), plain[place](inputs[1])
        assert torch.equal(ours, theirs)
        ours.backward(upstream)
        theirs.backward(upstream)
        assert torch.equal(inputs[0].grad, inputs[1].grad)
    for name, parameter in switchable.named_parameters():
        assert parameter.grad is not None
        rows = [getattr(one, name).grad for one in plain]
        # The second set had no pass.
        assert rows[1] is None
        assert bool((parameter.grad[1] == 0).all())
        assert all(torch.equal(parameter.grad[k], rows[k]) for k in (0, 2))
    switchable.eval()
    for place, one in enumerate(plain):
        switchable.choose(place)
        assert torch.equal(switchable(x), one.eval()(x))


def test_what_runs_before_all_layers_is_left_and_others_belong_to_the_layer_before_them() -> None:
    net = build_network("resnet8", num_classes=10, image_size=16).train()
    images = torch.randn(2, 3, 16, 16)
    before = copy.deepcopy(net).eval()(images)
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d) and name != "conv1"]
    found = switch_norms(net, images, layers, count=2)
    names = {module: name for name, module in net.named_modules()}
    assert {layer: [names[norm] for norm in norms] for layer, norms in found.items()} == {
        layer: [layer.replace("conv", "bn").replace("downsample.0", "downsample.1")] for layer in layers
    }
    assert type(net.bn1) is nn.BatchNorm2d
    assert net.training
    assert all(norm.training for norms in found.values() for norm in norms)
    assert torch.equal(net.eval()(images), before)


def test_a_normalisation_with_two_names_stays_one() -> None:
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 4, 1), norm)
    found = switch_norms(net, torch.randn(2, 3, 4, 4), ["0", "2"], count=2)
    assert net[1] is net[3]
    assert found == {"0": [net[1]]}
