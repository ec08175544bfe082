"""Cars, Flowers, Aircraft, Pets, Food: small trees of the real formats, read, damaged, taken apart and downloaded."""

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from torchvision import datasets

from trainables.config import DataConfig
from trainables.data import check_data, load_data
from trainables.data.places import LAYOUTS
from trainables.data.splits import loader
from trainables.errors import ConfigError, DataMissingError

Writer = Callable[..., Any]
Serve = Callable[[Path], AbstractContextManager[str]]
NAMES = sorted(LAYOUTS)
every_set = pytest.mark.parametrize("name", NAMES)


def config_of(name: str, root: Path, **changes: Any) -> DataConfig:
    return replace(DataConfig(name=name, image_size=16, root=str(root)), **changes)


@every_set
def test_images_labels_and_classes_are_those_of_the_published_lists(
    tmp_path: Path, write_published: Writer, name: str
) -> None:
    classes, *expected = write_published(tmp_path, name)
    check_data(config_of(name, tmp_path))
    data = load_data(config_of(name, tmp_path))
    for split, listed in zip((data.train, data.validation), expected, strict=True):
        found = zip(split.paths, split.labels.tolist(), strict=True)
        assert [(str(path.relative_to(tmp_path)), classes[label]) for path, label in found] == listed
    assert data.num_classes == len(classes)
    assert (data.train.augment, data.validation.augment) == ("none", "none")
    assert not set(data.train.paths) & set(data.validation.paths)


@every_set
def test_all_images_are_decoded_whatever_their_shape_and_mode(
    tmp_path: Path, write_published: Writer, name: str
) -> None:
    write_published(tmp_path, name)
    data = load_data(config_of(name, tmp_path, augment="resized-crop-flip"))
    batches = [
        *loader(data.train, batch_size=len(data.train), shuffle=True, seed=0, epoch=0),
        *loader(data.validation, batch_size=64, shuffle=False, seed=0, epoch=0),
    ]
    assert sum(len(batch.images) for batch in batches) == len(data.train) + len(data.validation)
    for batch in batches:
        assert batch.images.shape[1:] == (3, 16, 16)
        assert batch.images.isfinite().all()
        assert (batch.images.flatten(1).std(dim=1) > 0.1).all()


@every_set
def test_a_fingerprint_is_of_images_and_labels_and_not_of_dates_place_or_use(
    tmp_path: Path, write_published: Writer, name: str
) -> None:
    _, (*_, (image, _)), _ = write_published(tmp_path / "first", name)
    shutil.copytree(tmp_path / "first", tmp_path / "copied", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copied" / image, (0, 0))
    first = load_data(config_of(name, tmp_path / "first")).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first)
    for use in ({}, {"fraction": 0.5}, {"image_size": 24}, {"augment": "flip"}):
        assert load_data(config_of(name, tmp_path / "copied", **use)).fingerprint == first
    content = (tmp_path / "copied" / image).read_bytes()
    (tmp_path / "copied" / image).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load_data(config_of(name, tmp_path / "copied")).fingerprint != first


def test_a_fingerprint_is_of_labels_too(tmp_path: Path, write_published: Writer) -> None:
    write_published(tmp_path, "oxford-pets")
    before = load_data(config_of("oxford-pets", tmp_path)).fingerprint
    file = tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt"
    file.write_text(file.read_text().replace("Bengal_0 3", "Abyssinian_9 1"))
    (tmp_path / "oxford-iiit-pet/images/Bengal_0.jpg").rename(tmp_path / "oxford-iiit-pet/images/Abyssinian_9.jpg")
    assert load_data(config_of("oxford-pets", tmp_path)).fingerprint != before


@every_set
def test_an_empty_root_is_told_with_every_place_and_with_the_way_to_get_it(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    with pytest.raises(DataMissingError, match=f"{name}: {tmp_path}/{layout.folder} lacks ") as caught:
        check_data(config_of(name, tmp_path))
    for part in (*layout.training_lists, *layout.test_lists, *layout.image_folders):
        assert part in str(caught.value)
    assert ("data.download: true" in str(caught.value)) == (name != "stanford-cars")
    assert "https://" in str(caught.value)
    with pytest.raises(ConfigError, match=r"data\.root is missing"):
        check_data(DataConfig(name=name, image_size=16))
    if name == "stanford-cars":
        with pytest.raises(ConfigError, match="'stanford-cars' cannot be downloaded"):
            check_data(config_of(name, tmp_path, download=True))
    else:
        check_data(config_of(name, tmp_path, download=True))


@every_set
def test_without_any_one_of_its_files_a_set_is_told_to_miss_it_or_does_without(
    tmp_path: Path, write_published: Writer, name: str
) -> None:
    """No list of ours says here what the readers need: each file is taken away in turn."""
    write_published(tmp_path, name)
    layout, whole, needed = LAYOUTS[name], load_data(config_of(name, tmp_path)).fingerprint, 0
    lists = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.suffix != ".jpg"]
    photos = sorted(tmp_path.rglob("*.jpg"))[:: 1 if name != "flowers102" else 100]
    for path in (*lists, *photos):
        content = path.read_bytes()
        path.unlink()
        try:
            found = load_data(config_of(name, tmp_path)).fingerprint
        except DataMissingError as error:
            found, needed, message = "", needed + 1, str(error)
        if path.suffix == ".jpg":
            check_data(config_of(name, tmp_path))
            assert re.search(rf": 1 of \d+ listed images are missing, the first is {path}; get", message)
        elif not found:
            lacking = f"{tmp_path}/{layout.folder} lacks {path.relative_to(tmp_path / layout.folder)}"
            assert lacking in message
            with pytest.raises(DataMissingError, match=lacking):
                check_data(config_of(name, tmp_path))
        assert found in ("", whole)
        path.write_bytes(content)
    assert needed == len({*layout.training_lists, *layout.test_lists}) + len(photos)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2] + b"\x00\x07",
    "another format": lambda content: b"\x89PNG\r\n\x1a\n" * 40,
    "backwards": lambda content: content[::-1],
    "no text": lambda content: content[:9] + b"\xff\xfe" + content[9:],
    "a page of the web": lambda content: b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n" * 4,
}


@every_set
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_list_is_an_error_with_its_path(
    tmp_path: Path, write_published: Writer, name: str, damage: str
) -> None:
    write_published(tmp_path, name)
    layout = LAYOUTS[name]
    for part in {*layout.training_lists, *layout.test_lists}:
        path = tmp_path / layout.folder / part
        content = path.read_bytes()
        path.write_bytes(DAMAGE[damage](content))
        with pytest.raises(DataMissingError) as caught:
            load_data(config_of(name, tmp_path))
        assert f"{tmp_path}/{layout.folder}" in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(content)


def rewrite(path: Path, pattern: str, replacement: str) -> None:
    text = path.read_text()
    assert re.search(pattern, text), "nothing to change"
    path.write_text(re.sub(pattern, replacement, text, count=1))


def _car_of_class(root: Path, label: int) -> None:
    file = root / "stanford_cars" / "devkit" / "cars_train_annos.mat"
    rows = loadmat(file)["annotations"]
    rows["class"][0, 0] = np.array([[label]], dtype=np.uint8)
    savemat(file, {"annotations": rows})


def _same_dishes(root: Path) -> None:
    meta = root / "food-101" / "meta"
    test = json.loads((meta / "test.json").read_text())
    test["pho"].append(json.loads((meta / "train.json").read_text())["pho"][0])
    (meta / "test.json").write_text(json.dumps(test))


AIRCRAFT, PETS = "fgvc-aircraft-2013b/data", "oxford-iiit-pet/annotations"
INCONSISTENT: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a class that no name has": (
        "stanford-cars",
        lambda root: _car_of_class(root, 4),
        r"cars_train_annos\.mat or .*: found a label 3; expected",
    ),
    "class 0 where they begin at 1": (
        "stanford-cars",
        lambda root: _car_of_class(root, 0),
        r"cars_train_annos\.mat or .*: found a label (-1|255); expected",
    ),
    "a variant that is not listed": (
        "fgvc-aircraft",
        lambda root: rewrite(root / AIRCRAFT / "images_variant_test.txt", "F-16A/B", "F-17"),
        r"images_variant_test\.txt or .*variants\.txt is damaged: KeyError\('F-17'\)",
    ),
    "a variant without images": (
        "fgvc-aircraft",
        lambda root: rewrite(root / AIRCRAFT / "variants.txt", r"\Z", "Concorde\n"),
        "1 of 4 classes .* have no training image, such as 'Concorde'",
    ),
    "a breed of two names": (
        "oxford-pets",
        lambda root: rewrite(root / PETS / "trainval.txt", "Bengal_104", "Bombay_104"),
        r"other classes for training \(4\) than for testing \(3\)",
    ),
    "a breed that is not in both": (
        "oxford-pets",
        lambda root: rewrite(root / PETS / "test.txt", "(Bengal_. .*\n)*$", ""),
        r"other classes for training \(3\) than for testing \(2\)",
    ),
    "images of both splits": ("food101", _same_dishes, "1 images are listed both for training and for testing, such"),
    "an empty list": (
        "food101",
        lambda root: rewrite(root / "food-101" / "meta" / "test.json", ".*", '{"apple_pie":[],"pho":[],"waffles":[]}'),
        r"meta/test\.json: found a split without images",
    ),
}


@pytest.mark.parametrize("case", INCONSISTENT)
def test_lists_that_contradict_each_other_are_errors(tmp_path: Path, write_published: Writer, case: str) -> None:
    name, change, message = INCONSISTENT[case]
    write_published(tmp_path, name)
    change(tmp_path)
    with pytest.raises(DataMissingError, match=message):
        load_data(config_of(name, tmp_path))


def test_flower_lists_are_only_read_if_they_are_the_published_ones(tmp_path: Path, write_published: Writer) -> None:
    write_published(tmp_path, "flowers102")
    file = tmp_path / "flowers-102" / "setid.mat"
    content = loadmat(file, squeeze_me=True)
    savemat(file, {"trnid": content["tstid"], "valid": content["valid"], "tstid": content["trnid"]})
    with pytest.raises(DataMissingError, match=rf"{file} is damaged: not the published one, by its MD5\. Get it again"):
        load_data(config_of("flowers102", tmp_path))


ARCHIVES = {
    "flowers102": {"102flowers.tgz": ("flowers-102", ["jpg"])},
    "fgvc-aircraft": {"fgvc-aircraft-2013b.tar.gz": ("", ["fgvc-aircraft-2013b"])},
    "oxford-pets": {
        "images.tar.gz": ("oxford-iiit-pet", ["images"]),
        "annotations.tar.gz": ("oxford-iiit-pet", ["annotations"]),
    },
    "food101": {"food-101.tar.gz": ("", ["food-101"])},
}


def publish(name: str, made: Path, served: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs a tree into the archives of its authors, and sends torchvision there for them."""
    sums = {}
    for archive, (below, folders) in ARCHIVES[name].items():
        with tarfile.open(served / archive, "w:gz") as tar:
            for folder in folders:
                tar.add(made / below / folder, arcname=folder)
        sums[archive] = datasets.utils.calculate_md5(served / archive)
    match name:
        case "flowers102":
            known = datasets.Flowers102._file_dict | {"image": ("102flowers.tgz", sums["102flowers.tgz"])}
            monkeypatch.setattr(datasets.Flowers102, "_file_dict", known)
            monkeypatch.setattr(datasets.Flowers102, "_download_url_prefix", f"{address}/")
            for file in ("imagelabels.mat", "setid.mat"):
                shutil.copy(made / "flowers-102" / file, served / file)
        case "fgvc-aircraft":
            monkeypatch.setattr(datasets.FGVCAircraft, "_URL", f"{address}/fgvc-aircraft-2013b.tar.gz")
        case "oxford-pets":
            resources = tuple((f"{address}/{archive}", md5) for archive, md5 in sums.items())
            monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", resources)
        case "food101":
            monkeypatch.setattr(datasets.Food101, "_URL", f"{address}/food-101.tar.gz")
            monkeypatch.setattr(datasets.Food101, "_MD5", sums["food-101.tar.gz"])


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_a_set_is_downloaded_once_where_settings_ask_for_it(
    tmp_path: Path, write_published: Writer, serve: Serve, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_published(tmp_path / "made", name)
    (tmp_path / "served").mkdir()
    config = config_of(name, tmp_path / "new", download=True)
    with serve(tmp_path / "served") as address:
        publish(name, tmp_path / "made", tmp_path / "served", address, monkeypatch)
        check_data(config)
        first = load_data(config)
    # The server has gone: a second download would fail.
    assert load_data(config).fingerprint == first.fingerprint
    assert first.fingerprint == load_data(config_of(name, tmp_path / "made")).fingerprint
    (tmp_path / "new" / LAYOUTS[name].folder / LAYOUTS[name].test_lists[0]).unlink()
    with pytest.raises(
        DataMissingError, match=f"could not be downloaded|new/{LAYOUTS[name].folder} lacks .*Remove the folder"
    ):
        load_data(config)


def test_an_archive_that_is_cut_off_is_told_as_a_download_that_failed(
    tmp_path: Path, write_published: Writer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Aircraft torchvision knows no MD5, so that the damage is found when the archive is unpacked."""
    write_published(tmp_path / "made", "fgvc-aircraft")
    with serve(tmp_path) as address:
        publish("fgvc-aircraft", tmp_path / "made", tmp_path, address, monkeypatch)
        archive = tmp_path / "fgvc-aircraft-2013b.tar.gz"
        archive.write_bytes(archive.read_bytes()[:300])
        with pytest.raises(DataMissingError, match=f"fgvc-aircraft could not be downloaded into {tmp_path}/new"):
            load_data(config_of("fgvc-aircraft", tmp_path / "new", download=True))


def test_no_reader_needs_more_than_a_copy_of_each_image_path(tmp_path: Path, write_published: Writer) -> None:
    """Loading opens no image: a set whose images are all damaged loads, and the first batch tells."""
    _, train, test = write_published(tmp_path, "food101")
    for path, _ in train + test:
        (tmp_path / path).write_bytes(b"")
    data = load_data(config_of("food101", tmp_path))
    with pytest.raises(DataMissingError, match=r"\.jpg: cannot be read as an image"):
        data.train.batch(torch.arange(1), None)
