"""Seconds of the steps of a stage, taken while the stage itself runs on a few batches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from trainables.data.splits import DataSplits, ImageSet, LabelledImages, Normalisation
from trainables.distributed import make_repeatable

TIMED_STEPS = 3
"""After one that is not timed; their median counts."""
STANDING_STILL = 1e-12
"""A learning rate with which a fresh network cannot diverge."""


@contextmanager
def as_in_a_trial(seed: int, threads: int, device: torch.device) -> Iterator[None]:
    """Threads and deterministic kernels as a trial has them; afterwards this process is as it was."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_num_threads(threads)
        make_repeatable(seed)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.backends.cudnn.benchmark = before[1]
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


@dataclass(frozen=True, slots=True)
class Note:
    """A batch: what it is for, when it was asked for and when it had been made, seconds."""

    what: str
    asked_s: float
    made_s: float


@dataclass(slots=True)
class Clock:
    """Notes every batch; what lies between two is the work that the first one made."""

    device: torch.device
    notes: list[Note] = field(default_factory=list)

    def now_s(self) -> float:
        """Seconds, after all that the device still has to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def end(self) -> None:
        """No batch follows: the work of the last one ends here."""
        now = self.now_s()
        self.notes.append(Note("", now, now))

    def seconds(self, what: str, loaders: int) -> float:
        """Median of the last steps. Loader processes make batches during the work, so many at once."""
        found = []
        for note, following in pairwise(self.notes):
            if note.what == what:
                making, work = note.made_s - note.asked_s, following.asked_s - note.made_s
                found.append(max(work, making / loaders) if loaders else making + work)
        return statistics.median(found[-TIMED_STEPS:])


@dataclass(slots=True)
class Repeated:
    """`count` images, those of the data set again and again; what becomes of a batch is for those who time it."""

    images: ImageSet
    count: int
    clock: Clock

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


@dataclass(slots=True)
class _Sample(Repeated):
    """Notes when each batch is asked for."""

    uses: tuple[str, ...]
    """What they are read for the first time, the second and so on; the last again and again."""
    read: int = 0

    def batch(self, places: Tensor, draws: Tensor | None) -> LabelledImages:
        """See `ImageSet.batch`."""
        asked_s = self.clock.now_s()
        made = self.images.batch(places % len(self.images), draws)
        what = self.uses[min(self.read // self.count, len(self.uses) - 1)]
        self.read += len(places)
        self.clock.notes.append(Note(what, asked_s, self.clock.now_s()))
        return made


def noted(images: ImageSet, count: int, clock: Clock) -> ImageSet:
    """At least `count` images, whose batches `clock` notes."""
    return _Sample(images, max(count, len(images)), clock, ("",))


def sampled(
    data: DataSplits,
    batch_size: int,
    validation_batch_size: int,
    clock: Clock,
    *,
    validation_uses: tuple[str, ...] = ("validation",),
) -> DataSplits:
    """Training and validation of as many batches as are timed, and one before."""
    steps = TIMED_STEPS + 1
    return replace(
        data,
        train=_Sample(data.train, steps * batch_size, clock, ("training",)),
        validation=_Sample(data.validation, steps * validation_batch_size, clock, validation_uses),
    )
