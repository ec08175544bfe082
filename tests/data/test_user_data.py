"""Data of a user's own by import path: what the function gets, what it may return, and what is said of the rest."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainables.config import DataConfig
from trainables.data import UserData, check_data, check_data_name, load_data
from trainables.data.splits import DataSplits, loader
from trainables.errors import ConfigError, DataMissingError

Written = Callable[[str], None]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    """Writes my_data.py into the current folder, beginning with the imports that all of these have."""
    imports = "import numpy as np\nimport torch\nfrom pathlib import Path\nfrom trainables.data import UserData\n"

    def write(code: str) -> None:
        (tmp_path / "my_data.py").write_text(imports + dedent(code))
        sys.modules.pop("my_data", None)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    sys.modules.pop("my_data", None)


def config_of(**changes: Any) -> DataConfig:
    return DataConfig(**{"name": "my_data:small", "image_size": 8, **changes})


RANDOM = """
    def small(root, *, image_size):
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (60, {channels}, {size}, {size}), dtype=np.uint8)
        labels = np.arange(60) % 3
        return UserData(train=({images}, labels[:48]), validation=(images[48:], labels[48:].tolist()), num_classes=3)
"""


@pytest.mark.parametrize("images", ["images[:48]", "torch.from_numpy(images)[:48]", "images[::-1][12:]"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_become_a_data_set_normalised_with_their_own_statistics(
    write_module: Written, images: str, channels: int
) -> None:
    write_module(RANDOM.format(channels=channels, size=8, images=images))
    check_data(config_of())
    data = load_data(config_of())
    expected = np.random.default_rng(0).integers(0, 256, (60, channels, 8, 8), dtype=np.uint8)
    train = expected[::-1][12:] if "::-1" in images else expected[:48]
    assert np.array_equal(data.train.images, np.broadcast_to(train, (48, 3, 8, 8)))
    assert np.array_equal(data.validation.images, np.broadcast_to(expected[48:], (12, 3, 8, 8)))
    assert data.train.labels.tolist() == [0, 1, 2] * 16
    assert data.validation.labels.tolist() == [0, 1, 2] * 4
    assert (data.name, data.num_classes) == ("my_data:small", 3)
    batch = next(iter(loader(data.train, batch_size=48, shuffle=False, seed=0, epoch=0)))
    torch.testing.assert_close(batch.images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_fraction_size_and_fingerprint_are_as_for_all_other_sets(write_module: Written) -> None:
    write_module(RANDOM.format(channels=3, size=12, images="images[:48]"))
    data, part = load_data(config_of()), load_data(config_of(fraction=0.25, image_size=6, augment="flip"))
    assert data.train.images.shape == (48, 3, 8, 8)
    assert part.train.images.shape == (12, 3, 6, 6)
    assert part.train.labels.bincount().tolist() == [4, 4, 4]
    assert (part.train.augment, part.validation.augment) == ("flip", "none")
    assert part.fingerprint == data.fingerprint
    write_module(RANDOM.format(channels=3, size=12, images="images[:48]").replace("rng(0)", "rng(1)"))
    other = load_data(config_of()).fingerprint
    write_module(RANDOM.format(channels=3, size=12, images="images[:48]").replace("num_classes=3", "num_classes=4"))
    assert len({load_data(config_of()).fingerprint, other, data.fingerprint}) == 3


FILES = """
    def small(root, *, image_size):
        paths = sorted(path.name for path in Path(root).glob("*.png"))
        labels = torch.tensor([int(path[0]) for path in paths])
        train = [i for i in range(len(paths)) if i % 4]
        return UserData(
            train=([paths[i] for i in train], labels[train]),
            validation=([Path(root) / path for path in paths[::4]], labels[::4]),
            num_classes=2,
        )
"""


def write_images(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(16):
        shape = (*(int(side) for side in random.integers(8, 30, 2)), 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i % 2}-{i:02d}.png")


def test_paths_become_a_data_set_of_files_below_the_root(write_module: Written, tmp_path: Path) -> None:
    write_module(FILES)
    write_images(tmp_path / "images")
    config = config_of(root=str(tmp_path / "images"))
    data: DataSplits = load_data(config)
    assert len(data.train) == 12
    for split in (data.train, data.validation):
        assert [int(path.name[0]) for path in split.paths] == split.labels.tolist()
        assert {path.parent for path in split.paths} == {tmp_path / "images"}
        batches = list(loader(split, batch_size=4, shuffle=False, seed=0, epoch=0))
        assert all(batch.images.shape == (4, 3, 8, 8) for batch in batches)
    before = data.fingerprint
    (tmp_path / "images").rename(tmp_path / "moved")
    assert load_data(config_of(root=str(tmp_path / "moved"), fraction=0.5)).fingerprint == before


def test_listed_files_that_are_not_there_are_told(write_module: Written, tmp_path: Path) -> None:
    write_module(FILES.replace("Path(root) / path for", "Path(root) / f'{path}.gone' for"))
    write_images(tmp_path / "images")
    with pytest.raises(DataMissingError, match=r"my_data:small: 4 of 4 listed images .*images/0-00\.png\.gone; get"):
        load_data(config_of(root=str(tmp_path / "images")))


def test_the_function_gets_the_root_as_the_settings_have_it_and_the_image_size(
    write_module: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module("def small(root, *, image_size):\n    raise ValueError(repr((root, image_size)))")
    monkeypatch.setenv("HOME", str(tmp_path))
    for root, given in (("", ""), ("/data/x", "/data/x"), ("~/x", f"{tmp_path}/x")):
        with pytest.raises(ConfigError, match=rf"data\.name: 'my_data:small' failed at .*: \('{given}', 8\)"):
            load_data(config_of(root=root))


PIXELS = "np.zeros((4, 3, 8, 8), np.uint8)"
WRONG: dict[str, tuple[str, str]] = {
    "no data set": ("{'train': 1}", r"a dict; return a trainables\.data\.UserData"),
    "nothing": ("None", "a NoneType; return a"),
    "one class": (f"of({PIXELS}, [0] * 4, 1)", "num_classes 1; give a whole number of at least 2"),
    "classes by name": (f"of({PIXELS}, [0] * 4, ['cat', 'dog'])", r"num_classes \['cat', 'dog'\]; give a whole"),
    "no pair": (f"UserData(train={PIXELS}, validation=None, num_classes=2)", "a ndarray as train; give a pair"),
    "floats": (f"of({PIXELS}.astype('f4'), [0] * 4)", "train images of float32; give uint8, 0 to 255"),
    "float tensors": ("of(torch.zeros(4, 3, 8, 8), [0] * 4)", r"train images of torch\.float32; give uint8"),
    "no channels": (f"of({PIXELS}[:, 0], [0] * 4)", r"train images of shape \[4, 8, 8\]; give \[N, C, S, S\]"),
    "channels last": (f"of({PIXELS}.transpose(0, 2, 3, 1), [0] * 4)", r"\[4, 8, 8, 3\].*; channels come before height"),
    "not square": (f"of({PIXELS}[:, :, :5], [0] * 4)", r"shape \[4, 3, 5, 8\]; give .*, squares\."),
    "four channels": ("of(np.zeros((4, 4, 8, 8), np.uint8), [0] * 4)", r"shape \[4, 4, 8, 8\]; give .* C 1 or 3"),
    "no pixels": ("of(np.zeros((4, 3, 0, 0), np.uint8), [0] * 4)", r"shape \[4, 3, 0, 0\]"),
    "no images": (f"of({PIXELS}[:0], [])", "no train images"),
    "no files": ("of([], [])", "no train images"),
    "a folder": ("of('/data', [0])", "a str as train images; give uint8 pixels, or a list of paths"),
    "open files": ("of([open('/dev/null', 'rb')], [0])", "a list as train images; give uint8 pixels, or a list of p"),
    "too few labels": (f"of({PIXELS}, [0] * 3)", "4 train images, but 3 labels; give one for each image"),
    "labels by name": (f"of({PIXELS}, ['a'] * 4)", r"train labels of <U1, shape \[4\]; give \[N\] whole numbers"),
    "one-hot labels": (f"of({PIXELS}, np.eye(4, dtype=int))", r"train labels of int64, shape \[4, 4\]; give \[N\]"),
    "ragged labels": (f"of({PIXELS}, [[0], [0, 1], 1, 0])", "train labels that are no list of numbers"),
    "float labels": (f"of({PIXELS}, torch.zeros(4))", "train labels of float32"),
    "truth values": (f"of({PIXELS}, [True] * 4)", "train labels of bool"),
    "a label too large": (f"of({PIXELS}, [0, 1, 2, 0])", "a train label 2; give 0 to 1, or more num_classes"),
    "labels from 1": (f"of({PIXELS}, [0, 1, -1, 0])", "a train label -1; give 0 to 1"),
    "two kinds": (
        f"UserData(train=({PIXELS}, [0] * 4), validation=(['a.png'], [0]), num_classes=2)",
        "pixels for one split and files for the other; give both the same way",
    ),
    "a bad validation label": (
        f"UserData(train=({PIXELS}, [0] * 4), validation=({PIXELS}, [9] * 4), num_classes=2)",
        "a validation label 9",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_whatever_else_is_returned_is_an_error_that_says_what_to_return(write_module: Written, case: str) -> None:
    returned, message = WRONG[case]
    write_module(f"""
    def of(images, labels, num_classes=2):
        return UserData(train=(images, labels), validation=(images, labels), num_classes=num_classes)

    def small(root, *, image_size):
        return {returned}
    """)
    with pytest.raises(ConfigError, match=rf"data\.name: 'my_data:small' returned .*{message}"):
        load_data(config_of())


def test_names_are_checked_without_importing_anything(write_module: Written) -> None:
    write_module("raise SystemExit('imported')")
    check_data_name("my_data:small")
    check_data(config_of())
    with pytest.raises(ConfigError, match="imported"):
        load_data(config_of())
    for name in ("my_data.py:small", "my_data:", ":small"):
        with pytest.raises(ConfigError, match="is no import path; give module:function"):
            check_data_name(name)
    with pytest.raises(ConfigError, match="'my_data:small' cannot be downloaded: leave it out"):
        check_data(config_of(root="/data", download=True))


def test_a_module_that_is_not_there_is_an_error_that_names_the_setting(write_module: Written) -> None:
    with pytest.raises(ConfigError, match=r"data\.name: 'my_data:small': No module named 'my_data'; looked in"):
        load_data(config_of())
    write_module("def smal(root): ...")
    with pytest.raises(ConfigError, match=r"data\.name: my_data \(.*\) has no 'small'; did you mean 'smal'"):
        load_data(config_of())


def test_the_class_itself_is_frozen() -> None:
    data = UserData(train=([], []), validation=([], []), num_classes=2)
    with pytest.raises(AttributeError, match="cannot assign"):
        data.num_classes = 3
