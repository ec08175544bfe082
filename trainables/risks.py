"""The terms of the search's objective, R = R_E + ζ·R_C + η·R_G (eq. 6): functions of tensors.

Notation: L searched layers; q_w, q_a [L] expected bits Σ_i π_i·b_i of weights and activations; M maps [N, h, w].
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.attribution import top_pixels


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
def concentration(weight_bits: Tensor, act_bits: Tensor, *, capacity: float) -> Tensor:
    """p of eq. 10, a number without gradient: capacity · mean_l 1/(q_w,l·q_a,l), with capacity = Q_w⁰·Q_a⁰."""
    return capacity * (weight_bits * act_bits).reciprocal().mean()


def concentrate(reference: Tensor, p: Tensor | float) -> Tensor:
    """The target of eq. 9, M^p / Σ M^p per image; order is kept, large p moves the mass to the top. [N, h, w]."""
    # Divided by the largest first: a power of a small number would underflow.
    top = reference.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(reference.dtype).tiny)
    powers = (reference / top) ** p
    return powers / powers.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(reference.dtype).tiny)


def imitation_risk(quantized: Tensor, reference: Tensor, *, p: Tensor | float, top_k: int) -> Tensor:
    """Capacity-aware attribution imitation, eq. 9: mean over images of Σ_ij (M_q − M_f^p/Σ M_f^p)².

    The sum runs over the `top_k` pixels that the reference ranks highest; both maps are normalised over all pixels.

    Args:
        quantized: [N, h, w], differentiable.
        reference: [N, h, w], a constant.
    """
    pixels = top_pixels(reference.flatten(1), top_k)
    difference = quantized.flatten(1) - concentrate(reference, p).flatten(1)
    return difference.gather(1, pixels).square().sum(dim=1).mean()
