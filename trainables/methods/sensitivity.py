"""What MPQCO and HAWQ share: a few images, sums over them, and one width for all activations.

Neither trains anything. Each tells what rounding each layer's weights to each width would add to the loss; a score is
that loss, negative, in nats. Sums over images are kept as they grow, so that a search that was cut off goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.allocate import allocate
from trainables.checkpoint import Position
from trainables.choices import Choices, Scores
from trainables.config import BudgetConfig
from trainables.data.splits import Batch, ChosenImages, ImageSet
from trainables.distributed import Workers
from trainables.errors import ConfigError, DivergedError
from trainables.greedy import allocate_greedily
from trainables.method_config import SensitivityConfig
from trainables.methods.offered import offered, with_act_width
from trainables.quantizers.layers import calibrate
from trainables.quantizers.rounding import rounded
from trainables.reference import Bench, shares
from trainables.supernet import deploy


def check_images(images: ImageSet, count: int) -> None:
    """Raises ConfigError where there are fewer."""
    if count > len(images):
        raise ConfigError(
            f"method.images is {count}, but there are only {len(images)} training images; give at most {len(images)}."
        )


def chosen_images(images: ImageSet, count: int, *, seed: int) -> ChosenImages:
    """`count` images, each as likely as every other. Raises ConfigError where there are fewer."""
    check_images(images, count)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return ChosenImages(images, order[:count])


class Passes:
    """The images of a search, unchanged, in passes of `batch_size` of them: this worker's share of each."""

    def __init__(self, bench: Bench, config: SensitivityConfig) -> None:
        self._bench, self._config = bench, config
        self._images = chosen_images(bench.data.train, config.images, seed=bench.config.seed)

    def __len__(self) -> int:
        return math.ceil(len(self._images) / self._config.batch_size)

    def after(self, passes: int) -> Iterator[Batch | None]:
        """Those that follow the first `passes`; None where the last has too few images for every worker."""
        workers = self._bench.workers
        batches = shares(self._images, self._bench.config, workers, batch_size=self._config.batch_size).after(passes)
        for _ in range(passes, len(self)):
            batch = next(batches, None)
            yield batch and batch.to(workers.device)

    def mean(self, of_batch: Callable[[Batch], Tensor], *, like: Tensor) -> Tensor:
        """Mean over all images of what `of_batch` adds up over a batch, float64 of the shape of `like`; the same on
        all workers. Goes on from the checkpoint, which it brings up to date after every pass."""
        sums = _Sums(torch.zeros_like(like, dtype=torch.float64, device="cpu"))
        kept = self._bench.checkpoint.begin("search", nn.Identity())
        done = kept.restore({"sums": sums}).step
        for batch in self.after(done):
            sums.total += _over_workers(self._bench.workers, of_batch(batch) if batch else None, like=like)
            done += 1
            kept.save({"sums": sums}, Position(step=done))
        if not sums.total.isfinite().all():
            raise DivergedError("the reference's loss, or its gradient, is not finite for some images; train it anew.")
        return sums.total / len(self._images)

    def loss(self, net: nn.Module) -> float:
        """Mean cross-entropy of a network over all images, nats; infinite where it is no number."""
        net.eval()
        zero, total = torch.zeros(()), torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for batch in self.after(0):
                found = cross_entropy(net(batch.images), batch.labels, reduction="sum") if batch else None
                total += _over_workers(self._bench.workers, found, like=zero)
        mean = float(total) / len(self._images)
        return mean if math.isfinite(mean) else math.inf


class _Sums:
    """What a checkpoint keeps of a search: the same on all workers."""

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.total = state_dict["total"]


def _over_workers(workers: Workers, found: Tensor | None, *, like: Tensor) -> Tensor:
    """Sum over the workers of what each found, float64 on the CPU; nothing from who had no images."""
    own = torch.zeros_like(like) if found is None else found
    return workers.total(own.to(workers.device, torch.float64)).cpu()


def rounding_errors(bench: Bench, config: SensitivityConfig) -> dict[str, Tensor]:
    """Q_b(W) − W of every searched layer for all widths on offer [B, *W.shape], on the device."""
    found = {}
    for name in bench.roles.searched:
        weight = bench.reference.get_parameter(f"{name}.weight").detach()
        found[name] = rounded(weight, config.weight_bits, config.rounding) - weight
    return found


def choices_of(
    bench: Bench, config: SensitivityConfig, budget: BudgetConfig, losses: Tensor, passes: Passes
) -> Choices:
    """The choices with `losses` [L, B] as what a width costs a layer, nats, and one width for all activations.

    DEVIATION: the paper gives activations one width by hand. Here each width on offer with which the budget can be kept
    is tried: its best policy is quantised and calibrated as the finetune begins, and the one of least loss on the same
    images is taken, of equals the smaller. With one width on offer it is the paper's case. `budget` is within reach.
    """
    free = offered(bench, config)
    weights = {
        name: Scores(config.weight_bits, tuple((-loss).tolist()))
        for name, loss in zip(bench.roles.searched, losses, strict=True)
    }
    candidates = [with_act_width(replace(free, weights=weights), width) for width in sorted(config.act_bits)]
    costs = bench.costs
    within = [found for found in candidates if not budget.broken(costs.of(found.smallest))]
    if len(within) == 1:
        return within[0]
    images = bench.calibration_images(bench.config.finetune.batch_size)

    solve = allocate_greedily if config.solver == "greedy" else allocate

    def loss(choices: Choices) -> float:
        net = deploy(bench.reference, costs, solve(choices, costs, budget), bench.config.quantizer)
        calibrate(net, images)
        return passes.loss(net)

    return min(within, key=loss)
