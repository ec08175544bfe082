"""A policy: the weight and activation bits of every quantised layer of a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trainables.errors import ConfigError

FORMAT_VERSION = 1
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRecord:
    """A policy with where it came from and what it costs: the content of a policy file."""

    policy: BitPolicy
    method: str
    settings: Mapping[str, Any]
    costs: Mapping[str, float]

    def to_json(self) -> str:
        """Policy file as text; `from_json` reads it back."""
        policy = self.policy
        content = {
            "bitfront_policy": FORMAT_VERSION,
            "hash": policy.hash,
            "network": policy.network,
            "method": self.method,
            "settings": dict(self.settings),
            "costs": dict(self.costs),
            "layers": policy.layers,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> PolicyRecord:
        """Reads a policy file; `origin` is named in errors. A hash that does not match is an error."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{origin}:{error.lineno}:{error.colno}: not JSON: {error.msg}.") from None
        if not isinstance(content, dict) or content.get("bitfront_policy") != FORMAT_VERSION:
            raise ConfigError(f"{origin}: not a policy file: expected 'bitfront_policy': {FORMAT_VERSION}.")
        try:
            policy = policy_of(content["network"], content["layers"], origin)
            record = cls(policy=policy, method=content["method"], settings=content["settings"], costs=content["costs"])
            found = content["hash"]
        except KeyError as error:
            raise ConfigError(f"{origin}: the policy file lacks {error.args[0]!r}.") from None
        if found != policy.hash:
            raise ConfigError(
                f"{origin}: the hash in the file ({str(found)[:12]}…) is not that of its bits "
                f"({policy.hash[:12]}…): the file was edited by hand or damaged."
            )
        return record

    @classmethod
    def load(cls, path: Path) -> PolicyRecord:
        """Reads the policy file at `path`."""
        return cls.from_json(path.read_text(), origin=str(path))


def policy_of(network: str, layers: object, origin: str) -> BitPolicy:
    """The policy of a network whose file, `origin`, has these `BitPolicy.layers`."""
    if not isinstance(layers, dict):
        raise ConfigError(f"{origin}: 'layers' must map each layer's name to its weight and act bits.")
    for name, entry in layers.items():
        if not isinstance(entry, dict) or set(entry) != {"weight", "act", "pinned"}:
            raise ConfigError(f"{origin}: layer {name!r}: expected 'weight', 'act' and 'pinned', found {entry!r}.")
    return BitPolicy(
        network=network,
        bits={name: LayerBits(weight=entry["weight"], act=entry["act"]) for name, entry in layers.items()},
        pinned=frozenset(name for name, entry in layers.items() if entry["pinned"]),
    )
