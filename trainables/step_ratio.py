"""What a search step takes over a plain full-precision step of the same network, on the device of the trials.

The search itself runs on a few batches. Each time it asks for the next one, a plain step is taken on that batch, so
that both are timed in turn in one process, and a busy machine touches both. `benchmarks/step.py` has the ratio on a
network of its own, taken with more care.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from trainables import methods
from trainables.config import TrialConfig
from trainables.data import load_data
from trainables.data.splits import LabelledImages
from trainables.distributed import Workers
from trainables.method_config import LimpqConfig, SupernetConfig
from trainables.reference import fresh_network, untrained_bench
from trainables.report import EpochReport
from trainables.stepping import memory_layout
from trainables.survey import shortened_search
from trainables.timing import STANDING_STILL, Clock, Repeated, as_in_a_trial

WARM_UP, ROUNDS = 3, 12
"""Steps that are not timed, and those of whose ratios the median counts."""


def step_ratio(config: TrialConfig, *, threads: int, workers: int) -> float | None:
    """See `trainables.api.step_ratio`."""
    if not isinstance(config.method, SupernetConfig | LimpqConfig):
        return None
    alone = replace(Workers.current(), rank=0, size=1)
    with as_in_a_trial(config.seed, threads, alone.device):
        data = load_data(config.data)
        method = shortened_search(config.method, workers, alone.device)
        assert isinstance(method, SupernetConfig | LimpqConfig)
        short = replace(config, data=replace(config.data, loader_workers=0), method=method)
        clock = Clock(alone.device)
        plain = plain_step(fresh_network(short, data).to(alone.device), method, alone.device)
        images = _InTurn(data.train, (WARM_UP + ROUNDS) * method.batch_size, clock, plain)
        bench = untrained_bench(short, replace(data, train=images), alone)
        methods.search(bench, short, _quiet)
        images.asked_s.append(clock.now_s())
    return images.ratio()


def plain_step(
    net: nn.Module, method: SupernetConfig | LimpqConfig, device: torch.device
) -> Callable[[LabelledImages], None]:
    """Forward, backward and SGD update of the float network, in the search's precision and memory layout."""
    layout = memory_layout(channels_last=getattr(method, "channels_last", False))
    net.train().to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=STANDING_STILL, momentum=0.9, weight_decay=1e-4, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=method.amp == "fp16")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[method.amp]

    def step(batch: LabelledImages) -> None:
        images, labels = (part.to(device) for part in batch)
        with torch.enable_grad():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = nn.functional.cross_entropy(net(images.contiguous(memory_format=layout)), labels)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


@dataclass(slots=True)
class _InTurn(Repeated):
    """Each training batch is first given to a plain step."""

    plain: Callable[[LabelledImages], None]
    asked_s: list[float] = field(default_factory=list)
    """When each training batch was asked for: the step before has ended."""
    given_s: list[float] = field(default_factory=list)
    """When it was given: the step on it begins."""
    plain_s: list[float] = field(default_factory=list)

    def batch(self, places: Tensor, draws: Tensor | None) -> LabelledImages:
        """See `ImageSet.batch`. What is not augmented is read for the reference's maps, and takes no turn."""
        asked_s = self.clock.now_s()
        made = self.images.batch(places % len(self.images), draws)
        if draws is not None:
            began_s = self.clock.now_s()
            self.plain(made)
            self.asked_s.append(asked_s)
            self.given_s.append(self.clock.now_s())
            self.plain_s.append(self.given_s[-1] - began_s)
        return made

    def ratio(self) -> float:
        """Median over the last rounds of search step over the plain step before it."""
        searches = [end - begin for begin, (_, end) in zip(self.given_s, pairwise(self.asked_s), strict=True)]
        ratios = [ours / plain for ours, plain in zip(searches, self.plain_s, strict=True)]
        return statistics.median(ratios[-ROUNDS:])


def _quiet(epoch: EpochReport) -> None:
    """Nobody listens to the epochs of a search that is timed."""
