"""The readers: from a data set's own format to DataSplits."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.config import DataConfig
from trainables.data.images import FileImages, MemoryImages, statistics, to_rgb
from trainables.data.places import fashion_folder, idx_file
from trainables.data.splits import DataSplits, stratified
from trainables.errors import DataMissingError

SPLIT_SEED = 0
"""Splits and subsets do not depend on a trial's seed: trials of a sweep are compared on the same images."""
DIGITS_TRAINING_SHARE = 0.8
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}

Labelled = tuple[Tensor, Tensor]


def read_digits(config: DataConfig) -> DataSplits:
    """scikit-learn's 1797 handwritten digits of 8×8 pixels, 80 % of each class for training."""
    from sklearn.datasets import load_digits

    found = load_digits()
    # Values are whole numbers from 0 to 16.
    images = torch.from_numpy(np.round(found.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(found.target.astype(np.int64))
    training = stratified(labels, DIGITS_TRAINING_SHARE, seed=SPLIT_SEED)
    held_out = torch.ones(len(labels), dtype=torch.bool)
    held_out[training] = False
    return in_memory(config, (images[training], labels[training]), (images[held_out], labels[held_out]))


def read_fashion_mnist(config: DataConfig) -> DataSplits:
    """Fashion-MNIST's 60 000 training and 10 000 test images of 28×28 grey pixels, from its IDX files."""
    if config.download and config.root:
        from torchvision.datasets import FashionMNIST

        _download(lambda: FashionMNIST(config.root, download=True), config)
    folder = fashion_folder(config)
    splits = [
        (_read_idx(folder, f"{s}-images-idx3-ubyte"), _read_idx(folder, f"{s}-labels-idx1-ubyte"))
        for s in ("train", "t10k")
    ]
    train, test = ((images[:, None], labels.to(torch.int64)) for images, labels in splits)
    return in_memory(config, train, test)


def _read_idx(folder: Path, name: str) -> Tensor:
    """An IDX file of bytes: two zeros, type 8, number of dimensions, their sizes (big-endian), then the values."""
    path = idx_file(folder, name)
    if path is None:
        raise DataMissingError(f"{folder / name} has gone.")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dimensions = content[3]
        shape = np.frombuffer(content, dtype=">i4", count=dimensions, offset=4).tolist()
        values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("wrong first bytes")
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataMissingError(f"{path}: not a whole IDX file of bytes ({error}); get it again.") from None
    return torch.from_numpy(values.copy())


def read_cifar(config: DataConfig) -> DataSplits:
    """CIFAR-10 or CIFAR-100, 50 000 training and 10 000 test images of 32×32 pixels.

    The files are pickles: torchvision opens them only if their MD5 is that of the published ones.
    """
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    if config.download:
        _download(lambda: source(config.root, download=True), config)

    def read(train: bool) -> Labelled:
        try:
            found = source(config.root, train=train)
        except RuntimeError:
            raise DataMissingError(
                f"{config.root}: the files of {config.name} are incomplete or not the published ones; get them again, "
                "or set data.download: true."
            ) from None
        return torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets)

    return in_memory(config, read(True), read(False))


def _download(fetch: Callable[[], Any], config: DataConfig) -> None:
    try:
        fetch()
    except (OSError, RuntimeError) as error:
        raise DataMissingError(f"{config.name} could not be downloaded into {config.root} ({error}).") from None


def read_image_folder(config: DataConfig) -> DataSplits:
    """Any images as root/{train,val}/<class>/<image>; classes in alphabetical order."""
    root = Path(config.root).expanduser()
    classes = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
    splits, digest = {}, hashlib.sha256()
    for split in ("train", "val"):
        paths, labels = _listed(root / split, classes)
        splits[split] = FileImages(paths, labels, config.image_size)
        for path in paths:
            digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
    train = splits["train"]
    train.augment = config.augment
    if config.fraction < 1:
        kept = stratified(train.labels, config.fraction, seed=SPLIT_SEED)
        train.paths, train.labels = [train.paths[i] for i in kept.tolist()], train.labels[kept]
    return DataSplits(train, splits["val"], len(classes), digest.hexdigest())


def _listed(folder: Path, classes: list[str]) -> tuple[list[Path], Tensor]:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
        if not found:
            raise DataMissingError(f"{folder / name} holds no images ({', '.join(sorted(IMAGE_ENDINGS))}).")
        paths += found
        labels += [label] * len(found)
    return paths, torch.tensor(labels)


def in_memory(config: DataConfig, train: Labelled, validation: Labelled) -> DataSplits:
    """Splits of uint8 images [N, C, H, W], resized once, normalised with the training images' statistics."""
    digest = hashlib.sha256()
    for tensor in (*train, *validation):
        digest.update(tensor.contiguous().numpy().tobytes())
    num_classes = int(train[1].max()) + 1
    if config.fraction < 1:
        kept = stratified(train[1], config.fraction, seed=SPLIT_SEED)
        train = (train[0][kept], train[1][kept])
    large = to_rgb(train[0], config.image_size)
    mean, std = statistics(large)
    return DataSplits(
        MemoryImages(large, train[1], mean, std, config.augment),
        MemoryImages(to_rgb(validation[0], config.image_size), validation[1], mean, std),
        num_classes,
        digest.hexdigest(),
    )


DATA_SETS: dict[str, Callable[[DataConfig], DataSplits]] = {
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "digits": read_digits,
    "fashion-mnist": read_fashion_mnist,
    "imagefolder": read_image_folder,
}
