"""Images per second of the two ways to a batch, and what share of a search step the data take.

*In memory*: batches made by the training process itself, against a DataLoader of PyTorch's over the same set. *Files*:
several short epochs of small JPEGs, decoded right here or by two loader processes that stay, against processes that are
started for each epoch. All kinds take turns in one process; medians count.

Run: python benchmarks/data.py [--rounds 7] [--images 512]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from trainables.config import Augment, DataConfig
from trainables.data import load_data, processes
from trainables.data.batches import Batch, Epoch, ImageSet
from trainables.data.splits import loader
from trainables.models import build_network

BATCH, EPOCHS = 64, 3


class WholeBatches(Dataset[Batch]):
    """A DataLoader's view of an epoch: batches by number."""

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.epoch)

    def __getitem__(self, number: int) -> Batch:
        places, draws = self.epoch.shares[number], self.epoch.draws
        own = None if draws is None else draws[places]
        return Batch(*self.epoch.images.batch(places, own), places, own)


def epochs(images: ImageSet, workers: int) -> Iterable[Epoch]:
    """The first epochs of a training."""
    return [
        loader(images, batch_size=BATCH, shuffle=True, seed=0, epoch=epoch, workers=workers) for epoch in range(EPOCHS)
    ]


def ours(images: ImageSet, workers: int) -> Callable[[], None]:
    """Reads these epochs; the processes are there."""

    def read() -> None:
        for epoch in epochs(images, workers):
            for _ in epoch:
                pass

    return read


def anew(images: ImageSet, workers: int) -> Callable[[], None]:
    """Reads these epochs with a DataLoader for each."""

    def read() -> None:
        for epoch in epochs(images, 0):
            for _ in DataLoader(WholeBatches(epoch), batch_size=None, num_workers=workers):
                pass

    return read


def in_turn(kinds: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each kind, after a round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, read in kinds.items():
            began = time.perf_counter()
            read()
            if number:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in found.items()}


def write_images(root: Path, count: int) -> None:
    """JPEGs of 160 by 120 pixels in two classes."""
    random = torch.Generator().manual_seed(0)
    for split, number in (("train", count), ("val", 4)):
        for place in range(number):
            folder = root / split / f"class{place % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = torch.randint(0, 256, (12, 16, 3), generator=random, dtype=torch.uint8)
            Image.fromarray(coarse.numpy()).resize((160, 120)).save(folder / f"{place}.jpg")


def shares_of_a_step(rounds: int) -> Iterator[tuple[str, float, float]]:
    """Augmentation, CPU seconds of a batch of digits and of a full-precision step of resnet8, the shortest there is."""
    net = build_network("resnet8", num_classes=10, image_size=16).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for augment in get_args(Augment):
        digits = load_data(DataConfig(name="digits", image_size=16, augment=augment)).train
        batches = [batch for epoch in epochs(digits, 0) for batch in epoch]
        batch_s, step_s = [], []
        for batch in batches[: rounds + 1]:
            began = time.thread_time()
            ours(digits, 0)()
            batch_s.append((time.thread_time() - began) / len(batches))
            began = time.thread_time()
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(net(batch.images), batch.labels).backward()
            optimizer.step()
            step_s.append(time.thread_time() - began)
        yield augment, statistics.median(batch_s[1:]), statistics.median(step_s[1:])


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one that is not")
    parser.add_argument("--images", type=int, default=512, help="files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, one thread, batches of {BATCH}, {EPOCHS} epochs, medians of {args.rounds} rounds"
    )
    digits = load_data(DataConfig(name="digits", image_size=16, augment="crop-flip")).train
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.images)
        files = load_data(DataConfig(name="imagefolder", image_size=64, root=folder, augment="resized-crop-flip")).train
        tables = {
            "in memory": (digits, {"made here": ours(digits, 0), "DataLoader": anew(digits, 0)}),
            "files": (
                files,
                {
                    "decoded here": ours(files, 0),
                    "2 processes that stay": ours(files, 2),
                    "2 processes an epoch": anew(files, 2),
                },
            ),
        }
        for title, (images, kinds) in tables.items():
            seconds = in_turn(kinds, args.rounds)
            count = EPOCHS * (len(images) // BATCH) * BATCH
            last = list(seconds.values())[-1]
            for name, each in seconds.items():
                print(f"{title:10s} {name:22s} {count / each:10.0f} images/s   {last / each:5.2f} times the last line")
        processes.stop()
    for augment, batch_s, step_s in shares_of_a_step(args.rounds):
        print(
            f"digits, {augment:18s} a batch {1e3 * batch_s:5.2f} ms of CPU, a full-precision step of resnet8 "
            f"{1e3 * step_s:5.1f} ms: {100 * batch_s / step_s:.1f} %"
        )


if __name__ == "__main__":
    main()
