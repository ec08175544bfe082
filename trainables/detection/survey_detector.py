"""What the finetune of a detector will cost: checked, counted and timed on a few real steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from trainables.detection.batches import DetectionBatch, DetectionBatches
from trainables.detection.bench import DetectorBench, detector_bench
from trainables.detection.evaluation import detected
from trainables.detection.finetune_detector import calibrated, losses, make_kernels_usable
from trainables.detector_config import DetectorConfig
from trainables.distributed import Workers
from trainables.finetune.recipe import training_plan
from trainables.policy_file import PolicyRecord
from trainables.stepping import Step, nearest_precision
from trainables.survey_report import FinetuneSurvey
from trainables.timing import TIMED_STEPS, Clock, Note, as_in_a_trial


def survey_detector(config: DetectorConfig, policy: PolicyRecord, *, threads: int, workers: int) -> FinetuneSurvey:
    """See `trainables.api.survey_finetune`. What workers have to tell each other is left out."""
    alone = replace(Workers.current(), rank=0, size=1)
    with as_in_a_trial(config.seed, threads, alone.device):
        make_kernels_usable(alone)
        bench = detector_bench(config, policy, alone)
        steps, passes = _batches(bench, workers)
        clock = Clock(alone.device)
        _time(replace(bench, config=_one_workers(config, bench, workers)), clock)
    step_s, validation_s = (clock.seconds(what, config.data.loader_workers) for what in ("training", "validation"))
    epochs, every = config.finetune.epochs, config.evaluation.every
    measures = -(-epochs // every)
    seconds = epochs * steps * step_s + measures * passes * validation_s
    return FinetuneSurvey(
        costs=bench.all_costs, step_s=step_s, steps=epochs * steps, device_hours=seconds * workers / 3600
    )


def _batches(bench: DetectorBench, workers: int) -> tuple[int, int]:
    """Training steps of an epoch, and batches of a pass over the validation images.

    Raises ConfigError for batches that cannot be made, or not be shared.
    """
    shared = replace(bench, workers=replace(bench.workers, size=workers))
    return len(shared.training_batches(0)), len(shared.validation_batches())


def _one_workers(config: DetectorConfig, bench: DetectorBench, workers: int) -> DetectorConfig:
    """Batches of one worker's share, made in this process."""
    tuned, evaluation = config.finetune, config.evaluation
    return replace(
        config,
        data=replace(config.data, loader_workers=0),
        finetune=replace(
            tuned,
            batch_size=max(1, tuned.batch_size // workers),
            amp=nearest_precision(tuned.amp, bench.workers.device),
        ),
        evaluation=replace(evaluation, batch_size=max(1, evaluation.batch_size // workers)),
    )


def _time(bench: DetectorBench, clock: Clock) -> None:
    net = calibrated(bench)
    step = Step(
        net, training_plan(net, bench.config.finetune, bench.training_batches), partial(losses, net), bench.workers
    )
    for batch in _noted(bench.training_batches(0), clock, "training"):
        step(batch.to(bench.workers.device))
    for batch in _noted(bench.validation_batches(), clock, "validation"):
        detected(net, [batch], bench.workers)


def _noted(batches: DetectionBatches, clock: Clock, what: str) -> Iterator[DetectionBatch]:
    """A few batches; the clock notes when each is asked for and made."""
    rest = iter(batches)
    for _ in range(min(TIMED_STEPS + 1, len(batches))):
        asked_s = clock.now_s()
        batch = next(rest)
        clock.notes.append(Note(what, asked_s, clock.now_s()))
        yield batch
    clock.end()
