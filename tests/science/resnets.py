"""ResNet18 and ResNet50 at 224 pixels, as torchvision has them, from their tables: work without a network."""

import itertools
import math
import random
from collections.abc import Iterator

from trainables.bops import CostModel, LayerWork
from trainables.choices import Choices, Scores

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


def resnet(name: str) -> CostModel:
    work = dict(_layers(name))
    return CostModel(work, 0)


def _layers(name: str) -> Iterator[tuple[str, LayerWork]]:
    yield "conv1", _work("conv1", 3, 64, kernel=7, side=224, stride=2)
    channels, side = 64, 56
    for stage, blocks in enumerate(BLOCKS[name], start=1):
        width = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            path = f"layer{stage}.{block}"
            first = f"{path}.conv1"
            if name == "resnet50":
                out = 4 * width
                yield first, _work(first, channels, width, kernel=1, side=side)
                yield f"{path}.conv2", _work(f"{path}.conv2", width, width, kernel=3, side=side, stride=stride)
                yield f"{path}.conv3", _work(f"{path}.conv3", width, out, kernel=1, side=side // stride)
            else:
                out = width
                yield first, _work(first, channels, width, kernel=3, side=side, stride=stride)
                yield f"{path}.conv2", _work(f"{path}.conv2", width, width, kernel=3, side=side // stride)
            if channels != out:
                yield f"{path}.downsample.0", _work(first, channels, out, kernel=1, side=side, stride=stride)
            channels, side = out, side // stride
    yield "fc", _work("fc", channels, 1000, kernel=1, side=1)


def _work(reads: str, channels: int, out: int, *, kernel: int, side: int, stride: int = 1) -> LayerWork:
    weights = channels * out * kernel**2
    return LayerWork(
        kind="linear" if reads == "fc" else "conv",
        macs=weights * (side // stride) ** 2,
        weights=weights,
        inputs=channels * side**2,
        reads_negative=reads == "conv1",
        reads=reads,
        stream=reads,
    )


def indicator_like(rng: random.Random, widths: tuple[int, ...]) -> Scores:
    """As LSQ's steps fall: by a factor of about 0.6 with every bit, a few per cent of noise."""
    first, factor = math.exp(rng.gauss(-3, 1)), rng.uniform(0.45, 0.75)
    return Scores(widths, tuple(-first * factor**b * math.exp(rng.gauss(0, 0.05)) for b in widths))


def loss_like(rng: random.Random, widths: tuple[int, ...]) -> Scores:
    """As the loss of rounding falls, 4^-b; layers differ by orders of magnitude."""
    scale = math.exp(rng.gauss(0, 2))
    return Scores(widths, tuple(-scale * 4.0**-b * math.exp(rng.gauss(0, 0.1)) for b in widths))


def convex(rng: random.Random, widths: tuple[int, ...]) -> Scores:
    """Any convex falling loss."""
    steps = sorted((rng.expovariate(1.0) for _ in widths), reverse=True)
    return Scores(widths, tuple(-sum(steps[place:]) for place in range(1, len(widths) + 1)))


def choices_of(
    costs: CostModel, network: str, seed: int, scores: object, *, act_widths: tuple[int, ...] = (2, 3, 4, 5, 6)
) -> Choices:
    """Random scores of one kind for a ResNet; stem and head at 8 bits."""
    assert callable(scores)
    rng = random.Random(seed)
    names = list(costs.layers)
    group_of = {name: costs.work[name].reads for name in names[1:-1]}
    return Choices(
        network=network,
        layers=tuple(names),
        weights={name: scores(rng, (2, 3, 4, 5, 6)) for name in group_of},
        acts={group: scores(rng, act_widths) for group in dict.fromkeys(group_of.values())},
        group_of=group_of,
        pinned={names[0]: 8, names[-1]: 8},
    )


def between(choices: Choices, costs: CostModel, limits: tuple[str, ...], share: float) -> dict[str, float]:
    """Limits of which the smallest widths take all at share 0, the best ones at share 1."""
    low, high = costs.of(choices.smallest), costs.of(choices.best)
    shares = itertools.cycle((share, 0.85 * share, 1.1 * share))
    return {name: low[name] + (high[name] - low[name]) * part for name, part in zip(limits, shares, strict=False)}
