"""What a policy costs: multiply-accumulates, bit-operations, storage. The one place where bits become costs; no torch.

`trainables.counting` finds out what the layers of a network do.

Conventions
    MACs    one multiplication with its addition, from the sizes that a forward pass really has; groups counted; a bias
            is free. Linear and convolution layers by name; products of two activations (attention) under the name of
            the module that makes them.
    BOPs    exact:  Σ_layers MACs·w_bits·a_bits, pinned layers at their own bits, products of activations at 32·32.
            paper:  MACs_total·1024·mean(w·a)/1024, the mean MAC-weighted over the searched layers alone.
            Full precision is 32·32. 1 G is 10^9.
    Storage Σ weights·w_bits/8 bytes. Biases and normalisation stay float (4 bytes) and are listed apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainables.policy import BitPolicy

FULL_BITS = 32
GIGA = 1e9
Convention = Literal["exact", "paper"]


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
