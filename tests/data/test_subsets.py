"""`data.fraction` for the study of sample sizes: of every set, 20 % lie within 40 %, and so on, with all classes."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainables.config import DataConfig
from trainables.data import DATA_SET_NAMES, load_data
from trainables.data.images import FileImages
from trainables.data.splits import DataSplits

FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
USER_DATA = """
import numpy as np
from trainables.data import UserData

def small(root, *, image_size):
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    return UserData(train=(images[:50], np.arange(50) % 7), validation=(images[50:], [0] * 10), num_classes=7)
"""
Written = Callable[[str], DataConfig]


@pytest.fixture
def write_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Written:
    """Writes a small tree of any data set; the settings that read it."""

    def write(name: str) -> DataConfig:
        config = DataConfig(name=name, image_size=8, root=str(tmp_path))
        match name:
            case "digits":
                config = replace(config, root="")
            case "fashion-mnist":
                request.getfixturevalue("write_fashion_mnist")(tmp_path, packed=False)
            case "cifar10" | "cifar100":
                request.getfixturevalue("write_cifar")(tmp_path, name)
            case "imagefolder":
                request.getfixturevalue("write_image_folder")(tmp_path)
            case "imagenet" | "shards":
                request.getfixturevalue(f"write_{name}")(tmp_path)
            case "my_subsets:small":
                (tmp_path / "my_subsets.py").write_text(USER_DATA)
                monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
                monkeypatch.setattr(sys, "dont_write_bytecode", True)
                monkeypatch.delitem(sys.modules, "my_subsets", raising=False)
            case _:
                request.getfixturevalue("write_published")(tmp_path, name)
        return config

    return write


def images_of(data: DataSplits) -> Counter[tuple[Any, int]]:
    """The training images, in any order, with their labels."""
    train: Any = data.train
    images = train.paths if isinstance(train, FileImages) else [image.numpy().tobytes() for image in train.images]
    return Counter(zip(images, train.labels.tolist(), strict=True))


@pytest.mark.parametrize("name", [*DATA_SET_NAMES, "my_subsets:small"])
def test_smaller_fractions_lie_within_larger_ones_and_have_their_share_of_every_class(
    write_any: Written, name: str
) -> None:
    config = write_any(name)
    parts = [load_data(replace(config, fraction=fraction)) for fraction in FRACTIONS]
    *_, whole = (images_of(part) for part in parts)
    sizes = Counter(label for _, label in whole.elements())
    larger = whole
    for fraction, part in reversed(list(zip(FRACTIONS, parts, strict=True))):
        found = images_of(part)
        assert found <= larger
        share = {label: max(1, round(size * fraction)) for label, size in sizes.items()}
        assert Counter(label for _, label in found.elements()) == share
        larger = found
    assert {part.fingerprint for part in parts} == {parts[-1].fingerprint}
    assert {len(part.validation) for part in parts} == {len(parts[-1].validation)}
    assert images_of(parts[0]).total() < whole.total()
