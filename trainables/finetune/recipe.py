"""From the settings of a finetune to what the training loop does: the same for classifiers and detectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from trainables.averaging import AveragedWeights
from trainables.finetune_config import FinetuneConfig
from trainables.optimizers import fused_sgd
from trainables.quantizers.layers import quantizer_parameters
from trainables.stepping import B, Batches, TrainingPlan
from trainables.training import at_shares, cosine, warmed_up


def training_plan(net: nn.Module, config: FinetuneConfig, batches: Callable[[int], Batches[B]]) -> TrainingPlan[B]:
    """The plan by which `net` (as it is, not as the workers wrap it, on its device) is finetuned.

    With `config.ema` the plan's average, and not `net`, is what is measured and kept.
    """
    return TrainingPlan(
        epochs=config.epochs,
        batch_size=config.batch_size,
        batches=batches,
        optimizers=_optimizers(net, config),
        lr_factor=schedule(config),
        accumulate=config.accumulate,
        grad_clip=config.grad_clip,
        precision=config.amp,
        average=AveragedWeights(net, config.ema) if config.ema else None,
        checkpoint_every=config.checkpoint_every,
    )


def schedule(config: FinetuneConfig) -> Callable[[float], float]:
    """What multiplies all learning rates, of the progress in epochs."""
    falling = cosine(config.epochs) if config.schedule == "cosine" else at_shares(config.epochs, config.lr_steps)
    return warmed_up(config.warmup_epochs, falling)


def _optimizers(net: nn.Module, config: FinetuneConfig) -> list[Optimizer]:
    """Of the weights and, with a rate of their own, of the quantisers' parameters; fused, as in the search."""
    apart = quantizer_parameters(net) if config.quantizer_lr else []
    weights = [p for p in net.parameters() if id(p) not in {id(q) for q in apart}]
    found: list[Optimizer] = [_of_weights(weights, config)]
    if apart:
        found.append(torch.optim.Adam(apart, lr=config.quantizer_lr, fused=True))
    return found


def _of_weights(weights: list[nn.Parameter], config: FinetuneConfig) -> Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(weights, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return fused_sgd(weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=True)
