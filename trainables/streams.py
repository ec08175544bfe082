"""Which layers read the same activation, and which activations are added to each other: watched during a forward pass.

An activation is a piece of memory between two operations that write to it. Views of it are the same activation; after
an operation in place it is another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_ADDS = {torch.ops.aten.add, torch.ops.aten.add_}
_KEEPS_STREAM = {torch.ops.aten.relu, torch.ops.aten.relu_, torch.ops.aten.hardtanh, torch.ops.aten.hardtanh_}
"""A sum that went through one of these (hardtanh is ReLU6) is still in its stream; identity, and dropout where nothing
is trained, are no operations at all."""


class _Groups:
    """Disjoint sets of whole numbers (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def find(self, item: int) -> int:
        """The number that stands for the set of `item`."""
        while (parent := self._parent.get(item, item)) != item:
            self._parent[item] = self._parent.get(parent, parent)
            item = parent
        return item

    def unite(self, *items: int) -> None:
        """Makes one set of those of `items`."""
        roots = {self.find(item) for item in items}
        self._parent |= dict.fromkeys(roots, min(roots))


class Streams:
    """Activations of a forward pass. Told of every operation and of every layer's input, in order."""

    def __init__(self, images: Tensor) -> None:
        """`images`: what goes into the network. Only what is made of them is an activation."""
        self._number: dict[int, int] = {}
        """Memory -> the activation that it holds now."""
        self._activations = 0
        self._sums: set[int] = set()
        self._same, self._added = _Groups(), _Groups()
        self._read: dict[str, int] = {}
        """Layer -> an activation that it reads."""
        self._renew(images)

    def read(self, layer: str, inputs: Tensor) -> None:
        """The layer reads `inputs`. One that runs again with others makes them, and those who read them, one group."""
        activation = self._number.get(_memory(inputs)) or self._renew(inputs)
        before = self._read.setdefault(layer, activation)
        for groups in (self._same, self._added):
            groups.unite(before, activation)

    def knows(self, tensor: Tensor) -> bool:
        """Whether it was made of the images: a weight, or what is computed of weights alone, was not."""
        return _memory(tensor) in self._number

    def observe(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """An operation was carried out; `out` is what it gave."""
        given = [_memory(tensor) for tensor in _tensors((args, kwargs))]
        if func is torch.ops.aten.lift_fresh.default:
            given = []
        known = [self._number[memory] for memory in given if memory in self._number]
        # What is not in a memory that came in is new, even where the memory was another tensor's before.
        made = [tensor for tensor in _tensors(out) if _memory(tensor) not in given]
        made += _written(func, args, kwargs)
        if not known:
            for tensor in made:
                self._number.pop(_memory(tensor), None)
            return
        results = [self._renew(tensor) for tensor in made]
        packet = func._overloadpacket
        if packet in _ADDS and len(known) == 2:
            self._added.unite(*known, *results)
            self._sums.update(results)
        elif (packet in _ADDS and _is_zero(args[1])) or (packet in _KEEPS_STREAM and known[0] in self._sums):
            self._added.unite(known[0], *results)
            self._sums.update(results if known[0] in self._sums else ())

    def _renew(self, tensor: Tensor) -> int:
        self._activations += 1
        self._number[_memory(tensor)] = self._activations
        return self._activations

    def reads(self) -> dict[str, str]:
        """Layer -> the first layer that reads the very same activation."""
        return self._first_readers(self._same)

    def streams(self) -> dict[str, str]:
        """The same, where activations that are added to each other, and their sum, are one."""
        return self._first_readers(self._added)

    def _first_readers(self, groups: _Groups) -> dict[str, str]:
        firsts: dict[int, str] = {}
        return {name: firsts.setdefault(groups.find(activation), name) for name, activation in self._read.items()}


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors with memory of their own kind (no sparse ones) in nested lists, tuples and mappings."""
    if isinstance(values, Tensor):
        if values.layout == torch.strided:
            yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operation writes to."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[place] if place < len(args) else kwargs.get(argument.name))


def _is_zero(value: object) -> bool:
    """Whether it is the 0 that Python's `sum` begins with."""
    return isinstance(value, int | float) and value == 0
