"""Where a network looks: Grad-CAM maps, their ranks, the attribution rank difference (ARD), their entropy.

Notation: N images; A [N, C, h, w] the last convolutional feature map; P = h·w pixels of a map; k ≤ P compared pixels.

    α_c = mean_mn ∂logit_y/∂A_c[m,n],   M = ReLU(Σ_c α_c A_c),   M ← M / Σ M          (eqs 2-3; the sum: text of eq. 9)

y is the label, for both networks. The scale Z of eq. 2 cancels in the division by the sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.errors import ConfigError, CoverageError


class Attribution:
    """Taps the last feature map of a network and turns a forward pass into maps.

    Where the head is a global average pool and a plain linear layer, ∂logit_y/∂A_c = W[y,c]/(h·w) everywhere, so that
    Grad-CAM is CAM and needs no second backward pass; whether that holds is found out by differentiating the head once.
    Elsewhere the head alone, from the logit to the feature map, is differentiated.
    """

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        """`images` [N, C, H, W]: a real batch, to find the feature map and the kind of head with."""
        self.feature_layer = _last_feature_layer(net, images)
        self._features: Tensor | None = None
        self._hook = net.get_submodule(self.feature_layer).register_forward_hook(self._keep)
        self._head = self._find_closed_form(net, images)

    @property
    def closed_form(self) -> bool:
        """Whether maps come without a backward pass."""
        return self._head is not None

    def maps(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Normalised maps [N, h, w] of the last forward pass, which gave `logits` [N, classes]; labels [N].

        Differentiable in the network's weights.
        """
        return self._maps(logits, labels, create_graph=torch.is_grad_enabled())

    def _maps(self, logits: Tensor, labels: Tensor, *, create_graph: bool) -> Tensor:
        features = self._take()
        if self._head is not None:
            weights = self._head.weight[labels] / (features.shape[2] * features.shape[3])
        else:
            score = logits.gather(1, labels[:, None]).sum()
            (grad,) = torch.autograd.grad(score, features, create_graph=create_graph, retain_graph=create_graph)
            weights = grad.mean(dim=(2, 3))
        return normalise(torch.relu(torch.einsum("nc,nchw->nhw", weights, features)))

    def observe(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and maps of a frozen network (`requires_grad_(False)`), as constants."""
        with torch.set_grad_enabled(not self.closed_form):
            logits = net(images)
            maps = self._maps(logits, labels, create_graph=False)
        return logits.detach(), maps.detach()

    def detach(self) -> None:
        """Takes the tap off the network."""
        self._hook.remove()

    def _keep(self, module: nn.Module, inputs: object, out: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not out.requires_grad:
            # The network is frozen: the graph starts here and holds the head alone. A clone, as leaves allow no
            # in-place operation.
            out = out.detach().requires_grad_().clone()
        self._features = out
        return out

    def _take(self) -> Tensor:
        if self._features is None:
            raise RuntimeError("maps() needs a forward pass right before it.")
        features, self._features = self._features, None
        return features

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
        features = self._take()
        if heads[-1].in_features != features.shape[1] or heads[-1].out_features != logits.shape[1]:
            return None
        labels = logits.argmax(1)
        (grad,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), features)
        cam = (heads[-1].weight[labels] / (features.shape[2] * features.shape[3]))[:, :, None, None].expand_as(grad)
        return heads[-1] if torch.allclose(grad, cam, rtol=1e-4, atol=1e-7) else None


@torch.no_grad()
def _last_feature_layer(net: nn.Module, images: Tensor) -> str:
    """Name of the last module to return [N, C, h, w] with more than one pixel, at or after the last convolution.

    Raises CoverageError where the last convolution has one pixel left: there is nothing to rank.
    """
    found: list[str] = []
    last_convolution = ""

    def note(name: str, out: object) -> None:
        nonlocal last_convolution
        if not isinstance(out, Tensor) or out.dim() != 4:
            return
        several = out.shape[2] * out.shape[3] > 1
        if isinstance(net.get_submodule(name), nn.Conv2d):
            last_convolution = name
            found.clear()
        if several:
            found.append(name)

    handles = [
        module.register_forward_hook(lambda m, i, out, name=name: note(name, out))
        for name, module in net.named_modules()
    ]
    was_training = net.training
    net.eval()
    net(images)
    net.train(was_training)
    for handle in handles:
        handle.remove()
    if not last_convolution:
        raise CoverageError("the network has no convolution that makes a feature map; attribution needs one.")
    if not found:
        size = f"{images.shape[2]}×{images.shape[3]}"
        raise CoverageError(
            f"of images of {size} pixels the last convolution, {last_convolution}, leaves a map of one pixel: "
            "attribution has nothing to rank. Give a larger data.image_size, or another network."
        )
    return found[-1]


def normalise(maps: Tensor) -> Tensor:
    """Maps [N, h, w] divided by their sums; a map of zeros stays zero."""
    total = maps.sum(dim=(1, 2), keepdim=True)
    return maps / total.clamp_min(torch.finfo(maps.dtype).tiny)


def upsample(maps: Tensor, size: int) -> Tensor:
    """Maps [N, h, w] -> [N, size, size], bilinear, sums back to what they were."""
    large = F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    return large * (maps.shape[1] * maps.shape[2] / size**2)


def top_pixels(reference: Tensor, top_k: int) -> Tensor:
    """Indices [N, min(top_k, P)] of the pixels that `reference` [N, P] ranks highest; of equals the first."""
    return reference.argsort(dim=1, descending=True, stable=True)[:, :top_k]


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
