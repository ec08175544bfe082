"""HAWQ-V2's allocation (Dong et al. 2020): bits by the mean curvature of each layer.

    Ω_l(b) = Tr(H_l)/n_l · ‖Q_b(W_l) − W_l‖²        H_l [n_l, n_l] the Hessian of the mean loss to the layer's weights

½·Ω is what rounding would add to the loss if the Hessian were its mean eigenvalue times the identity; that half is the
cost of a width here, in nats as MPQCO's, and changes no policy. `trainables.hessian_trace` estimates the traces.

DEVIATION: the paper takes a trace as it is estimated. A negative one would make the fewest bits the best. Here no trace
counts as less than its standard error over the probes, the largest that a curvature may well be which they do not tell
from zero: so more bits are never worse, noise around zero ends no trial, and a layer of which little is known keeps
its bits rather than loses them. A trace that is told to be negative ends the search: there the loss has no minimum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.special import stdtrit
from torch import Tensor

from trainables.allocate import ceilings
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.errors import DivergedError
from trainables.hessian_trace import HessianTraces, mean_and_error
from trainables.method_config import HawqConfig
from trainables.methods.offered import offered
from trainables.methods.sensitivity import Passes, choices_of, rounding_errors
from trainables.reference import Bench

CHANCE = 1e-4
"""That noise alone tells a trace of zero to be negative: one-sided, by Student's distribution over the probes."""


def search(bench: Bench, config: HawqConfig, budget: BudgetConfig) -> Choices:
    """Scores of −½·Ω_l(b), nats.

    Raises InfeasibleBudgetError where no policy keeps the budget, DivergedError where a trace is negative.
    """
    ceilings(offered(bench, config), bench.costs, budget)
    passes, searched = Passes(bench, config), bench.roles.searched
    traces = HessianTraces(bench.reference, searched, probes=config.probes, seed=bench.config.seed)
    like = torch.zeros(len(searched), config.probes)
    products = passes.mean(lambda batch: traces.products(batch.images, batch.labels), like=like)
    changes = rounding_errors(bench, config)
    counted = counted_traces(searched, products)
    losses = [curvature_losses(trace, changes[name]) for name, trace in zip(searched, counted, strict=True)]
    return choices_of(bench, config, budget, torch.stack(losses), passes)


def counted_traces(layers: Sequence[str], products: Tensor) -> Tensor:
    """What the traces count as [L], of each layer's [L, probes]: their means, at least their standard errors.

    A single probe has no error, and its size counts. Raises DivergedError that names the layers whose traces are told
    to be negative.
    """
    probes = products.shape[1]
    if probes == 1:
        return products[:, 0].abs()
    means, errors = mean_and_error(products)
    below = (means < stdtrit(probes - 1, CHANCE) * errors).tolist()
    if any(below):
        found = zip(layers, means.tolist(), errors.tolist(), below, strict=True)
        named = "; ".join(f"{name}: {mean:.3g} ± {error:.2g}" for name, mean, error, negative in found if negative)
        raise DivergedError(
            f"hawq: the Hessian's trace is negative, more than its standard error over {probes} probes explains "
            f"({named}); give more method.images or method.probes, or train the reference for longer."
        )
    return means.maximum(errors)


def curvature_losses(trace: Tensor, changes: Tensor) -> Tensor:
    """½·Ω(b) of a layer for every width [B], float64 on the CPU; `changes` are Q_b(W) − W [B, *W.shape]."""
    return trace.cpu() / changes[0].numel() * changes.double().square().flatten(1).sum(1).cpu() / 2
