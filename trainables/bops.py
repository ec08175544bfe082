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
    Mean bits  of a weight: Σ weights·w_bits / Σ weights; of an activation: Σ inputs·a_bits / Σ inputs, an activation
            that several layers read counting for each. Pinned layers included, products of activations not.

Every cost follows from `Counts`, whole numbers, by one division, so that a cost that is compared with a limit is not
blurred by the order of its sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from trainables.errors import ConfigError
from trainables.policy import BitPolicy, LayerBits

FULL_BITS = 32
FULL = LayerBits(FULL_BITS, FULL_BITS)
GIGA = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWork:
    """What one layer does for one image."""

    kind: Literal["conv", "linear", "product"]
    macs: int
    weights: int
    """Entries of the weight that a policy quantises; 0 for a product of activations."""
    inputs: int
    """Entries of the activation that it reads, over all its runs; 0 for a product of activations."""
    reads_negative: bool
    """Whether its input had a negative entry: then a signed quantiser is needed."""
    reads: str
    """The first layer that reads the very same activation; itself where no layer before it does."""
    stream: str
    """The same, where activations that are added to each other, and their sum, count as one."""

    def counts(self, bits: LayerBits, *, searched: bool) -> Counts:
        """What the layer adds to each count with these bits."""
        bops = self.macs * bits.weight * bits.act
        return Counts(
            bops=bops,
            searched_bops=bops if searched else 0,
            weight_bits=self.weights * bits.weight,
            act_bits=self.inputs * bits.act,
            searched_macs=self.macs if searched else 0,
        )


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What bits add up to over a network, in whole numbers: every cost grows (compression falls) with one of them."""

    bops: int = 0
    """Σ MACs·w_bits·a_bits over all layers and products of activations."""
    searched_bops: int = 0
    """The same over the searched layers."""
    weight_bits: int = 0
    """Σ weights·w_bits."""
    act_bits: int = 0
    """Σ inputs·a_bits."""
    searched_macs: int = 0
    """MACs of the searched layers, whatever their bits."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            bops=self.bops + other.bops,
            searched_bops=self.searched_bops + other.searched_bops,
            weight_bits=self.weight_bits + other.weight_bits,
            act_bits=self.act_bits + other.act_bits,
            searched_macs=self.searched_macs + other.searched_macs,
        )


COUNT_OF = {
    "bops_g": "bops",
    "bops_paper_g": "searched_bops",
    "compression": "bops",
    "storage_mb": "weight_bits",
    "storage_mib": "weight_bits",
    "mean_weight_bits": "weight_bits",
    "mean_act_bits": "act_bits",
}
"""The count that each cost follows from."""


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

    @property
    def weights(self) -> int:
        """Weights of all layers."""
        return sum(work.weights for work in self.work.values())

    @property
    def inputs(self) -> int:
        """Entries that all layers read, those of an activation that several read counting for each."""
        return sum(work.inputs for work in self.work.values())

    def counts(self, policy: BitPolicy) -> Counts:
        """What the bits of `policy` add up to. Raises ConfigError when it names other layers."""
        policy.check_covers(self.layers)
        searched = policy.searched.items()
        pinned = {name: policy.bits[name] for name in policy.pinned}
        return sum((self.work[name].counts(bits, searched=True) for name, bits in searched), self.unsearched(pinned))

    def unsearched(self, pinned: Mapping[str, LayerBits]) -> Counts:
        """What pinned layers with their bits, and products of activations in full precision, add up to."""
        products = {name: FULL for name, work in self.work.items() if work.kind == "product"}
        parts = {**pinned, **products}.items()
        return sum((self.work[name].counts(bits, searched=False) for name, bits in parts), Counts())

    def costs(self, counts: Counts) -> dict[str, float]:
        """Every cost, each the nearest float to its exact value. See `of`."""
        storage = self._storage(counts)
        return {
            "bops_g": counts.bops / GIGA,
            # A policy whose layers are all pinned has no mean to spread.
            "bops_paper_g": self.macs * counts.searched_bops / (counts.searched_macs * GIGA or 1),
            "compression": self.macs * FULL_BITS**2 / counts.bops,
            "storage_mb": storage.mb,
            "storage_mib": storage.mib,
            "mean_weight_bits": counts.weight_bits / self.weights,
            "mean_act_bits": counts.act_bits / self.inputs,
        }

    def of(self, policy: BitPolicy) -> dict[str, float]:
        """Every cost of `policy`: bops_g and bops_paper_g (10^9), compression (× fewer BOPs), storage_mb, storage_mib,
        mean_weight_bits, mean_act_bits. Raises ConfigError when the policy names other layers."""
        return self.costs(self.counts(policy))

    def bops_g(self, policy: BitPolicy) -> float:
        """BOPs of one image under `policy`, 10^9. Raises ConfigError when the policy names other layers."""
        return self.counts(policy).bops / GIGA

    def storage(self, policy: BitPolicy) -> Storage:
        """Bytes under `policy`. Raises ConfigError when the policy names other layers."""
        return self._storage(self.counts(policy))

    def _storage(self, counts: Counts) -> Storage:
        return Storage(weight_bytes=counts.weight_bits / 8, float_bytes=self.float_entries * 4.0)

    def to_content(self) -> dict[str, Any]:
        """Plain values, as JSON holds them; `from_content` reads them back."""
        return {"layers": {name: asdict(work) for name, work in self.work.items()}, "float_entries": self.float_entries}

    @classmethod
    def from_content(cls, content: object) -> CostModel:
        """Reads `to_content`. Raises ConfigError that names what is missing or wrong."""
        if not isinstance(content, dict) or set(content) != {"layers", "float_entries"}:
            raise ConfigError("expected an object of 'layers' and 'float_entries'.")
        if not isinstance(content["layers"], dict):
            raise ConfigError("'layers' must map each layer's name to its work.")
        work = {name: _work_of(name, entry) for name, entry in content["layers"].items()}
        for name, layer in work.items():
            for other in (layer.reads, layer.stream):
                if other not in work:
                    raise ConfigError(f"layer {name!r} reads with {other!r}, which is no layer of this network.")
        return cls(work, _whole_number("float_entries", content["float_entries"]))


def _work_of(name: str, entry: object) -> LayerWork:
    known = {field.name: field.type for field in fields(LayerWork)}
    if not isinstance(entry, dict) or set(entry) != set(known):
        raise ConfigError(f"layer {name!r}: expected {', '.join(known)}; found {entry!r}.")
    if entry["kind"] not in ("conv", "linear", "product"):
        raise ConfigError(f"layer {name!r}: kind is {entry['kind']!r}; expected conv, linear or product.")
    for key, value in entry.items():
        if known[key] == "int":
            _whole_number(f"layer {name!r}: {key}", value)
        elif not isinstance(value, bool if known[key] == "bool" else str):
            raise ConfigError(f"layer {name!r}: {key} is {value!r}; expected {known[key]}.")
    return LayerWork(**entry)


def _whole_number(where: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{where} is {value!r}; expected zero or a positive whole number.")
    return value
