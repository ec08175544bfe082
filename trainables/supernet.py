"""The supernet: any network whose convolutions and linear layers hold all candidate widths at once.

One shared float weight per layer; per layer two vectors of logits. `build_supernet` makes it, `Supernet` reads its
expected bits and ends it (`discretise`, argmax), `deploy` builds the quantised network of a policy.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.bops import CostModel
from trainables.config import NetworkConfig, QuantizerName, SupernetConfig
from trainables.errors import ConfigError, CoverageError
from trainables.policy import BitPolicy, LayerBits
from trainables.quantizers.layers import BitMixture, QuantLayer, quant_layers, quantize_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """Which layers are searched and which have fixed bits, in order of execution."""

    searched: tuple[str, ...]
    pinned: Mapping[str, int]
    """Bits of weights and activations; stem and head included."""
    float_in_search: frozenset[str]
    """Stem and head unless a pattern names them: quantised on deployment only."""


def assign_roles(costs: CostModel, config: NetworkConfig) -> Roles:
    """Stem = the first layer to run, head = the last; patterns pin more. A pattern without a match is an error."""
    names = list(costs.layers)
    if len(names) < 3:
        raise CoverageError(
            f"the network has {len(names)} layers; stem and head stay out, so 3 are needed for a search."
        )
    pinned = {names[0]: config.stem_bits, names[-1]: config.head_bits}
    by_pattern: dict[str, int] = {}
    for pattern, bits in config.pinned.items():
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise ConfigError(f"network.pinned: {pattern!r} matches no layer; layers are: {', '.join(names)}.")
        by_pattern.update(dict.fromkeys(matches, bits))
    searched = tuple(name for name in names if name not in pinned and name not in by_pattern)
    if not searched:
        raise ConfigError("network.pinned leaves no layer to search; pin fewer layers.")
    return Roles(
        searched=searched, pinned={**pinned, **by_pattern}, float_in_search=frozenset(pinned) - frozenset(by_pattern)
    )


class Supernet:
    """A network with bit mixtures, and what its logits say. The network itself is `net`."""

    def __init__(self, net: nn.Module, costs: CostModel, roles: Roles) -> None:
        self.net, self.costs, self.roles = net, costs, roles
        layers = quant_layers(net)
        self.searched: dict[str, QuantLayer] = {name: layers[name] for name in roles.searched}
        device = next(net.parameters()).device
        self.macs = torch.tensor([float(costs.work[name].macs) for name in self.searched], device=device)
        mixtures = [layer.mixture for layer in self.searched.values()]
        self._weight_widths = [torch.tensor(m.weight_bits, dtype=torch.float32, device=device) for m in mixtures]
        self._act_widths = [torch.tensor(m.act_bits, dtype=torch.float32, device=device) for m in mixtures]
        start = sum(
            float(w.mean() * a.mean() * macs)
            for w, a, macs in zip(self._weight_widths, self._act_widths, self.macs, strict=True)
        )
        self.start = torch.tensor(start, device=device)

    def bit_logits(self) -> list[nn.Parameter]:
        """All logits; the other parameters are weights."""
        return [p for layer in self.searched.values() for p in layer.mixture.parameters(recurse=False)]

    def expected_bits(self) -> tuple[Tensor, Tensor]:
        """q_w [L] and q_a [L], Σ_i π_i·b_i per searched layer, differentiable."""
        mixtures = [layer.mixture for layer in self.searched.values()]
        weights = [(m.weight_probs() * b).sum() for m, b in zip(mixtures, self._weight_widths, strict=True)]
        acts = [(m.act_probs() * b).sum() for m, b in zip(mixtures, self._act_widths, strict=True)]
        return torch.stack(weights), torch.stack(acts)

    @torch.no_grad()
    def discretise(self, network: str) -> BitPolicy:
        """The most probable width of every searched layer; of equals the smaller."""
        bits = {
            name: LayerBits(
                weight=_most_probable(layer.mixture.weight_bits, layer.mixture.weight_probs()),
                act=_most_probable(layer.mixture.act_bits, layer.mixture.act_probs()),
            )
            for name, layer in self.searched.items()
        }
        bits |= {name: LayerBits(weight=b, act=b) for name, b in self.roles.pinned.items()}
        in_order = {name: bits[name] for name in self.costs.layers}
        return BitPolicy(network=network, bits=in_order, pinned=frozenset(self.roles.pinned))

    @torch.no_grad()
    def certainty(self) -> float:
        """Mean over layers of the largest π: how far the choice has been made, 1/n at the start."""
        tops = [
            probs.max()
            for layer in self.searched.values()
            for probs in (layer.mixture.weight_probs(), layer.mixture.act_probs())
        ]
        return float(torch.stack(tops).mean())


def _most_probable(bits: tuple[int, ...], probs: Tensor) -> int:
    best = max(float(p) for p in probs)
    return min(b for b, p in zip(bits, probs, strict=True) if float(p) == best)


def build_supernet(net: nn.Module, costs: CostModel, roles: Roles, config: SupernetConfig) -> Supernet:
    """A copy of `net` with all candidate widths in the searched layers; layers pinned by pattern have theirs."""
    candidates = dict.fromkeys(roles.searched, (config.weight_bits, config.act_bits))
    candidates |= {name: ((b,), (b,)) for name, b in roles.pinned.items() if name not in roles.float_in_search}
    return Supernet(_quantized_copy(net, costs, candidates, config.quantizer), costs, roles)


def deploy(net: nn.Module, costs: CostModel, policy: BitPolicy, quantizer: QuantizerName) -> nn.Module:
    """A copy of `net` quantised as `policy` says, stem and head included."""
    policy.check_covers(costs.layers)
    candidates = {name: ((bits.weight,), (bits.act,)) for name, bits in policy.bits.items()}
    return _quantized_copy(net, costs, candidates, quantizer)


def _quantized_copy(
    net: nn.Module,
    costs: CostModel,
    candidates: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    quantizer: QuantizerName,
) -> nn.Module:
    device = next(net.parameters()).device
    mixtures = {
        name: BitMixture(
            quantizer, weight_bits=weight_bits, act_bits=act_bits, signed=costs.work[name].reads_negative
        ).to(device)
        for name, (weight_bits, act_bits) in candidates.items()
    }
    return quantize_layers(copy.deepcopy(net), mixtures)
