"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class AveragedWeights:
    """A network that follows the trained one.

        θ̄ ← d·θ̄ + (1 − d)·θ    after every step, from θ̄ = θ at the start

    Quantisers' parameters are averaged as weights are. So are the running statistics of batch normalisation, with the
    same decay: taken over as they are, they would be those of weights that are 1/(1 − d) steps ahead. Whole numbers
    are copied.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        """`net` as it is, not as the workers wrap it."""
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """After a step of `net`."""
        for average, value in zip(_tensors(self.net), _tensors(net), strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - self._decay)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return self.net.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Goes on from averages that were kept."""
        self.net.load_state_dict(state_dict)


def _tensors(net: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*net.parameters(), *net.buffers()]
