"""The one training loop: reference, search and finetune differ in what a step minimises and with which optimisers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainables.checkpoint import StageCheckpoint
from trainables.data.splits import Batch
from trainables.distributed import Workers
from trainables.errors import DivergedError


class Batches(Protocol):
    """Batches with their number, which a schedule needs beforehand."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


StepTerms = Callable[[Batch], Mapping[str, Tensor]]
"""Batch -> scalars of a step; the one named `loss` is minimised, all are averaged over the epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """How long, and with which steps."""

    epochs: int
    batches: Callable[[int], Batches]
    """Training batches of an epoch (from 0)."""
    optimizers: Sequence[Optimizer]
    lr_factor: Callable[[float], float]
    """Multiplies every learning rate; of the progress in epochs (0 ≤ progress < epochs)."""


def train(
    model: nn.Module,
    plan: TrainingPlan,
    step_terms: StepTerms,
    *,
    workers: Workers,
    on_epoch: Callable[[int, dict[str, float]], None],
    checkpoint: StageCheckpoint,
) -> None:
    """Trains `model`; `on_epoch` gets the epoch (from 1) and its mean terms, with images_per_s over all workers.

    Begins after the epochs that `checkpoint` has, and brings it up to date after every epoch that was reported: an
    epoch whose report was cut off is done, and reported, again. Raises DivergedError at the end of an epoch in which a
    term was no longer finite.
    """
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in plan.optimizers]
    for epoch in range(checkpoint.restore(plan.optimizers), plan.epochs):
        model.train()
        started, images_seen, steps = time.perf_counter(), 0, 0
        sums: dict[str, Tensor] = {}
        batches = plan.batches(epoch)
        for step, batch in enumerate(batches):
            _set_rates(plan, base_rates, plan.lr_factor(epoch + step / len(batches)))
            terms = step_terms(batch.to(workers.device))
            for optimizer in plan.optimizers:
                optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            for optimizer in plan.optimizers:
                optimizer.step()
            # Summed on the device: reading a number here would make every step wait for it.
            for name, term in terms.items():
                sums[name] = term.detach() + sums[name] if name in sums else term.detach()
            images_seen, steps = images_seen + len(batch.labels), steps + 1
        means = _means(sums, steps, workers)
        _check_finite(means, epoch + 1)
        means["images_per_s"] = images_seen * workers.size / (time.perf_counter() - started)
        on_epoch(epoch + 1, means)
        checkpoint.save(epoch + 1, plan.optimizers)


def _set_rates(plan: TrainingPlan, base_rates: list[list[float]], factor: float) -> None:
    for optimizer, rates in zip(plan.optimizers, base_rates, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


def _means(sums: dict[str, Tensor], steps: int, workers: Workers) -> dict[str, float]:
    if not sums:
        return {}
    stacked = torch.stack([term.float() for term in sums.values()]) / steps
    return dict(zip(sums, (workers.total(stacked) / workers.size).tolist(), strict=True))


def _check_finite(means: Mapping[str, float], epoch: int) -> None:
    broken = [name for name, mean in means.items() if not math.isfinite(mean)]
    if broken:
        raise DivergedError(f"epoch {epoch}: {', '.join(broken)} no longer finite; try smaller learning rates.")


def cosine(epochs: int) -> Callable[[float], float]:
    """Half a cosine from 1 to 0."""
    return lambda progress: (1 + math.cos(math.pi * progress / epochs)) / 2


def every(epochs: int, factor: float = 0.1) -> Callable[[float], float]:
    """×factor after every so many epochs."""
    return lambda progress: factor ** (int(progress) // epochs)


def at_shares(epochs: int, shares: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> Callable[[float], float]:
    """×factor when each share of the epochs has passed: 20 and 30 of 40 in the paper's recipe."""
    return lambda progress: factor ** sum(progress >= share * epochs for share in shares)
