"""The optimisers of all stages: torch's, each of whose updates is one pass over all parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def fused_sgd(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """SGD whose momentum begins at zero: v ← μ·v + g, which is g in the first step, as where there is no v yet.

    torch makes v in the first step that has gradients, and leaves it unwritten where these overflowed in half
    precision and the step is skipped.
    """
    # Of a momentum of none torch makes no Nesterov's.
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov and momentum > 0, fused=True
    )
    if momentum:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
