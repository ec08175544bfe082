"""Which tensors DAQ and LSQ pass over in one go, and how these must lie in memory for it."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn


def fused(x: Tensor) -> ModuleType | None:
    """`learned_cpu` for float32 on the CPU; None where operations on whole tensors have to do."""
    # Tensors that stand for others, in a trace or an export, have no memory to walk over.
    if type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype == torch.float32:
        return _learned_cpu()
    return None


@cache
def _learned_cpu() -> ModuleType:
    # numba takes a quarter of a second to import.
    from trainables.quantizers import learned_cpu

    return learned_cpu


def without_gaps(x: Tensor) -> Tensor:
    """x itself where its elements fill their memory, in whatever order, else a copy."""
    # `empty_like` keeps the strides of such tensors and of no others.
    return x if torch.empty_like(x).stride() == x.stride() else x.contiguous()


def lying_like(grad: Tensor, x: Tensor) -> Tensor:
    """grad with its elements in x's order in memory, in x's precision."""
    return grad if grad.dtype == x.dtype and grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)
