"""What the finetune of a policy will cost: checked, counted and timed on a network with untrained weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainables.config import BenchConfig
from trainables.data import load_data
from trainables.data.splits import DataSplits, loader
from trainables.distributed import Workers
from trainables.finetune.classify import finetune
from trainables.policy import BitPolicy
from trainables.policy_file import PolicyRecord, all_costs
from trainables.reference import Bench, untrained_bench
from trainables.stepping import nearest_precision
from trainables.survey_report import FinetuneSurvey
from trainables.timing import STANDING_STILL, Clock, as_in_a_trial, sampled


def survey_finetune(config: BenchConfig, record: PolicyRecord, *, threads: int, workers: int) -> FinetuneSurvey:
    """See `trainables.api.survey_finetune`."""
    data, policy = load_data(config.data), record.policy
    steps = _steps(config, data, workers)
    alone = replace(Workers.current(), rank=0, size=1)
    with as_in_a_trial(config.seed, threads, alone.device):
        bench = untrained_bench(_shortened(config, len(data.validation), workers, alone.device), data, alone)
        policy.check_covers(bench.costs.layers)
        clock = Clock(alone.device)
        time_finetune(bench, policy, clock)
    step_s, validation_s, comparison_s = (
        clock.seconds(what, config.data.loader_workers) for what in ("training", "validation", "comparison")
    )
    passes = max(1.0, len(data.validation) / config.evaluation.batch_size)
    epoch_s = steps * step_s + passes * (validation_s + comparison_s)
    return FinetuneSurvey(
        costs=all_costs(policy, bench.costs),
        step_s=step_s,
        steps=steps * config.finetune.epochs,
        device_hours=config.finetune.epochs * epoch_s * workers / 3600,
    )


def _steps(config: BenchConfig, data: DataSplits, workers: int) -> int:
    """Of an epoch. Raises ConfigError for batches that cannot be made, or not be shared."""
    loader(
        data.validation,
        batch_size=config.evaluation.batch_size,
        shuffle=False,
        seed=0,
        epoch=0,
        world_size=workers,
    )
    size = config.finetune.batch_size
    return len(loader(data.train, batch_size=size, shuffle=True, seed=0, epoch=0, world_size=workers))


def _shortened(config: BenchConfig, validation_images: int, workers: int, device: torch.device) -> BenchConfig:
    """One epoch at a learning rate that changes nothing, on one worker's share of each batch."""
    tuned, evaluation = config.finetune, config.evaluation
    still = replace(
        tuned,
        epochs=1,
        warmup_epochs=0.0,
        batch_size=max(1, tuned.batch_size // workers),
        lr=STANDING_STILL,
        quantizer_lr=min(tuned.quantizer_lr, STANDING_STILL),
        amp=nearest_precision(tuned.amp, device),
    )
    return replace(
        config,
        data=replace(config.data, loader_workers=0),
        finetune=still,
        evaluation=replace(evaluation, batch_size=max(1, min(evaluation.batch_size, validation_images) // workers)),
        images=0,
    )


def time_finetune(bench: Bench, policy: BitPolicy, clock: Clock) -> None:
    """Finetunes for an epoch of a few batches; the clock notes what is read for training, validation, comparison."""
    config = bench.config
    # The reference's maps are made first; an epoch of the finetune takes top-1, then compares attribution.
    uses = ("maps", "validation", "comparison")
    samples = sampled(bench.data, config.finetune.batch_size, config.evaluation.batch_size, clock, validation_uses=uses)
    finetune(replace(bench, data=samples), policy, lambda epoch: clock.end())
