"""Convolutions and linear layers that quantise their weight and the activation they read.

With several widths a layer is the compositional convolution of eq. 4: one convolution of the mixed activation with the
mixed weight, out = conv(Σ_j π_a,j·Qa_j(x), Σ_i π_w,i·Qw_i(W)), π = softmax(logits). With one width it is the deployed
layer; then there are no logits.

DEVIATION: eq. 5 normalises π linearly, which needs positive parameters; softmax, as in the release, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.errors import CoverageError
from trainables.finetune_config import DeployedQuantizer
from trainables.quantizers.daq import DaqActivations, DaqWeights
from trainables.quantizers.hwgq import HwgqActivations, HwgqWeights
from trainables.quantizers.lsq import LsqActivations, LsqWeights
from trainables.quantizers.pact import PactActivations, PactWeights
from trainables.quantizers.recomputed import recomputed

WeightQuantizer = PactWeights | HwgqWeights | LsqWeights | DaqWeights
ActQuantizer = PactActivations | HwgqActivations | LsqActivations | DaqActivations
WEIGHT_QUANTIZERS: dict[DeployedQuantizer, type[WeightQuantizer]] = {
    "pact": PactWeights,
    "hwgq": HwgqWeights,
    "lsq": LsqWeights,
    "daq": DaqWeights,
}
ACT_QUANTIZERS: dict[DeployedQuantizer, type[ActQuantizer]] = {
    "pact": PactActivations,
    "hwgq": HwgqActivations,
    "lsq": LsqActivations,
    "daq": DaqActivations,
}


class BitMixture(nn.Module):
    """Both quantisers of one layer with the logits that weigh their candidate widths. Logits start equal."""

    def __init__(
        self, quantizer: DeployedQuantizer, *, weight_bits: tuple[int, ...], act_bits: tuple[int, ...], signed: bool
    ) -> None:
        super().__init__()
        self.weight_bits, self.act_bits = weight_bits, act_bits
        self.weights: WeightQuantizer = WEIGHT_QUANTIZERS[quantizer](weight_bits)
        self.activations: ActQuantizer = ACT_QUANTIZERS[quantizer](act_bits, signed=signed)
        self.weight_logits = _logits(len(weight_bits))
        self.act_logits = _logits(len(act_bits))
        self.register_buffer("certain", torch.ones(1), persistent=False)
        self.certain: Tensor
        self.calibrating = False
        self.weight_share: Tensor | None = None
        """π_w where it has been computed already, with those of other layers (`Supernet.probabilities_at_once`)."""
        self.act_share: Tensor | None = None

    def weight_probs(self) -> Tensor:
        """π_w [n_w], eq. 5."""
        if self.weight_share is not None:
            return self.weight_share
        return self.certain if self.weight_logits is None else self.weight_logits.softmax(0)

    def act_probs(self) -> Tensor:
        """π_a [n_a], eq. 5."""
        if self.act_share is not None:
            return self.act_share
        return self.certain if self.act_logits is None else self.act_logits.softmax(0)

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed activation and mixed weight: Σ_j π_a,j·Qa_j(x) and Σ_i π_w,i·Qw_i(W) of eq. 4."""
        return self.activations(x, self.act_probs()), self.weights(weight, self.weight_probs())

    def choose(self, weight_bits: int, act_bits: int) -> None:
        """From now on this pair of widths alone is computed, and there are no logits; of `lsq`, as LIMPQ needs it."""
        assert isinstance(self.weights, LsqWeights)
        assert isinstance(self.activations, LsqActivations)
        self.weights.choose(weight_bits)
        self.activations.choose(act_bits)
        self.weight_logits = self.act_logits = None

    @torch.no_grad()
    def calibrate(self, x: Tensor, weight: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Sets what the quantisers learn from one batch that the layer reads; `combine` is the layer without bias."""
        self.activations.calibrate(x)
        self.weights.calibrate(weight)
        if isinstance(self.weights, DaqWeights):
            self.weights.match(combine(x, weight), combine(*self(x, weight)))


def _logits(candidates: int) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(candidates)) if candidates > 1 else None


class QuantConv2d(nn.Conv2d):
    """A convolution, grouped ones too, in the bits of `mixture`."""

    mixture: BitMixture

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the parent's name)
        if self.mixture.calibrating:
            self.mixture.calibrate(input, self.weight, lambda x, weight: self._conv_forward(x, weight, None))
        with recomputed(*self.mixture(input, self.weight)) as (x, weight):
            return self._conv_forward(x, weight, self.bias)


class QuantLinear(nn.Linear):
    """A linear layer in the bits of `mixture`."""

    mixture: BitMixture

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the parent's name)
        if self.mixture.calibrating:
            self.mixture.calibrate(input, self.weight, F.linear)
        with recomputed(*self.mixture(input, self.weight)) as (x, weight):
            return F.linear(x, weight, self.bias)


QuantLayer = QuantConv2d | QuantLinear
M = TypeVar("M", bound=nn.Module)


def quantize_layers(net: M, mixtures: dict[str, BitMixture]) -> M:
    """Turns the named layers of `net` into quantised ones, in place: same parameters, same names."""
    for name, mixture in mixtures.items():
        layer = net.get_submodule(name)
        if type(layer) not in (nn.Conv2d, nn.Linear):
            raise CoverageError(
                f"{name} is a {type(layer).__name__}, a layer with a forward pass of its own, which quantising "
                f"would lose. Use nn.Conv2d or nn.Linear."
            )
        # Only the class changes, so that parameters, hooks and names stay what they were.
        layer.__class__ = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
        layer.mixture = mixture
    return net


def quant_layers(net: nn.Module) -> dict[str, QuantLayer]:
    """Quantised layers by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, QuantConv2d | QuantLinear)}


def quantizer_parameters(net: nn.Module) -> list[nn.Parameter]:
    """What the quantisers themselves learn (clips, steps, intervals, gains), each once; no bit logits."""
    mixtures = [layer.mixture for layer in quant_layers(net).values()]
    found = [p for mixture in mixtures for part in (mixture.weights, mixture.activations) for p in part.parameters()]
    return list({id(parameter): parameter for parameter in found}.values())


@torch.no_grad()
def calibrate(net: nn.Module, images: Tensor, *, layers: Iterable[str] | None = None) -> None:
    """Sets what the quantisers of these layers, or of all, learn from one batch.

    Each layer reads what those before it quantised.
    """
    was_training = net.training
    net.eval()
    quantized = quant_layers(net)
    with calibrating([quantized[name].mixture for name in (quantized if layers is None else layers)]):
        net(images)
    net.train(was_training)


@contextmanager
def calibrating(mixtures: Iterable[BitMixture]) -> Iterator[None]:
    """Each of them sets what its quantisers learn from what its layer reads meanwhile."""
    chosen = list(mixtures)
    for mixture in chosen:
        mixture.calibrating = True
    yield
    for mixture in chosen:
        mixture.calibrating = False
