"""What a policy costs: multiply-accumulates, bit-operations, storage. The one place where cost is counted.

Conventions
    MACs    one multiplication with its addition, from the sizes that a forward pass really has; groups counted; a bias
            is free. Linear and convolution layers by name; products of two activations (attention) under the name of
            the module that makes them.
    BOPs    exact:  Σ_layers MACs·w_bits·a_bits, pinned layers at their own bits, products of activations at 32·32.
            paper:  MACs_total·1024·mean(w·a)/1024, the mean MAC-weighted over the searched layers alone.
            Full precision is 32·32. 1 G is 10^9.
    Storage Σ weights·w_bits/8 bytes. Biases and normalisation stay float (4 bytes) and are listed apart.

Whatever multiplies and is neither a Conv2d, a Linear nor a product of two activations is a CoverageError that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from trainables.errors import CoverageError
from trainables.policy import BitPolicy

FULL_BITS = 32
GIGA = 1e9
Convention = Literal["exact", "paper"]

_PRODUCTS = {torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.mm, torch.ops.aten.addmm}
# These work but have no entry in torch's table of operation counts, so they are known by their name.
_UNCOUNTABLE = ("rnn", "lstm", "gru", "_trilinear", "cdist", "_transformer_encoder_layer", "_native_multi_head")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWork:
    """What one layer does for one image."""

    kind: Literal["conv", "linear", "product"]
    macs: int
    weights: int
    """Entries of the weight that a policy quantises; 0 for a product of activations."""
    reads_negative: bool
    """Whether its input had a negative entry: then a signed quantiser is needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """Bytes of a quantised network."""

    weight_bytes: float
    """Quantised weights, densely packed."""
    float_bytes: float
    """Biases and normalisation, 4 bytes each."""

    @property
    def mb(self) -> float:
        """Quantised weights, 10^6 bytes."""
        return self.weight_bytes / 1e6

    @property
    def mib(self) -> float:
        """Quantised weights, 2^20 bytes."""
        return self.weight_bytes / 2**20

    @property
    def float_mb(self) -> float:
        """Float leftovers, 10^6 bytes."""
        return self.float_bytes / 1e6


@dataclass(frozen=True, slots=True)
class CostModel:
    """Work of every layer in order of execution, and what a policy makes of it. No tensors."""

    work: Mapping[str, LayerWork]
    float_entries: int
    """Parameters and normalisation statistics that no policy quantises."""

    @property
    def layers(self) -> dict[str, LayerWork]:
        """Layers with a weight: those that a policy must name."""
        return {name: work for name, work in self.work.items() if work.kind != "product"}

    @property
    def macs(self) -> int:
        """MACs of one image."""
        return sum(work.macs for work in self.work.values())

    @property
    def full_bops_g(self) -> float:
        """BOPs in full precision, 10^9."""
        return self.macs * FULL_BITS**2 / GIGA

    def bops_g(self, policy: BitPolicy, *, convention: Convention = "exact") -> float:
        """BOPs of one image under `policy`, 10^9. Raises ConfigError when the policy names other layers."""
        policy.check_covers(self.layers)
        if convention == "paper":
            searched = {name: self.work[name].macs for name in policy.searched}
            spent = sum(
                macs * policy.searched[name].weight * policy.searched[name].act for name, macs in searched.items()
            )
            return self.macs * spent / sum(searched.values()) / GIGA
        full = (FULL_BITS, FULL_BITS)
        bits = policy.bits
        return sum(w.macs * bits.get(name, full)[0] * bits.get(name, full)[1] for name, w in self.work.items()) / GIGA

    def of(self, policy: BitPolicy) -> dict[str, float]:
        """Every cost: bops_g and bops_paper_g (10^9), compression (× fewer BOPs), storage_mb, storage_mib."""
        bops_g, storage = self.bops_g(policy), self.storage(policy)
        return {
            "bops_g": bops_g,
            "bops_paper_g": self.bops_g(policy, convention="paper"),
            "compression": self.full_bops_g / bops_g,
            "storage_mb": storage.mb,
            "storage_mib": storage.mib,
        }

    def storage(self, policy: BitPolicy) -> Storage:
        """Bytes under `policy`. Raises ConfigError when the policy names other layers."""
        policy.check_covers(self.layers)
        bits = policy.bits
        return Storage(
            weight_bytes=sum(work.weights * bits[name].weight for name, work in self.layers.items()) / 8,
            float_bytes=self.float_entries * 4.0,
        )


class _Counter(TorchDispatchMode):
    """Adds up MACs of every operation under the name of the innermost module that runs it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.net = net
        self.running: list[str] = []
        self.work: dict[str, LayerWork] = {}
        self.parameters = {p.untyped_storage()._cdata: name for name, p in net.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
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
        if owned or packet not in _PRODUCTS:
            raise CoverageError(
                f"{self._where()}: {packet} does {macs} multiply-accumulates"
                f"{' with ' + ', '.join(owned) if owned else ''}, outside of any Conv2d or Linear layer: "
                f"no policy could set its bits and no cost would count it. Use nn.Conv2d or nn.Linear there."
            )
        if name not in self.work:
            self.work[name] = LayerWork(kind="product", macs=0, weights=0, reads_negative=True)
        self._grow(name, macs)

    def _grow(self, name: str, macs: int) -> None:
        self.work[name] = replace(self.work[name], macs=self.work[name].macs + macs)

    def _where(self) -> str:
        name = self.running[-1] if self.running else ""
        return f"module {name or '(the network itself)'} ({type(self.net.get_submodule(name)).__name__})"

    def enter(self, name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Called as a module starts; a layer is charged from here on."""
        self.running.append(name)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            negative = bool((inputs[0] < 0).any())
            old = self.work.get(name)
            self.work[name] = LayerWork(
                kind="conv" if isinstance(layer, nn.Conv2d) else "linear",
                macs=old.macs if old else 0,
                weights=layer.weight.numel(),
                reads_negative=negative or (old is not None and old.reads_negative),
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every module for the time of a forward pass."""
        handles = []
        for name, module in self.net.named_modules():
            handles += [
                module.register_forward_pre_hook(lambda m, inputs, name=name: self.enter(name, m, inputs)),
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

    MACs depend on the shape alone; real images tell which layers read negative values.

    Raises CoverageError for work outside of Conv2d and Linear, and for such layers that the pass never reached.
    """
    was_training = net.training
    net.eval()
    counter = _Counter(net)
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
    per_image = {name: replace(work, macs=work.macs // len(images)) for name, work in counter.work.items()}
    weights = sum(work.weights for work in per_image.values())
    statistics = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    return CostModel(per_image, sum(p.numel() for p in net.parameters()) - weights + statistics)


def _check_all_reached(net: nn.Module, work: Mapping[str, LayerWork]) -> None:
    idle = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n not in work]
    if idle:
        raise CoverageError(f"layers that a forward pass never runs: {', '.join(idle)}; remove them from the network.")
