"""Where a network looks: Grad-CAM maps, their ranks, the attribution rank difference (ARD), their entropy.

Notation: N images; A [N, C, h, w] the last feature map, of a transformer the patch tokens on their grid; P = h·w pixels
of a map; k ≤ P compared pixels; y the class whose logit is attributed, the label or the network's own choice.

    α_c = mean_mn ∂logit_y/∂A_c[m,n],   M = ReLU(Σ_c α_c A_c),   M ← M / Σ M          (eqs 2-3; the sum: text of eq. 9)

The scale Z of eq. 2 cancels in the division by the sum.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.errors import ConfigError
from trainables.feature_map import find_feature_map


class Observation(NamedTuple):
    """What a frozen network makes of a batch, as constants."""

    logits: Tensor
    """[N, classes]."""
    maps: Tensor
    """[N, h, w], each with sum 1, or all zero."""
    features: Tensor
    """[N, C, h, w], the feature map A that the maps come from."""


class Attribution:
    """Taps the last feature map of a network and turns a forward pass into maps.

    Where the head is a global average pool and a plain linear layer, ∂logit_y/∂A_c = W[y,c]/(h·w) everywhere, so that
    Grad-CAM is CAM and needs no second backward pass; whether that holds is found out by differentiating the head once.
    Elsewhere the head alone, from the logit to the feature map, is differentiated.
    """

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        """`images` [N, C, H, W]: a real batch, to find the feature map and the kind of head with."""
        self._feature_map = find_feature_map(net, images)
        self.feature_layer = self._feature_map.layer
        self._out: Tensor | None = None
        self._head: nn.Linear | None = None
        self._attention = ExitStack()
        self._hooks = (
            net.get_submodule(self.feature_layer).register_forward_hook(self._keep),
            net.register_forward_hook(self._restore_attention, always_call=True),
        )
        self._head = self._find_closed_form(net, images)

    @property
    def closed_form(self) -> bool:
        """Whether maps come without a backward pass."""
        return self._head is not None

    def maps(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Maps (eqs 2-3), normalised, [N, h, w] of the last pass, which gave `logits` [N, K]; classes [N], below K.

        Differentiable in the network's weights. In float32 at least, also where the pass was autocast.
        """
        with torch.autocast(logits.device.type, enabled=False):
            return self._maps(self._take(), logits, classes, create_graph=torch.is_grad_enabled())

    def _maps(self, out: Tensor, logits: Tensor, classes: Tensor, *, create_graph: bool) -> Tensor:
        features = self._feature_map.of(out)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        if self._head is not None:
            weights = self._head.weight[classes] / (features.shape[2] * features.shape[3])
        else:
            score = logits.gather(1, classes[:, None]).sum()
            (grad,) = torch.autograd.grad(score, out, create_graph=create_graph, retain_graph=create_graph)
            weights = self._feature_map.of(grad).to(features.dtype).mean(dim=(2, 3))
        return normalise(torch.relu(torch.einsum("nc,nchw->nhw", weights, features)))

    def observe(self, net: nn.Module, images: Tensor, classes: Tensor | None) -> Observation:
        """A frozen network (`requires_grad_(False)`) on `images`, for `classes` [N]; None: for its largest logits."""
        with torch.set_grad_enabled(not self.closed_form):
            logits, out = net(images), self._take()
            chosen = logits.argmax(1) if classes is None else classes
            with torch.autocast(images.device.type, enabled=False):
                maps = self._maps(out, logits, chosen, create_graph=False)
        return Observation(logits.detach(), maps.detach(), self._feature_map.of(out.detach()))

    def detach(self) -> None:
        """Takes the tap off the network."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: object, out: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not out.requires_grad:
            # The network is frozen: the graph starts here and holds the head alone. A clone, as leaves allow no
            # in-place operation.
            out = out.detach().requires_grad_().clone()
        elif torch.is_grad_enabled() and not self.closed_form:
            # The map will be differentiated in its turn, which fused attention cannot.
            self._restore_attention()
            self._attention.enter_context(sdpa_kernel(SDPBackend.MATH))
        self._out = out
        return out

    def _restore_attention(self, *_: object) -> None:
        """As the network's forward pass ends, however it ends: attention may be fused again."""
        self._attention.close()

    def _take(self) -> Tensor:
        if self._out is None:
            raise RuntimeError("maps() needs a forward pass right before it.")
        out, self._out = self._out, None
        return out

    @torch.enable_grad()
    def _find_closed_form(self, net: nn.Module, images: Tensor) -> nn.Linear | None:
        heads = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
        # A quantised head changes with every call; its gradient has the windows of its quantisers.
        if not heads or type(heads[-1]) is not nn.Linear:
            return None
        was_training = net.training
        net.eval()
        logits = net(images)
        net.train(was_training)
        out = self._take()
        features = self._feature_map.of(out)
        if heads[-1].in_features != features.shape[1] or heads[-1].out_features != logits.shape[1]:
            return None
        classes = logits.argmax(1)
        (grad,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), out)
        grad = self._feature_map.of(grad)
        cam = (heads[-1].weight[classes] / (features.shape[2] * features.shape[3]))[:, :, None, None].expand_as(grad)
        return heads[-1] if torch.allclose(grad, cam, rtol=1e-4, atol=1e-7) else None


def normalise(maps: Tensor) -> Tensor:
    """Maps [N, h, w] divided by their sums; a map of zeros stays zero."""
    total = maps.sum(dim=(1, 2), keepdim=True)
    return maps / total.clamp_min(torch.finfo(maps.dtype).tiny)


def upsample(maps: Tensor, size: int) -> Tensor:
    """Maps [N, h, w] -> [N, size, size], bilinear, sums back to what they were."""
    large = F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    return large * (maps.shape[1] * maps.shape[2] / size**2)


def at_size(maps: Tensor, size: int) -> Tensor:
    """Maps [N, h, w] upsampled to `size` pixels a side; as they are where they have that, or where it is 0."""
    return maps if size in (0, maps.shape[2]) else upsample(maps, size)


def top_pixels(reference: Tensor, top_k: int) -> Tensor:
    """Indices [N, min(top_k, P)] of the pixels that `reference` [N, P] ranks highest; of equals the first."""
    return reference.argsort(dim=1, descending=True, stable=True)[:, :top_k]


def among_top_pixels(reference: Tensor, top_k: int) -> Tensor:
    """Whether a pixel is one of `top_pixels`, [N, P]: without putting them, or all others, in order."""
    if top_k >= reference.shape[1]:
        return torch.ones_like(reference, dtype=torch.bool)
    last = reference.topk(top_k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above, equal = reference > last, reference == last
    left = top_k - above.sum(dim=1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=1) <= left))


def ranks(values: Tensor) -> Tensor:
    """r(·) of eq. 8, [N, k] -> [N, k]: 1 for the largest, equal values share the average of their places."""
    rising = (-values).contiguous()
    ordered = rising.sort(dim=1).values
    before = torch.searchsorted(ordered, rising, right=False)
    through = torch.searchsorted(ordered, rising, right=True)
    return (before + 1 + through).to(torch.float64) / 2


def rank_difference(quantized: Tensor, reference: Tensor, *, top_k: int) -> Tensor:
    """ARD of each image [N], in ranks: mean |Δrank| over the reference's top_k pixels, both re-ranked among these.

    0 for equal order, k/2 for reversed order (even k), (k² − 1)/(3k) on average for a random one.

    Args:
        quantized, reference: maps [N, h, w] of equal size.
    """
    if top_k < 2:
        raise ConfigError(f"top_k is {top_k}; a rank needs at least 2 pixels.")
    ours, theirs = quantized.flatten(1), reference.flatten(1)
    pixels = top_pixels(theirs, top_k)
    return (ranks(ours.gather(1, pixels)) - ranks(theirs.gather(1, pixels))).abs().mean(dim=1)


def random_rank_difference(pixels: int) -> float:
    """Expected ARD of a random permutation of `pixels` pixels, (k² − 1)/(3k): the unit of the normalised ARD."""
    return (pixels**2 - 1) / (3 * pixels)


def entropy(maps: Tensor) -> Tensor:
    """Eq. 15, −Σ M·log M of maps [N, h, w] that sum to 1, in nats; [N]. A map of zeros has none."""
    return torch.special.entr(maps).sum(dim=(1, 2))
