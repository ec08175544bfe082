"""Digits and Fashion-MNIST: what is read, and what is said of files that are missing or damaged."""

import gzip
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torchvision import datasets

from trainables.config import DataConfig
from trainables.data import DATA_SET_NAMES, check_data, load_data, places
from trainables.data.downloads import alone_in
from trainables.data.sources import DATA_SETS
from trainables.data.splits import DataSplits
from trainables.errors import ConfigError, DataMissingError

Writer = Callable[..., Any]


def images_of(data: DataSplits, split: str) -> tuple[np.ndarray, list[int]]:
    """The uint8 images [N, 3, S, S] that a set in memory holds."""
    held = getattr(data, split)
    return held.images.numpy(), held.labels.tolist()


def test_names_known_without_torch_are_the_registry() -> None:
    assert tuple(sorted(DATA_SETS)) == DATA_SET_NAMES


@pytest.mark.parametrize("function", [check_data, load_data])
def test_an_unknown_data_set_is_an_error_with_the_nearest_name(function: Writer) -> None:
    with pytest.raises(
        ConfigError, match=r"'fashion_mnist'; did you mean 'fashion-mnist'\? known: cifar10, cifar100, dig"
    ):
        function(DataConfig(name="fashion_mnist", image_size=28))


def test_digits_are_split_by_class_and_every_image_is_in_one_split() -> None:
    data = load_data(DataConfig(name="digits", image_size=8))
    (train, train_labels), (validation, validation_labels) = images_of(data, "train"), images_of(data, "validation")
    everything = load_digits()
    sizes = np.bincount(everything.target)
    assert np.bincount(train_labels).tolist() == [round(0.8 * size) for size in sizes]
    found = sorted(
        (image[0].tobytes(), label)
        for image, label in zip(np.concatenate([train, validation]), train_labels + validation_labels, strict=True)
    )
    expected = (everything.images * 255 / 16).round().astype(np.uint8)
    assert found == sorted(
        (image.tobytes(), int(label)) for image, label in zip(expected, everything.target, strict=True)
    )
    assert (data.name, data.num_classes) == ("digits", 10)


def test_a_fraction_takes_its_share_of_each_class_and_leaves_validation_whole() -> None:
    whole, part = (load_data(DataConfig(name="digits", image_size=8, fraction=f)) for f in (1.0, 0.1))
    counts = np.bincount(images_of(whole, "train")[1])
    assert np.bincount(images_of(part, "train")[1]).tolist() == [round(0.1 * count) for count in counts]
    assert np.array_equal(images_of(part, "validation")[0], images_of(whole, "validation")[0])
    assert {image.tobytes() for image in images_of(part, "train")[0]} <= {
        image.tobytes() for image in images_of(whole, "train")[0]
    }


def test_a_fingerprint_is_of_the_data_and_not_of_its_use() -> None:
    config = DataConfig(name="digits", image_size=8)
    first = load_data(config).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first)
    for changed in (replace(config, image_size=16), replace(config, fraction=0.5), replace(config, augment="flip")):
        assert load_data(changed).fingerprint == first


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(name="digits", image_size=8, root="/data"), "data.root is '/data', but 'digits' comes with scikit"),
        (DataConfig(name="digits", image_size=8, download=True), "'digits' cannot be downloaded: leave it out"),
        (DataConfig(name="imagefolder", image_size=8, root="/data", download=True), "'imagefolder' cannot be down"),
        (DataConfig(name="imagefolder", image_size=8), "data.root is missing: 'imagefolder' needs the folder"),
        (DataConfig(name="cifar10", image_size=8, download=True), "data.root is missing: 'cifar10' needs the folder"),
    ],
)
def test_settings_that_cannot_go_together_are_errors(config: DataConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_data(config)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_plain_and_packed_files_in_both_layouts(
    tmp_path: Path, write_fashion_mnist: Writer, packed: bool, below: str
) -> None:
    held = write_fashion_mnist(tmp_path / below, packed=packed)
    config = DataConfig(name="fashion-mnist", image_size=28, root=str(tmp_path))
    check_data(config)
    data = load_data(config)
    for split, file in (("train", "train"), ("validation", "t10k")):
        images, labels = images_of(data, split)
        assert all(np.array_equal(images[:, channel], held[f"{file}-images-idx3-ubyte"]) for channel in range(3))
        assert labels == held[f"{file}-labels-idx1-ubyte"].tolist()
    assert data.num_classes == 10


def test_packing_and_dates_do_not_change_a_fingerprint_but_one_pixel_or_label_does(
    tmp_path: Path, write_fashion_mnist: Writer
) -> None:
    def fingerprint(folder: str) -> str:
        return load_data(DataConfig(name="fashion-mnist", image_size=8, root=str(tmp_path / folder))).fingerprint

    for folder, packed in (("packed", True), ("plain", False), ("pixel", False), ("label", False)):
        write_fashion_mnist(tmp_path / folder, packed=packed)
    os.utime(tmp_path / "plain" / "train-images-idx3-ubyte", (0, 0))
    assert fingerprint("packed") == fingerprint("plain")
    for folder, name in (("pixel", "t10k-images-idx3-ubyte"), ("label", "train-labels-idx1-ubyte")):
        path = tmp_path / folder / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([(content[-1] + 1) % 10]))
        assert fingerprint(folder) != fingerprint("plain")


def test_without_a_root_the_system_folder_is_used_and_a_wrong_root_never_falls_back_to_it(
    tmp_path: Path, write_fashion_mnist: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, wrong = tmp_path / "system", tmp_path / "wrong"
    write_fashion_mnist(system, packed=True)
    monkeypatch.setattr(places, "DEBIAN_FASHION_MNIST", system)
    assert len(load_data(DataConfig(name="fashion-mnist", image_size=28)).train) == 40
    config = DataConfig(name="fashion-mnist", image_size=28, root=str(wrong))
    for function in (check_data, load_data):
        with pytest.raises(DataMissingError, match=rf"not in {wrong} nor in {wrong}/FashionMNIST/raw: ") as caught:
            function(config)
        assert "dataset-fashion-mnist" in str(caught.value)
        assert "download: true" in str(caught.value)
        assert str(system) not in str(caught.value)


def test_one_missing_file_of_four_is_missing_data(tmp_path: Path, write_fashion_mnist: Writer) -> None:
    write_fashion_mnist(tmp_path, packed=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataMissingError, match=r"looked for .*t10k-labels-idx1-ubyte"):
        check_data(DataConfig(name="fashion-mnist", image_size=28, root=str(tmp_path)))


IDX_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"\x00",
    "another type": lambda content: b"\x00\x00\x0d" + content[3:],
    "other dimensions": lambda content: content[:3] + b"\x02" + content[4:],
    "header only": lambda content: content[:6],
    "a huge count": lambda content: content[:4] + b"\xff\xff\xff\xff" + content[8:],
}


@pytest.mark.parametrize("damage", IDX_DAMAGE)
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_idx_file_is_an_error_with_its_path(
    tmp_path: Path, write_fashion_mnist: Writer, damage: str, packed: bool
) -> None:
    write_fashion_mnist(tmp_path, packed=packed)
    path = tmp_path / ("train-images-idx3-ubyte" + (".gz" if packed else ""))
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    damaged = IDX_DAMAGE[damage](content)
    path.write_bytes(gzip.compress(damaged) if packed else damaged)
    with pytest.raises(DataMissingError, match=rf"{path}: not a whole IDX file of bytes in 3 dim.*get it again"):
        load_data(DataConfig(name="fashion-mnist", image_size=28, root=str(tmp_path)))


@pytest.mark.parametrize("damage", ["cut", "wrong sum", "wrong block", "not gzip"])
def test_a_damaged_gzip_file_is_an_error_with_its_path(
    tmp_path: Path, write_fashion_mnist: Writer, damage: str
) -> None:
    write_fashion_mnist(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    wrong_sum, wrong_block = (
        content[:place] + bytes([255 - content[place]]) + content[place + 1 :] for place in (len(content) - 8, 10)
    )
    changed = {"cut": content[:500], "wrong sum": wrong_sum, "wrong block": wrong_block, "not gzip": b"text" * 9}
    path.write_bytes(changed[damage])
    with pytest.raises(DataMissingError, match=rf"{path}: not a whole IDX file"):
        load_data(DataConfig(name="fashion-mnist", image_size=28, root=str(tmp_path)))


def test_images_and_labels_of_different_number_or_labels_out_of_range_are_errors(
    tmp_path: Path, write_fashion_mnist: Writer
) -> None:
    config = DataConfig(name="fashion-mnist", image_size=28, root=str(tmp_path))
    write_fashion_mnist(tmp_path, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-1] + b"\x0c")
    with pytest.raises(DataMissingError, match="found a label 12; expected labels from 0 to 9"):
        load_data(config)
    labels.write_bytes(whole[:7] + b"\x01" + whole[8:9])
    with pytest.raises(DataMissingError, match="train has 40 images but 1 labels"):
        load_data(config)


def test_fashion_mnist_that_is_there_is_not_downloaded_again(tmp_path: Path, write_fashion_mnist: Writer) -> None:
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", packed=False)
    data = load_data(DataConfig(name="fashion-mnist", image_size=28, root=str(tmp_path), download=True))
    assert len(data.train) == 40


def test_a_download_that_fails_is_an_error_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"file://{tmp_path}/nowhere/"])
    config = DataConfig(name="fashion-mnist", image_size=28, root=str(tmp_path / "new"), download=True)
    check_data(config)
    with pytest.raises(DataMissingError, match=rf"fashion-mnist could not be downloaded into {tmp_path}/new"):
        load_data(config)


def test_downloads_into_one_folder_come_one_after_the_other(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def fetch() -> None:
        with alone_in(tmp_path / "shared"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.skipif(
    not places.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_the_system_fashion_mnist_is_the_published_one() -> None:
    data = load_data(DataConfig(name="fashion-mnist", image_size=28))
    assert (len(data.train), len(data.validation)) == (60_000, 10_000)
    images, labels = images_of(data, "train")
    assert np.bincount(labels).tolist() == [6000] * 10
    # Published statistics of the training images, in units of 0..1.
    assert images[:, 0].mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert images[:, 0].std() / 255 == pytest.approx(0.3530, abs=1e-4)
