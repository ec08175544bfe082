"""What a trial will cost, found out without training it: counted on a fresh network, timed on a few real steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple, assert_never

import torch

from trainables import methods
from trainables.allocate import allocate
from trainables.attribution import Attribution
from trainables.bops import CostModel
from trainables.checkpoint import Checkpoint
from trainables.choices import Choices
from trainables.config import TrialConfig
from trainables.data import load_data
from trainables.data.splits import DataSplits, loader
from trainables.distributed import Workers
from trainables.method_config import (
    BlackboxConfig,
    GmpqConfig,
    HawqConfig,
    LimpqConfig,
    MethodConfig,
    MpqcoConfig,
    RandomConfig,
    Resolution,
    SensitivityConfig,
    SupernetConfig,
    UniformConfig,
    WidthsConfig,
)
from trainables.methods import drawn
from trainables.methods.quick_score import parts
from trainables.methods.sensitivity import check_images
from trainables.offer import widths_on_offer
from trainables.reference import Bench, train_reference, untrained_bench
from trainables.report import EpochReport, Stage
from trainables.stepping import nearest_precision
from trainables.supernet import Roles
from trainables.survey_finetune import time_finetune
from trainables.survey_report import Reach, StepTimes, Survey
from trainables.timing import STANDING_STILL, TIMED_STEPS, Clock, as_in_a_trial, noted, sampled

TIMED_PASSES = TIMED_STEPS + 1
"""Of a search over a few images. What is done once comes after the last, which is not timed."""
TIMED_PROBES = 4
"""Of a Hessian in a pass; the difference to a single one is timed."""
TIMED_EVALUATIONS = 2
"""Of a black-box search; the second has nothing to load any more."""


def surveys(configs: Sequence[TrialConfig]) -> list[Survey]:
    """See `trainables.api.surveys`."""
    found = {place: survey(config, data) for place, config, data in _with_data(configs)}
    return [found[place] for place in range(len(configs))]


def _with_data(configs: Sequence[TrialConfig]) -> Iterator[tuple[int, TrialConfig, DataSplits]]:
    """Each with its place and its data set: one data set at a time, each read once."""
    for wanted in dict.fromkeys(config.data for config in configs):
        data = load_data(wanted)
        yield from ((place, config, data) for place, config in enumerate(configs) if config.data == wanted)


def survey(config: TrialConfig, data: DataSplits) -> Survey:
    """Of one trial. On the CPU, so that a machine's GPUs are left to its trials."""
    with torch.random.fork_rng(devices=[]):
        bench = untrained_bench(config, data, Workers(0, 1, torch.device("cpu")))
    if isinstance(config.method, RandomConfig):
        drawn.check(bench, config.method, config.budget)
    map_pixels = _map_pixels(bench)
    return Survey(
        searched=bench.roles.searched,
        pinned=dict(bench.roles.pinned),
        full_bops_g=bench.costs.full_bops_g,
        reach=_reach(bench.costs, bench.roles, config.method, config.network.name),
        map_pixels=map_pixels,
        method_pixels=_method_pixels(config, map_pixels),
        evaluation_pixels=map_pixels[config.evaluation.resolution],
        search_steps=_search_steps(config.method, data),
        training_images=len(data.train),
        validation_images=len(data.validation),
        steps_per_epoch=_steps_per_epoch(config, data),
    )


def _map_pixels(bench: Bench) -> dict[Resolution, int]:
    tap = Attribution(bench.reference, bench.probe)
    maps = tap.observe(bench.reference, bench.probe, None).maps
    tap.detach()
    return {"native": maps.shape[1] * maps.shape[2], "input": bench.probe.shape[2] * bench.probe.shape[3]}


def _method_pixels(config: TrialConfig, map_pixels: dict[Resolution, int]) -> int:
    match config.method:
        case GmpqConfig(eta=eta, resolution=resolution) if eta > 0:
            return map_pixels[resolution]
        case _:
            return 0


def _reach(costs: CostModel, roles: Roles, config: WidthsConfig, network: str) -> dict[str, Reach]:
    """Every cost grows (compression falls) with every width, so that two policies have both ends."""
    choices = widths_on_offer(network, costs, roles, config)
    ends = [costs.of(policy) for policy in (choices.smallest, choices.largest)]
    return {name: Reach(*sorted((ends[0][name], ends[1][name]))) for name in ends[0]}


def _steps_per_epoch(config: TrialConfig, data: DataSplits) -> dict[Stage, int]:
    """Of the loaders that the stages will have. Raises ConfigError for a batch larger than the data set."""
    sizes: dict[Stage, int] = {
        "reference": config.reference.batch_size,
        "finetune": config.finetune.batch_size,
    }
    return {stage: _steps(data, size) for stage, size in sizes.items()}


def _steps(data: DataSplits, batch_size: int) -> int:
    return len(loader(data.train, batch_size=batch_size, shuffle=True, seed=0, epoch=0))


def _search_steps(method: MethodConfig, data: DataSplits) -> int:
    """How long a search is, in the steps that `time_steps` times."""
    match method:
        case SupernetConfig(epochs=epochs, batch_size=batch_size):
            return epochs * _steps(data, batch_size)
        case LimpqConfig():
            return method.epochs * method.steps(_steps(data, method.batch_size))
        case MpqcoConfig():
            check_images(data.train, method.images)
            return method.passes
        case HawqConfig():
            check_images(data.train, method.images)
            return method.passes * method.probes
        case BlackboxConfig():
            # A step is an evaluation.
            parts(data.train, method, seed=0)
            return method.evaluations
        case UniformConfig() | RandomConfig():
            return 1
        case _ as unknown:
            assert_never(unknown)


def times(configs: Sequence[TrialConfig], *, threads: int, workers: int) -> list[StepTimes]:
    """See `trainables.api.times`."""
    found = {
        place: time_steps(config, data, threads=threads, workers=workers) for place, config, data in _with_data(configs)
    }
    return [found[place] for place in range(len(configs))]


def time_steps(config: TrialConfig, data: DataSplits, *, threads: int, workers: int) -> StepTimes:
    """Of one trial: its own search and finetune, on an epoch of four batches."""
    alone = replace(Workers.current(), rank=0, size=1)
    with as_in_a_trial(config.seed, threads, alone.device):
        short = _shortened(config, len(data.validation), workers, alone.device)
        measured = short.evaluation.batch_size
        clocks = {name: Clock(alone.device) for name in ("reference", "search", "finetune")}
        samples = sampled(data, short.reference.batch_size, measured, clocks["reference"])
        train_reference(short, samples, alone, _quiet, Checkpoint(None, alone))
        clocks["reference"].end()
        bench = untrained_bench(short, data, alone)
        choices, search_s = _timed_search(bench, data, config, short, clocks["search"])
        policy = allocate(choices, bench.costs, config.budget)
        time_finetune(bench, policy, clocks["finetune"])
    loaders = config.data.loader_workers
    return StepTimes(
        reference_s=clocks["reference"].seconds("training", loaders),
        search_s=search_s,
        finetune_s=clocks["finetune"].seconds("training", loaders),
        reference_validation_s=clocks["reference"].seconds("validation", loaders),
        validation_s=clocks["finetune"].seconds("validation", loaders),
        comparison_s=clocks["finetune"].seconds("comparison", loaders),
    )


def _timed_search(
    bench: Bench, data: DataSplits, config: TrialConfig, short: TrialConfig, clock: Clock
) -> tuple[Choices, float]:
    """What a short search ends with, and seconds of a step of the whole one."""
    match short.method:
        case SupernetConfig(batch_size=batch_size) | LimpqConfig(batch_size=batch_size):
            data = sampled(data, batch_size, short.evaluation.batch_size, clock)
            choices = methods.search(replace(bench, data=data), short, _quiet)
            clock.end()
            return choices, clock.seconds("training", config.data.loader_workers)
        case MpqcoConfig() | HawqConfig():
            choices, whole_s = _timed_sums(bench, config.method, short, clock)
            return choices, whole_s / _search_steps(config.method, data)
        case _:
            began = clock.now_s()
            choices = methods.search(bench, short, _quiet)
            return choices, (clock.now_s() - began) / _search_steps(short.method, data)


def _timed_sums(bench: Bench, method: MethodConfig, short: TrialConfig, clock: Clock) -> tuple[Choices, float]:
    """What a short search over a few images ends with, and seconds of the whole one, `method`'s.

    Its passes, each with its probes, and those that try activation widths are as many as the images are; what else it
    does is done once.
    """
    few, many = short.method, method
    assert isinstance(few, SensitivityConfig)
    assert isinstance(many, SensitivityConfig)
    one = replace(few, probes=1) if isinstance(few, HawqConfig) else few
    timed = _searched(bench, replace(short, method=one), clock)
    pass_s = timed.pass_s
    if isinstance(few, HawqConfig) and isinstance(many, HawqConfig) and few.probes > 1:
        more_s = _searched(bench, short, clock).pass_s
        pass_s += (many.probes - 1) * max(0.0, more_s - pass_s) / (few.probes - 1)
    once_s = max(0.0, timed.whole_s - TIMED_PASSES * (timed.pass_s + timed.trials_s))
    return timed.choices, once_s + many.passes * (pass_s + timed.trials_s)


class _TimedSums(NamedTuple):
    """A search over TIMED_PASSES batches."""

    choices: Choices
    whole_s: float
    pass_s: float
    """Of a pass, the median."""
    trials_s: float
    """Of a batch in all the passes that try activation widths."""


def _searched(bench: Bench, short: TrialConfig, clock: Clock) -> _TimedSums:
    assert isinstance(short.method, SensitivityConfig)
    own = Clock(clock.device)
    began = own.now_s()
    data = replace(bench.data, train=noted(bench.data.train, short.method.images, own))
    choices = methods.search(replace(bench, data=data), short, _quiet)
    own.end()
    asked = [note.asked_s for note in own.notes]
    seconds = [following - at for at, following in pairwise(asked)]
    tries = (len(seconds) - TIMED_PASSES) // TIMED_PASSES
    return _TimedSums(
        choices=choices,
        whole_s=asked[-1] - began,
        pass_s=statistics.median(seconds[: TIMED_PASSES - 1]),
        trials_s=tries * statistics.median(seconds[-TIMED_STEPS:]),
    )


def _shortened(config: TrialConfig, validation_images: int, workers: int, device: torch.device) -> TrialConfig:
    """One epoch of each stage at a learning rate that changes nothing, on one worker's share of each batch."""

    def share(batch_size: int) -> int:
        return max(1, batch_size // workers)

    reference, tuned, evaluation, still = config.reference, config.finetune, config.evaluation, STANDING_STILL
    return replace(
        config,
        data=replace(config.data, loader_workers=0),
        reference=replace(reference, epochs=1, batch_size=share(reference.batch_size), lr=still),
        method=shortened_search(config.method, workers, device),
        finetune=replace(
            tuned,
            epochs=1,
            batch_size=share(tuned.batch_size),
            lr=still,
            amp=nearest_precision(tuned.amp, device),
        ),
        evaluation=replace(evaluation, batch_size=share(min(evaluation.batch_size, validation_images))),
    )


def shortened_search(method: MethodConfig, workers: int, device: torch.device) -> MethodConfig:
    """Few steps of the same kind."""
    match method:
        case SupernetConfig():
            size = max(1, method.batch_size // workers)
            amp = nearest_precision(method.amp, device)
            return replace(method, epochs=1, batch_size=size, weight_lr=STANDING_STILL, bit_lr=STANDING_STILL, amp=amp)
        case LimpqConfig():
            size = max(1, method.batch_size // workers)
            amp = nearest_precision(method.amp, device)
            return replace(method, epochs=1, fraction=1.0, batch_size=size, lr=STANDING_STILL, amp=amp)
        case MpqcoConfig():
            size = max(1, method.batch_size // workers)
            return replace(method, batch_size=size, images=TIMED_PASSES * size)
        case HawqConfig():
            size, probes = max(1, method.batch_size // workers), min(method.probes, TIMED_PROBES)
            return replace(method, batch_size=size, images=TIMED_PASSES * size, probes=probes)
        case BlackboxConfig():
            size, images = max(1, method.batch_size // workers), max(1, method.images // workers)
            return replace(method, evaluations=TIMED_EVALUATIONS, batch_size=size, images=images)
        case UniformConfig() | RandomConfig():
            return method
        case _ as unknown:
            assert_never(unknown)


def _quiet(epoch: EpochReport) -> None:
    """Nobody listens to the epochs of a timed stage."""
