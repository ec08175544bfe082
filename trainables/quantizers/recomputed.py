"""Layers that keep none of what they read: mixed activations and weights are made again when gradients need them.

A convolution saves both of its inputs for the backward pass. The mixture has saved already what they were made of, the
layer's own input and weight, which a full-precision convolution saves as well; to mix once more is one pass over them.
So a quantised layer needs the memory of a plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Recipe(NamedTuple):
    """How a saved tensor is made again: a view of what a node of autograd's graph gave, as another dtype."""

    again: Callable[[Any], Tensor]
    node: Any
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def make(self) -> Tensor:
        with torch.no_grad():
            made = self.again(self.node).to(self.dtype)
        return made.as_strided(self.size, self.stride, self.offset)


@contextmanager
def recomputed(*inputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of an operation, of which it saves only recipes for those that a quantiser can make again.

    These come from an autograd function whose context has `again`, a function from the context to the same result, bit
    for bit. It takes its inputs from `saved_tensors`, so that one which was changed in between is an error as ever.

    Under autocast they are already in its dtype, as the operation would save a copy of its own.
    """
    ready = tuple(_autocast(tensor) for tensor in inputs)
    if torch.compiler.is_compiling():
        # An export keeps nothing for gradients, and its tracer knows no recipes.
        yield ready
        return
    makers = {}
    for made, given in zip(inputs, ready, strict=True):
        again = getattr(made.grad_fn, "again", None)
        # Tensors that stand for others, in a trace or an export, and empty ones have no memory to be known by.
        if again is not None and torch.is_grad_enabled() and type(made) is Tensor and made.numel():
            makers[given.untyped_storage().data_ptr()] = again, made.grad_fn, given.dtype

    def pack(tensor: Tensor) -> Tensor | _Recipe:
        maker = makers.get(tensor.untyped_storage().data_ptr())
        if maker is None or tensor.dtype != maker[2]:
            return tensor
        return _Recipe(*maker, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def unpack(packed: Tensor | _Recipe) -> Tensor:
        return packed.make() if isinstance(packed, _Recipe) else packed

    if makers:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield ready
    else:
        yield ready


def _autocast(tensor: Tensor) -> Tensor:
    """In the dtype in which autocast lets convolutions and matrix products compute."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))
