"""Tar shards, read at random: the images of a folder, whatever the order; and what is said of damaged ones."""

import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.config import DataConfig
from trainables.data import check_data, load_data, shard_files
from trainables.data.folders import shard_paths
from trainables.data.splits import loader
from trainables.errors import DataMissingError

Writer = Callable[..., None]


def settings(root: Path, **more: Any) -> DataConfig:
    return DataConfig(name="shards", image_size=16, root=str(root), **more)


def unpacked(root: Path, folder: Path) -> DataConfig:
    """The shards' images as an image folder, in which shards and then places name the files: the same order."""
    for split in ("train", "val"):
        for shard in sorted(root.glob(f"{split}-*.tar")):
            with tarfile.open(shard) as archive:
                for image in (name for name in archive.getnames() if name.endswith(".jpg")):
                    label = archive.extractfile(image.replace(".jpg", ".cls")).read().decode()
                    target = folder / split / label / f"{shard.stem}-{image}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.extractfile(image).read())
    return DataConfig(name="imagefolder", image_size=16, root=str(folder))


def test_shards_hold_the_images_and_labels_of_the_folder_that_they_were_made_of(
    tmp_path: Path, write_shards: Writer
) -> None:
    write_shards(tmp_path / "shards")
    check_data(settings(tmp_path / "shards"))
    data = load_data(settings(tmp_path / "shards"))
    folder = load_data(unpacked(tmp_path / "shards", tmp_path / "folder"))
    assert (data.num_classes, len(data.train), len(data.validation)) == (10, 60, 25)
    for ours, theirs in ((data.train, folder.train), (data.validation, folder.validation)):
        found = {f"{m.shard.stem}-{m.name}": i for i, m in enumerate(ours.paths)}
        places = torch.tensor([found[path.name] for path in theirs.paths])
        assert sorted(places.tolist()) == list(range(len(ours)))
        for ours_part, theirs_part in zip(
            ours.batch(places, None), theirs.batch(torch.arange(len(theirs)), None), strict=True
        ):
            assert torch.equal(ours_part, theirs_part)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_functions_of_seed_and_epoch_with_any_number_of_loaders(
    tmp_path: Path, write_shards: Writer, workers: int
) -> None:
    write_shards(tmp_path)
    train = load_data(settings(tmp_path, augment="resized-crop-flip")).train
    batches = list(loader(train, batch_size=20, shuffle=True, seed=1, epoch=4, workers=workers))
    draws = torch.cat([batch.places for batch in batches])
    assert sorted(draws.tolist()) == list(range(60))
    for batch in batches:
        images, labels = train.batch(batch.places, batch.draws)
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.labels, labels)
    # From all shards at once.
    assert len({train.paths[place].shard for place in batches[0].places.tolist()}) == 3


def test_headers_are_read_once_and_again_after_a_shard_has_changed(
    tmp_path: Path, write_shards: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path)
    read: list[str] = []
    samples = shard_files._samples
    monkeypatch.setattr(shard_files, "_samples", lambda path: read.append(path.name) or samples(path))
    first = load_data(settings(tmp_path))
    assert len(read) == 5
    again = load_data(settings(tmp_path))
    assert len(read) == 5
    assert list(again.train.paths) == list(first.train.paths)
    assert torch.equal(again.train.labels, first.train.labels)
    assert again.fingerprint == first.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".tar") == [
        ".train-shards.npz",
        ".val-shards.npz",
    ]
    os.utime(tmp_path / "train-000001.tar", (time.time() + 5, time.time() + 5))
    load_data(settings(tmp_path))
    assert read[5:] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    (tmp_path / ".val-shards.npz").write_bytes(b"PK damaged")
    assert torch.equal(load_data(settings(tmp_path)).validation.labels, first.validation.labels)


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(
    tmp_path: Path, write_shards: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As read-only storage answers, root or not."""
    write_shards(tmp_path)
    opened = Path.open

    def read_only(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "x" in mode or "w" in mode:
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", read_only)
    data = load_data(settings(tmp_path))
    assert data.train.batch(torch.tensor([0, 59]), None)[0].shape == (2, 3, 16, 16)
    assert {path.suffix for path in tmp_path.iterdir()} == {".tar"}


def test_names_of_published_shards_are_found_and_keys_end_at_the_first_dot(
    tmp_path: Path, write_shards: Writer
) -> None:
    write_shards(tmp_path, train=20, val=20)
    rewritten(tmp_path / "train-000000.tar", lambda name, content: (f"./a.b/{name}".replace(".jpg", ".JPG"), content))
    (tmp_path / "train-000000.tar").rename(tmp_path / "imagenet1k-train-0000.tar")
    (tmp_path / "val-000000.tar").rename(tmp_path / "imagenet1k-validation-00.tar")
    data = load_data(settings(tmp_path))
    assert (len(data.train), len(data.validation)) == (20, 20)
    assert data.train.paths[0].name == "./a.b/00000000.JPG"


def rewritten(shard: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    """The archive with each member changed, or left out."""
    with tarfile.open(shard) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(shard, "w") as archive:
        for name, content in (kept for member in members if (kept := change(*member))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _cut(shard: Path, share: float) -> None:
    os.truncate(shard, int(shard.stat().st_size * share))


def _cut_between_members(shard: Path) -> None:
    with tarfile.open(shard) as archive:
        place = archive.getmembers()[30].offset
    os.truncate(shard, place)


def _damage_header(shard: Path) -> None:
    with tarfile.open(shard) as archive:
        place = archive.getmembers()[30].offset
    content = bytearray(shard.read_bytes())
    content[place + 10] ^= 0xFF
    shard.write_bytes(content)


FIRST = "train-000000.tar"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: [p.unlink() for p in r.glob("val-*")],
            r"has no \*val-\*.tar or \*validation-\*.tar; put uncompressed",
        ),
        (lambda r: _cut(r / FIRST, 0.4), r"train-000000.tar(: not a whole uncompressed tar|: cut off or damaged)"),
        (
            lambda r: _cut_between_members(r / FIRST),
            r"train-000000.tar: cut off or damaged at byte \d+, .* get it again",
        ),
        (lambda r: _damage_header(r / FIRST), r"train-000000.tar: cut off or damaged at byte \d+"),
        (lambda r: (r / FIRST).write_bytes(b""), "train-000000.tar: not a whole uncompressed tar archive"),
        (lambda r: (r / FIRST).write_bytes(b"x" * 4000), "train-000000.tar: not a whole uncompressed tar archive"),
        (
            lambda r: rewritten(r / FIRST, lambda n, c: None if n == "00000004.cls" else (n, c)),
            "00000004 is an image without <key>.cls, and so are 0 more; write the shard again",
        ),
        (
            lambda r: rewritten(r / FIRST, lambda n, c: None if n.endswith("4.jpg") else (n, c)),
            "00000004 is a .cls without image, and so are 1 more",
        ),
        (
            lambda r: rewritten(r / FIRST, lambda n, c: (n, b"cat" if n == "00000004.cls" else c)),
            "00000004.cls holds b'cat' instead of a label; write a number from 0",
        ),
        (
            lambda r: rewritten(r / FIRST, lambda n, c: (n.replace("00000005.", "00000004."), c)),
            r"00000004 is there twice \(00000004.jpg\)",
        ),
        (lambda r: rewritten(r / FIRST, lambda n, c: (n, c) if "json" in n else None), "holds no images"),
        (
            lambda r: [
                rewritten(p, lambda n, c: (n, b"11" if n.endswith("cls") and c == b"3" else c))
                for p in r.glob("train*")
            ],
            "no training image with label 3, but some with 11; number the classes from 0 without gaps",
        ),
        (
            lambda r: rewritten(r / "val-000000.tar", lambda n, c: (n, b"10" if n.endswith("cls") else c)),
            "shards: found a label 10; expected labels from 0 to 9",
        ),
    ],
)
def test_damaged_and_incomplete_shards_are_told_with_the_fix(
    tmp_path: Path, write_shards: Writer, change: Callable[[Path], object], message: str
) -> None:
    write_shards(tmp_path)
    change(tmp_path)
    with pytest.raises(DataMissingError, match=message):
        load_data(settings(tmp_path))


def test_an_image_that_is_damaged_or_has_been_cut_off_since_is_told_with_its_place(
    tmp_path: Path, write_shards: Writer
) -> None:
    write_shards(tmp_path)
    rewritten(tmp_path / FIRST, lambda name, content: (name, b"no image" if name == "00000003.jpg" else content))
    data = load_data(settings(tmp_path))
    with pytest.raises(DataMissingError, match=r"train-000000.tar: 00000003.jpg: cannot be read as an image"):
        data.train.batch(torch.tensor([3]), None)
    _cut(tmp_path / FIRST, 0.2)
    with pytest.raises(DataMissingError, match=r"00000019.jpg: the archive ends before the image does; get the arch"):
        data.train.batch(torch.tensor([19]), None)
    (tmp_path / FIRST).unlink()
    with pytest.raises(DataMissingError, match=r"00000019.jpg: cannot be read \(.*No such file"):
        data.train.batch(torch.tensor([19]), None)


def test_an_archives_split_is_a_word_of_its_own(tmp_path: Path) -> None:
    for name in ("x-train-0.tar", "x-trainval-0.tar", "carnival-train-1.tar"):
        (tmp_path / name).touch()
    assert [path.name for path in shard_paths(tmp_path, "train")] == ["carnival-train-1.tar", "x-train-0.tar"]
    with pytest.raises(DataMissingError, match=r"has no .*val-"):
        shard_paths(tmp_path, "val")
    (tmp_path / "train-val-0.tar").touch()
    with pytest.raises(DataMissingError, match=r"train-val-0\.tar may be for training or for validation; rename it"):
        shard_paths(tmp_path, "train")
