"""Where each data set lies on disk, and what to do when it does not. Reads no images and needs no torch."""

from __future__ import annotations

from pathlib import Path

from trainables.config import DataConfig
from trainables.errors import ConfigError, DataMissingError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CONTENTS = ("images-idx3-ubyte", "labels-idx1-ubyte")
FASHION_FILES = tuple(f"{split}-{content}" for split in ("train", "t10k") for content in FASHION_CONTENTS)
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def check_data(config: DataConfig) -> None:
    """Raises DataMissingError or ConfigError unless the data set is where its settings say, or may be downloaded."""
    match config.name:
        case "digits":
            if config.root:
                raise ConfigError(f"data.root is {config.root!r}, but 'digits' comes with scikit-learn: leave it out.")
        case "fashion-mnist":
            if not config.download or not config.root:
                fashion_folder(config)
        case "cifar10" | "cifar100":
            _check_cifar(config)
        case "imagefolder":
            _check_image_folder(_root(config))


def _root(config: DataConfig) -> Path:
    if not config.root:
        raise ConfigError(f"data.root is missing: {config.name!r} needs the folder that holds the data set.")
    return Path(config.root).expanduser()


def fashion_folder(config: DataConfig) -> Path:
    """The folder that holds the four IDX files. A root that is given is the only place looked in."""
    places = [DEBIAN_FASHION_MNIST]
    if config.root:
        root = Path(config.root).expanduser()
        places = [root, root / "FashionMNIST" / "raw"]
    for place in places:
        if all(idx_file(place, name) is not None for name in FASHION_FILES):
            return place
    raise DataMissingError(
        f"Fashion-MNIST is not in {' nor in '.join(map(str, places))} (four files such as {FASHION_FILES[0]}, or .gz). "
        "Install Debian's package dataset-fashion-mnist, give data.root a folder that holds the files, or set "
        "data.download: true with a data.root to download into."
    )


def idx_file(folder: Path, name: str) -> Path | None:
    """The file, packed or not, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _check_cifar(config: DataConfig) -> None:
    root = _root(config)
    if not config.download and not (root / CIFAR_FOLDERS[config.name]).is_dir():
        raise DataMissingError(
            f"{config.name} is not in {root / CIFAR_FOLDERS[config.name]}. Unpack the data set's python version there, "
            "or set data.download: true."
        )


def _check_image_folder(root: Path) -> None:
    classes = {}
    for split in ("train", "val"):
        folder = root / split
        if not folder.is_dir():
            raise DataMissingError(f"{folder} is not a folder; expected {root}/{{train,val}}/<class>/<image>.")
        classes[split] = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    if not classes["train"]:
        raise DataMissingError(f"{root / 'train'} has no class folders. Expected images as train/<class>/<image>.")
    if classes["train"] != classes["val"]:
        train_only, val_only = (
            sorted(classes["train"] - classes["val"]),
            sorted(classes["val"] - classes["train"]),
        )
        raise DataMissingError(
            f"{root}: train and val have different classes: only in train: {', '.join(train_only) or 'none'}; "
            f"only in val: {', '.join(val_only) or 'none'}."
        )
