"""What rounding a layer's weights would add to the loss, from the gradients of single images: MPQCO (Chen et al. 2021).

Notation: N images, B widths, L layers; W_l a layer's weights, g_n,l the gradient of image n's loss (nats) to them.

    ΔL_l(b) = 1/(2N) · Σ_n ⟨g_n,l , Q_b(W_l) − W_l⟩²

the second-order term with the Hessian's block of the layer taken as the mean of g·gᵀ (the empirical Fisher). The square
is that of the whole product, not a sum of squares over weights.

One forward and one backward pass serve all images of a batch, all layers and all widths, and the backward pass is one
to the activations alone. With x_n the patches that a convolution reads [C_in·k², P] at its P places, and d_n the
gradient to what it makes [C_out, P], g_n = d_n·x_nᵀ, and B products with the changes of the weights follow. Gradients
of a few images are held at a time. A layer that runs several times has the sum of its runs as its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.errors import CoverageError

_ENTRIES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Of patches, and of gradients, that are held at once: on a CPU 16 MiB in float32, which new pages of memory cost
least."""


class LossPerturbation:
    """Of the layers of a frozen network in eval mode whose weights change as `changes` say."""

    def __init__(self, net: nn.Module, changes: Mapping[str, Tensor]) -> None:
        """`changes`: layer -> Q_b(W) − W [B, *W.shape], on the network's device, the same B for all."""
        self._net, self._changes = net, changes
        self._layers = {name: _layer(net, name) for name in changes}

    def squares(self, images: Tensor, labels: Tensor) -> Tensor:
        """½ Σ_n ⟨g_n,l , Q_b(W_l) − W_l⟩² over a batch [L, B], float64."""
        return self.products(images, labels).double().square().sum(1) / 2

    def products(self, images: Tensor, labels: Tensor) -> Tensor:
        """⟨g_n,l , Q_b(W_l) − W_l⟩ of each image of a batch [L, N, B]."""
        products = {name: change.new_zeros(len(labels), len(change)) for name, change in self._changes.items()}

        def add(name: str, x: Tensor, grad: Tensor) -> None:
            products[name] += inner_products(self._layers[name], x, grad, self._changes[name], images=len(labels))

        with torch.enable_grad(), _watched(self._layers, add):
            cross_entropy(self._net(images), labels, reduction="sum").backward()
        return torch.stack([*products.values()])

    def check_apart(self, images: Tensor) -> None:
        """Raises CoverageError where a layer does not keep the images of a batch apart, one after the other: then no
        product is one image's. `images`: two or more."""

        def check(name: str, x: Tensor, grad: Tensor) -> None:
            if len(grad) % len(images) or bool(grad.reshape(len(images), -1)[1:].any()):
                raise CoverageError(
                    f"{name}: what it reads of several images cannot be told apart by its first dimension, which is "
                    f"{len(grad)} for {len(images)} images; methods that weigh the loss of single images need that."
                )

        with torch.enable_grad(), _watched(self._layers, check):
            self._net(images)[0].square().sum().backward()


def _layer(net: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    layer = net.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


@contextmanager
def _watched(
    layers: Mapping[str, nn.Conv2d | nn.Linear], tell: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Tells of every run of the layers, on the way back: its name, what it read, the gradient to what it made."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], made: Tensor) -> Tensor:
            # Nothing before the first watched layer has to be differentiated: the graph begins here. Cloned, so that
            # an operation in place may follow.
            made = made if made.requires_grad else made.detach().requires_grad_().clone()
            x = args[0].detach()
            made.register_hook(lambda grad: tell(name, x, grad))
            return made

        return hook

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def inner_products(layer: nn.Conv2d | nn.Linear, x: Tensor, grad: Tensor, changes: Tensor, *, images: int) -> Tensor:
    """⟨g_n, changes_b⟩ of one run of a layer [images, B].

    Args:
        x: what it read; images along the first dimension, of which each may have several rows.
        grad: gradient of the summed losses to what it made.
        changes: [B, *weight.shape].
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    flat = changes.flatten(1).T
    weight = changes[0]
    places = grad[0, 0].numel() if isinstance(layer, nn.Conv2d) else grad[0].numel() // len(weight)
    rows = len(x) // images
    per_image = max(weight.numel(), weight[0].numel() * groups * places * rows)
    found = []
    for some_x, some_grad in zip(
        *(part.split(rows * max(1, _ENTRIES[x.device.type] // per_image)) for part in (x, grad)), strict=True
    ):
        count = len(some_x) // rows
        read, made = _as_products(layer, some_x, some_grad)
        # A row of an image is another place of it.
        read, made = (
            part.unflatten(0, (count, rows)).permute(0, 2, 3, 1, 4).flatten(3) if rows > 1 else part
            for part in (read, made)
        )
        found.append((made @ read.mT).flatten(1) @ flat)
    return torch.cat(found)


def _as_products(layer: nn.Conv2d | nn.Linear, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Patches [n, groups, C_in·k²/groups, P] and gradients [n, groups, C_out/groups, P]: g = grad · patchesᵀ."""
    if isinstance(layer, nn.Linear):
        return (part.reshape(len(part), 1, -1, part.shape[-1]).mT for part in (x, grad))  # type: ignore[return-value]
    if layer.kernel_size == (1, 1) and not any(layer._reversed_padding_repeated_twice):
        patches = x[:, :, :: layer.stride[0], :: layer.stride[1]].flatten(2)
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(x, layer._reversed_padding_repeated_twice, mode)
        patches = F.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return patches.unflatten(1, (layer.groups, -1)), grad.flatten(2).unflatten(1, (layer.groups, -1))
