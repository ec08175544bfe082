"""Ratio of a search step, attribution included, to a plain full-precision step of the same network.

All are taken in turn in one process, so that a machine's drift touches all. Times are those of the fastest round, on
the CPU of the thread that computes; a ratio of two steps is also given as the median over the rounds of what they took
side by side. What attribution takes is timed within single steps: its maps, the reference's, the imitation risk and
that risk's gradient. Memory is what a step has at its peak, with weights, gradients and optimisers, and in a search
with the reference network.

Run: python benchmarks/step.py [--network resnet18] [--image-size 64] [--batch 32] [--rounds 15]
     python benchmarks/step.py --device cuda --image-size 224 --batch 256 --amp bf16 --channels-last
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from memory import held_bytes, peak_bytes
from torch import Tensor, nn

from trainables.config import Augment, NetworkConfig
from trainables.counting import measure
from trainables.data.splits import Batch
from trainables.distributed import Workers, make_repeatable
from trainables.method_config import EdmipsConfig, GmpqConfig, Precision, RgmpqConfig, SupernetConfig
from trainables.methods.gmpq import ImitationTerms
from trainables.methods.loop import Generalisation, make_objective, training_plan
from trainables.models import build_network
from trainables.reference_maps import AskedMaps, KeptMaps, MapSetting
from trainables.stepping import Step, memory_layout
from trainables.supernet import assign_roles, build_supernet

WARM_UP = 3
CLASSES = 10
PLAIN, ETA_0, GMPQ, RGMPQ = "plain full-precision", "search, eta = 0", "GMPQ, maps kept", "R-GMPQ, maps kept"
TARGETS = {"cpu": 1.35, "cuda": 1.25}
MEMORY_TARGET, ATTRIBUTION_TARGET, RGMPQ_TARGET = 1.3, 0.03, 1.03


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all steps have in common."""

    network: str
    image_size: int
    batch_size: int
    device: torch.device
    amp: Precision
    channels_last: bool
    augment: Augment = "flip"
    """Of the images, which kept maps follow."""

    def net(self) -> nn.Module:
        """A fresh network."""
        made = build_network(self.network, num_classes=CLASSES, image_size=self.image_size)
        return made.to(self.device)

    def batch(self) -> Batch:
        """Images that are on the device already; what tells them apart is not, as in training."""
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        labels = torch.randint(0, CLASSES, (self.batch_size,), device=self.device)
        places = torch.randperm(self.batch_size)
        return Batch(torch.randn(shape, device=self.device), labels, places, torch.rand(self.batch_size, 5))

    def now_s(self) -> float:
        """Seconds: on a GPU when it has done all that was asked of it; on the CPU those of this thread alone."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.thread_time()


class Timed(NamedTuple):
    """A step, and how many bytes it holds all the time: weights, gradients, optimisers, the reference."""

    step: Callable[[], object]
    held: Callable[[], int]
    attribution: Attributed | None = None


class Attributed:
    """The generalisation terms of a search, which can be timed within a step."""

    def __init__(self, terms: ImitationTerms, setting: Setting) -> None:
        self._terms, self._setting = terms, setting
        self.seconds: list[float] = []
        self.timing = False

    def __call__(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """See `ImitationTerms`; while `timing` with the gradient of the risk to the last features."""
        if not self.timing:
            return self._terms(batch, logits)
        features = self._terms.ours._out
        assert features is not None
        began = self._setting.now_s()
        terms = self._terms(batch, logits)
        torch.autograd.grad(terms["generalisation_risk"], features, retain_graph=True)
        self.seconds.append(self._setting.now_s() - began)
        return terms


def plain_step(setting: Setting, batch: Batch) -> Timed:
    """Forward, backward and SGD update of the float network, as fast as PyTorch has them without compilation."""
    layout = memory_layout(channels_last=setting.channels_last)
    net = setting.net().to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.amp == "fp16")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[setting.amp]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(setting.device.type, dtype=dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(net(batch.images.contiguous(memory_format=layout)), batch.labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return Timed(step, lambda: _held([net], [optimizer]))


def search_step(setting: Setting, batch: Batch, config: SupernetConfig, *, kept: bool = True) -> Timed:
    """A step of the search loop's own objective, plan and `Step`.

    `kept`: the reference's maps are looked up, and follow the images' changes; else it is asked in every step.
    """
    config = replace(
        config, batch_size=setting.batch_size, amp=setting.amp, channels_last=setting.channels_last, weight_lr=0.01
    )
    reference = setting.net().eval().requires_grad_(False)
    costs = measure(reference, batch.images[:8])
    supernet = build_supernet(reference, costs, assign_roles(costs, NetworkConfig(name=setting.network)), config)
    layout = memory_layout(channels_last=config.channels_last)
    supernet.net.requires_grad_(True).train().to(memory_format=layout)
    generalisation, attributed = None, None
    if isinstance(config, GmpqConfig) and config.eta:
        asked = AskedMaps(reference, MapSetting.of(config, setting.image_size), probe=batch.images[:8])
        said = asked(batch)
        maps = KeptMaps(said.maps.cpu(), said.risks.cpu(), setting.augment).near(setting.device)
        terms = ImitationTerms(supernet, maps if kept else asked, config, probe=batch.images[:8])
        attributed = Attributed(terms, setting)
        generalisation = Generalisation(config.eta, attributed)
    objective = make_objective(supernet.net, supernet, config, generalisation)
    plan = training_plan(supernet, config, lambda epoch: [batch])  # type: ignore[arg-type,return-value]  # never asked
    step = Step(supernet.net, plan, objective, Workers(0, 1, setting.device))
    return Timed(lambda: step(batch), lambda: _held([supernet.net, reference], plan.optimizers), attributed)


def _held(nets: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> int:
    parameters = [parameter for net in nets for parameter in net.parameters()]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    buffers = [buffer for net in nets for buffer in net.buffers()]
    return held_bytes([*parameters, *gradients, *buffers, *(value for value in states if isinstance(value, Tensor))])


def in_turn(setting: Setting, steps: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round, after those that warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + rounds):
        for name, timed in steps.items():
            began = setting.now_s()
            timed.step()
            elapsed = setting.now_s() - began
            if number >= WARM_UP:
                times[name].append(elapsed)
    return times


def paired(times: dict[str, list[float]], name: str, other: str) -> float:
    """Median over the rounds of the ratio of two steps that were taken one after the other."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


def attribution_s(timed: Timed, rounds: int) -> float:
    """Seconds of a step's attribution, timed within it: the fastest of the rounds."""
    attributed = timed.attribution
    assert attributed is not None
    attributed.timing = True
    for _ in range(1 + rounds):
        timed.step()
    attributed.timing = False
    return min(attributed.seconds[1:])


def settings() -> tuple[Setting, int]:
    """From the command line, with the number of rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--rounds", type=int, default=15, help=f"timed rounds, after {WARM_UP} that are not")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--amp", default="none", choices=["none", "bf16", "fp16"])
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    setting = Setting(
        network=args.network,
        image_size=args.image_size,
        batch_size=args.batch,
        device=torch.device(args.device),
        amp=args.amp,
        channels_last=args.channels_last,
    )
    return setting, args.rounds


def main() -> None:
    """Prints the table."""
    setting, rounds = settings()
    torch.set_num_threads(1)
    make_repeatable(0)
    batch = setting.batch()
    gmpq, rgmpq = GmpqConfig(zeta=0.1, eta=1.0), RgmpqConfig(zeta=0.1, eta=1.0)
    steps = {
        PLAIN: plain_step(setting, batch),
        ETA_0: search_step(setting, batch, replace(gmpq, eta=0.0)),
        GMPQ: search_step(setting, batch, gmpq),
        RGMPQ: search_step(setting, batch, rgmpq),
        "EdMIPS": search_step(setting, batch, EdmipsConfig(zeta=0.1)),
        "GMPQ, reference asked": search_step(setting, batch, gmpq, kept=False),
        "R-GMPQ, reference asked": search_step(setting, batch, rgmpq, kept=False),
    }
    times = in_turn(setting, steps, rounds)
    cuda = setting.device.type == "cuda"
    where = torch.cuda.get_device_name(setting.device) if cuda else f"1 CPU thread ({platform.machine()})"
    layout = "channels last" if setting.channels_last else "contiguous"
    print(f"{setting.network}, {setting.image_size}x{setting.image_size}, batch {setting.batch_size}, {where},")
    print(f"amp {setting.amp}, {layout}, torch {torch.__version__}, {rounds} rounds taken in turn\n")
    print("| step | ms, fastest | ratio | ratio, paired | memory, MB | ratio |\n|---|---|---|---|---|---|")
    memory = {name: timed.held() + peak_bytes(timed.step, device=str(setting.device)) for name, timed in steps.items()}
    plain_s = min(times[PLAIN])
    for name, seconds in times.items():
        fastest, relative = min(seconds), memory[name] / memory[PLAIN]
        line = f"{1000 * fastest:.1f} | {fastest / plain_s:.2f} | {paired(times, name, PLAIN):.2f}"
        print(f"| {name} | {line} | {memory[name] / 1e6:.0f} | {relative:.2f} |")
    compare(setting, steps, times, memory, rounds)


def compare(
    setting: Setting, steps: dict[str, Timed], times: dict[str, list[float]], memory: dict[str, int], rounds: int
) -> None:
    """Prints what has a target."""
    gmpq_s, eta_0_s, plain_s = (min(times[name]) for name in (GMPQ, ETA_0, PLAIN))
    own_s, smoothed_s = (attribution_s(steps[name], rounds) for name in (GMPQ, RGMPQ))
    rows = (
        ("GMPQ / plain", gmpq_s / plain_s, paired(times, GMPQ, PLAIN), TARGETS[setting.device.type]),
        ("its memory / plain", memory[GMPQ] / memory[PLAIN], None, MEMORY_TARGET),
        ("attribution's share of the GMPQ step, timed within", own_s / gmpq_s, None, ATTRIBUTION_TARGET),
        (
            "the same, as difference to eta = 0",
            1 - eta_0_s / gmpq_s,
            1 - 1 / paired(times, GMPQ, ETA_0),
            ATTRIBUTION_TARGET,
        ),
        ("R-GMPQ / GMPQ, by attribution timed within", 1 + (smoothed_s - own_s) / gmpq_s, None, RGMPQ_TARGET),
        ("the same, of whole steps", min(times[RGMPQ]) / gmpq_s, paired(times, RGMPQ, GMPQ), RGMPQ_TARGET),
    )
    print("\n| what | found | paired | target |\n|---|---|---|---|")
    for what, found, in_pairs, target in rows:
        print(f"| {what} | {found:.3f} | {'' if in_pairs is None else f'{in_pairs:.3f}'} | ≤ {target} |")


if __name__ == "__main__":
    main()
