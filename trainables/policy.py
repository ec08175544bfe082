"""A policy: the weight and activation bits of every quantised layer of a network. `policy_file` keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from trainables.errors import ConfigError

MAX_BITS = 32


class LayerBits(NamedTuple):
    """Bits of one layer's weights and of the activation that it reads."""

    weight: int
    act: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BitPolicy:
    """Bits by layer name, in order of execution. `pinned` layers have theirs by a setting, the others by a search."""

    network: str
    bits: Mapping[str, LayerBits]
    pinned: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = sorted(self.pinned - set(self.bits))
        if unknown:
            raise ConfigError(f"policy: {', '.join(unknown)} is pinned but has no bits; give it weight and act bits.")
        for layer, bits in self.bits.items():
            for kind, value in zip(("weight", "act"), bits, strict=True):
                if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_BITS:
                    raise ConfigError(
                        f"policy: {layer}: {kind} bits are {value!r}; give a whole number from 1 to {MAX_BITS}."
                    )

    @property
    def searched(self) -> dict[str, LayerBits]:
        """The layers that are not pinned."""
        return {name: bits for name, bits in self.bits.items() if name not in self.pinned}

    @property
    def hash(self) -> str:
        """SHA-256 of the network's name and its bits, hexadecimal; the order of layers does not matter."""
        content = {"network": self.network, "bits": {name: list(bits) for name, bits in self.bits.items()}}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def layers(self) -> dict[str, dict[str, int | bool]]:
        """Bits and pinning by layer, as files hold them; `policy_of` reads them back."""
        return {
            name: {"weight": bits.weight, "act": bits.act, "pinned": name in self.pinned}
            for name, bits in self.bits.items()
        }

    def check_covers(self, layers: Iterable[str]) -> None:
        """Raises ConfigError unless the policy names exactly the network's `layers`."""
        known = set(layers)
        unknown, missing = sorted(set(self.bits) - known), sorted(known - set(self.bits))
        if unknown or missing:
            raise ConfigError(
                f"policy for {self.network!r} does not fit: layers the network does not have: "
                f"{', '.join(unknown) or 'none'}; layers without bits: {', '.join(missing) or 'none'}."
            )

    def diff(self, other: BitPolicy) -> dict[str, tuple[LayerBits | None, LayerBits | None]]:
        """Layers whose bits differ, as (ours, theirs); None where one side lacks the layer."""
        names = list(self.bits) + [name for name in other.bits if name not in self.bits]
        pairs = {name: (self.bits.get(name), other.bits.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def policy_of(network: str, layers: object, origin: str) -> BitPolicy:
    """The policy of a network whose file, `origin`, has these `BitPolicy.layers`."""
    if not isinstance(layers, dict):
        raise ConfigError(f"{origin}: 'layers' must map each layer's name to its weight and act bits.")
    for name, entry in layers.items():
        if not isinstance(entry, dict) or set(entry) != {"weight", "act", "pinned"}:
            raise ConfigError(f"{origin}: layer {name!r}: expected 'weight', 'act' and 'pinned', found {entry!r}.")
        if not isinstance(entry["pinned"], bool):
            raise ConfigError(f"{origin}: layer {name!r}: 'pinned' is {entry['pinned']!r}; expected true or false.")
    try:
        return BitPolicy(
            network=network,
            bits={name: LayerBits(weight=entry["weight"], act=entry["act"]) for name, entry in layers.items()},
            pinned=frozenset(name for name, entry in layers.items() if entry["pinned"]),
        )
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
