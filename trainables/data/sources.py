"""The readers: from a data set's own format to DataSplits."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.config import DataConfig
from trainables.data.images import FileImages, MemoryImages, statistics, to_rgb
from trainables.data.places import class_names, data_root, fashion_folder, idx_file, image_paths
from trainables.data.splits import DataSplits, stratified
from trainables.errors import DataMissingError

SPLIT_SEED = 0
"""Splits and subsets do not depend on a trial's seed: trials of a sweep are compared on the same images."""
DIGITS_TRAINING_SHARE = 0.8
IDX_BYTES = b"\x00\x00\x08"
"""First bytes of an IDX file of bytes; the number of dimensions follows."""

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
    train, validation = (images[training], labels[training]), (images[held_out], labels[held_out])
    return in_memory(config, train, validation, num_classes=10)


def read_fashion_mnist(config: DataConfig) -> DataSplits:
    """Fashion-MNIST's 60 000 training and 10 000 test images of 28×28 grey pixels, from its IDX files."""
    if config.download and config.root:
        from torchvision.datasets import FashionMNIST

        _download(lambda root: FashionMNIST(root, download=True), config)
    folder = fashion_folder(config)
    train, test = (_read_idx_pair(folder, split) for split in ("train", "t10k"))
    return in_memory(config, train, test, num_classes=10)


def _read_idx_pair(folder: Path, split: str) -> Labelled:
    images = _read_idx(folder, f"{split}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(folder, f"{split}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise DataMissingError(f"{folder}: {split} has {len(images)} images but {len(labels)} labels; get them again.")
    return images[:, None], labels.to(torch.int64)


def _read_idx(folder: Path, name: str, *, dimensions: int) -> Tensor:
    """An IDX file of bytes: its first bytes, number of dimensions, their sizes (big-endian), then the values."""
    path = idx_file(folder, name)
    if path is None:
        raise DataMissingError(f"{folder / name} has gone.")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:4] != IDX_BYTES + bytes([dimensions]):
            raise ValueError(f"first bytes are {content[:4].hex(' ')}")
        shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).tolist()
        values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataMissingError(
            f"{path}: not a whole IDX file of bytes in {dimensions} dimensions ({error}); get it again."
        ) from None
    return torch.from_numpy(values.copy())


def read_cifar(config: DataConfig) -> DataSplits:
    """CIFAR-10 or CIFAR-100, 50 000 training and 10 000 test images of 32×32 pixels.

    The files are pickles: torchvision opens them only if their MD5 is that of the published ones.
    """
    from torchvision import datasets

    source, num_classes = {"cifar10": (datasets.CIFAR10, 10), "cifar100": (datasets.CIFAR100, 100)}[config.name]
    if config.download:
        _download(lambda root: source(root, download=True), config)
    root = data_root(config)

    def read(train: bool) -> Labelled:
        try:
            found = source(root, train=train)
        except RuntimeError:
            raise DataMissingError(
                f"{root}: the files of {config.name} are incomplete or not the published ones (by their MD5); get them "
                "again, or set data.download: true."
            ) from None
        return torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets)

    return in_memory(config, read(True), read(False), num_classes=num_classes)


def _download(fetch: Callable[[Path], Any], config: DataConfig) -> None:
    root = data_root(config)
    try:
        with _alone_in(root):
            fetch(root)
    except (OSError, RuntimeError) as error:
        raise DataMissingError(
            f"{config.name} could not be downloaded into {root} ({error}); where the network does not allow it, put "
            "the files there by hand and leave data.download out."
        ) from None


@contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Trials and workers that start together fetch one after the other; the second finds what the first fetched."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".download.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_image_folder(config: DataConfig) -> DataSplits:
    """Any images as root/{train,val}/<class>/<image>; classes in alphabetical order."""
    root = data_root(config)
    classes = class_names(root / "train")
    train, validation = (FileImages(*_listed(root / split, classes), config.image_size) for split in ("train", "val"))
    every_path = [*train.paths, *validation.paths]
    train.augment = config.augment
    if config.fraction < 1:
        kept = stratified(train.labels, config.fraction, seed=SPLIT_SEED)
        train.paths, train.labels = [train.paths[i] for i in kept.tolist()], train.labels[kept]
    return DataSplits(
        name=config.name,
        train=train,
        validation=validation,
        num_classes=len(classes),
        digest=lambda: _files_digest(root, every_path),
    )


def _listed(folder: Path, classes: list[str]) -> tuple[list[Path], Tensor]:
    by_class = [sorted(image_paths(folder / name)) for name in classes]
    counts = torch.tensor([len(paths) for paths in by_class])
    return [path for paths in by_class for path in paths], torch.arange(len(classes)).repeat_interleave(counts)


def _files_digest(root: Path, paths: list[Path]) -> str:
    """Of relative paths, which hold the labels, and contents; neither dates nor the root's own place matter."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        digest.update(f"{path.relative_to(root).as_posix()}\0{content.hexdigest()}\0".encode())
    return digest.hexdigest()


def in_memory(config: DataConfig, train: Labelled, validation: Labelled, *, num_classes: int) -> DataSplits:
    """Splits of uint8 images [N, C, H, W], resized once, normalised with the training images' statistics."""
    for _, labels in (train, validation):
        if len(labels) == 0 or int(labels.max()) >= num_classes:
            found = f"a label {int(labels.max())}" if len(labels) else "a split without images"
            raise DataMissingError(f"{config.name}: found {found}; expected labels below {num_classes}. Get it again.")
    fingerprint = _tensors_digest(*train, *validation)
    if config.fraction < 1:
        kept = stratified(train[1], config.fraction, seed=SPLIT_SEED)
        train = (train[0][kept], train[1][kept])
    images = to_rgb(train[0], config.image_size)
    mean, std = statistics(images)
    return DataSplits(
        name=config.name,
        train=MemoryImages(images, train[1], mean, std, config.augment),
        validation=MemoryImages(to_rgb(validation[0], config.image_size), validation[1], mean, std),
        num_classes=num_classes,
        digest=lambda: fingerprint,
    )


def _tensors_digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


DATA_SETS: dict[str, Callable[[DataConfig], DataSplits]] = {
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "digits": read_digits,
    "fashion-mnist": read_fashion_mnist,
    "imagefolder": read_image_folder,
}
