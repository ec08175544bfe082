"""The terms of the search's objective, R = R_E + ζ·R_C + η·R_G (eq. 6): functions of tensors.

Notation: L searched layers; q_w, q_a [L] expected bits Σ_i π_i·b_i of weights and activations; M maps [N, h, w].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainables.attribution import among_top_pixels
from trainables.method_config import Concavity, Form

EXPONENTS: dict[Concavity, float] = {"sqrt": 0.5, "linear": 1.0, "square": 2.0}
HARDNESS = (1.0, 6.0)
"""Where the ratio of task risks is cut off."""


def complexity_risk(weight_bits: Tensor, act_bits: Tensor, *, macs: Tensor, start: Tensor) -> Tensor:
    """Expected BOPs of the searched layers (eq. 7) over their value at the uniform start: 1 at the first step.

        R_C = Σ_l q_w,l·q_a,l·MACs_l / start

    DEVIATION: the release divides by the first searched layer's MACs, so that ζ means something else for each network.

    Args:
        weight_bits, act_bits: [L], differentiable in the logits.
        macs: [L].
        start: Σ_l q_w,l·q_a,l·MACs_l where all candidates are equally likely.
    """
    return (weight_bits * act_bits * macs).sum() / start


@torch.no_grad()
def concentration(weight_bits: Tensor, act_bits: Tensor, *, capacity: float, concavity: Concavity = "linear") -> Tensor:
    """p of eqs 10 and 16, a number without gradient, with capacity = Q_w⁰·Q_a⁰.

    p = mean_l (capacity / (q_w,l·q_a,l))^e,    e = 1/2 (`sqrt`), 1 (`linear`, eq. 10), 2 (`square`)
    """
    return (capacity / (weight_bits * act_bits)).pow(EXPONENTS[concavity]).mean()


@torch.no_grad()
def hardness(quantized_risk: Tensor, reference_risk: Tensor) -> Tensor:
    """ρ of each image [N], the concentration of eq. 14: clamp(R_E^q / R_E^f, 1, 6), without gradient.

    DEVIATION: as it is typeset, the ratio multiplies numerator and denominator alike and cancels; it can only be meant
    as p is in eq. 9, as an exponent. Below 1 the quantised network would be the better one of the two, and an image
    that the reference is certain of (risk 0) has no finite ratio: so it is clamped.

    Args:
        quantized_risk, reference_risk: task risks [N], cross-entropies of one image each.
    """
    smallest = torch.finfo(reference_risk.dtype).tiny
    return (quantized_risk / reference_risk.clamp_min(smallest)).clamp(*HARDNESS)


def concentrate(reference: Tensor, p: Tensor | float) -> Tensor:
    """The target of eq. 9, M^p / Σ M^p per image; order is kept, large p moves the mass to the top. [N, h, w].

    `p` is a number for all images or one for each, [N].
    """
    # Divided by the largest first: a power of a small number would underflow.
    top = reference.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(reference.dtype).tiny)
    powers = (reference / top) ** (p.view(-1, 1, 1) if isinstance(p, Tensor) else p)
    return powers / powers.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(reference.dtype).tiny)


def imitation_risk(
    quantized: Tensor, reference: Tensor, *, p: Tensor | float, top_k: int, form: Form = "paper"
) -> Tensor:
    """Attribution imitation over the `top_k` pixels that the reference ranks highest; t = `concentrate(reference, p)`.

        paper:    mean over images of Σ_ij (M_q − t)²                                      (eq. 9; eq. 14 with p = ρ)
        release:  mean over images and pixels of (M_q/‖M_q‖₂ − t/‖t‖₂)²

    Norms and sums that normalise run over all pixels of a map.

    Args:
        quantized: [N, h, w], sums 1, differentiable.
        reference: [N, h, w], a constant.
        p: for all images, or [N].
    """
    compared = among_top_pixels(reference.flatten(1), top_k)
    ours, target = quantized.flatten(1), concentrate(reference, p).flatten(1)
    if form == "paper":
        return ((ours - target).square() * compared).sum(dim=1).mean()
    squares = (normalize(ours, dim=1) - normalize(target, dim=1)).square() * compared
    return squares.sum(dim=1).mean() / min(top_k, ours.shape[1])


def budget_barrier(usage: Tensor, *, relaxed_below: float = 0.1) -> Tensor:
    """Relaxed logarithmic barrier against costs beyond a budget (Hauser and Saccon 2006), summed over the limits.

        β(s) = −ln s                          s > δ           s = 1 − usage, the share of the limit that is free
               ((s/δ − 2)² − 1)/2 − ln δ      s ≤ δ           the parabola that continues −ln s twice differentiably

    so that it is finite, and pulls, where a limit is exceeded, as the start of a search may do.

    Args:
        usage: [K], expected cost over limit.
        relaxed_below: δ.
    """
    free = 1 - usage
    inside = -free.clamp_min(relaxed_below).log()
    outside = ((free / relaxed_below - 2).square() - 1) / 2 - math.log(relaxed_below)
    return torch.where(free > relaxed_below, inside, outside).sum()
