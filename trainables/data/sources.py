"""The readers: from a data set's own format to DataSplits."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainables.config import DataConfig
from trainables.data.assembly import (
    SPLIT_SEED,
    LabelledFiles,
    LabelledPixels,
    LabelledSources,
    from_files,
    from_listed,
    from_memory,
)
from trainables.data.downloads import download
from trainables.data.fine_grained import read_fine_grained
from trainables.data.folders import class_names, image_paths
from trainables.data.imagenet_layout import class_words, find_imagenet, training_files, validation_files
from trainables.data.listing import FileList
from trainables.data.places import LAYOUTS, data_root, fashion_folder, idx_file
from trainables.data.shard_files import read_shards
from trainables.data.splits import DataSplits, stratified
from trainables.errors import DataMissingError

DIGITS_TRAINING_SHARE = 0.8
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IDX_BYTES = b"\x00\x00\x08"
"""First bytes of an IDX file of bytes; the number of dimensions follows."""


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
    return from_memory(config, train, validation, num_classes=10)


def read_fashion_mnist(config: DataConfig) -> DataSplits:
    """Fashion-MNIST's 60 000 training and 10 000 test images of 28×28 grey pixels, from its IDX files."""
    if config.download and config.root:
        from torchvision.datasets import FashionMNIST

        download(lambda root: FashionMNIST(root, download=True), config)
    folder = fashion_folder(config)
    train, test = (_read_idx_pair(folder, split) for split in ("train", "t10k"))
    return replace(from_memory(config, train, test, num_classes=10), class_names=FASHION)


def _read_idx_pair(folder: Path, split: str) -> LabelledPixels:
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
        download(lambda root: source(root, download=True), config)
    root = data_root(config)

    def read(train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        try:
            found = source(root, train=train)
        except RuntimeError:
            raise DataMissingError(
                f"{root}: the files of {config.name} are incomplete or not the published ones (by their MD5); get them "
                "again, or set data.download: true."
            ) from None
        pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2)
        return pixels, torch.tensor(found.targets), tuple(found.classes)

    train, validation = read(True), read(False)
    splits = from_memory(config, train[:2], validation[:2], num_classes=num_classes)
    return replace(splits, class_names=train[2])


def read_image_folder(config: DataConfig) -> DataSplits:
    """Any images as root/{train,val}/<class>/<image>; classes in alphabetical order."""
    root = data_root(config)
    classes = class_names(root / "train")
    train, validation = (_listed(root / split, classes) for split in ("train", "val"))
    return replace(from_files(config, train, validation, num_classes=len(classes)), class_names=tuple(classes))


def _listed(folder: Path, classes: list[str]) -> LabelledFiles:
    by_class = [sorted(image_paths(folder / name)) for name in classes]
    counts = torch.tensor([len(paths) for paths in by_class])
    return [path for paths in by_class for path in paths], torch.arange(len(classes)).repeat_interleave(counts)


def read_imagenet(config: DataConfig) -> DataSplits:
    """ILSVRC2012, or any part of its classes; see `imagenet_layout`."""
    layout = find_imagenet(data_root(config))

    def sources(names: list[str], labels: list[int]) -> LabelledSources:
        return FileList.of(layout.folder, names), torch.tensor(labels, dtype=torch.int64)

    train, validation = sources(*training_files(layout)), sources(*validation_files(layout))
    splits = from_listed(config, train, validation, num_classes=len(layout.wnids))
    return replace(splits, class_names=class_words(layout))


def read_tar_shards(config: DataConfig) -> DataSplits:
    """Tar archives of JPEG files with their labels; see `shard_files`."""
    root = data_root(config)
    train, validation = (read_shards(root, split) for split in ("train", "val"))
    num_classes = int(train.labels.max()) + 1
    without = np.setdiff1d(np.arange(num_classes), train.labels)
    if len(without):
        raise DataMissingError(
            f"shards: {root} has no training image with label {without[0]}, but some with {num_classes - 1}; number "
            "the classes from 0 without gaps."
        )
    pairs = [(split.images, torch.from_numpy(split.labels)) for split in (train, validation)]
    return from_listed(config, *pairs, num_classes=num_classes)


DATA_SETS: dict[str, Callable[[DataConfig], DataSplits]] = {
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "digits": read_digits,
    "fashion-mnist": read_fashion_mnist,
    "imagefolder": read_image_folder,
    "imagenet": read_imagenet,
    "shards": read_tar_shards,
    **dict.fromkeys(LAYOUTS, read_fine_grained),
}
