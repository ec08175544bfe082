"""How a search step grows: with the number of candidate widths, with the layers, with the image's size.

Each row's search step (GMPQ, the reference's maps kept) and plain full-precision step are taken in turn; times are
those of the fastest round. Widths: time = a + b·n from two widths on, by least squares. Layers and sizes: the exponent
e of time ∝ x^e by least squares of logarithms, of the search and of the plain step.

Run: python benchmarks/growth.py [--rounds 9] [--device cuda] [--network resnet18]
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from step import GMPQ, PLAIN, Setting, in_turn, plain_step, search_step
from torch import nn

from trainables.method_config import GmpqConfig
from trainables.models.cifar_resnet import CifarResNet

WIDTHS = tuple(tuple(range(2, 2 + count)) for count in range(1, 8))
"""{2}, {2, 3}, … {2, …, 8}."""
LAYERS = {"resnet8": 8, "resnet20": 20, "growth:resnet32": 32, "growth:resnet56": 56}
"""Searched layers of the residual networks for small images of 1, 3, 5 and 9 blocks a stage."""
SIZES = (64, 96, 128, 160)


def resnet32(num_classes: int) -> nn.Module:
    """A network of this file's own."""
    return CifarResNet(blocks_per_stage=5, num_classes=num_classes)


def resnet56(num_classes: int) -> nn.Module:
    """Another."""
    return CifarResNet(blocks_per_stage=9, num_classes=num_classes)


class Row(NamedTuple):
    """Seconds of one pair of steps."""

    plain_s: float
    search_s: float

    @property
    def ratio(self) -> float:
        """Search over plain."""
        return self.search_s / self.plain_s


def measured(setting: Setting, config: GmpqConfig, rounds: int) -> Row:
    """Both steps, in turn."""
    torch.manual_seed(0)
    batch = setting.batch()
    steps = {PLAIN: plain_step(setting, batch), GMPQ: search_step(setting, batch, config)}
    times = in_turn(setting, steps, rounds)
    return Row(min(times[PLAIN]), min(times[GMPQ]))


def exponent(xs: Sequence[float], seconds: Sequence[float]) -> float:
    """e of seconds ∝ x^e."""
    return float(np.polyfit(np.log(xs), np.log(seconds), 1)[0])


def table(heading: str, names: Sequence[object], rows: Sequence[Row]) -> None:
    """Prints it."""
    print(f"\n| {heading} | plain, ms | search, ms | ratio |\n|---|---|---|---|")
    for name, row in zip(names, rows, strict=True):
        print(f"| {name} | {1000 * row.plain_s:.1f} | {1000 * row.search_s:.1f} | {row.ratio:.2f} |")


def growth(name: str, xs: Sequence[float], rows: Sequence[Row]) -> None:
    """Prints the exponents."""
    search, plain = exponent(xs, [r.search_s for r in rows]), exponent(xs, [r.plain_s for r in rows])
    print(f"\ntime grows with {name} to the power of {search:.2f}, a plain step's to that of {plain:.2f}")


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18", help="of the tables of widths and sizes")
    parser.add_argument("--image-size", type=int, default=64, help="pixels, in the table of widths")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(
        network=args.network,
        image_size=args.image_size,
        batch_size=args.batch,
        device=torch.device(args.device),
        amp="none",
        channels_last=False,
    )
    config = GmpqConfig(zeta=0.1, eta=1.0)
    where = args.device if args.device != "cpu" else f"1 CPU thread ({platform.machine()})"
    print(f"{where}, torch {torch.__version__}, batch {args.batch}, fastest of {args.rounds} rounds")

    rows = [measured(setting, replace(config, weight_bits=w, act_bits=w), args.rounds) for w in WIDTHS]
    table(f"widths ({args.network}, {args.image_size}x{args.image_size})", [len(w) for w in WIDTHS], rows)
    # A single width has no logits and is another step.
    counts = [len(w) for w in WIDTHS[1:]]
    slope, start = np.polyfit(counts, [row.search_s for row in rows[1:]], 1)
    plain_s = min(row.plain_s for row in rows)
    shares = f"{100 * slope / plain_s:.1f} % of a plain step ({100 * slope / start:.1f} % of the rest)"
    print(f"\neach added width takes {shares}")

    small = replace(setting, image_size=32)
    rows = [measured(replace(small, network=name), config, args.rounds) for name in LAYERS]
    table("searched layers (32x32)", [f"{count}, {name.split(':')[-1]}" for name, count in LAYERS.items()], rows)
    growth("the number of searched layers", list(LAYERS.values()), rows)

    rows = [measured(replace(setting, image_size=size), config, args.rounds) for size in SIZES]
    table(f"pixels a side ({args.network})", SIZES, rows)
    growth("the number of pixels", [size**2 for size in SIZES], rows)


if __name__ == "__main__":
    main()
