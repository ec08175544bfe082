"""Finetune of a detector whose backbone has the bits of a policy, and what it is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.checkpoint import Checkpoint
from trainables.data.images import IMAGENET_MEAN, IMAGENET_STD
from trainables.detection.batches import DetectionBatch
from trainables.detection.bench import DetectorBench, detector_bench
from trainables.detection.calibration import calibrate_detector
from trainables.detection.evaluation import precision
from trainables.detector_config import DetectorConfig
from trainables.distributed import Workers, make_repeatable
from trainables.finetune.recipe import training_plan
from trainables.model_files import ModelCard
from trainables.model_folder import save_model
from trainables.policy_file import PolicyRecord
from trainables.report import EpochReport, FinetuneResult, Report
from trainables.stepping import check_precision
from trainables.supernet import deploy
from trainables.training import train


def finetune_detector(
    config: DetectorConfig, policy: PolicyRecord, report: Report, *, checkpoint: Path | None, output: Path | None
) -> FinetuneResult:
    """See `trainables.api.finetune`; `policy` is one of the backbone's classification network."""
    workers = Workers.current()
    check_precision("finetune.amp", config.finetune.amp, workers.device)
    make_repeatable(config.seed)
    bench = detector_bench(config, policy, workers)
    make_kernels_usable(workers)
    clock = Checkpoint(checkpoint, workers)
    if clock.policy not in (None, bench.record.policy):
        clock = clock.emptied()
    # Reads all images once, and tells of one that cannot be read before hours of training.
    fingerprint = bench.data.fingerprint if output and workers.rank == 0 else ""
    clock.watch("finetune")
    net, found = finetune(bench, report, clock)
    clock.stop()
    hours = clock.hours("finetune")
    metrics = {**found, **bench.all_costs, "finetune_device_hours": hours, "device_hours": hours}
    if output and workers.rank == 0:
        save_model(net, _card(bench, metrics, fingerprint), bench.record, output)
    return FinetuneResult(metrics=metrics)


def make_kernels_usable(workers: Workers) -> None:
    """On a GPU torchvision's RoIAlign is another one where gradients are to be added in a fixed order: one in Python,
    which needs a compiler and many times the memory. So the same seed gives the same numbers there only nearly."""
    if workers.device.type == "cuda":
        torch.use_deterministic_algorithms(False)


def finetune(bench: DetectorBench, report: Report, clock: Checkpoint) -> tuple[nn.Module, dict[str, float]]:
    """The finetuned network as it was measured, with its precision and images_per_s."""
    config, workers = bench.config, bench.workers
    net = calibrated(bench)
    model = workers.wrap(net)
    plan = training_plan(net, config.finetune, bench.training_batches)
    measured = plan.average.net if plan.average else net
    scores: list[dict[str, float]] = []

    def score() -> dict[str, float]:
        return precision(measured, bench.validation_batches(), bench.data.validation, workers)

    def on_epoch(epoch: int, means: dict[str, float]) -> None:
        metrics = {**means, "bops_g": bench.costs.bops_g(bench.record.policy)}
        if epoch % config.evaluation.every == 0 or epoch == plan.epochs:
            scores.append(score())
            metrics |= scores[-1]
        report(EpochReport(stage="finetune", epoch=epoch, epochs=plan.epochs, metrics=metrics))

    kept = clock.begin("finetune", net, policy=bench.record.policy)
    last = train(model, plan, partial(losses, model), workers=workers, on_epoch=on_epoch, checkpoint=kept)
    # None were made where it goes on after the last epoch.
    found = scores[-1] if scores else score()
    return measured, {**found, "images_per_s": last["images_per_s"]}


def calibrated(bench: DetectorBench) -> nn.Module:
    """The quantised detector, ready to be trained."""
    config = bench.config
    net = deploy(bench.net, bench.costs, bench.record.policy, config.quantizer)
    first = next(iter(bench.training_batches(0))).to(bench.workers.device)
    calibrate_detector(net, first.images)
    layout = torch.channels_last if config.finetune.channels_last else torch.contiguous_format
    return net.requires_grad_(True).to(memory_format=layout)


def losses(model: nn.Module, batch: DetectionBatch) -> Mapping[str, Tensor]:
    """torchvision's terms, and their sum, which is minimised."""
    terms: dict[str, Tensor] = model(batch.images, batch.targets)
    return {"loss": torch.stack([*terms.values()]).sum(), **terms}


def _card(bench: DetectorBench, metrics: Mapping[str, float], fingerprint: str) -> ModelCard:
    config = bench.config
    return ModelCard(
        task="detection",
        network=config.detector.name,
        num_classes=len(bench.data.class_names),
        image_size=0,
        quantizer=config.quantizer,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        class_names=bench.data.class_names,
        metrics=metrics,
        config=dataclasses.asdict(config),
        data_fingerprint=fingerprint,
    )
