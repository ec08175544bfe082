"""Networks: their sizes in closed form, their layers' names, their registry."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

from trainables.errors import ConfigError
from trainables.models import NETWORK_NAMES, build_network
from trainables.models.cifar_resnet import BasicBlock
from trainables.models.registry import NETWORKS


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def cifar_resnet_parameters(blocks: int, num_classes: int) -> int:
    """Weights of the convolutions, two numbers per channel of each batch normalisation, the head with its biases."""
    count, width = 9 * 3 * 16 + 2 * 16, 16
    for channels in (16, 32, 64):
        for block in range(blocks):
            count += 9 * width * channels + 9 * channels**2 + 4 * channels
            if block == 0 and width != channels:
                count += width * channels + 2 * channels
            width = channels
    return count + 64 * num_classes + num_classes


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_networks_have_as_many_parameters_as_their_papers_count(num_classes: int) -> None:
    expected = {
        "resnet8": cifar_resnet_parameters(1, num_classes),
        "resnet20": cifar_resnet_parameters(3, num_classes),
        # The published totals for 1000 classes, less their head.
        "resnet18": 11_689_512 - 513 * 1000 + 513 * num_classes,
        "resnet50": 25_557_032 - 2049 * 1000 + 2049 * num_classes,
        "mobilenet_v2": 3_504_872 - 1281 * 1000 + 1281 * num_classes,
    }
    assert {name: parameters(build_network(name, num_classes=num_classes)) for name in NETWORK_NAMES} == expected


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 8), ("resnet20", 20)])
def test_cifar_resnets_have_the_layers_of_their_name_besides_the_shortcuts(name: str, layers: int) -> None:
    net = build_network(name, num_classes=10)
    weighted = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shortcuts = [n for n in weighted if "downsample" in n]
    assert len(weighted) - len(shortcuts) == layers
    assert shortcuts == ["layer2.0.downsample.0", "layer3.0.downsample.0"]


def test_resnet8_layers_have_these_names() -> None:
    block = ["conv1", "bn1", "conv2", "bn2"]
    names = {
        name for name, module in build_network("resnet8", num_classes=10).named_modules() if not list(module.children())
    }
    expected = {"conv1", "bn1", "avgpool", "fc"}
    expected |= {f"layer{stage}.0.{layer}" for stage in (1, 2, 3) for layer in block}
    expected |= {f"layer{stage}.0.downsample.{i}" for stage in (2, 3) for i in (0, 1)}
    assert {name for name in names if "relu" not in name and not name.endswith("downsample")} == expected


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_every_module_of_a_cifar_resnet_is_called_once_per_pass(name: str) -> None:
    net, calls = build_network(name, num_classes=10), Counter[str]()
    leaves = [leaf for leaf, module in net.named_modules() if not list(module.children())]
    for leaf in leaves:
        net.get_submodule(leaf).register_forward_hook(lambda *_, leaf=leaf: calls.update([leaf]))
    net(torch.randn(2, 3, 16, 16))
    assert calls == dict.fromkeys(leaves, 1)


def test_a_block_whose_convolutions_are_silent_is_its_shortcut() -> None:
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    for block in (BasicBlock(16, 16, 1).eval(), BasicBlock(16, 32, 2).eval()):
        nn.init.zeros_(block.bn2.weight)
        torch.testing.assert_close(block(x), block.downsample(x).relu())


def test_a_block_adds_its_shortcut_before_the_last_rectifier() -> None:
    block = BasicBlock(16, 16, 1).eval()
    for layer in (block.conv1, block.conv2):
        nn.init.dirac_(layer.weight)
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    # Fresh batch normalisation divides by the root of 1 + 1e-5.
    torch.testing.assert_close(block(x), (x.relu() + x).relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_each_network_gives_one_logit_per_class_and_differs_between_images(name: str) -> None:
    net = build_network(name, num_classes=7).eval()
    with torch.no_grad():
        logits = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert not torch.equal(logits[0], logits[1])


def test_cifar_resnets_shrink_images_twice() -> None:
    net, shapes = build_network("resnet8", num_classes=10), []
    net.layer3.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    net(torch.randn(1, 3, 32, 32))
    assert shapes == [(1, 64, 8, 8)]


def test_names_known_without_torch_are_the_registry() -> None:
    assert tuple(sorted(NETWORKS)) == NETWORK_NAMES


def test_an_unknown_network_is_an_error_with_the_nearest_name_and_all_names() -> None:
    with pytest.raises(
        ConfigError, match=r"'resnet81'; did you mean 'resnet8'\? known: mobilenet_v2, resnet18, .*resnet8"
    ):
        build_network("resnet81", num_classes=10)


def test_names_and_places_are_known_without_torch() -> None:
    code = (
        "import sys; from trainables.models import check_network; from trainables.data import check_data;"
        "from trainables.config import DataConfig;"
        "check_network('resnet8'); check_data(DataConfig(name='digits', image_size=8));"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
