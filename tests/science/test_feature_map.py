"""Which tensor is attributed: the tokens of transformers that reach the logits, the maps of convolutional networks."""

import pytest
import torch
import torchvision
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trainables.attribution import Attribution, normalise
from trainables.config import NetworkConfig
from trainables.counting import measure
from trainables.errors import CoverageError
from trainables.feature_map import FeatureMap, find_feature_map
from trainables.method_config import GmpqConfig
from trainables.policy import BitPolicy, LayerBits
from trainables.quantizers.layers import calibrate
from trainables.supernet import assign_roles, build_supernet, deploy

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([0, 3, 2])


def vit(pool: str = "token", *, depth: int = 3, net: type[VisionTransformer] = VisionTransformer) -> VisionTransformer:
    """Patches of 4×4 pixels on a grid of 4×4; the last normalisation before the pool, as DeiT has it."""
    torch.manual_seed(0)
    made = net(img_size=16, patch_size=4, embed_dim=16, depth=depth, num_heads=2, num_classes=5, global_pool=pool,
               fc_norm=False)  # fmt: skip
    # Fresh heads are nearly zero.
    nn.init.normal_(made.head.weight)
    return made.eval()


def tokens_of(net: VisionTransformer, images: Tensor) -> Tensor:
    """What enters the last block."""
    x = net._pos_embed(net.patch_embed(images))
    return net.blocks[:-1](x)


def class_token_grad_cam(net: VisionTransformer, images: Tensor, classes: Tensor) -> Tensor:
    """Eqs 2-3 on the last block's first normalisation, the block and the head written out."""
    x = tokens_of(net, images).detach()
    last = net.blocks[-1]
    tokens = last.norm1(x).detach().requires_grad_()
    n, t, width = tokens.shape
    q, k, v = last.attn.qkv(tokens).reshape(n, t, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(2, 3) / (width // 2) ** 0.5).softmax(-1)
    x = x + last.attn.proj((attention @ v).transpose(1, 2).reshape(n, t, width))
    x = x + last.mlp(last.norm2(x))
    logits = net.head(net.norm(x)[:, 0])
    (grad,) = torch.autograd.grad(logits[torch.arange(n), classes].sum(), tokens)
    weights = grad[:, 1:].mean(dim=1)
    return normalise((tokens[:, 1:] @ weights[:, :, None]).relu().reshape(n, 4, 4).detach())


def test_behind_a_class_token_maps_are_grad_cam_on_the_last_blocks_first_normalisation() -> None:
    net = vit()
    attribution = Attribution(net, IMAGES)
    assert attribution.feature_layer == "blocks.2.norm1"
    assert not attribution.closed_form
    maps = attribution.maps(net(IMAGES), CLASSES)
    torch.testing.assert_close(maps, class_token_grad_cam(net, IMAGES, CLASSES), atol=1e-5, rtol=1e-4)
    assert float(maps.detach().sum()) == pytest.approx(3.0, abs=1e-4)


def test_the_patches_of_the_last_blocks_output_have_no_gradient_behind_a_class_token() -> None:
    """Why they are not the ones that are attributed."""
    net, kept = vit(), []
    net.blocks[-1].register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    (grad,) = torch.autograd.grad(net(IMAGES).amax(dim=1).sum(), kept)
    assert float(grad[:, 1:].abs().max()) == 0.0
    assert float(grad[:, 0].abs().max()) > 0.0


def test_averaged_patches_are_attributed_to_the_end_in_closed_form() -> None:
    net = vit("avg")
    attribution = Attribution(net, IMAGES)
    assert attribution.feature_layer == "norm"
    assert attribution.closed_form
    patches = net.norm(net.blocks[-1](tokens_of(net, IMAGES)))[:, 1:]
    cam = torch.einsum("nc,npc->np", net.head.weight[CLASSES], patches).relu().reshape(3, 4, 4)
    torch.testing.assert_close(attribution.maps(net(IMAGES), CLASSES), normalise(cam), atol=1e-6, rtol=1e-4)


def test_a_distillation_token_is_no_patch() -> None:
    net = vit(net=VisionTransformerDistilled)
    found = find_feature_map(net, IMAGES)
    assert (found.layer, found.grid) == ("blocks.2.norm1", (4, 4))
    tokens = torch.randn(2, 18, 7)
    assert torch.equal(found.of(tokens), tokens[:, 2:].transpose(1, 2).reshape(2, 7, 4, 4))


def test_tokens_lie_on_the_grid_as_the_patch_embedding_flattened_them() -> None:
    maps = torch.randn(2, 5, 3, 4)
    tokens = torch.cat([torch.randn(2, 1, 5), maps.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(FeatureMap(layer="x", grid=(3, 4)).of(tokens), maps)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_frozen_transformer_is_observed_with_the_features_that_its_maps_come_from(pool: str) -> None:
    net = vit(pool)
    expected = Attribution(net, IMAGES).maps(net(IMAGES), CLASSES).detach()
    net.requires_grad_(False)
    attribution = Attribution(net, IMAGES)
    graph: list[bool] = []
    net.blocks[0].register_forward_hook(lambda _module, _inputs, out: graph.append(out.requires_grad))
    seen = attribution.observe(net, IMAGES, CLASSES)
    assert graph == [False]
    torch.testing.assert_close(seen.maps, expected)
    torch.testing.assert_close(seen.logits, net(IMAGES).detach())
    x = tokens_of(net, IMAGES)
    tokens = net.blocks[-1].norm1(x) if pool == "token" else net.norm(net.blocks[-1](x))
    torch.testing.assert_close(seen.features, tokens[:, 1:].transpose(1, 2).reshape(3, 16, 4, 4))
    assert not any(value.requires_grad for value in seen)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_without_classes_each_image_is_observed_for_its_largest_logit(pool: str) -> None:
    net = vit(pool).requires_grad_(False)
    attribution = Attribution(net, IMAGES)
    own = attribution.observe(net, IMAGES, None)
    chosen = attribution.observe(net, IMAGES, own.logits.argmax(1))
    other = attribution.observe(net, IMAGES, own.logits.argmin(1))
    assert torch.equal(own.maps, chosen.maps)
    assert not torch.allclose(own.maps, other.maps)


def test_only_the_head_is_differentiated() -> None:
    net = vit()
    attribution = Attribution(net, IMAGES)
    differentiated: list[str] = []

    def watch(name: str, out: Tensor) -> None:
        out.register_hook(lambda grad: differentiated.append(name))

    for name in ("patch_embed", "blocks.0", "blocks.1", "blocks.2.attn", "blocks.2"):
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: watch(name, out))
    logits = net(IMAGES)
    attribution.maps(logits, CLASSES)
    assert differentiated == ["blocks.2", "blocks.2.attn"]


def test_the_gradient_of_a_transformers_map_is_right() -> None:
    """Through fused attention it would not exist."""
    net = vit().double()
    images, target = IMAGES.double(), torch.rand(3, 4, 4, dtype=torch.float64)
    attribution = Attribution(net, images)
    # A query of the last block, which the logits' gradient depends on, and a layer far before it.
    weights = [net.blocks[2].attn.qkv.weight, net.blocks[0].mlp.fc1.weight]

    def loss() -> Tensor:
        return (attribution.maps(net(images), CLASSES) * target).sum()

    for weight, grad in zip(weights, torch.autograd.grad(loss(), weights), strict=True):
        place = divmod(int(grad.abs().argmax()), grad.shape[1])
        values = []
        for step in (1e-6, -2e-6, 1e-6):
            with torch.no_grad():
                weight[place] += step
            values.append(loss().item())
        assert float(grad[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_attention_may_be_fused_again_after_the_forward_pass_even_where_it_fails() -> None:
    net = vit()
    Attribution(net, IMAGES)

    def kernels() -> tuple[bool, bool]:
        return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()

    before, inside = kernels(), []
    net.blocks[-1].attn.register_forward_pre_hook(lambda *_: inside.append(kernels()))
    net(IMAGES)
    assert kernels() == before
    net.head = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(IMAGES)
    assert kernels() == before == (True, True)
    assert inside == [(False, False)] * 2


@pytest.mark.parametrize(("pool", "layer"), [("token", "blocks.2.norm1"), ("avg", "norm")])
def test_supernet_and_deployed_transformer_are_attributed_at_the_references_tokens(pool: str, layer: str) -> None:
    net = vit(pool)
    costs = measure(net, IMAGES)
    supernet = build_supernet(
        net, costs, assign_roles(costs, NetworkConfig(name="vit")), GmpqConfig(zeta=0.1, eta=1.0, act_bits=(6, 8))
    )
    calibrate(supernet.net, IMAGES)
    attribution = Attribution(supernet.net, IMAGES)
    maps = attribution.maps(supernet.net(IMAGES), CLASSES)
    assert attribution.feature_layer == layer
    (maps * torch.rand_like(maps)).sum().backward()
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc2"):
        assert float(supernet.searched[name].weight.grad.abs().sum()) > 0
        assert float(supernet.searched[name].mixture.weight_logits.grad.abs().sum()) > 0
    bits = dict.fromkeys(costs.layers, LayerBits(8, 8))
    deployed = deploy(net, costs, BitPolicy(network="vit", bits=bits), "pact").eval()
    calibrate(deployed, IMAGES)
    deployed.requires_grad_(False)
    quantized = Attribution(deployed, IMAGES)
    assert quantized.feature_layer == layer
    full = Attribution(net, IMAGES).maps(net(IMAGES), CLASSES).detach()
    # Eight bits are nearly float.
    torch.testing.assert_close(quantized.observe(deployed, IMAGES, CLASSES).maps, full, atol=0.02, rtol=0)


def test_one_patch_is_a_map_of_one_pixel() -> None:
    net = VisionTransformer(img_size=16, patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=5)
    with pytest.raises(CoverageError, match=r"16×16 pixels the last convolution, patch_embed\.proj, .* one pixel"):
        find_feature_map(net, IMAGES)


@pytest.mark.parametrize(("size", "layer", "side"), [(32, "features.29", 2), (64, "features", 2)])
def test_a_map_that_an_adaptive_pool_enlarges_is_no_feature_map(size: int, layer: str, side: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.features = torchvision.models.vgg16().features
    net.avgpool, net.flatten, net.classifier = nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(512 * 49, 3)
    net.requires_grad_(False)
    images = torch.randn(2, 3, size, size)
    attribution = Attribution(net.eval(), images)
    assert attribution.feature_layer == layer
    assert attribution.observe(net, images, None).maps.shape == (2, side, side)
