"""CIFAR from generated pickles: reading, downloading, and refusing pickles that are not the published ones."""

import os
import pickle
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from trainables.config import DataConfig
from trainables.data import check_data, load_data
from trainables.data.splits import DataSplits, loader
from trainables.errors import DataMissingError

Writer = Callable[..., Any]


def images_of(data: DataSplits, split: str) -> tuple[np.ndarray, list[int]]:
    """The uint8 images [N, 3, S, S] that a set in memory holds."""
    held = getattr(data, split)
    return held.images.numpy(), held.labels.tolist()


@pytest.mark.parametrize(("name", "files", "num_classes"), [("cifar10", 5, 10), ("cifar100", 1, 100)])
def test_cifar_is_read_from_its_pickles(
    tmp_path: Path, write_cifar: Writer, name: str, files: int, num_classes: int
) -> None:
    held = write_cifar(tmp_path, name)
    config = DataConfig(name=name, image_size=32, root=str(tmp_path))
    check_data(config)
    data = load_data(config)
    images, labels = images_of(data, "train")
    contents = list(held.values())
    assert np.array_equal(images, np.concatenate([c["data"] for c in contents[:files]]).reshape(-1, 3, 32, 32))
    assert labels == [label for c in contents[:files] for label in list(c.values())[1]]
    assert np.array_equal(images_of(data, "validation")[0], contents[-1]["data"].reshape(-1, 3, 32, 32))
    assert data.num_classes == num_classes
    batch = next(iter(loader(data.train, batch_size=8, shuffle=True, seed=0, epoch=0))).images
    assert batch.is_contiguous()


class Harmful:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_is_not_the_published_one_is_refused_before_it_is_opened(
    tmp_path: Path, write_cifar: Writer
) -> None:
    write_cifar(tmp_path, "cifar10")
    path, trace = tmp_path / "cifar-10-batches-py" / "data_batch_3", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Harmful(trace)))
    config = DataConfig(name="cifar10", image_size=32, root=str(tmp_path))
    check_data(config)
    with pytest.raises(DataMissingError, match="cifar10 are incomplete or not the published ones"):
        load_data(config)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the pickle would have been harmless anyway"


def test_missing_cifar_files_are_named_before_anything_is_computed(tmp_path: Path, write_cifar: Writer) -> None:
    config = DataConfig(name="cifar100", image_size=32, root=str(tmp_path / "none"))
    with pytest.raises(DataMissingError, match=rf"missing: {tmp_path}/none/cifar-100-python/train, .*download: true"):
        check_data(config)
    check_data(replace(config, download=True))
    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(DataMissingError, match=r"missing: [^,]*/data_batch_2\. Unpack"):
        check_data(DataConfig(name="cifar10", image_size=32, root=str(tmp_path)))


def test_cifar_is_downloaded_once_where_settings_ask_for_it(
    tmp_path: Path,
    write_cifar: Writer,
    serve: Callable[[Path], AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_cifar(tmp_path / "made", "cifar10")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", arcname="cifar-10-batches-py")
    config = DataConfig(name="cifar10", image_size=32, root=str(tmp_path / "new"), download=True)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", None)
    with serve(tmp_path) as address:
        monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/{archive.name}")
        first = load_data(config)
    # The server has gone: a second download would fail.
    assert load_data(config).fingerprint == first.fingerprint
    assert len(first.train) == 100
