"""How tensors must lie in memory for passes that walk over it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def has_memory(*tensors: Tensor) -> bool:
    """Whether these are numbers in memory; in a trace or an export tensors stand for others."""
    return not torch.compiler.is_compiling() and all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)


def floats_of_the_cpu(*tensors: Tensor) -> bool:
    """Whether the compiled loops serve these: float32 in the CPU's memory, all of them."""
    return has_memory(*tensors) and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors
    )


def without_gaps(x: Tensor) -> Tensor:
    """x itself where its elements fill their memory, in whatever order, else a copy."""
    # `empty_like` keeps the strides of such tensors and of no others.
    return x if torch.empty_like(x).stride() == x.stride() else x.contiguous()


def lying_like(grad: Tensor, x: Tensor) -> Tensor:
    """grad with its elements in x's order in memory, in x's precision."""
    return grad if grad.dtype == x.dtype and grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)


def flat(tensor: Tensor) -> Tensor:
    """One dimension, in the order of memory, of a tensor without gaps there."""
    return tensor.as_strided((tensor.numel(),), (1,))
