"""MPQCO (Chen, Wang and Cheng 2021): bits whose rounding adds least to the loss, as gradients of single images tell.

What that is, and how it is computed, stands in `trainables.perturbation`. Weights alone have scores; of activations
see `sensitivity.choices_of`.
"""

from __future__ import annotations

import torch

from trainables.allocate import ceilings
from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.method_config import MpqcoConfig
from trainables.methods.offered import offered
from trainables.methods.sensitivity import Passes, choices_of, rounding_errors
from trainables.perturbation import LossPerturbation
from trainables.reference import Bench


def search(bench: Bench, config: MpqcoConfig, budget: BudgetConfig) -> Choices:
    """Scores of −ΔL_l(b), nats. Raises InfeasibleBudgetError where no policy keeps the budget."""
    ceilings(offered(bench, config), bench.costs, budget)
    passes = Passes(bench, config)
    perturbation = LossPerturbation(bench.reference, rounding_errors(bench, config))
    perturbation.check_apart(bench.probe)
    like = torch.zeros(len(bench.roles.searched), len(config.weight_bits))
    losses = passes.mean(lambda batch: perturbation.squares(batch.images, batch.labels), like=like)
    return choices_of(bench, config, budget, losses, passes)
