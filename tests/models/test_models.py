"""Networks: their sizes in closed form, their layers' names, their registry."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

from trainables.config import NetworkConfig
from trainables.counting import measure
from trainables.errors import ConfigError
from trainables.method_config import GmpqConfig
from trainables.models import NETWORK_NAMES, build_network
from trainables.models.cifar_resnet import BasicBlock
from trainables.models.registry import NETWORKS
from trainables.quantizers.layers import calibrate, quant_layers
from trainables.supernet import assign_roles, build_supernet, deploy

SEARCH = GmpqConfig(zeta=0.1, eta=1.0, weight_bits=(6, 8), act_bits=(6, 8))


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


def deit_parameters(width: int, patch: int, num_classes: int) -> int:
    """Patch embedding, class token and positions; 12 blocks of two normalisations and 12·D² weights; the head."""
    patches = (224 // patch) ** 2
    count = 3 * patch**2 * width + width + width + (patches + 1) * width
    count += 12 * (4 * width + 12 * width**2 + (3 + 1 + 4 + 1) * width)
    return count + 2 * width + width * num_classes + num_classes


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_networks_have_as_many_parameters_as_their_papers_count(num_classes: int) -> None:
    expected = {
        "resnet8": cifar_resnet_parameters(1, num_classes),
        "resnet20": cifar_resnet_parameters(3, num_classes),
        # The published totals for 1000 classes, less their head.
        "resnet18": 11_689_512 - 513 * 1000 + 513 * num_classes,
        "resnet50": 25_557_032 - 2049 * 1000 + 2049 * num_classes,
        "resnet50_v1": 25_557_032 - 2049 * 1000 + 2049 * num_classes,
        "vgg16": 138_357_544 - 4097 * 1000 + 4097 * num_classes,
        "mobilenet_v2": 3_504_872 - 1281 * 1000 + 1281 * num_classes,
    }
    expected |= {
        f"deit_{size}{suffix}": deit_parameters(width, patch, num_classes)
        for size, width in (("tiny", 192), ("small", 384))
        for suffix, patch in (("", 16), ("_patch4", 4))
    }
    assert deit_parameters(192, 16, 1000) == 5_717_416
    assert deit_parameters(384, 16, 1000) == 22_050_664
    with torch.device("meta"):
        nets = {name: build_network(name, num_classes=num_classes, image_size=224) for name in NETWORK_NAMES}
    assert {name: parameters(net) for name, net in nets.items()} == expected


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 8), ("resnet20", 20)])
def test_cifar_resnets_have_the_layers_of_their_name_besides_the_shortcuts(name: str, layers: int) -> None:
    net = build_network(name, num_classes=10, image_size=32)
    weighted = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shortcuts = [n for n in weighted if "downsample" in n]
    assert len(weighted) - len(shortcuts) == layers
    assert shortcuts == ["layer2.0.downsample.0", "layer3.0.downsample.0"]


def test_resnet8_layers_have_these_names() -> None:
    block = ["conv1", "bn1", "conv2", "bn2"]
    names = {
        name
        for name, module in build_network("resnet8", num_classes=10, image_size=32).named_modules()
        if not list(module.children())
    }
    expected = {"conv1", "bn1", "avgpool", "fc"}
    expected |= {f"layer{stage}.0.{layer}" for stage in (1, 2, 3) for layer in block}
    expected |= {f"layer{stage}.0.downsample.{i}" for stage in (2, 3) for i in (0, 1)}
    assert {name for name in names if "relu" not in name and not name.endswith("downsample")} == expected


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_every_module_of_a_cifar_resnet_is_called_once_per_pass(name: str) -> None:
    net, calls = build_network(name, num_classes=10, image_size=32), Counter[str]()
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
    net = build_network(name, num_classes=7, image_size=32).eval()
    with torch.no_grad():
        logits = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert not torch.equal(logits[0], logits[1])


def test_cifar_resnets_shrink_images_twice() -> None:
    net, shapes = build_network("resnet8", num_classes=10, image_size=32), []
    net.layer3.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    net(torch.randn(1, 3, 32, 32))
    assert shapes == [(1, 64, 8, 8)]


def vgg16_macs() -> int:
    """13 convolutions of 3×3 in five stages, then three linear layers on 512 maps of 7×7."""
    macs, before, side = 0, 3, 224
    for channels, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            macs += 9 * before * channels * side**2
            before = channels
        side //= 2
    return macs + 512 * side**2 * 4096 + 4096**2 + 4096 * 1000


def resnet50_v1_macs() -> int:
    """7×7 stem, then bottlenecks 1×1, 3×3, 1×1 of which the first of a stage halves in its first and its shortcut."""
    macs, before, side = 49 * 3 * 64 * 112**2, 64, 56
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        side = side if width == 64 else side // 2
        for block in range(blocks):
            macs += side**2 * (before * width + 9 * width**2 + width * 4 * width)
            macs += side**2 * before * 4 * width if block == 0 else 0
            before = 4 * width
    return macs + 2048 * 1000


def deit_macs(width: int) -> int:
    """196 patches of 16×16, 12 blocks of 12·D² weights on 197 tokens with two products of attention, the head."""
    return 196 * 768 * width + 12 * (197 * 12 * width**2 + 2 * 197**2 * width) + width * 1000


@pytest.mark.parametrize(
    ("name", "macs", "anchor"),
    [
        ("resnet50_v1", resnet50_v1_macs(), 3_857_973_248),
        ("vgg16", vgg16_macs(), 15_470_264_320),
        ("deit_tiny", deit_macs(192), 1_253_683_200),
        ("deit_small", deit_macs(384), 4_598_882_304),
    ],
)
def test_macs_at_224_pixels_are_the_closed_form_and_the_known_ones(name: str, macs: int, anchor: int) -> None:
    net = build_network(name, num_classes=1000, image_size=224)
    assert measure(net, torch.zeros(1, 3, 224, 224)).macs == macs == anchor


@pytest.mark.parametrize(
    "name",
    # Its 134 million weights take ten seconds.
    [pytest.param(name, marks=pytest.mark.long) if name == "vgg16" else name for name in NETWORK_NAMES],
)
def test_each_network_takes_a_step_as_a_supernet_and_once_deployed(name: str) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
    net = build_network(name, num_classes=2, image_size=32)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # What one batch had is what the clips of the next are calibrated for.
            layer.momentum = None
    net(images)
    costs = measure(net, images)
    supernet = build_supernet(net, costs, assign_roles(costs, NetworkConfig(name=name)), SEARCH)
    policy = supernet.choices(name).best
    deployed = deploy(net, costs, policy, "pact")
    calibrate(deployed, images)
    for quantized, num_layers in ((supernet.net, len(policy.searched)), (deployed, len(policy.bits))):
        nn.functional.cross_entropy(quantized(images), labels).backward()
        weights = {name: layer.weight.grad for name, layer in quant_layers(quantized).items()}
        assert len(weights) == num_layers
        assert [name for name, grad in weights.items() if grad is None or not bool(grad.isfinite().all())] == []
    stem = next(layer for layer in deployed.modules() if isinstance(layer, nn.Conv2d))
    assert float(stem.weight.grad.abs().sum()) > 0


def test_of_a_deit_the_linear_layers_of_its_blocks_are_searched_and_attention_is_a_product() -> None:
    costs = measure(build_network("deit_tiny_patch4", num_classes=10, image_size=16), torch.randn(1, 3, 16, 16))
    roles = assign_roles(costs, NetworkConfig(name="deit_tiny_patch4"))
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert set(roles.searched) == {f"blocks.{block}.{layer}" for block in range(12) for layer in layers}
    assert roles.pinned == {"patch_embed.proj": 8, "head": 8}
    products = {name: work.macs for name, work in costs.work.items() if work.kind == "product"}
    assert products == {f"blocks.{block}.attn": 2 * 17**2 * 192 for block in range(12)}


def test_images_that_patches_do_not_fill_are_an_error_with_sizes_that_they_do() -> None:
    with pytest.raises(
        ConfigError, match=r"image_size is 40, which patches of 16 pixels do not fill; give .* such as 32 or 48"
    ):
        build_network("deit_tiny", num_classes=10, image_size=40)


def test_only_deit_waits_for_timm() -> None:
    code = (
        "import sys; from trainables.models import build_network;"
        "build_network('resnet8', num_classes=2, image_size=8); print('timm' in sys.modules);"
        "build_network('deit_tiny', num_classes=2, image_size=32); print('timm' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]


def test_names_known_without_torch_are_the_registry() -> None:
    assert tuple(sorted(NETWORKS)) == NETWORK_NAMES


def test_an_unknown_network_is_an_error_with_the_nearest_name_and_all_names() -> None:
    with pytest.raises(ConfigError, match=r"'resnet81'; did you mean 'resnet8'\? known: deit_small, .*resnet8, vgg16"):
        build_network("resnet81", num_classes=10, image_size=32)


def test_names_and_places_are_known_without_torch() -> None:
    code = (
        "import sys; from trainables.models import check_network; from trainables.data import check_data;"
        "from trainables.config import DataConfig;"
        "check_network('resnet8'); check_data(DataConfig(name='digits', image_size=8));"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
