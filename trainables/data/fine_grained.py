"""The fine-grained data sets that the paper searches on, as torchvision lists them.

torchvision says which image has which label; the images are decoded by FileImages, as all others are. Training images
are all that are published for training, validation images those published for testing.

DEVIATION: the paper tells 32 135 photos of six restaurants for Food and 10 200 images of 102 variants for Aircraft. We
read the sets that it cites as published: 101 000 photos of 101 dishes, and 10 000 images of 100 variants.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.io.matlab import MatReadError
from torchvision import datasets

from trainables.config import DataConfig
from trainables.data.assembly import LabelledFiles, check_labels, from_files
from trainables.data.downloads import download
from trainables.data.places import LAYOUTS, data_root
from trainables.data.splits import DataSplits
from trainables.errors import DataMissingError


class Published(NamedTuple):
    """torchvision's reader of a data set, and the names of the splits for training; testing is always `test`."""

    reader: Any
    training: tuple[str, ...]


PUBLISHED = {
    "stanford-cars": Published(datasets.StanfordCars, ("train",)),
    "flowers102": Published(datasets.Flowers102, ("train", "val")),
    "fgvc-aircraft": Published(datasets.FGVCAircraft, ("trainval",)),
    "oxford-pets": Published(datasets.OxfordIIITPet, ("trainval",)),
    "food101": Published(datasets.Food101, ("train",)),
}
# What the readers raise for damaged or inconsistent lists, depending on the place.
DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    MatReadError,
    zlib.error,
)


class Index(NamedTuple):
    """Which image has which label; no image is opened for it."""

    paths: list[Path]
    labels: list[int]
    classes: list[str]

    @property
    def files(self) -> LabelledFiles:
        """As `from_files` takes them."""
        return self.paths, torch.tensor(self.labels, dtype=torch.int64)


def read_fine_grained(config: DataConfig) -> DataSplits:
    """Stanford Cars, Flowers, Aircraft (100 variants), Pets or Food-101."""
    name, root = config.name, data_root(config)
    reader, training = PUBLISHED[name]
    if config.download:
        download(lambda root: reader(root, download=True), config)
        _check_complete(name, root)
    layout = LAYOUTS[name]
    train = _index(name, root, training, layout.training_lists)
    test = _index(name, root, ("test",), layout.test_lists)
    _check_together(name, root / layout.folder, train, test)
    splits = from_files(config, train.files, test.files, num_classes=len(test.classes))
    return replace(splits, class_names=tuple(test.classes))


def _check_complete(name: str, root: Path) -> None:
    """torchvision fetches nothing where a data set's folder is there, whatever the folder lacks."""
    missing = LAYOUTS[name].missing(root)
    if missing:
        raise DataMissingError(
            f"{name}: {root / LAYOUTS[name].folder} lacks {', '.join(missing)}: a download was cut off, or others were "
            "put there by hand. Remove the folder, and it will be downloaded anew."
        )


def _index(name: str, root: Path, splits: tuple[str, ...], lists: tuple[str, ...]) -> Index:
    """Of several splits, one after the other. `lists` are what torchvision reads for them."""
    where = f"{name}: {' or '.join(str(root / LAYOUTS[name].folder / file) for file in lists)}"
    try:
        parts = [_listed(name, root, split) for split in splits]
        pairs = [(Path(path), int(label)) for listed, _ in parts for path, label in listed]
    except DAMAGE as error:
        # torchvision's own words for files that are not the published ones speak of its own arguments.
        reason = "not the published one, by its MD5" if type(error) is RuntimeError else repr(error)
        raise DataMissingError(f"{where} is damaged: {reason}. Get it again.") from None
    found = Index([path for path, _ in pairs], [label for _, label in pairs], parts[0][1])
    check_labels(where, found.files[1], len(found.classes))
    return found


def _listed(name: str, root: Path, split: str) -> tuple[list[tuple[Any, Any]], list[str]]:
    """Pairs of path and label, and the classes' names."""
    if name == "oxford-pets":
        pets = datasets.OxfordIIITPet(root, split=split)
        # The one reader without a `loader`: no public name leads to its paths.
        return list(zip(pets._images, pets._labels, strict=True)), list(pets.classes)
    found = PUBLISHED[name].reader(root, split=split, loader=Path)
    return [found[place] for place in range(len(found))], list(found.classes)


def _check_together(name: str, folder: Path, train: Index, test: Index) -> None:
    """Raises DataMissingError unless both have the same classes, all with training images, and no image in common."""
    if train.classes != test.classes:
        raise DataMissingError(
            f"{name}: the lists in {folder} name other classes for training ({len(train.classes)}) than for testing "
            f"({len(test.classes)}); get them again."
        )
    both = set(train.paths) & set(test.paths)
    if both:
        raise DataMissingError(
            f"{name}: {len(both)} images are listed both for training and for testing, such as {min(both)}; "
            "get the lists again."
        )
    without = sorted(set(range(len(train.classes))) - set(train.labels))
    if without:
        raise DataMissingError(
            f"{name}: {len(without)} of {len(train.classes)} classes in {folder} have no training image, such as "
            f"{train.classes[without[0]]!r}; get the lists again."
        )
