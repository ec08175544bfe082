"""What the store of the reference's maps saves: R-GMPQ trials with it, without sharing, and without maps kept at all.

The trials vary zeta and eta and are whole: search, finetune, measure. They take turns, a trial of each kind after the
other, so that a machine's drift touches all; a trial's first run of each kind finds nothing. Prints seconds and ratios.
Run: python benchmarks/reference_maps.py [--trials 8] [--image-size 32]
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

from trainables import reference_maps
from trainables.api import ensure_reference, run_trial
from trainables.config import DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import RgmpqConfig
from trainables.report import EpochReport


def settings(number: int, image_size: int) -> TrialConfig:
    """The trial's; partition and data are those of all."""
    method = RgmpqConfig(zeta=0.1 * (number + 1), eta=1.0 + number, epochs=4, batch_size=64, bit_lr=0.5)
    return TrialConfig(
        network=NetworkConfig(name="resnet8"),
        data=DataConfig(name="digits", image_size=image_size, augment="flip"),
        reference=ReferenceConfig(epochs=2),
        method=method,
        finetune=FinetuneConfig(epochs=4, batch_size=64),
    )


def quiet(epoch: EpochReport) -> None:
    """Only times are printed."""


def seconds(config: TrialConfig, store: Path) -> float:
    """Wall time of a trial."""
    started = time.perf_counter()
    run_trial(config, quiet, store=store)
    return time.perf_counter() - started


def asked_seconds(config: TrialConfig, store: Path) -> float:
    """Where the reference looks at every batch of the search."""
    with mock.patch.object(reference_maps, "keeps", return_value=False):
        return seconds(config, store)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kinds: dict[str, list[float]] = {"shared store": [], "each trial its own maps": [], "reference asked": []}
    with tempfile.TemporaryDirectory() as folder:
        fresh, shared, alone = (Path(folder) / name for name in ("fresh", "shared", "alone"))
        ensure_reference(settings(0, args.image_size), quiet, store=fresh)
        shutil.copytree(fresh, shared)
        # What is compiled or read for the first time is so before the clock runs.
        seconds(settings(0, args.image_size), Path(shutil.copytree(fresh, Path(folder) / "first")))
        for number in range(args.trials):
            config = settings(number, args.image_size)
            kinds["shared store"].append(seconds(config, shared))
            kinds["each trial its own maps"].append(seconds(config, Path(shutil.copytree(fresh, alone))))
            shutil.rmtree(alone)
            kinds["reference asked"].append(asked_seconds(config, Path(shutil.copytree(fresh, alone))))
            shutil.rmtree(alone)
    print(f"resnet8, digits {args.image_size}x{args.image_size}, {args.trials} trials, 1 CPU thread", end=" ")
    print(f"({platform.machine()}), torch {torch.__version__}")
    print("\n| maps | sweep, s | first trial, s | other trials, s each | ratio |\n|---|---|---|---|---|")
    whole = sum(kinds["shared store"])
    for name, times in kinds.items():
        rest = sum(times[1:]) / max(1, len(times) - 1)
        print(f"| {name} | {sum(times):.1f} | {times[0]:.1f} | {rest:.1f} | {sum(times) / whole:.2f} |")


if __name__ == "__main__":
    main()
