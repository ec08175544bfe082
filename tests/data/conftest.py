"""Small data sets in the real formats: each fixture is the function that writes one to a folder."""

import gzip
import hashlib
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
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
