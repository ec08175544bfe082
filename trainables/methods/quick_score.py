"""What a policy is worth, quickly: quantised, calibrated, tuned for a few steps, scored on held-out training images.

    score = −(1/N) Σ_n cross-entropy of image n,  nats;  N images of the training set that the tuning never sees

All policies are tuned on the same batches in the same order. Validation images take no part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.data.splits import Batch, ChosenImages, ImageSet, stratified
from trainables.distributed import Workers
from trainables.errors import ConfigError
from trainables.method_config import BlackboxConfig
from trainables.policy import BitPolicy
from trainables.quantizers.layers import calibrate
from trainables.reference import CALIBRATION_IMAGES, Bench, shares
from trainables.stepping import Batches, Step, TrainingPlan
from trainables.supernet import deploy

LOST = -1e6
"""Score of a network whose cross-entropy is no number any more: below that of any other."""


def parts(images: ImageSet, config: BlackboxConfig, *, seed: int) -> tuple[ChosenImages, ChosenImages]:
    """Training images for the tuning, and about `config.images` that are held out: as many of each class as it has.

    Raises ConfigError where too few are left for a batch.
    """
    places = torch.arange(len(images))
    share = config.images / len(images)
    held_out = stratified(images.labels, min(share, 1.0), seed=seed)
    tuned = places[~torch.isin(places, held_out)]
    if len(tuned) < config.batch_size:
        raise ConfigError(
            f"method.images is {config.images} and method.batch_size {config.batch_size}, but of the {len(images)} "
            f"training images {len(tuned)} are left to tune with; hold out fewer, or tune in smaller batches."
        )
    return ChosenImages(images, tuned), ChosenImages(images, held_out)


class QuickScore:
    """Scores policies of one bench."""

    def __init__(self, bench: Bench, config: BlackboxConfig) -> None:
        self._bench, self._config = bench, config
        self._tuned, self._held_out = parts(bench.data.train, config, seed=bench.config.seed)

    def __call__(self, policy: BitPolicy) -> float:
        """The score of `policy`, of all workers together: more is better."""
        bench, config = self._bench, self._config
        net = deploy(bench.reference, bench.costs, policy, bench.config.quantizer)
        calibrate(net, self._calibration())
        if config.tune_steps:
            self._tune(net)
        return self._scored(net)

    def _tune(self, net: nn.Module) -> None:
        workers, config = self._bench.workers, self._config
        net.requires_grad_(True)
        model = workers.wrap(net)
        plan: TrainingPlan[Batch] = TrainingPlan(
            epochs=1,
            batch_size=config.batch_size,
            batches=lambda epoch: self._batches(epoch, workers),
            optimizers=[torch.optim.Adam(net.parameters(), lr=config.lr)],
            lr_factor=lambda progress: 1.0,
        )

        def step_terms(batch: Batch) -> dict[str, Tensor]:
            return {"loss": cross_entropy(model(batch.images), batch.labels)}

        step = Step(model, plan, step_terms, workers)
        model.train()
        for batch in itertools.islice(self._endless(), config.tune_steps):
            step(batch.to(workers.device))
        workers.share_buffers(net)

    def _calibration(self) -> Tensor:
        """Of the first batch of the tuning, at most CALIBRATION_IMAGES: the same for any number of workers."""
        alone = replace(self._bench.workers, rank=0, size=math.ceil(self._config.batch_size / CALIBRATION_IMAGES))
        first = next(iter(self._batches(0, alone)))
        return first.images.to(self._bench.workers.device)

    def _endless(self) -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from self._batches(epoch, self._bench.workers)

    def _batches(self, epoch: int, workers: Workers) -> Batches[Batch]:
        """Training batches of an epoch."""
        config, size = self._bench.config, self._config.batch_size
        return shares(self._tuned, config, workers, batch_size=size, shuffle=True, seed=config.seed, epoch=epoch)

    def _held_out_batches(self) -> Batches[Batch]:
        return shares(self._held_out, self._bench.config, self._bench.workers, batch_size=self._config.batch_size)

    @torch.no_grad()
    def _scored(self, net: nn.Module) -> float:
        net.eval()
        workers = self._bench.workers
        sums = torch.zeros(2, dtype=torch.float64)
        for loaded in self._held_out_batches():
            batch = loaded.to(workers.device)
            risk = cross_entropy(net(batch.images), batch.labels, reduction="sum")
            sums += torch.tensor([float(risk), float(len(batch.labels))], dtype=torch.float64)
        total, seen = workers.total(sums.to(workers.device)).tolist()
        return max(LOST, -total / seen) if math.isfinite(total) else LOST
