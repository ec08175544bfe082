"""HAWQ-V2's allocation (Dong et al. 2020): bits by the mean curvature of each layer.

    Ω_l(b) = Tr(H_l)/n_l · ‖Q_b(W_l) − W_l‖²        H_l [n_l, n_l] the Hessian of the mean loss to the layer's weights

½·Ω is what rounding would add to the loss if the Hessian were its mean eigenvalue times the identity; that half is the
cost of a width here, in nats as MPQCO's, and changes no policy. `trainables.hessian_trace` estimates the traces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.allocate import ceilings
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.hessian_trace import HessianTraces
from trainables.method_config import HawqConfig
from trainables.methods.offered import offered
from trainables.methods.sensitivity import Passes, choices_of, rounding_errors
from trainables.reference import Bench


def search(bench: Bench, config: HawqConfig, budget: BudgetConfig) -> Choices:
    """Scores of −½·Ω_l(b), nats. Raises InfeasibleBudgetError where no policy keeps the budget."""
    ceilings(offered(bench, config), bench.costs, budget)
    passes, searched = Passes(bench, config), bench.roles.searched
    traces = HessianTraces(bench.reference, searched, probes=config.probes, seed=bench.config.seed)
    like = torch.zeros(len(searched), config.probes)
    products = passes.mean(lambda batch: traces.products(batch.images, batch.labels), like=like)
    changes = rounding_errors(bench, config)
    losses = [curvature_losses(trace, changes[name]) for name, trace in zip(searched, products.mean(1), strict=True)]
    return choices_of(bench, config, budget, torch.stack(losses), passes)


def curvature_losses(trace: Tensor, changes: Tensor) -> Tensor:
    """½·Ω(b) of a layer for every width [B], float64 on the CPU; `changes` are Q_b(W) − W [B, *W.shape]."""
    return trace.cpu() / changes[0].numel() * changes.double().square().flatten(1).sum(1).cpu() / 2
