"""What the quantisers of a deployed network come to in whole numbers: codes of weights, grids of activations.

    layer(x) = bias + Σ (s_w·k_w) · (s_x·(k_x + o_x)),   k_w, k_x whole numbers

Whatever a quantiser multiplies its levels by afterwards (DAQ's β, and 1/u of its activations) is part of s_w.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.quantizers.affine import AffineGrid
from trainables.quantizers.layers import QuantLayer, quant_layers

CODE_TOLERANCE = 1e-3
"""Steps by which a quantised weight may miss its level: float32 leaves some 1e-5 at 8 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightCodes:
    """A layer's weight as whole numbers: value = scale·code, lo ≤ code ≤ hi."""

    codes: Tensor
    """int32, shape of the weight. Levels between which zero lies (offset 1/2) have the odd codes 2k + 1, half a step
    each, so that one more bit and no offset tells them."""
    scale: float
    lo: int
    hi: int
    bits: int
    """Of the policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerGrids:
    """Both quantisers of a layer."""

    weight: WeightCodes
    act: AffineGrid
    """Of what it reads; its gain is 1."""
    act_bits: int


@torch.no_grad()
def layer_grids(net: nn.Module) -> dict[str, LayerGrids]:
    """By layer, in the network's order. Raises ConfigError where a weight is not finite or not on its grid."""
    return {name: _grids(name, layer) for name, layer in quant_layers(net).items()}


def _grids(name: str, layer: QuantLayer) -> LayerGrids:
    mixture = layer.mixture
    act = mixture.activations.affine()
    values = mixture.weights(layer.weight, mixture.weight_probs()).double()
    grid = mixture.weights.affine(layer.weight)
    return LayerGrids(
        weight=_codes(name, values, grid, bits=mixture.weight_bits[0], act_gain=act.gain),
        act=dataclasses.replace(act, gain=1.0),
        act_bits=mixture.act_bits[0],
    )


def _codes(name: str, values: Tensor, grid: AffineGrid, *, bits: int, act_gain: float) -> WeightCodes:
    step = grid.scale * grid.gain
    # A gain of zero makes every weight zero, on whatever level it was.
    places = values / step if step else torch.zeros_like(values) + grid.offset
    codes = (places - grid.offset).round()
    if not bool(values.isfinite().all()) or bool(((codes + grid.offset - places).abs() > CODE_TOLERANCE).any()):
        raise ConfigError(
            f"{name}: its quantised weights are not finite numbers on one grid; finetune the policy again."
        )
    if grid.offset not in (0.0, 0.5):
        raise ConfigError(f"{name}: its weight grid has the offset {grid.offset}; only 0 and 1/2 have whole numbers.")
    doubled = 2 if grid.offset else 1
    return WeightCodes(
        codes=(doubled * (codes + grid.offset)).to(torch.int32),
        scale=step * act_gain / doubled,
        lo=round(doubled * (grid.lo + grid.offset)),
        hi=round(doubled * (grid.hi + grid.offset)),
        bits=bits,
    )
