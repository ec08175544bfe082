"""The trace of each layer's Hessian by Hutchinson's estimate: HAWQ-V2 (Dong et al. 2020).

Notation: H_l the Hessian of the mean loss of N images to the weights W_l of a layer, n_l of them; v a probe whose
entries are ±1 with equal chance (Rademacher), for all layers at once; v_l its part.

    E[v_lᵀ (H v)_l] = Tr H_l

The expectation of v_i·v_j is 1 for i = j and 0 otherwise, so that what couples two weights, of one layer or of two, is
in no mean; it is in the variance, 2·Σ_{i≠j} H_ij² within the layer and Σ_ij H_ij² towards each other one. Of a diagonal
Hessian a single probe tells the trace exactly. One probe for all layers takes one second backward pass where a probe
for each would take as many as there are layers, and tells of all of them.

A probe is a function of the seed and its number alone, and the same for all images: the estimate is that of the mean
loss's Hessian, however images are cut into batches or shared among workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy


class HessianTraces:
    """Of the weights of some layers of a frozen network in eval mode."""

    def __init__(self, net: nn.Module, layers: Sequence[str], *, probes: int, seed: int) -> None:
        """`layers` are named as modules that have a `weight`."""
        self._net, self.probes, self._seed = net, probes, seed
        names = [f"{name}.weight" for name in layers]
        self._weights = {name: net.get_parameter(name).detach().clone().requires_grad_() for name in names}

    def products(self, images: Tensor, labels: Tensor) -> Tensor:
        """v_lᵀ (H v)_l of the summed loss of a batch, for every probe [L, probes], float64."""
        weights = list(self._weights.values())
        found = []
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            with torch.enable_grad():
                logits = functional_call(self._net, self._weights, (images,))
                loss = cross_entropy(logits, labels, reduction="sum")
                grads = torch.autograd.grad(loss, weights, create_graph=True)
            for number in range(self.probes):
                probe = self._probe(number)
                turned = torch.autograd.grad(grads, weights, probe, retain_graph=number + 1 < self.probes)
                found.append(torch.stack([(v * hv).double().sum() for v, hv in zip(probe, turned, strict=True)]))
        return torch.stack(found, dim=1)

    def _probe(self, number: int) -> list[Tensor]:
        # Drawn on the CPU: the same on every device.
        random = torch.Generator().manual_seed((self._seed * 1_000_003 + number) % 2**63)
        return [
            (torch.randint(0, 2, weight.shape, generator=random, dtype=torch.int8) * 2 - 1).to(weight)
            for weight in self._weights.values()
        ]


def mean_and_error(products: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the probes of [L, probes] and its standard error, each [L]; the error is NaN for one probe."""
    return products.mean(1), products.std(1) / products.shape[1] ** 0.5
