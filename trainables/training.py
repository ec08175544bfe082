"""The one training loop: reference, search and finetune differ in what a step minimises and with which optimisers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from trainables.checkpoint import Position, StageCheckpoint
from trainables.distributed import Workers
from trainables.errors import DivergedError
from trainables.stepping import B, Passes, Step, TrainingPlan


def train(
    model: nn.Module,
    plan: TrainingPlan[B],
    step_terms: Passes[B],
    *,
    workers: Workers,
    on_epoch: Callable[[int, dict[str, float]], None],
    checkpoint: StageCheckpoint,
) -> dict[str, float]:
    """Trains `model`; `on_epoch` gets the epoch (from 1) and its mean terms, with images_per_s over all workers.

    Begins after the steps that `checkpoint` has, and brings it up to date after every epoch that was reported, and
    within epochs as often as `plan` says: an epoch whose report was cut off is reported again. Returns what was
    reported of the last epoch. Raises DivergedError at the end of an epoch in which a term was no longer finite.
    """
    step = Step(model, plan, step_terms, workers)
    rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in plan.optimizers]
    position = checkpoint.restore(step.parts)
    while position.epoch < plan.epochs:
        epoch = position.epoch + 1
        position = _to_the_end(model, plan, step, position, rates=rates, workers=workers, checkpoint=checkpoint)
        means = _means(position.sums, position.step, workers)
        _check_finite(means, epoch)
        means["images_per_s"] = position.step * plan.batch_size / position.seconds
        workers.share_buffers(model)
        if plan.average:
            workers.share_buffers(plan.average.net)
        on_epoch(epoch, means)
        position = Position(epoch=epoch, means=means)
        checkpoint.save(step.parts, position)
    return dict(position.means)


def _to_the_end(
    model: nn.Module,
    plan: TrainingPlan[B],
    step: Step[B],
    position: Position,
    *,
    rates: list[list[float]],
    workers: Workers,
    checkpoint: StageCheckpoint,
) -> Position:
    """The steps that are left of the epoch in which `position` is."""
    model.train()
    epoch, done, sums = position.epoch, position.step, dict(position.sums)
    began = time.perf_counter() - position.seconds
    batches = plan.batches(epoch)

    def here() -> Position:
        return Position(epoch=epoch, step=done, sums=sums, seconds=time.perf_counter() - began)

    for batch in batches.after(done) if done else batches:
        _set_rates(plan, rates, plan.lr_factor(epoch + done / len(batches)))
        # Summed on the device: reading a number here would make every step wait for it.
        for name, term in step(batch.to(workers.device)).items():
            sums[name] = term + sums[name] if name in sums else term
        done += 1
        if plan.checkpoint_every and done % plan.checkpoint_every == 0:
            checkpoint.save(step.parts, here())
    return here()


def _set_rates(plan: TrainingPlan[B], base_rates: list[list[float]], factor: float) -> None:
    for optimizer, rates in zip(plan.optimizers, base_rates, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


def _means(sums: Mapping[str, Tensor], steps: int, workers: Workers) -> dict[str, float]:
    if not sums:
        return {}
    stacked = torch.stack([*sums.values()]) / steps
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


def warmed_up(epochs: float, factor: Callable[[float], float]) -> Callable[[float], float]:
    """`factor`, in the first so many epochs times the share of them that has passed."""
    return lambda progress: factor(progress) * min(1.0, progress / epochs if epochs else 1.0)
