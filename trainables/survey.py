"""What a trial will cost, found out without training it: counted on a fresh network, timed on a few real steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from trainables import methods
from trainables.allocate import allocate
from trainables.attribution import Attribution
from trainables.bops import CostModel
from trainables.checkpoint import Checkpoint
from trainables.config import BenchConfig, GmpqConfig, Resolution, SupernetConfig, TrialConfig
from trainables.data import load_data
from trainables.data.splits import DataSplits, ImageSet, LabelledImages, Normalisation, loader
from trainables.distributed import Workers, make_repeatable
from trainables.finetune.classify import finetune
from trainables.policy import BitPolicy, LayerBits
from trainables.reference import Bench, fresh_network, make_bench, train_reference
from trainables.report import EpochReport, ReferenceRecord, Stage
from trainables.supernet import Roles
from trainables.survey_report import Reach, StepTimes, Survey

TIMED_STEPS = 3
"""After one that is not timed; their median counts."""
STANDING_STILL = 1e-12
"""A learning rate with which a fresh network cannot diverge."""


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
        bench = _fresh_bench(config, data, Workers(0, 1, torch.device("cpu")))
    map_pixels = _map_pixels(bench)
    return Survey(
        searched=bench.roles.searched,
        pinned=dict(bench.roles.pinned),
        full_bops_g=bench.costs.full_bops_g,
        reach=_reach(bench.costs, bench.roles, config.method, config.network.name),
        map_pixels=map_pixels,
        method_pixels=_method_pixels(config, map_pixels),
        evaluation_pixels=map_pixels[config.evaluation.resolution],
        training_images=len(data.train),
        validation_images=len(data.validation),
        steps_per_epoch=_steps_per_epoch(config, data),
    )


def _fresh_bench(config: BenchConfig, data: DataSplits, workers: Workers) -> Bench:
    """A bench whose reference has never been trained."""
    net = fresh_network(config, data)
    record = ReferenceRecord(key=config.reference_key, top1=0.0, device_hours=0.0, data_fingerprint="")
    return make_bench(config, data, net, record, Checkpoint(None, workers), workers=workers)


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


def _reach(costs: CostModel, roles: Roles, config: SupernetConfig, network: str) -> dict[str, Reach]:
    """Every cost grows (compression falls) with every width, so that two policies have both ends."""
    ends = [
        costs.of(_uniform(costs, roles, LayerBits(choose(config.weight_bits), choose(config.act_bits)), network))
        for choose in (min, max)
    ]
    return {name: Reach(*sorted((ends[0][name], ends[1][name]))) for name in ends[0]}


def _uniform(costs: CostModel, roles: Roles, bits: LayerBits, network: str) -> BitPolicy:
    """The policy with the same bits in every searched layer whose activation no pinned one fixes."""
    chosen = {name: LayerBits(b, b) for name, b in roles.pinned.items()}
    for group, members in roles.groups.items():
        chosen |= dict.fromkeys(members, LayerBits(bits.weight, roles.fixed_acts.get(group, bits.act)))
    return BitPolicy(
        network=network, bits={name: chosen[name] for name in costs.layers}, pinned=frozenset(roles.pinned)
    )


def _steps_per_epoch(config: TrialConfig, data: DataSplits) -> dict[Stage, int]:
    """Of the loaders that the stages will have. Raises ConfigError for a batch larger than the data set."""
    sizes: dict[Stage, int] = {
        "reference": config.reference.batch_size,
        "search": config.method.batch_size,
        "finetune": config.finetune.batch_size,
    }
    return {
        stage: len(loader(data.train, batch_size=size, shuffle=True, seed=0, epoch=0)) for stage, size in sizes.items()
    }


def times(configs: Sequence[TrialConfig], *, threads: int, workers: int) -> list[StepTimes]:
    """See `trainables.api.times`."""
    found = {
        place: time_steps(config, data, threads=threads, workers=workers) for place, config, data in _with_data(configs)
    }
    return [found[place] for place in range(len(configs))]


def time_steps(config: TrialConfig, data: DataSplits, *, threads: int, workers: int) -> StepTimes:
    """Of one trial: its own search and finetune, on an epoch of four batches."""
    alone = replace(Workers.current(), rank=0, size=1)
    with _as_in_a_trial(config.seed, threads, alone.device):
        short = _shortened(config, len(data.validation), workers)
        clocks = {name: _Clock(alone.device) for name in ("reference", "search", "finetune")}
        samples = _sampled(data, short, short.reference.batch_size, clocks["reference"])
        train_reference(short, samples, alone, _quiet, Checkpoint(None, alone))
        clocks["reference"].end()
        bench = _fresh_bench(short, data, alone)
        samples = _sampled(data, short, short.method.batch_size, clocks["search"])
        policy = allocate(methods.search(replace(bench, data=samples), short, _quiet), bench.costs, config.budget)
        clocks["search"].end()
        _run_finetune(bench, policy, clocks["finetune"])
    loaders = config.data.loader_workers
    return StepTimes(
        reference_s=clocks["reference"].seconds("training", loaders),
        search_s=clocks["search"].seconds("training", loaders),
        finetune_s=clocks["finetune"].seconds("training", loaders),
        reference_validation_s=clocks["reference"].seconds("validation", loaders),
        validation_s=clocks["finetune"].seconds("validation", loaders),
        comparison_s=clocks["finetune"].seconds("comparison", loaders),
    )


@contextmanager
def _as_in_a_trial(seed: int, threads: int, device: torch.device) -> Iterator[None]:
    """Threads and deterministic kernels as a trial has them; afterwards this process is as it was."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_num_threads(threads)
        make_repeatable(seed)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.backends.cudnn.benchmark = before[1]
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


def _shortened(config: TrialConfig, validation_images: int, workers: int) -> TrialConfig:
    """One epoch of each stage at a learning rate that changes nothing, on one worker's share of each batch."""

    def share(batch_size: int) -> int:
        return max(1, batch_size // workers)

    reference, method, tuned, evaluation = config.reference, config.method, config.finetune, config.evaluation
    still, size = STANDING_STILL, share(method.batch_size)
    return replace(
        config,
        data=replace(config.data, loader_workers=0),
        reference=replace(reference, epochs=1, batch_size=share(reference.batch_size), lr=still),
        method=replace(method, epochs=1, batch_size=size, weight_lr=still, bit_lr=still),
        finetune=replace(tuned, epochs=1, batch_size=share(tuned.batch_size), lr=still),
        evaluation=replace(evaluation, batch_size=share(min(evaluation.batch_size, validation_images))),
    )


@dataclass(frozen=True, slots=True)
class _Note:
    """A batch: what it is for, when it was asked for and when it had been made, seconds."""

    what: str
    asked_s: float
    made_s: float


@dataclass(slots=True)
class _Clock:
    """Notes every batch; what lies between two is the work that the first one made."""

    device: torch.device
    notes: list[_Note] = field(default_factory=list)

    def now_s(self) -> float:
        """Seconds, after all that the device still has to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def end(self) -> None:
        """No batch follows: the work of the last one ends here."""
        now = self.now_s()
        self.notes.append(_Note("", now, now))

    def seconds(self, what: str, loaders: int) -> float:
        """Median of the last steps. Loader processes make batches during the work, so many at once."""
        found = []
        for note, following in pairwise(self.notes):
            if note.what == what:
                making, work = note.made_s - note.asked_s, following.asked_s - note.made_s
                found.append(max(work, making / loaders) if loaders else making + work)
        return statistics.median(found[-TIMED_STEPS:])


@dataclass(slots=True)
class _Sample:
    """`count` images, those of the data set again and again; notes when each batch is asked for."""

    images: ImageSet
    count: int
    clock: _Clock
    uses: tuple[str, ...]
    """What they are read for the first time, the second and so on; the last again and again."""
    read: int = 0

    def __len__(self) -> int:
        return self.count

    @property
    def labels(self) -> Tensor:
        """See `ImageSet.labels`."""
        return self.images.labels[torch.arange(self.count) % len(self.images)]

    @property
    def normalisation(self) -> Normalisation:
        """See `ImageSet.normalisation`."""
        return self.images.normalisation

    def pixels(self, places: Tensor) -> Tensor:
        """See `ImageSet.pixels`; not timed."""
        return self.images.pixels(places % len(self.images))

    def batch(self, places: Tensor, draws: Tensor | None) -> LabelledImages:
        """See `ImageSet.batch`."""
        asked_s = self.clock.now_s()
        made = self.images.batch(places % len(self.images), draws)
        what = self.uses[min(self.read // self.count, len(self.uses) - 1)]
        self.read += len(places)
        self.clock.notes.append(_Note(what, asked_s, self.clock.now_s()))
        return made


def _sampled(
    data: DataSplits,
    config: BenchConfig,
    batch_size: int,
    clock: _Clock,
    *,
    validation_uses: tuple[str, ...] = ("validation",),
) -> DataSplits:
    """Training and validation of as many batches as are timed, and one before."""
    steps = TIMED_STEPS + 1
    return replace(
        data,
        train=_Sample(data.train, steps * batch_size, clock, ("training",)),
        validation=_Sample(data.validation, steps * config.evaluation.batch_size, clock, validation_uses),
    )


def _run_finetune(bench: Bench, policy: BitPolicy, clock: _Clock) -> None:
    # The reference's maps are made first; an epoch of the finetune takes top-1, then compares attribution.
    uses = ("maps", "validation", "comparison")
    samples = _sampled(bench.data, bench.config, bench.config.finetune.batch_size, clock, validation_uses=uses)
    finetune(replace(bench, data=samples), policy, lambda epoch: clock.end())


def _quiet(epoch: EpochReport) -> None:
    """Nobody listens to the epochs of a timed stage."""
