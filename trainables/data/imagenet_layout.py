"""ImageNet (ILSVRC2012) in the layouts that people have it in: which file has which label. Needs no torch.

Training images lie in a folder for each class, named after its WordNet ID; validation images do too, or lie in one
folder with a file that tells their classes: Kaggle's solution, or the ground truth of the ILSVRC2012 devkit.

Labels are places in the alphabetical order of the WordNet IDs, as in torchvision, whose published weights then fit. The
devkit's own numbers are in another order.
"""

from __future__ import annotations

import csv
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from trainables.data.folders import IMAGE_ENDINGS, class_names
from trainables.errors import DataMissingError

KAGGLE = Path("ILSVRC/Data/CLS-LOC")
SOLUTION = "LOC_val_solution.csv"
SYNSETS = "LOC_synset_mapping.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
DEVKIT_PLACES = (Path("ILSVRC2012_devkit_t12/data"), Path("data"), Path())

Labelled = tuple[list[str], list[int]]
"""Paths of images below a folder, and their labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagenetLayout:
    """Where training and validation images are, and what tells the validation images' classes."""

    root: Path
    """Of the data set."""
    folder: Path
    """Holds train and val."""
    wnids: tuple[str, ...]
    """WordNet IDs in alphabetical order."""
    truth: Path | None
    """Kaggle's solution, or the folder with the devkit's ground truth; None where val has a folder for each class."""


def check_imagenet(root: Path) -> None:
    """Raises DataMissingError unless the images are there, and something tells their classes."""
    layout = find_imagenet(root)
    for split in ("train", "val") if layout.truth is None else ("train",):
        for wnid in layout.wnids:
            if not _image_names(layout.folder / split / wnid, first=True):
                raise DataMissingError(
                    f"imagenet: {layout.folder / split / wnid} holds no images; unpack {wnid}'s there, or remove the "
                    "class from train and val."
                )
    if layout.truth is not None:
        validation_files(layout)


def find_imagenet(root: Path) -> ImagenetLayout:
    """The layout below `root`. Raises DataMissingError where it is none that is known."""
    folder = next((place for place in (root, root / KAGGLE) if (place / "train").is_dir()), None)
    if folder is None:
        raise DataMissingError(
            f"imagenet: neither {root / 'train'} nor {root / KAGGLE / 'train'} is a folder; data.root is the folder "
            "that holds train/<wnid>/ and val/, or Kaggle's ILSVRC/."
        )
    if not (folder / "val").is_dir():
        raise DataMissingError(f"imagenet: {folder / 'val'} is not a folder; put the validation images there.")
    wnids = class_names(folder / "train")
    if not wnids:
        packed = any(path.suffix == ".tar" for path in (folder / "train").iterdir())
        fix = "unpack each .tar there into a folder of its name" if packed else "expected train/<wnid>/<image>"
        raise DataMissingError(f"imagenet: {folder / 'train'} has no class folders; {fix}.")
    classes = class_names(folder / "val")
    if classes and classes != wnids:
        only = [sorted(set(a) - set(b)) for a, b in ((wnids, classes), (classes, wnids))]
        raise DataMissingError(
            f"imagenet: train and val in {folder} have different classes; only in train: {_some(only[0])}; only in "
            f"val: {_some(only[1])}. Give both the same class folders."
        )
    return ImagenetLayout(root=root, folder=folder, wnids=tuple(wnids), truth=None if classes else _truth(root, folder))


def _truth(root: Path, folder: Path) -> Path:
    for place in dict.fromkeys((root, folder)):
        if (place / SOLUTION).is_file():
            return place / SOLUTION
        for below in DEVKIT_PLACES:
            if (place / below / GROUND_TRUTH).is_file() and (place / below / META).is_file():
                return place / below
    raise DataMissingError(
        f"imagenet: {folder / 'val'} has no class folders, and nothing tells the classes of its images. Put "
        f"Kaggle's {SOLUTION} into {root}, or unpack ILSVRC2012_devkit_t12.tar.gz there ({GROUND_TRUTH} and {META})."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def class_words(layout: ImagenetLayout) -> tuple[str, ...]:
    """What people call the classes, by label, as far as Kaggle's table is there to tell; else the WordNet IDs."""
    table = layout.root / SYNSETS
    lines = table.read_text(errors="replace").splitlines() if table.is_file() else []
    words = {wnid: names.split(",")[0].strip() for wnid, _, names in (line.partition(" ") for line in lines)}
    return tuple(words.get(wnid) or wnid for wnid in layout.wnids)


def training_files(layout: ImagenetLayout) -> Labelled:
    """Below the layout's folder, class by class."""
    return _by_class(layout, "train")


def validation_files(layout: ImagenetLayout) -> Labelled:
    """Below the layout's folder: class by class, or in the order of their names."""
    if layout.truth is None:
        return _by_class(layout, "val")
    names = _image_names(layout.folder / "val")
    if not names:
        raise DataMissingError(
            f"imagenet: {layout.folder / 'val'} holds no images; unpack the validation images there."
        )
    told = _solution(layout.truth, names) if layout.truth.is_file() else _ground_truth(layout.truth, names)
    label_of = {wnid: label for label, wnid in enumerate(layout.wnids)}
    unknown = sorted(set(told) - set(label_of))
    if unknown:
        raise DataMissingError(
            f"imagenet: {layout.truth} tells of classes that {layout.folder / 'train'} has no folder for: "
            f"{_some(unknown)}. Put their training images there; with fewer classes, sort val into folders, too."
        )
    return [f"val/{name}" for name in names], [label_of[wnid] for wnid in told]


def _by_class(layout: ImagenetLayout, split: str) -> Labelled:
    names, labels = [], []
    for label, wnid in enumerate(layout.wnids):
        found = _image_names(layout.folder / split / wnid)
        names += [f"{split}/{wnid}/{name}" for name in found]
        labels += [label] * len(found)
    return names, labels


def _image_names(folder: Path, *, first: bool = False) -> list[str]:
    """Image files of the folder in the order of their names, or any one of them."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _stem_and_ending(entry.name)[1] in IMAGE_ENDINGS and entry.is_file():
                found.append(entry.name)
                if first:
                    break
    return sorted(found)


def _stem_and_ending(name: str) -> tuple[str, str]:
    stem, dot, ending = name.rpartition(".")
    return stem, (dot + ending).lower()


def _solution(path: Path, names: list[str]) -> list[str]:
    """WordNet IDs of the images, from Kaggle's table: ImageId, then the ID and a box for each object."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        told = {row[0]: row[1].split()[0] for row in rows if row}
    except (OSError, UnicodeDecodeError, IndexError, csv.Error) as error:
        raise DataMissingError(
            f"imagenet: {path} is damaged ({error}): expected ImageId,PredictionString. Get it again."
        ) from None
    stems = [_stem_and_ending(name)[0] for name in names]
    untold = [name for name, stem in zip(names, stems, strict=True) if stem not in told]
    missing = sorted(set(told) - set(stems))
    if untold or missing:
        raise DataMissingError(
            f"imagenet: {path} and the images do not belong together: {len(untold)} images are not in it "
            f"({_some(untold)}), and {len(missing)} of its images are missing ({_some(missing)}). Get the rest again."
        )
    return [told[stem] for stem in stems]


def _ground_truth(folder: Path, names: list[str]) -> list[str]:
    """WordNet IDs of the images: line i of the ground truth is the class, by the devkit's own number, of the i-th."""
    path = folder / GROUND_TRUTH
    try:
        numbers = [int(line) for line in path.read_text().split()]
    except (OSError, ValueError) as error:
        raise DataMissingError(f"imagenet: {path} is damaged ({error}); get it again.") from None
    if len(numbers) != len(names):
        raise DataMissingError(
            f"imagenet: {path} tells {len(numbers)} classes, but there are {len(names)} validation images; its lines "
            "belong to all of them in the order of their names. Get the rest again."
        )
    wnids = _devkit_wnids(folder / META)
    wrong = [number for number in numbers if number not in wnids]
    if wrong:
        raise DataMissingError(
            f"imagenet: {path} has the number {wrong[0]}, which {folder / META} lacks; get both again."
        )
    return [wnids[number] for number in numbers]


def _devkit_wnids(path: Path) -> dict[int, str]:
    """The devkit's number of each class -> WordNet ID; inner nodes of the hierarchy have numbers above these."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        return {
            int(number): str(wnid)
            for number, wnid, children in zip(
                synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True
            )
            if children == 0
        }
    except (OSError, ValueError, LookupError, TypeError, MatReadError, zlib.error) as error:
        raise DataMissingError(f"imagenet: {path} is not the devkit's ({error!r}); get it again.") from None
