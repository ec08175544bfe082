"""Short finetune of a policy on a classification set, from the reference's float weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainables.data.splits import Batch
from trainables.evaluation import AttributionScore, accuracy, compare_attribution
from trainables.policy import BitPolicy
from trainables.quantizers.layers import calibrate
from trainables.reference import Bench
from trainables.reference_maps import MapSetting, ReferenceMaps, kept_maps
from trainables.report import EpochReport, Report
from trainables.sample_maps import sample_maps
from trainables.samples import SampleMaps
from trainables.supernet import deploy
from trainables.training import TrainingPlan, at_shares, train


class Finetuned(NamedTuple):
    """What a policy's network scores after its finetune, on the validation images."""

    accuracy: Mapping[str, float]
    """See `evaluation.accuracy`."""
    attribution: AttributionScore
    samples: SampleMaps | None
    """Maps of a few images; None where the trial asks for none."""
    net: nn.Module
    """As it was measured."""


def finetune(bench: Bench, policy: BitPolicy, report: Report) -> Finetuned:
    """Finetunes `policy` and measures it; clips calibrated on one batch."""
    config, workers = bench.config.finetune, bench.workers
    net = deploy(bench.reference, bench.costs, policy, bench.config.quantizer)
    first = next(iter(bench.training_batches(0, config.batch_size)))
    calibrate(net, first.images.to(workers.device))
    net.requires_grad_(True)
    model = workers.wrap(net)
    score = partial(_score, net, bench, kept_maps(bench, MapSetting(), "validation"))
    scores: list[tuple[dict[str, float], AttributionScore]] = []
    bops_g = bench.costs.bops_g(policy)

    def step_terms(batch: Batch) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(model(batch.images), batch.labels)}

    def on_epoch(epoch: int, means: dict[str, float]) -> None:
        scores.append(score())
        metrics = {**means, **scores[-1][0], "ard": scores[-1][1].ard, "bops_g": bops_g}
        report(EpochReport(stage="finetune", epoch=epoch, epochs=config.epochs, metrics=metrics))

    plan = TrainingPlan(
        epochs=config.epochs,
        batches=lambda epoch: bench.training_batches(epoch, config.batch_size),
        optimizers=[torch.optim.Adam(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)],
        lr_factor=at_shares(config.epochs),
    )
    kept = bench.checkpoint.begin("finetune", net, policy=policy)
    train(model, plan, step_terms, workers=workers, on_epoch=on_epoch, checkpoint=kept)
    # None were made where it goes on after the last epoch.
    return Finetuned(*(scores[-1] if scores else score()), sample_maps(net, bench), net)


def _score(net: nn.Module, bench: Bench, theirs: ReferenceMaps) -> tuple[dict[str, float], AttributionScore]:
    """Accuracy and attribution of `net` as it is now, on the validation images."""
    right = accuracy(net, bench.validation_batches(), bench.workers)
    frozen = copy.deepcopy(net)
    return right, compare_attribution(
        frozen, lambda batch: theirs(batch).maps, bench.validation_batches(), bench.workers, bench.config.evaluation
    )
