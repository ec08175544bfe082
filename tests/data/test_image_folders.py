"""Folders of image files: labels, fingerprints, and what is said of incomplete ones."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.config import DataConfig
from trainables.data import check_data, load_data
from trainables.data.splits import loader
from trainables.errors import DataMissingError

Writer = Callable[..., Any]


def test_image_folders_have_labels_in_alphabetical_order_of_classes(tmp_path: Path, write_image_folder: Writer) -> None:
    write_image_folder(tmp_path, classes=("b", "a", "c"), train=4, val=2)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    config = DataConfig(name="imagefolder", image_size=16, root=str(tmp_path))
    check_data(config)
    data = load_data(config)
    assert [
        (path.parent.name, label) for path, label in zip(data.train.paths, data.train.labels.tolist(), strict=True)
    ] == [(name, label) for label, name in enumerate("abc") for _ in range(4)]
    assert (len(data.validation), data.num_classes) == (6, 3)
    part = load_data(replace(config, fraction=0.5))
    assert part.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert part.fingerprint == data.fingerprint
    for split in (data.train, data.validation):
        (images, *_), *_ = loader(split, batch_size=6, shuffle=False, seed=0, epoch=0)
        assert images.shape == (6, 3, 16, 16)
        assert torch.isfinite(images).all()


def test_a_folders_fingerprint_is_of_names_and_contents_and_not_of_dates_or_place(
    tmp_path: Path, write_image_folder: Writer
) -> None:
    def fingerprint(folder: str) -> str:
        return load_data(DataConfig(name="imagefolder", image_size=8, root=str(tmp_path / folder))).fingerprint

    write_image_folder(tmp_path / "first")
    for folder in ("copied", "changed", "moved"):
        shutil.copytree(tmp_path / "first", tmp_path / folder, copy_function=shutil.copyfile)
    os.utime(tmp_path / "copied" / "val" / "cat" / "0.png", (0, 0))
    changed = tmp_path / "changed" / "val" / "cat" / "0.png"
    content = changed.read_bytes()
    changed.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    # Last of its class before, first of the next one now: the contents follow each other as they did.
    (tmp_path / "moved" / "train" / "cat" / "5.png").rename(tmp_path / "moved" / "train" / "dog" / "-5.png")
    assert fingerprint("copied") == fingerprint("first")
    assert len({fingerprint("first"), fingerprint("changed"), fingerprint("moved")}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "val"), r"/val is not a folder; expected .*\{train,val\}/<class>/<image>"),
        (lambda root: (root / "val" / "cat").rename(root / "val" / "cow"), "only in train: cat; only in val: cow"),
        (lambda root: shutil.rmtree(root / "train" / "dog"), "only in train: none; only in val: dog"),
        (lambda root: [shutil.rmtree(root / "train" / name) for name in ("cat", "dog")], "train has no class folders"),
        (lambda root: [p.unlink() for p in (root / "val" / "dog").iterdir()], r"/val/dog holds no images \(\.bmp"),
    ],
)
def test_incomplete_image_folders_are_told_before_anything_is_computed(
    tmp_path: Path, write_image_folder: Writer, change: Callable[[Path], object], message: str
) -> None:
    write_image_folder(tmp_path)
    change(tmp_path)
    for function in (check_data, load_data):
        with pytest.raises(DataMissingError, match=message):
            function(DataConfig(name="imagefolder", image_size=8, root=str(tmp_path)))
