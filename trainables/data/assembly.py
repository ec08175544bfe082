"""From labelled images, in memory or in files, to DataSplits: subset, statistics, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainables.config import DataConfig
from trainables.data.folders import check_files
from trainables.data.images import FileImages, MemoryImages, statistics, to_rgb
from trainables.data.listing import Source, chosen, content
from trainables.data.splits import DataSplits, stratified
from trainables.errors import DataMissingError

SPLIT_SEED = 0
"""Splits and subsets do not depend on a trial's seed: trials of a sweep are compared on the same images."""

LabelledPixels = tuple[Tensor, Tensor]
"""uint8 images [N, C, S, S], C 1 or 3, and int64 labels [N]."""
LabelledFiles = tuple[list[Path], Tensor]
"""Image files and int64 labels [N]."""
LabelledSources = tuple[Sequence[Source], Tensor]
"""Encoded images, in files or archives, and int64 labels [N]."""
SAMPLED = 1000
"""Images of each split of a large set whose contents its fingerprint is of."""


def from_memory(
    config: DataConfig, train: LabelledPixels, validation: LabelledPixels, *, num_classes: int
) -> DataSplits:
    """Images are resized once, and normalised with the training images' statistics."""
    for _, labels in (train, validation):
        check_labels(config.name, labels, num_classes)
    fingerprint = _pixels_digest(train, validation, num_classes)
    if config.fraction < 1:
        kept = _subset(config, train[1])
        train = train[0][kept], train[1][kept]
    images = to_rgb(train[0], config.image_size)
    mean, std = statistics(images)
    return DataSplits(
        name=config.name,
        train=MemoryImages(images, train[1], mean, std, config.augment),
        validation=MemoryImages(to_rgb(validation[0], config.image_size), validation[1], mean, std),
        num_classes=num_classes,
        digest=lambda: fingerprint,
    )


def from_files(config: DataConfig, train: LabelledFiles, validation: LabelledFiles, *, num_classes: int) -> DataSplits:
    """Images are decoded for each batch, and normalised with ImageNet's statistics."""
    for paths, _ in (train, validation):
        check_files(config.name, paths)
    return _decoding(config, train, validation, num_classes, lambda: _digest(train, validation, num_classes))


def from_listed(
    config: DataConfig, train: LabelledSources, validation: LabelledSources, *, num_classes: int
) -> DataSplits:
    """The same of a large set that has just been listed from the disk.

    Its fingerprint is of all labels in their order, and of the contents of SAMPLED images of each split, evenly spread:
    ImageNet's files are 145 GB.
    """
    for _, labels in (train, validation):
        check_labels(config.name, labels, num_classes)

    def digest() -> str:
        return _digest(_sampled(train), _sampled(validation), num_classes, _labels_digest(train[1], validation[1]))

    return _decoding(config, train, validation, num_classes, digest)


def _decoding(
    config: DataConfig,
    train: LabelledSources,
    validation: LabelledSources,
    num_classes: int,
    digest: Callable[[], str],
) -> DataSplits:
    used = train
    if config.fraction < 1:
        kept = _subset(config, train[1])
        used = chosen(train[0], kept.tolist()), train[1][kept]
    return DataSplits(
        name=config.name,
        train=FileImages(*used, config.image_size, config.augment),
        validation=FileImages(*validation, config.image_size),
        num_classes=num_classes,
        digest=digest,
    )


def check_labels(where: str, labels: Tensor, num_classes: int) -> None:
    """Raises DataMissingError for a split without images, or with a label that no class has."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(labels) == 0 or len(wrong):
        found = f"a label {int(wrong[0])}" if len(wrong) else "a split without images"
        raise DataMissingError(f"{where}: found {found}; expected labels from 0 to {num_classes - 1}. Get it again.")


def _subset(config: DataConfig, labels: Tensor) -> Tensor:
    """Ascending places of the training images that are used; a smaller fraction's are among a larger one's."""
    return stratified(labels, config.fraction, seed=SPLIT_SEED)


def _pixels_digest(train: LabelledPixels, validation: LabelledPixels, num_classes: int) -> str:
    digest = hashlib.sha256(f"{num_classes}\0".encode())
    for tensor in (*train, *validation):
        digest.update(f"{tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _digest(train: LabelledSources, validation: LabelledSources, num_classes: int, more: str = "") -> str:
    """Of contents and labels in their order, and of `more`; neither names nor dates nor the place matter."""
    digest = hashlib.sha256(f"{num_classes}\0{more}".encode())
    for split, (sources, labels) in (("train", train), ("validation", validation)):
        for source, label in zip(sources, labels.tolist(), strict=True):
            digest.update(f"{split} {label} {hashlib.sha256(content(source)).hexdigest()}\0".encode())
    return digest.hexdigest()


def _sampled(split: LabelledSources) -> LabelledSources:
    sources, labels = split
    places = torch.linspace(0, len(sources) - 1, min(SAMPLED, len(sources)), dtype=torch.float64).long()
    return chosen(sources, places.tolist()), labels[places]


def _labels_digest(*labels: Tensor) -> str:
    digest = hashlib.sha256()
    for split in labels:
        digest.update(f"{len(split)}\0".encode() + split.numpy().tobytes())
    return digest.hexdigest()
