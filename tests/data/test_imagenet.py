"""ImageNet in the layouts that people have it in: the same labels in each, those of torchvision."""

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import datasets
from torchvision.datasets import imagenet

from trainables.config import DataConfig
from trainables.data import check_data, load_data
from trainables.data.listing import FileList
from trainables.data.splits import loader
from trainables.errors import DataMissingError

Writer = Callable[..., dict[str, str]]
LAYOUTS = ("folders", "kaggle", "devkit")


def settings(root: Path, **more: Any) -> DataConfig:
    return DataConfig(name="imagenet", image_size=16, root=str(root), **more)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_places_in_the_alphabetical_order_of_wordnet_ids(
    tmp_path: Path, write_imagenet: Writer, layout: str
) -> None:
    told = write_imagenet(tmp_path, validation=layout)
    wnids = sorted(set(told.values()))
    assert len(wnids) == 10
    check_data(settings(tmp_path))
    data = load_data(settings(tmp_path))
    found = {}
    for split in (data.train, data.validation):
        for path, label in zip(split.paths, split.labels.tolist(), strict=True):
            found[str(path.relative_to(tmp_path))] = wnids[label]
    assert found == told
    assert (data.num_classes, len(data.train), len(data.validation)) == (10, 60, 25)
    names = [f"name of {wnid}" for wnid in wnids] if layout == "kaggle" else wnids
    assert list(data.class_names) == names


def test_a_devkit_gives_the_labels_that_torchvision_makes_of_it(
    tmp_path: Path, write_imagenet: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision moves the images into folders, by the same archive; whose MD5 it is told."""
    write_imagenet(tmp_path, validation="devkit")
    data = load_data(settings(tmp_path))
    ours = {
        path.name: label for path, label in zip(data.validation.paths, data.validation.labels.tolist(), strict=True)
    }
    packed = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(tmp_path / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    meta = {**imagenet.ARCHIVE_META, "devkit": (packed.name, hashlib.md5(packed.read_bytes()).hexdigest())}
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as archive:
        for path in sorted((tmp_path / "val").iterdir()):
            archive.add(path, path.name)
    meta["val"] = (
        "ILSVRC2012_img_val.tar",
        hashlib.md5((tmp_path / "ILSVRC2012_img_val.tar").read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(imagenet, "ARCHIVE_META", meta)
    shutil.rmtree(tmp_path / "val")
    theirs = datasets.ImageNet(tmp_path, split="val")
    assert ours == {Path(path).name: label for path, label in theirs.imgs}
    # What torchvision left behind is read as well, and is the same.
    again = load_data(settings(tmp_path))
    assert {
        p.name: label for p, label in zip(again.validation.paths, again.validation.labels.tolist(), strict=True)
    } == ours


def test_all_layouts_have_the_images_of_an_image_folder(tmp_path: Path, write_imagenet: Writer) -> None:
    batches = {}
    for layout in LAYOUTS:
        write_imagenet(tmp_path / layout, validation=layout)
        data = load_data(settings(tmp_path / layout, augment="resized-crop-flip"))
        batches[layout] = next(iter(loader(data.train, batch_size=32, shuffle=True, seed=3, epoch=2)))
    folder = replace(settings(tmp_path / "folders", augment="resized-crop-flip"), name="imagefolder")
    same = next(iter(loader(load_data(folder).train, batch_size=32, shuffle=True, seed=3, epoch=2)))
    for batch in batches.values():
        assert torch.equal(batch.images, same.images)
        assert torch.equal(batch.labels, same.labels)


def test_a_fingerprint_is_of_labels_and_of_sampled_contents(
    tmp_path: Path, write_imagenet: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_imagenet(tmp_path / "devkit", validation="devkit")
    write_imagenet(tmp_path / "kaggle", validation="kaggle")
    first = load_data(settings(tmp_path / "devkit")).fingerprint
    # The order of validation images by name, and of training images by class, is the same.
    assert load_data(settings(tmp_path / "kaggle")).fingerprint == first
    assert load_data(settings(tmp_path / "devkit", fraction=0.5)).fingerprint == first
    image = sorted((tmp_path / "devkit" / "val").iterdir())[3]
    image.write_bytes(image.read_bytes() + b"\0")
    changed = load_data(settings(tmp_path / "devkit")).fingerprint
    assert changed != first
    monkeypatch.setattr("trainables.data.assembly.SAMPLED", 3)
    sampled = load_data(settings(tmp_path / "devkit")).fingerprint
    assert load_data(settings(tmp_path / "kaggle")).fingerprint == sampled
    truth = tmp_path / "devkit" / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    lines = truth.read_text().split()
    # Two of the images whose contents are not sampled change places.
    truth.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]) + "\n")
    assert lines[1] != lines[2]
    assert load_data(settings(tmp_path / "devkit")).fingerprint != sampled


def _pack(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    (root / "train" / "n01440764.tar").write_bytes(b"")


DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH = f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("folders", lambda r: shutil.rmtree(r / "train"), r"CLS-LOC/train is a folder; data.root is the folder that"),
        ("folders", lambda r: shutil.rmtree(r / "val"), r"/val is not a folder; put the validation images there"),
        ("folders", _pack, r"train has no class folders; unpack each \.tar there into a folder of its name"),
        ("folders", lambda r: shutil.rmtree(r / "val" / "n01440764"), "only in train: n01440764; only in val: none"),
        (
            "folders",
            lambda r: [p.unlink() for p in (r / "train/n03995372").iterdir()],
            "n03995372 holds no images; unp",
        ),
        (
            "kaggle",
            lambda r: (r / "LOC_val_solution.csv").unlink(),
            "Put Kaggle's LOC_val_solution.csv into .*, or unpack",
        ),
        (
            "kaggle",
            lambda r: (r / "LOC_val_solution.csv").write_text("a\nb\n"),
            "is damaged .*expected ImageId,Predict",
        ),
        (
            "kaggle",
            lambda r: (r / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000007.JPEG").unlink(),
            r"and 1 of its images are missing \(ILSVRC2012_val_00000007\). Get the rest",
        ),
        (
            "kaggle",
            lambda r: shutil.copy(
                r / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000007.JPEG", r / "ILSVRC/Data/CLS-LOC/val/mine.JPEG"
            ),
            r"1 images are not in it \(mine.JPEG\)",
        ),
        (
            "kaggle",
            lambda r: shutil.rmtree(r / "ILSVRC/Data/CLS-LOC/train/n01440764"),
            "has no folder for: n01440764. Put",
        ),
        (
            "devkit",
            lambda r: (r / "val/ILSVRC2012_val_00000007.JPEG").unlink(),
            "25 classes, but there are 24 validation",
        ),
        ("devkit", lambda r: (r / TRUTH).write_text("1\nx\n"), r"ground_truth.txt is damaged \(invalid literal"),
        ("devkit", lambda r: (r / TRUTH).write_text("999\n" * 25), "has the number 999, which .*meta.mat lacks"),
        ("devkit", lambda r: (r / TRUTH).write_text("11\n" * 25), "has the number 11, which .*meta.mat lacks"),
        ("devkit", lambda r: (r / DEVKIT / "meta.mat").write_bytes(b"x" * 200), r"meta.mat is not the devkit's \("),
        ("devkit", lambda r: (r / DEVKIT / "meta.mat").unlink(), "nothing tells the classes of its images"),
        (
            "devkit",
            lambda r: [p.unlink() for p in (r / "val").iterdir()],
            "/val holds no images; unpack the validation",
        ),
    ],
)
def test_what_is_missing_or_does_not_belong_together_is_told_with_the_fix(
    tmp_path: Path, write_imagenet: Writer, layout: str, change: Callable[[Path], object], message: str
) -> None:
    write_imagenet(tmp_path, validation=layout)
    change(tmp_path)
    for function in (check_data, load_data):
        with pytest.raises(DataMissingError, match=message):
            function(settings(tmp_path))


def test_a_long_list_keeps_any_name_that_a_file_can_have(tmp_path: Path) -> None:
    names = ["train/a/ü.JPEG", "train/b/\udce9.JPEG", "x.jpg"]
    found = FileList.of(tmp_path, names)
    assert list(found) == [tmp_path / name for name in names]
    assert list(found.chosen([2, 0])) == [tmp_path / names[2], tmp_path / names[0]]
    assert list(found[1:]) == [tmp_path / name for name in names[1:]]
