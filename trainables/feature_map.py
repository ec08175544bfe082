"""Which tensor of a network attribution looks at: its last feature map, or the last tokens of image patches.

Notation: N images; a map has h rows and w columns; T tokens, the last h·w of them patches, row by row; C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.errors import CoverageError

MAX_PREFIX_TOKENS = 8
"""Class, distillation and register tokens stand before the patches; more would be no sequence of patches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureMap:
    """A module's output as a map."""

    layer: str
    """The module's name."""
    grid: tuple[int, int] | None
    """Rows and columns of the patches where the output is a sequence of tokens; None where it is a map."""

    def of(self, out: Tensor) -> Tensor:
        """[N, C, h, w] of the module's output, which is that, or [N, T, C]."""
        if self.grid is None:
            return out
        patches = out[:, -self.grid[0] * self.grid[1] :]
        return patches.transpose(1, 2).unflatten(2, self.grid)


def find_feature_map(net: nn.Module, images: Tensor) -> FeatureMap:
    """The last module to return a map of more than one pixel, at or after the last convolution.

    Where tokens follow that convolution, one for each of its pixels and a few before them, it is the patch embedding of
    a transformer, and the last module whose patches the logits depend on is taken.

    DEVIATION: the last block's output is the usual choice, but behind a class token the logits do not depend on its
    patches: their gradient, and with it the map, would be zero. There the last block's first normalisation is found.
    The patches of a network that averages them reach the logits to the end.

    Args:
        images: [N, C, H, W], a real batch.

    Raises CoverageError where the last convolution has one pixel left: there is nothing to rank.
    """
    seen = _Outputs(net)
    with torch.no_grad(), _evaluating(net), _watching(net, seen.note):
        net(images)
    if not seen.convolution:
        raise CoverageError("the network has no convolution that makes a feature map; attribution needs one.")
    if seen.tokens:
        return FeatureMap(layer=_last_to_reach_logits(net, images, seen), grid=seen.grid)
    if not seen.maps:
        size = f"{images.shape[2]}×{images.shape[3]}"
        raise CoverageError(
            f"of images of {size} pixels the last convolution, {seen.convolution}, leaves a map of one pixel: "
            "attribution has nothing to rank. Give a larger data.image_size, or another network."
        )
    return FeatureMap(layer=seen.maps[-1], grid=None)


class _Outputs:
    """Modules at or after the last convolution, in the order in which they return."""

    def __init__(self, net: nn.Module) -> None:
        layers = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
        self.convolutions = {name for name, module in layers.items() if isinstance(module, nn.Conv2d)}
        # A linear layer returns queries, keys and values or the inside of an MLP, and its quantisers their codes: none
        # of them tokens that blocks pass on.
        self.no_tokens = {name for name, _ in net.named_modules() if _with_parents(name) & layers.keys()}
        self.convolution = ""
        self.grid = (0, 0)
        """Rows and columns of what the convolution returns."""
        self.num_pixels = 0
        """Of the smallest map since then."""
        self.maps: list[str] = []
        self.tokens: list[str] = []

    def note(self, name: str, out: object) -> None:
        """Called as a module returns."""
        if not isinstance(out, Tensor):
            return
        if name in self.convolutions and out.dim() == 4:
            self.convolution, self.grid = name, (out.shape[2], out.shape[3])
            self.maps.clear()
            self.tokens.clear()
            self.num_pixels = self.grid[0] * self.grid[1]
        if out.dim() == 4:
            # A map that grows again only repeats pixels, as the adaptive pool of a VGG does for small images.
            num_pixels = out.shape[2] * out.shape[3]
            if 1 < num_pixels <= self.num_pixels:
                self.maps.append(name)
            self.num_pixels = min(num_pixels, self.num_pixels)
        if out.dim() == 3 and name not in self.no_tokens and self._has_patches(out.shape[1]):
            self.tokens.append(name)

    def _has_patches(self, num_tokens: int) -> bool:
        num_patches = self.grid[0] * self.grid[1]
        return num_patches > 1 and 0 <= num_tokens - num_patches <= MAX_PREFIX_TOKENS


def _with_parents(name: str) -> set[str]:
    """A module's name and those of all that it lies in."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


def _last_to_reach_logits(net: nn.Module, images: Tensor, seen: _Outputs) -> str:
    """The last of the token sequences in whose patches the largest logits have a gradient."""
    names, kept = set(seen.tokens), dict[str, Tensor]()

    def keep(name: str, out: object) -> None:
        if name in names and isinstance(out, Tensor):
            kept[name] = out

    with torch.enable_grad(), _evaluating(net), _watching(net, keep):
        # Of frozen networks too, there is a graph from the images on.
        score = net(images.detach().requires_grad_()).amax(dim=1).sum()
        grads = torch.autograd.grad(score, list(kept.values()), allow_unused=True)
    num_patches = seen.grid[0] * seen.grid[1]
    reaching = {
        name
        for name, grad in zip(kept, grads, strict=True)
        if grad is not None and bool((grad[:, -num_patches:] != 0).any())
    }
    # A network that looks at no patch at all has maps of zeros wherever they are taken.
    return next((name for name in reversed(seen.tokens) if name in reaching), seen.tokens[-1])


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


@contextmanager
def _watching(net: nn.Module, note: Callable[[str, object], None]) -> Iterator[None]:
    """Calls note(name, output) as each module returns."""
    handles = [
        module.register_forward_hook(lambda m, i, out, name=name: note(name, out))
        for name, module in net.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
