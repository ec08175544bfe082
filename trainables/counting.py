"""What the layers of a network do, found out by running it: multiply-accumulates, weights, what they read.

Whatever multiplies and is neither a Conv2d, a Linear nor a product of two activations is a CoverageError that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from trainables.bops import CostModel, LayerWork
from trainables.errors import CoverageError
from trainables.streams import Streams

_PRODUCTS = {torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.mm, torch.ops.aten.addmm}
# These work but have no entry in torch's table of operation counts, so they are known by their name.
_UNCOUNTABLE = ("rnn", "lstm", "gru", "_trilinear", "cdist", "_transformer_encoder_layer", "_native_multi_head")


class _Counter(TorchDispatchMode):
    """Adds up MACs of every operation under the name of the innermost module that runs it."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.net = net
        self.running: list[str] = []
        self.work: dict[str, LayerWork] = {}
        self.streams = Streams(images)
        self.parameters = {p.untyped_storage()._cdata: name for name, p in net.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.streams.observe(func, args, kwargs, out)
        packet = func._overloadpacket
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
            self._add(packet, flops // 2, args)
        elif any(word in str(packet) for word in _UNCOUNTABLE):
            raise CoverageError(
                f"{self._where()}: {packet} multiplies but cannot be counted; build it of Conv2d and Linear layers."
            )
        return out

    def _add(self, packet: Any, macs: int, args: Any) -> None:
        name = self.running[-1] if self.running else ""
        if name in self.work and self.work[name].kind != "product":
            self._grow(name, macs)
            return
        owners = [self.parameters.get(a.untyped_storage()._cdata) for a in args if isinstance(a, Tensor)]
        owned = sorted({owner for owner in owners if owner is not None})
        made_of_images = all(self.streams.knows(a) for a in args if isinstance(a, Tensor))
        if owned or packet not in _PRODUCTS or not made_of_images:
            raise CoverageError(
                f"{self._where()}: {packet} does {macs} multiply-accumulates"
                f"{' with ' + ', '.join(owned) if owned else ''}, outside of any Conv2d or Linear layer: "
                f"no policy could set its bits and no cost would count it. Use nn.Conv2d or nn.Linear there."
            )
        if name not in self.work:
            self.work[name] = LayerWork(
                kind="product", macs=0, weights=0, inputs=0, reads_negative=True, reads=name, stream=name
            )
        self._grow(name, macs)

    def _grow(self, name: str, macs: int) -> None:
        self.work[name] = replace(self.work[name], macs=self.work[name].macs + macs)

    def _where(self) -> str:
        name = self.running[-1] if self.running else ""
        return f"module {name or '(the network itself)'} ({type(self.net.get_submodule(name)).__name__})"

    def enter(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Called as a module starts; a layer is charged from here on."""
        self.running.append(name)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            x = args[0] if args else kwargs["input"]
            self.streams.read(name, x)
            negative = bool((x < 0).any())
            old = self.work.get(name)
            self.work[name] = LayerWork(
                kind="conv" if isinstance(layer, nn.Conv2d) else "linear",
                macs=old.macs if old else 0,
                weights=layer.weight.numel(),
                inputs=x.numel() + (old.inputs if old else 0),
                reads_negative=negative or (old is not None and old.reads_negative),
                reads=name,
                stream=name,
            )

    def found(self) -> dict[str, LayerWork]:
        """The work for all images, with the layers that share an activation."""
        reads, streams = self.streams.reads(), self.streams.streams()
        return {
            name: replace(work, reads=reads.get(name, name), stream=streams.get(name, name))
            for name, work in self.work.items()
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every module for the time of a forward pass."""
        handles = []
        for name, module in self.net.named_modules():
            handles += [
                module.register_forward_pre_hook(
                    lambda m, args, kwargs, name=name: self.enter(name, m, args, kwargs), with_kwargs=True
                ),
                module.register_forward_hook(lambda m, inputs, out: self._leave()),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self.running.pop()


@torch.no_grad()
def measure(net: nn.Module, images: Tensor) -> CostModel:
    """Counts one forward pass of `net` on `images` [N, C, H, W], per image, in order of execution.

    MACs and what is read by whom depend on the shape alone; real images tell which layers read negative values.

    Raises CoverageError for work outside of Conv2d and Linear, and for such layers that the pass never reached.
    """
    was_training = net.training
    net.eval()
    counter = _Counter(net, images)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Fused attention and fused encoder layers would hide their products from the counter.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter.watching(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
            net(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        net.train(was_training)
    _check_all_reached(net, counter.work)
    per_image = {
        name: replace(work, macs=work.macs // len(images), inputs=work.inputs // len(images))
        for name, work in counter.found().items()
    }
    weights = sum(work.weights for work in per_image.values())
    statistics = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    return CostModel(per_image, sum(p.numel() for p in net.parameters()) - weights + statistics)


def _check_all_reached(net: nn.Module, work: Mapping[str, LayerWork]) -> None:
    idle = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n not in work]
    if idle:
        raise CoverageError(f"layers that a forward pass never runs: {', '.join(idle)}; remove them from the network.")
