"""Small data sets in the real formats: each fixture is the function that writes one to a folder."""

import gzip
import hashlib
import io
import json
import pickle
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision import datasets


def _idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes() + values.tobytes()


def _fashion_mnist(folder: Path, *, packed: bool, count: int = 40) -> dict[str, np.ndarray]:
    """Four IDX files of random images; what they hold, by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    random, held = np.random.default_rng(0), {}
    for split, images in (("train", count), ("t10k", count // 2)):
        held[f"{split}-images-idx3-ubyte"] = random.integers(0, 256, (images, 28, 28), dtype=np.uint8)
        held[f"{split}-labels-idx1-ubyte"] = (np.arange(images) % 10).astype(np.uint8)
    for name, values in held.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(_idx(values)))
        else:
            (folder / name).write_bytes(_idx(values))
    return held


def _cifar(root: Path, name: str, *, monkeypatch: pytest.MonkeyPatch, per_file: int = 20) -> dict[str, Any]:
    """The data set's pickles with random images, and torchvision told that these are the published ones."""
    source, key = {"cifar10": (datasets.CIFAR10, "labels"), "cifar100": (datasets.CIFAR100, "fine_labels")}[name]
    folder, random, held = root / source.base_folder, np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    for kind in ("train_list", "test_list"):
        sums = []
        for file, _ in getattr(source, kind):
            data = random.integers(0, 256, (per_file, 3072), dtype=np.uint8)
            held[file] = {"data": data, key: [i % 10 for i in range(per_file)]}
            sums.append([file, _pickled(folder / file, held[file])])
        monkeypatch.setattr(source, kind, sums)
    names = {source.meta["key"]: [f"class {i}" for i in range(100)]}
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": _pickled(folder / source.meta["filename"], names)})
    return held


def _pickled(path: Path, content: object) -> str:
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def _image_folder(root: Path, *, classes: tuple[str, ...] = ("cat", "dog"), train: int = 6, val: int = 3) -> None:
    """Random PNGs of different shapes and colour modes."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = (int(side) for side in random.integers(20, 60, 2))
                pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(("RGB", "L", "P", "RGBA")[i % 4]).save(folder / f"{i}.png")


@pytest.fixture
def write_fashion_mnist() -> Callable[..., dict[str, np.ndarray]]:
    return _fashion_mnist


@pytest.fixture
def write_cifar(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    return partial(_cifar, monkeypatch=monkeypatch)


@pytest.fixture
def write_image_folder() -> Callable[..., None]:
    return _image_folder


def _jpegs(count: int) -> list[tuple[bytes, int]]:
    """Real handwritten digits as JPEG files, 24 pixels a side, with the digit that each shows."""
    found = load_digits()
    files = []
    for image, digit in zip(found.images[:count], found.target[:count], strict=True):
        buffer = io.BytesIO()
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((24, 24)).convert("RGB").save(buffer, format="JPEG")
        files.append((buffer.getvalue(), int(digit)))
    return files


WNIDS = (
    "n01440764",
    "n02119789",
    "n02100735",
    "n01514668",
    "n03995372",
    "n07697537",
    "n04251144",
    "n01629819",
    "n02096294",
    "n02066245",
)
"""Of the classes 0 to 9 by the devkit's numbers less one, which are not in alphabetical order."""


def _imagenet(root: Path, *, validation: str = "folders", train: int = 60, val: int = 25) -> dict[str, str]:
    """Digits in ImageNet's layout; the class of each image below root. `validation`: folders, kaggle or devkit."""
    folder = root / "ILSVRC" / "Data" / "CLS-LOC" if validation == "kaggle" else root
    files = _jpegs(train + val)
    told: dict[str, str] = {}
    for i, (content, digit) in enumerate(files):
        wnid = WNIDS[digit]
        if i < train:
            path = folder / "train" / wnid / f"{wnid}_{i}.JPEG"
        else:
            name = f"ILSVRC2012_val_{i - train + 1:08d}.JPEG"
            path = folder / "val" / wnid / name if validation == "folders" else folder / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        told[str(path.relative_to(root))] = wnid
    digits = [digit for _, digit in files[train:]]
    if validation == "kaggle":
        rows = [f"ILSVRC2012_val_{i + 1:08d},{WNIDS[digit]} 85 1 499 272" for i, digit in enumerate(digits)]
        _write(root / "LOC_val_solution.csv", ["ImageId,PredictionString", *rows[::-1]])
        _write(root / "LOC_synset_mapping.txt", [f"{wnid} name of {wnid}, another" for wnid in WNIDS])
    elif validation == "devkit":
        _devkit(root / "ILSVRC2012_devkit_t12" / "data", digits)
    return told


def _devkit(folder: Path, digits: list[int]) -> None:
    _write(folder / "ILSVRC2012_validation_ground_truth.txt", [str(digit + 1) for digit in digits])
    fields = [("ILSVRC2012_ID", object), *((key, object) for key in ("WNID", "words", "gloss", "num_children"))]
    rows = [(float(i + 1), wnid, f"name of {wnid}, another", "a gloss", 0.0) for i, wnid in enumerate(WNIDS)]
    rows.append((float(len(WNIDS) + 1), "n00001740", "entity", "an inner node", 2.0))
    savemat(folder / "meta.mat", {"synsets": np.array(rows, fields)[:, None]}, do_compression=True)


@pytest.fixture
def write_imagenet() -> Callable[..., dict[str, str]]:
    return _imagenet


def _shards(root: Path, *, train: int = 60, val: int = 25, per_shard: int = 20) -> None:
    """Digits in tar shards as WebDataset's writer leaves them: image, label and a JSON file for each key."""
    root.mkdir(parents=True, exist_ok=True)
    files = _jpegs(train + val)
    for split, part in (("train", files[:train]), ("val", files[train:])):
        for start in range(0, len(part), per_shard):
            with tarfile.open(root / f"{split}-{start // per_shard:06d}.tar", "w") as archive:
                for i, (content, digit) in enumerate(part[start : start + per_shard], start):
                    for ending, member in (("jpg", content), ("cls", str(digit).encode()), ("json", b"{}")):
                        _add(archive, f"{i:08d}.{ending}", member)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def write_shards() -> Callable[..., None]:
    return _shards


Listed = list[tuple[str, str]]
"""Paths of images below the root with the names of their classes."""


def _photos(root: Path, listed: Listed) -> None:
    """Random images of different shapes, in the colour modes and formats that .jpg files on the web have."""
    random = np.random.default_rng(len(listed))
    for i, (path, _) in enumerate(listed):
        height, width = (int(side) for side in random.integers(8, 30, 2))
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image = image.convert(("RGB", "L", "CMYK", "RGBA", "P")[i % 5])
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / path, format=("JPEG", "JPEG", "JPEG", "PNG", "GIF")[i % 5])


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _cars(root: Path) -> tuple[list[str], Listed, Listed]:
    classes = ["Tesla Model S Sedan 2012", "AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    folder, splits = root / "stanford_cars", {}
    (folder / "devkit").mkdir(parents=True)
    for split, file, count in (("train", "devkit/cars_train_annos", 15), ("test", "cars_test_annos_withlabels", 6)):
        rows = [(39, 116, 569, 375, 1 + i * 2 % 3, f"{i + 1:05d}.jpg") for i in range(count)]
        fields = [(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
        numbers = [(*(np.uint16(number) for number in row[:5]), row[5]) for row in rows]
        savemat(folder / f"{file}.mat", {"annotations": np.array(numbers, fields)}, do_compression=True)
        splits[split] = [(f"stanford_cars/cars_{split}/{row[5]}", classes[row[4] - 1]) for row in rows]
    savemat(
        folder / "devkit" / "cars_meta.mat", {"class_names": np.array(classes, dtype=object)[None]}, do_compression=True
    )
    return classes, splits["train"], splits["test"]


def _flowers(root: Path, *, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Listed, Listed]:
    """Three images of each class; torchvision is told that these lists are the published ones."""
    folder, num_classes = root / "flowers-102", 102
    folder.mkdir(parents=True)
    labels = np.random.default_rng(0).permutation(np.arange(3 * num_classes) % num_classes + 1)
    of_class = [np.flatnonzero(labels == label + 1) + 1 for label in range(num_classes)]
    ids = {key: np.array([i[place] for i in of_class]) for key, place in (("trnid", 0), ("valid", 1))}
    ids["tstid"] = np.concatenate([i[2:] for i in of_class])
    savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    savemat(folder / "setid.mat", {key: value[None].astype(np.uint16) for key, value in ids.items()})
    sums = {key: hashlib.md5((folder / f"{file}.mat").read_bytes()).hexdigest() for key, file in FLOWER_LISTS.items()}
    known = {key: (f"{file}.mat", sums[key]) for key, file in FLOWER_LISTS.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", datasets.Flowers102._file_dict | known)
    names = datasets.Flowers102.classes
    listed = {k: [(f"flowers-102/jpg/image_{i:05d}.jpg", names[labels[i - 1] - 1]) for i in v] for k, v in ids.items()}
    return names, listed["trnid"] + listed["valid"], listed["tstid"]


FLOWER_LISTS = {"label": "imagelabels", "setid": "setid"}


def _aircraft(root: Path) -> tuple[list[str], Listed, Listed]:
    classes, folder = ["707-320", "Challenger 600", "F-16A/B"], root / "fgvc-aircraft-2013b" / "data"
    _write(folder / "variants.txt", classes)
    numbered = [(f"{(i * 37) % 101:07d}", classes[i % 3]) for i in range(24)]
    splits = {"train": numbered[:8], "val": numbered[8:15], "trainval": numbered[:15], "test": numbered[15:]}
    for split, images in splits.items():
        _write(folder / f"images_variant_{split}.txt", [f"{image} {name}" for image, name in images])
    below = "fgvc-aircraft-2013b/data/images"
    train, test = ([(f"{below}/{i}.jpg", name) for i, name in splits[split]] for split in ("trainval", "test"))
    return classes, train, test


def _pets(root: Path) -> tuple[list[str], Listed, Listed]:
    breeds, folder = ["Abyssinian", "american_bulldog", "Bengal"], root / "oxford-iiit-pet" / "annotations"
    classes, listed = ["Abyssinian", "American Bulldog", "Bengal"], {}
    for split, numbers in (("trainval", range(100, 105)), ("test", range(5))):
        pets = [(f"{name}_{i}", label) for label, name in enumerate(breeds, 1) for i in numbers]
        _write(folder / f"{split}.txt", [f"{image} {label} {1 + label % 2} 1" for image, label in pets])
        listed[split] = [(f"oxford-iiit-pet/images/{image}.jpg", classes[label - 1]) for image, label in pets]
    return classes, listed["trainval"], listed["test"]


def _food(root: Path) -> tuple[list[str], Listed, Listed]:
    """Classes are numbered by the alphabet, in whatever order the lists have them."""
    classes, listed = ["waffles", "apple_pie", "pho"], {}
    for split, numbers in (("train", range(7, 12)), ("test", range(2))):
        content = {name: [f"{name}/{1000 + i}" for i in numbers] for name in classes}
        _write(root / "food-101" / "meta" / f"{split}.json", [json.dumps(content)])
        listed[split] = [(f"food-101/images/{image}.jpg", name) for name, images in content.items() for image in images]
    return sorted(classes), listed["train"], listed["test"]


@pytest.fixture
def write_published(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], tuple[list[str], Listed, Listed]]:
    """Writes one of the fine-grained data sets; its classes in order, training and test images with their classes."""
    lists = {
        "stanford-cars": _cars,
        "flowers102": partial(_flowers, monkeypatch=monkeypatch),
        "fgvc-aircraft": _aircraft,
        "oxford-pets": _pets,
        "food101": _food,
    }

    def write(root: Path, name: str) -> tuple[list[str], Listed, Listed]:
        classes, train, test = lists[name](root)
        _photos(root, train + test)
        return classes, train, test

    return write


class Server(ThreadingHTTPServer):
    """Tells nothing: torchvision hangs up once it knows that an address is not redirected."""

    def handle_error(self, request: object, client_address: object) -> None:
        assert isinstance(sys.exc_info()[1], ConnectionError)


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a server of the folder's files on this machine."""
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], AbstractContextManager[str]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return served
