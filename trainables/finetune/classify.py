"""Finetune of a policy on a classification set, from the reference's float weights: a trial's, and a promotion's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.data.splits import Batch
from trainables.evaluation import AttributionScore, accuracy, compare_attribution
from trainables.finetune.recipe import training_plan
from trainables.policy import BitPolicy
from trainables.quantizers.layers import calibrate
from trainables.reference import Bench
from trainables.reference_maps import MapSetting, ReferenceMaps, kept_maps
from trainables.report import EpochReport, Report
from trainables.sample_maps import sample_maps
from trainables.samples import SampleMaps
from trainables.stepping import check_precision, memory_layout
from trainables.supernet import deploy
from trainables.training import train


class Finetuned(NamedTuple):
    """What a policy's network scores after its finetune, on the validation images."""

    accuracy: Mapping[str, float]
    """See `evaluation.accuracy`."""
    attribution: AttributionScore
    samples: SampleMaps | None
    """Maps of a few images; None where the trial asks for none."""
    net: nn.Module
    """As it was measured: with `finetune.ema`, of averaged weights."""
    images_per_s: float
    """Of the last epoch's training, over all workers."""


def finetune(bench: Bench, policy: BitPolicy, report: Report) -> Finetuned:
    """Finetunes `policy` and measures it; what quantisers learn is calibrated on one batch before."""
    config, workers = bench.config.finetune, bench.workers
    check_precision("finetune.amp", config.amp, workers.device)
    net = deploy(bench.reference, bench.costs, policy, bench.config.quantizer)
    calibrate(net, bench.calibration_images(config.batch_size))
    layout = memory_layout(channels_last=config.channels_last)
    net.requires_grad_(True).to(memory_format=layout)
    model = workers.wrap(net)
    plan = training_plan(net, config, lambda epoch: bench.training_batches(epoch, config.batch_size))
    measured = plan.average.net if plan.average else net
    score = partial(_score, measured, bench, kept_maps(bench, MapSetting(), "validation"))
    scores: list[tuple[dict[str, float], AttributionScore]] = []
    bops_g = bench.costs.bops_g(policy)

    def step_terms(batch: Batch) -> dict[str, Tensor]:
        logits = model(batch.images.contiguous(memory_format=layout))
        return {"loss": cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)}

    def on_epoch(epoch: int, means: dict[str, float]) -> None:
        scores.append(score())
        metrics = {**means, **scores[-1][0], "ard": scores[-1][1].ard, "bops_g": bops_g}
        report(EpochReport(stage="finetune", epoch=epoch, epochs=config.epochs, metrics=metrics))

    kept = bench.checkpoint.begin("finetune", net, policy=policy)
    last = train(model, plan, step_terms, workers=workers, on_epoch=on_epoch, checkpoint=kept)
    # None were made where it goes on after the last epoch.
    found, attribution = scores[-1] if scores else score()
    return Finetuned(
        accuracy=found,
        attribution=attribution,
        samples=sample_maps(measured, bench),
        net=measured,
        images_per_s=last["images_per_s"],
    )


def _score(net: nn.Module, bench: Bench, theirs: ReferenceMaps) -> tuple[dict[str, float], AttributionScore]:
    """Accuracy and attribution of `net` as it is now, on the validation images."""
    right = accuracy(net, bench.validation_batches(), bench.workers)
    frozen = copy.deepcopy(net)
    return right, compare_attribution(
        frozen, lambda batch: theirs(batch).maps, bench.validation_batches(), bench.workers, bench.config.evaluation
    )
