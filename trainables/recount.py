"""What a deployed network costs, counted again from the network itself: no policy is asked for bits."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torch import Tensor, nn

from trainables.bops import FULL_BITS, Counts
from trainables.counting import measure
from trainables.quantizers.grid import Grid
from trainables.quantizers.layers import quant_layers


def recount(deployed: nn.Module, images: Tensor, *, searched: Container[str]) -> Counts:
    """Runs `deployed` on `images` [N, C, H, W] and reads the bits off its quantisers' levels.

    A layer that is not quantised counts in full precision. `searched` names the layers of the paper's convention.
    """
    work = measure(deployed, images).work
    layers = quant_layers(deployed)
    bits = dict.fromkeys(work, (FULL_BITS, FULL_BITS))
    bits |= {
        name: (_bits(layer.mixture.weights.grids), _bits(layer.mixture.activations.grids))
        for name, layer in layers.items()
    }
    bops = {name: work[name].macs * weight * act for name, (weight, act) in bits.items()}
    return Counts(
        bops=sum(bops.values()),
        searched_bops=sum(value for name, value in bops.items() if name in searched),
        weight_bits=sum(work[name].weights * weight for name, (weight, _) in bits.items()),
        act_bits=sum(work[name].inputs * act for name, (_, act) in bits.items()),
        searched_macs=sum(layer.macs for name, layer in work.items() if name in searched),
    )


def _bits(grids: Sequence[Grid]) -> int:
    """The fewest bits that tell the levels of the one grid of a deployed quantiser apart."""
    (grid,) = grids
    levels = grid.hi - grid.lo + 1 + grid.half_wave
    return (levels - 1).bit_length()
