"""Where each data set lies on disk, and what to do when it does not. Reads no images and needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainables.config import DataConfig
from trainables.data.folders import IMAGE_ENDINGS, check_shards, class_names, image_paths
from trainables.data.imagenet_layout import check_imagenet
from trainables.errors import ConfigError, DataMissingError, did_you_mean
from trainables.user_code import check_import_path, is_import_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a published data set of image files has below `data.root`: torchvision's layout."""

    folder: str
    training_lists: tuple[str, ...]
    """Files below the folder that say which image has which label."""
    test_lists: tuple[str, ...]
    image_folders: tuple[str, ...]
    source: str
    """How to get it by hand; `there` is the folder."""

    def missing(self, root: Path) -> list[str]:
        """What the folder does not hold, below it."""
        below = root / self.folder
        lists = dict.fromkeys((*self.training_lists, *self.test_lists))
        files = [name for name in lists if not (below / name).is_file()]
        return [*files, *(f"{name}/" for name in self.image_folders if not (below / name).is_dir())]


LAYOUTS = {
    "stanford-cars": Layout(
        folder="stanford_cars",
        training_lists=("devkit/cars_train_annos.mat", "devkit/cars_meta.mat"),
        test_lists=("cars_test_annos_withlabels.mat", "devkit/cars_meta.mat"),
        image_folders=("cars_train", "cars_test"),
        source="Its authors withdrew it; put there the images of "
        "https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset (not as cars_train/cars_train) and the "
        ".mat files of https://github.com/pytorch/vision/issues/7545",
    ),
    "flowers102": Layout(
        folder="flowers-102",
        training_lists=("imagelabels.mat", "setid.mat"),
        test_lists=("imagelabels.mat", "setid.mat"),
        image_folders=("jpg",),
        source="Put 102flowers.tgz, unpacked, and the .mat files of https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ "
        "there",
    ),
    "fgvc-aircraft": Layout(
        folder="fgvc-aircraft-2013b",
        training_lists=("data/images_variant_trainval.txt", "data/variants.txt"),
        test_lists=("data/images_variant_test.txt", "data/variants.txt"),
        image_folders=("data/images",),
        source="Unpack fgvc-aircraft-2013b.tar.gz of https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ in data.root",
    ),
    "oxford-pets": Layout(
        folder="oxford-iiit-pet",
        training_lists=("annotations/trainval.txt",),
        test_lists=("annotations/test.txt",),
        image_folders=("images",),
        source="Unpack images.tar.gz and annotations.tar.gz of https://www.robots.ox.ac.uk/~vgg/data/pets/ there",
    ),
    "food101": Layout(
        folder="food-101",
        training_lists=("meta/train.json",),
        test_lists=("meta/test.json",),
        image_folders=("images",),
        source="Unpack food-101.tar.gz of https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/ in data.root",
    ),
}
DATA_SET_NAMES = tuple(
    sorted(("cifar10", "cifar100", "digits", "fashion-mnist", "imagefolder", "imagenet", "shards", *LAYOUTS))
)
WITHOUT_DOWNLOAD = ("digits", "imagefolder", "imagenet", "shards", "stanford-cars")

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CONTENTS = ("images-idx3-ubyte", "labels-idx1-ubyte")
FASHION_FILES = tuple(f"{split}-{content}" for split in ("train", "t10k") for content in FASHION_CONTENTS)
CIFAR_FILES = {
    "cifar10": [
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ],
    "cifar100": [f"cifar-100-python/{name}" for name in ("train", "test", "meta")],
}


def check_data_name(name: str) -> None:
    """Raises ConfigError unless `name` is a known data set, or could be a user's `module:function`."""
    if is_import_path(name):
        check_import_path(name)
    elif name not in DATA_SET_NAMES:
        raise ConfigError(f"unknown data set {name!r}{did_you_mean(name, DATA_SET_NAMES)}.")


def check_data(config: DataConfig) -> None:
    """Raises DataMissingError or ConfigError unless the data set is where its settings say, or may be downloaded.

    Of a user's own data the name alone is checked: only its function knows where they are.
    """
    check_data_name(config.name)
    if config.download and (config.name in WITHOUT_DOWNLOAD or is_import_path(config.name)):
        raise ConfigError(f"data.download is true, but {config.name!r} cannot be downloaded: leave it out.")
    match config.name:
        case "digits":
            if config.root:
                raise ConfigError(f"data.root is {config.root!r}, but 'digits' comes with scikit-learn: leave it out.")
        case "fashion-mnist":
            if not config.download or not config.root:
                fashion_folder(config)
        case "cifar10" | "cifar100":
            _check_cifar(config)
        case "imagefolder" | "imagenet" | "shards":
            checks = {"imagefolder": _check_image_folder, "imagenet": check_imagenet, "shards": check_shards}
            checks[config.name](data_root(config))
        case name if name in LAYOUTS:
            _check_layout(config)


def data_root(config: DataConfig) -> Path:
    """The folder that the settings name. Raises ConfigError where they name none."""
    if not config.root:
        raise ConfigError(f"data.root is missing: {config.name!r} needs the folder that holds the data set.")
    return Path(config.root).expanduser()


def fashion_folder(config: DataConfig) -> Path:
    """The folder that holds the four IDX files. A root that is given is the only place looked in."""
    places = [DEBIAN_FASHION_MNIST]
    if config.root:
        root = data_root(config)
        places = [root, root / "FashionMNIST" / "raw"]
    for place in places:
        if all(idx_file(place, name) is not None for name in FASHION_FILES):
            return place
    raise DataMissingError(
        f"Fashion-MNIST is not in {' nor in '.join(map(str, places))}: looked for {', '.join(FASHION_FILES)}, as such "
        "or with .gz. Install Debian's package dataset-fashion-mnist and leave data.root out, give data.root a folder "
        "that holds the files, or set data.download: true with a data.root to download into."
    )


def idx_file(folder: Path, name: str) -> Path | None:
    """The file, packed or not, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _check_cifar(config: DataConfig) -> None:
    root = data_root(config)
    missing = [str(root / name) for name in CIFAR_FILES[config.name] if not (root / name).is_file()]
    if missing and not config.download:
        raise DataMissingError(
            f"{config.name} is not complete in {root}; missing: {', '.join(missing)}. Unpack the data set's python "
            "version there, or set data.download: true."
        )


def _check_layout(config: DataConfig) -> None:
    root, layout = data_root(config), LAYOUTS[config.name]
    missing = layout.missing(root)
    if missing and not config.download:
        fetch = "" if config.name in WITHOUT_DOWNLOAD else ", or set data.download: true"
        raise DataMissingError(
            f"{config.name}: {root / layout.folder} lacks {', '.join(missing)}. {layout.source}{fetch}."
        )


def _check_image_folder(root: Path) -> None:
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise DataMissingError(f"{root / split} is not a folder; expected {root}/{{train,val}}/<class>/<image>.")
    train, val = (class_names(root / split) for split in ("train", "val"))
    if not train:
        raise DataMissingError(f"{root / 'train'} has no class folders; expected images as train/<class>/<image>.")
    if train != val:
        train_only, val_only = sorted(set(train) - set(val)), sorted(set(val) - set(train))
        raise DataMissingError(
            f"{root}: train and val have different classes; only in train: {', '.join(train_only) or 'none'}; "
            f"only in val: {', '.join(val_only) or 'none'}. Give both the same class folders."
        )
    for folder in (root / split / name for split in ("train", "val") for name in train):
        if next(image_paths(folder), None) is None:
            raise DataMissingError(
                f"{folder} holds no images ({', '.join(sorted(IMAGE_ENDINGS))}); add some, or remove the class."
            )
