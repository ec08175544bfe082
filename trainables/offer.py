"""What a network's layers may have, none worth more, and what it costs: before any data is read or anything trained.

Costs can be counted as LIMPQ's release counts them: output sizes are not rounded down, (h + 2p − d(k−1) − 1)/s + 1 as a
fraction, and of each convolution the whole part of height times width is taken. That is more than the network does
wherever a stride does not divide: 4 145 instead of 4 089 million MACs in ResNet50. A linear layer, and products of
activations, count as ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from trainables.bops import CostModel
from trainables.choices import Choices, Scores
from trainables.config import NetworkConfig
from trainables.counting import measure
from trainables.errors import ConfigError
from trainables.method_config import WidthsConfig
from trainables.models import build_network
from trainables.supernet import Roles, assign_roles


@dataclass(frozen=True, slots=True)
class Offer:
    """Widths on offer, and what they cost."""

    choices: Choices
    """All scores are 0."""
    work: CostModel
    limpq_work: CostModel
    """As LIMPQ's release counts MACs."""


def offer(network: NetworkConfig, widths: WidthsConfig, *, image_size: int, num_classes: int) -> Offer:
    """See `trainables.api.offer`."""
    net = build_network(network.name, num_classes=num_classes, image_size=image_size).eval()
    probe = torch.zeros(1, 3, image_size, image_size)
    try:
        work = measure(net, probe)
    except RuntimeError as error:
        raise ConfigError(f"{network.name} does not run on {image_size}×{image_size} pixels: {error}") from None
    choices = widths_on_offer(network.name, work, assign_roles(work, network), widths)
    return Offer(choices, work, unrounded(net, probe, work))


def widths_on_offer(network: str, work: CostModel, roles: Roles, widths: WidthsConfig) -> Choices:
    """All widths with a score of 0; a single one where a pinned layer fixes a group's activation."""
    weights, acts = (Scores(offered, (0.0,) * len(offered)) for offered in (widths.weight_bits, widths.act_bits))
    return Choices(
        network=network,
        layers=tuple(work.layers),
        weights=dict.fromkeys(roles.searched, weights),
        acts={
            group: Scores((roles.fixed_acts[group],), (0.0,)) if group in roles.fixed_acts else acts
            for group in roles.groups
        },
        group_of={name: roles.group_of[name] for name in roles.searched},
        pinned=roles.pinned,
    )


@torch.no_grad()
def unrounded(net: nn.Module, probe: torch.Tensor, work: CostModel) -> CostModel:
    """The same with the MACs of LIMPQ's release, for one image like `probe` [1, C, H, W]."""
    macs: dict[str, int] = {}
    with _watched(net, macs):
        net(probe)
    return replace(
        work, work={name: replace(layer, macs=macs.get(name, layer.macs)) for name, layer in work.work.items()}
    )


@contextmanager
def _watched(net: nn.Module, macs: dict[str, int]) -> Iterator[None]:
    """Adds up what each convolution does, over all its runs."""

    def add(name: str, layer: nn.Conv2d, args: tuple[Any, ...]) -> None:
        macs[name] = macs.get(name, 0) + layer.weight.numel() * _pixels(layer, tuple(args[0].shape[2:]))

    convolutions = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    handles = [
        module.register_forward_pre_hook(lambda layer, args, name=name: add(name, layer, args))
        for name, module in convolutions
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pixels(layer: nn.Conv2d, size: tuple[int, ...]) -> int:
    """The whole part of height times width of the output, neither of which is rounded."""
    spans = [dilation * (kernel - 1) for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str):
        added = spans if layer.padding == "same" else [0, 0]
    else:
        added = [2 * side for side in layer.padding]
    sides = [
        length + pad - span - 1 + stride
        for length, pad, span, stride in zip(size, added, spans, layer.stride, strict=True)
    ]
    return math.prod(sides) // math.prod(layer.stride)
