"""The supernet: any network whose convolutions and linear layers hold all candidate widths at once.

One shared float weight per layer; logits for the widths of each layer's weights and of each activation, whose quantiser
and logits the layers of a group share. `build_supernet` makes it, `Supernet` reads its expected bits and ends it
(`choices`), `deploy` builds the quantised network of a policy.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.bops import COUNT_OF, FULL, CostModel
from trainables.choices import Choices, Scores
from trainables.config import NetworkConfig
from trainables.errors import ConfigError, CoverageError, DivergedError
from trainables.finetune_config import DeployedQuantizer
from trainables.method_config import SupernetConfig, WidthsConfig
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
    group_of: Mapping[str, str]
    """The group of each layer, pinned ones too: layers whose activation has the same bits, named after the first."""
    fixed_acts: Mapping[str, int]
    """Activation bits of the groups that have a pinned layer."""

    @property
    def groups(self) -> dict[str, list[str]]:
        """The searched layers of each group that has any."""
        found: dict[str, list[str]] = {}
        for name in self.searched:
            found.setdefault(self.group_of[name], []).append(name)
        return found


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
    group_of = {name: work.stream if config.tie_residuals else work.reads for name, work in costs.layers.items()}
    all_pinned = {**pinned, **by_pattern}
    return Roles(
        searched=searched,
        pinned=all_pinned,
        float_in_search=frozenset(pinned) - frozenset(by_pattern),
        group_of=group_of,
        fixed_acts=_fixed_acts(group_of, all_pinned),
    )


def _fixed_acts(group_of: Mapping[str, str], pinned: Mapping[str, int]) -> dict[str, int]:
    """Activation bits by group, of the groups with a pinned layer."""
    first: dict[str, str] = {}
    for name in (name for name in group_of if name in pinned):
        other = first.setdefault(group_of[name], name)
        if pinned[other] != pinned[name]:
            raise ConfigError(
                f"network.pinned: {other} has {pinned[other]} bits and {name} has {pinned[name]}, but they share an "
                f"activation, which has one width; give both the same bits (pinned, stem_bits, head_bits)."
            )
    return {group: pinned[name] for group, name in first.items()}


class Supernet:
    """A network with bit mixtures, and what its logits say. The network itself is `net`."""

    def __init__(self, net: nn.Module, costs: CostModel, roles: Roles) -> None:
        self.net, self.costs, self.roles = net, costs, roles
        layers = quant_layers(net)
        self.searched: dict[str, QuantLayer] = {name: layers[name] for name in roles.searched}
        device = next(net.parameters()).device
        work = [costs.work[name] for name in self.searched]
        # Made here: a tensor that is made of Python's numbers in every step would make every step wait for the device.
        self.macs, self._weights, self._inputs = (
            torch.tensor(counts, dtype=torch.float32, device=device)
            for counts in ([w.macs for w in work], [w.weights for w in work], [w.inputs for w in work])
        )
        mixtures = [layer.mixture for layer in self.searched.values()]
        self._weight_choices = _Choices([m.weight_logits for m in mixtures], [m.weight_bits for m in mixtures], device)
        self._act_choices = _Choices([m.act_logits for m in mixtures], [m.act_bits for m in mixtures], device)
        self._bits: tuple[Tensor, Tensor] | None = None
        """Expected bits while `probabilities_at_once` holds."""
        start = sum(
            sum(m.weight_bits) / len(m.weight_bits) * sum(m.act_bits) / len(m.act_bits) * w.macs
            for m, w in zip(mixtures, work, strict=True)
        )
        self.start = torch.tensor(start, dtype=torch.float32, device=device)
        self._unsearched = costs.unsearched({name: LayerBits(b, b) for name, b in roles.pinned.items()})

    def bit_logits(self) -> list[nn.Parameter]:
        """All logits, those of a group once; the other parameters are weights."""
        found = [p for layer in self.searched.values() for p in layer.mixture.parameters(recurse=False)]
        return list({id(parameter): parameter for parameter in found}.values())

    @contextmanager
    def probabilities_at_once(self) -> Iterator[None]:
        """Meanwhile all layers have the probabilities of their logits as these are now, from one softmax for all.

        Layer by layer, in the forward pass and again for every expected cost, they are hundreds of operations on three
        numbers each.
        """
        mixtures = [layer.mixture for layer in self.searched.values()]
        (weights, weight_bits), (acts, act_bits) = self._weight_choices(), self._act_choices()
        try:
            for mixture, weight_share, act_share in zip(mixtures, weights, acts, strict=True):
                mixture.weight_share, mixture.act_share = weight_share, act_share
            self._bits = weight_bits, act_bits
            yield
        finally:
            for mixture in mixtures:
                mixture.weight_share = mixture.act_share = None
            self._bits = None

    def expected_bits(self) -> tuple[Tensor, Tensor]:
        """q_w [L] and q_a [L], Σ_i π_i·b_i per searched layer, differentiable."""
        return self._bits or (self._weight_choices()[1], self._act_choices()[1])

    def usage(self, limits: Mapping[str, int]) -> Tensor:
        """Expected cost over the most that each of `limits` allows [K], differentiable.

            E[cost] = Σ_l c_l·q_w,l·q_a,l,  and the same with one of the two factors for weight and activation bits

        plus what the other layers cost: exact, as each layer's two widths are drawn independently of each other.

        Args:
            limits: cost -> the largest value of its count (`allocate.ceilings`).
        """
        weight_bits, act_bits = self.expected_bits()
        bops = (weight_bits * act_bits * self.macs).sum()
        searched = {
            "bops": bops,
            "searched_bops": bops,
            "weight_bits": (weight_bits * self._weights).sum(),
            "act_bits": (act_bits * self._inputs).sum(),
        }
        return torch.stack(
            [(searched[COUNT_OF[k]] + getattr(self._unsearched, COUNT_OF[k])) / most for k, most in limits.items()]
        )

    @torch.no_grad()
    def choices(self, network: str) -> Choices:
        """The scores of all widths: log π, nats. Raises DivergedError where a logit is no longer finite."""
        if not all(bool(logits.isfinite().all()) for logits in self.bit_logits()):
            raise DivergedError("bit logits are no longer finite; try a smaller method.bit_lr.")
        mixtures = {name: layer.mixture for name, layer in self.searched.items()}
        return Choices(
            network=network,
            layers=tuple(self.costs.layers),
            weights={name: _log_probs(m.weight_bits, m.weight_logits) for name, m in mixtures.items()},
            acts={
                group: _log_probs(mixtures[members[0]].act_bits, mixtures[members[0]].act_logits)
                for group, members in self.roles.groups.items()
            },
            group_of={name: self.roles.group_of[name] for name in self.searched},
            pinned=self.roles.pinned,
        )

    @torch.no_grad()
    def certainty(self) -> float:
        """Mean over all choices of the largest π: how far they have been made, 1/n at the start."""
        return float(torch.stack([probs.max() for probs in self._open_choices()]).mean())

    def _open_choices(self) -> Iterator[Tensor]:
        yield from (layer.mixture.weight_probs() for layer in self.searched.values())
        for group, members in self.roles.groups.items():
            if group not in self.roles.fixed_acts:
                yield self.searched[members[0]].mixture.act_probs()


class _Choices:
    """The widths of one kind (of weights, or of activations) in L layers, computed together.

    All layers that have logits have as many; the others have one width.
    """

    def __init__(
        self, logits: Sequence[nn.Parameter | None], widths: Sequence[tuple[int, ...]], device: torch.device
    ) -> None:
        """Layers that share their logits name the same parameter."""
        self._logits = logits
        open_widths = [bits for bits, own in zip(widths, logits, strict=True) if own is not None]
        self._widths = torch.tensor(open_widths, dtype=torch.float32, device=device)
        fixed = [0.0 if own is not None else float(bits[0]) for bits, own in zip(widths, logits, strict=True)]
        self._fixed = torch.tensor(fixed, device=device)
        places = [place for place, own in enumerate(logits) if own is not None]
        self._open = torch.tensor(places, dtype=torch.int64, device=device)

    def __call__(self) -> tuple[list[Tensor | None], Tensor]:
        """π of each layer, None where nothing is to choose, and the expected bits of all [L]; differentiable."""
        found: list[Tensor] = [own for own in self._logits if own is not None]
        if not found:
            return [None] * len(self._logits), self._fixed
        probs = torch.stack(found).softmax(1)
        bits = (probs * self._widths).sum(1)
        if len(found) < len(self._logits):
            bits = self._fixed.index_copy(0, self._open, bits)
        rows = iter(probs.unbind())
        return [None if own is None else next(rows) for own in self._logits], bits


def _log_probs(widths: tuple[int, ...], logits: Tensor | None) -> Scores:
    if logits is None:
        return Scores(widths, (0.0,))
    return Scores(widths, tuple(logits.double().log_softmax(0).tolist()))


def build_supernet(net: nn.Module, costs: CostModel, roles: Roles, config: SupernetConfig) -> Supernet:
    """A supernet with the weights of `net`."""
    return Supernet(mixed_copy(net, costs, roles, config, config.quantizer), costs, roles)


def mixed_copy(
    net: nn.Module, costs: CostModel, roles: Roles, config: WidthsConfig, quantizer: DeployedQuantizer
) -> nn.Module:
    """A copy of `net` with all candidate widths in the searched layers; layers pinned by pattern have theirs."""
    candidates = {
        name: (config.weight_bits, (roles.fixed_acts[group],) if group in roles.fixed_acts else config.act_bits)
        for group, members in roles.groups.items()
        for name in members
    }
    candidates |= {name: ((b,), (b,)) for name, b in roles.pinned.items() if name not in roles.float_in_search}
    in_order = {name: candidates[name] for name in costs.layers if name in candidates}
    return _quantized_copy(net, costs, in_order, roles.group_of, quantizer)


def deploy(net: nn.Module, costs: CostModel, policy: BitPolicy, quantizer: DeployedQuantizer) -> nn.Module:
    """A copy of `net` quantised as `policy` says, stem and head included; layers at 32·32 bits are left as they are.

    Layers that read the same activation with the same bits have one quantiser for it.
    """
    policy.check_covers(costs.layers)
    quantized = {name: policy.bits[name] for name in costs.layers if policy.bits[name] != FULL}
    candidates = {name: ((bits.weight,), (bits.act,)) for name, bits in quantized.items()}
    widths = {name: bits.act for name, bits in quantized.items()}
    return _quantized_copy(net, costs, candidates, widths, quantizer)


def _quantized_copy(
    net: nn.Module,
    costs: CostModel,
    candidates: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    sharing: Mapping[str, Hashable],
    quantizer: DeployedQuantizer,
) -> nn.Module:
    """Layers with the same key in `sharing` have one vector of activation logits; of these, those that read the same
    activation have one quantiser for it."""
    device = next(net.parameters()).device
    read = {name: (sharing[name], costs.work[name].reads) for name in candidates}
    signed = {read[name] for name in candidates if costs.work[name].reads_negative}
    mixtures: dict[str, BitMixture] = {}
    first: dict[Hashable, BitMixture] = {}
    for name, (weight_bits, act_bits) in candidates.items():
        is_signed = read[name] in signed
        mixture = BitMixture(quantizer, weight_bits=weight_bits, act_bits=act_bits, signed=is_signed).to(device)
        mixture.act_logits = first.setdefault(sharing[name], mixture).act_logits
        mixture.activations = first.setdefault(read[name], mixture).activations
        mixtures[name] = mixture
    return quantize_layers(copy.deepcopy(net), mixtures)
