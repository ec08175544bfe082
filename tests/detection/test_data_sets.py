"""VOC's and COCO's layouts, and the batches made of them."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainables.detection.batches import DetectionBatch, DetectionImages, batches, flipped, zoomed_or_cropped
from trainables.detection.data_sets import load_detection
from trainables.detector_config import DetectionDataConfig
from trainables.distributed import Workers
from trainables.errors import ConfigError, DataMissingError

ALONE = Workers(0, 1, torch.device("cpu"))


def voc(root: Path) -> DetectionDataConfig:
    return DetectionDataConfig(format="voc", root=str(root), train=("2007/train",), validation=("2007/val",))


def coco(root: Path) -> DetectionDataConfig:
    return DetectionDataConfig(format="coco", root=str(root), train=("instances_train",), validation=("instances_val",))


@pytest.fixture
def copied(scenes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "scenes"))


def test_both_layouts_hold_the_same_objects_and_number_classes_without_gaps(scenes: Path) -> None:
    ours, theirs = load_detection(voc(scenes)), load_detection(coco(scenes))
    # VOC's classes are in the order of the alphabet, COCO's in that of their numbers, 10 and 59.
    assert ours.class_names == ("eight", "one")
    assert theirs.class_names == ("one", "eight")
    for split in ("train", "validation"):
        one, other = getattr(ours, split), getattr(theirs, split)
        assert torch.equal(one.objects.boxes, other.objects.boxes)
        assert torch.equal(one.objects.labels, 3 - other.objects.labels)
        assert torch.equal(one.objects.ignored, other.objects.ignored)
        assert torch.equal(one.objects.areas, other.objects.areas)
        assert torch.equal(one.starts, other.starts)


def test_an_image_without_objects_is_kept_and_the_three_sizes_are_there(scenes: Path) -> None:
    train = load_detection(coco(scenes)).train
    assert len(train) == 6
    assert len(train.of(5).boxes) == 0
    areas = train.objects.areas
    assert [bool(((areas > low) & (areas <= high)).any()) for low, high in ((0, 1024), (1024, 9216), (9216, 1e9))] == [
        True
    ] * 3


def test_vocs_corners_are_pixels_of_the_box_counted_from_one(copied: Path) -> None:
    write_annotation(copied, "train00000", "<xmin>1</xmin><ymin>11</ymin><xmax>20</xmax><ymax>50</ymax>")
    assert load_detection(voc(copied)).train.of(0).boxes.tolist() == [[0.0, 10.0, 20.0, 50.0]]


def test_boxes_of_no_area_are_left_out(copied: Path) -> None:
    content = read(copied)
    before = load_detection(coco(copied)).train.counted
    content["annotations"] += [
        {**content["annotations"][0], "bbox": [5, 5, 0, 9]},
        {**content["annotations"][0], "bbox": [5, 5, 9, -1]},
    ]
    write(copied, content)
    assert load_detection(coco(copied)).train.counted == before


def test_fingerprints_follow_the_images_and_not_their_place(scenes: Path, copied: Path) -> None:
    assert load_detection(coco(scenes)).fingerprint == load_detection(coco(copied)).fingerprint
    Image.new("RGB", (50, 40)).save(copied / "val" / "val00000.jpg")
    assert load_detection(coco(scenes)).fingerprint != load_detection(coco(copied)).fingerprint


def read(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "annotations" / "instances_train.json").read_text())
    return content


def write(root: Path, content: object) -> None:
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))


def write_annotation(root: Path, name: str, bndbox: str) -> None:
    (root / "VOC2007" / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><object><name>one</name><bndbox>{bndbox}</bndbox></object></annotation>"
    )


def damage(root: Path, path: str, text: str = "<annotation><obj") -> None:
    (root / path).write_text(text)


def spoil(content: dict[str, Any], **entry: object) -> dict[str, Any]:
    return {**content, "annotations": [{**content["annotations"][0], **entry}]}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "VOC2007/ImageSets/Main/train.txt").unlink(), r"has the lists: val\. data\.root must be"),
        (lambda root: (root / "VOC2007/Annotations/train00001.xml").unlink(), r"train00001\.xml is missing; unpack"),
        (lambda root: damage(root, "VOC2007/Annotations/train00001.xml"), r"train00001\.xml: not XML that can be read"),
        (lambda root: write_annotation(root, "train00001", "<xmin>1</xmin>"), r"object 0: its bndbox lacks ymin, xmax"),
        (
            lambda root: write_annotation(
                root, "train00001", "<xmin>a</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
            ),
            r"object 0: could not convert string to float: 'a'; expected a name and a bndbox",
        ),
        (
            lambda root: damage(root, "VOC2007/ImageSets/Main/train.txt", "train00005\n"),
            r"1 images without a single box that counts",
        ),
        (
            lambda root: (root / "VOC2007/JPEGImages/train00002.jpg").unlink(),
            r"1 of 6 listed images are missing, the first is .*train00002\.jpg; get them again",
        ),
    ],
)
def test_what_is_wrong_with_voc_is_told_with_the_fix(copied: Path, harm: Any, message: str) -> None:
    harm(copied)
    with pytest.raises(DataMissingError, match=message):
        load_detection(voc(copied))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "annotations/instances_train.json").unlink(), r"has instances_val\. data\.root must be"),
        (lambda root: damage(root, "annotations/instances_train.json"), r"not JSON that can be read \(Expecting value"),
        (lambda root: write(root, {"images": []}), r"has no list of annotations, categories; give a file of instances"),
        (lambda root: write(root, spoil(read(root), image_id=9)), r"annotation 0: KeyError 9; expected a bbox of x, y"),
        (lambda root: write(root, spoil(read(root), bbox=[1, 2])), r"annotation 0: ValueError not enough values"),
        (
            lambda root: write(root, {**read(root), "categories": [{"id": 10, "name": "one"}]}),
            r"different categories: 59 eight; give files of one data set",
        ),
        (lambda root: shutil.rmtree(root / "train"), r"6 of 6 listed images are missing"),
    ],
)
def test_what_is_wrong_with_coco_is_told_with_the_fix(copied: Path, harm: Any, message: str) -> None:
    harm(copied)
    with pytest.raises(DataMissingError, match=message):
        load_detection(coco(copied))


def test_a_list_without_a_year_and_a_missing_root_are_refused(scenes: Path) -> None:
    with pytest.raises(ConfigError, match="'train' names no list; give year/list, such as 2007/trainval"):
        load_detection(replace(voc(scenes), train=("train",)))
    with pytest.raises(ConfigError, match=re.escape("data.root is empty; give the folder")):
        load_detection(replace(voc(scenes), root=""))


def test_a_damaged_image_is_told_by_name(copied: Path) -> None:
    (copied / "train" / "train00000.jpg").write_bytes(b"no image")
    with pytest.raises(DataMissingError, match=r"train00000\.jpg: cannot be read as an image"):
        list(batches(DetectionImages(load_detection(coco(copied)).train), ALONE, batch_size=6, training=True))


def made(root: Path, workers: Workers = ALONE, *, loader_workers: int = 0, epoch: int = 0) -> list[DetectionBatch]:
    images = DetectionImages(load_detection(coco(root)).train, flip=True, zoom_crop=True)
    found = batches(images, workers, batch_size=3, training=True, seed=5, epoch=epoch, loader_workers=loader_workers)
    return list(found)


def same(one: list[DetectionBatch], other: list[DetectionBatch]) -> bool:
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(flat(a), flat(b), strict=True)]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def flat(batch: DetectionBatch) -> list[torch.Tensor]:
    return [*batch.images, *batch.boxes, *batch.labels, batch.places]


def test_batches_are_functions_of_seed_epoch_and_place(scenes: Path) -> None:
    state = torch.get_rng_state()
    alone = made(scenes)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(alone, made(scenes, loader_workers=1))
    assert not same(alone, made(scenes, epoch=1))
    shares = [made(scenes, Workers(rank, 2, torch.device("cpu"))) for rank in range(2)]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert whole.places.tolist() == [place for part in parts for place in part.places.tolist()]
        together = [image for part in parts for image in part.images]
        assert all(torch.equal(a, b) for a, b in zip(whole.images, together, strict=True))


def test_an_epoch_goes_on_after_some_steps_with_the_very_batches_that_follow(scenes: Path) -> None:
    images = DetectionImages(load_detection(coco(scenes)).train, flip=True)
    whole = batches(images, ALONE, batch_size=2, training=True)
    assert len(whole) == 3
    assert same(list(whole)[1:], list(whole.after(1)))


def test_ignored_objects_are_not_trained_on_and_boxes_end_at_the_image(copied: Path) -> None:
    content = read(copied)
    content["annotations"][0] |= {"bbox": [-5, -5, 1000, 1000], "iscrowd": 0}
    write(copied, content)
    train = load_detection(coco(copied)).train
    assert bool(train.objects.ignored.any())
    (batch,) = batches(DetectionImages(train), ALONE, batch_size=6, training=True)
    assert sum(len(boxes) for boxes in batch.boxes) == train.counted
    first = batch.places.tolist().index(0)
    height, width = batch.images[first].shape[1:]
    assert batch.boxes[first][0].tolist() == [0, 0, width, height]


def test_a_flip_moves_boxes_with_their_pixels_and_twice_is_none() -> None:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[:, 4:9, 3:13] = 200
    boxes = torch.tensor([[3.0, 4.0, 13.0, 9.0]])
    turned, moved = flipped(image, boxes)
    x0, y0, x1, y1 = (int(value) for value in moved[0])
    assert int(turned[:, y0:y1, x0:x1].min()) == 200
    assert int((turned > 0).sum()) == 3 * 5 * 10
    again, back = flipped(turned, moved)
    assert torch.equal(again, image)
    assert torch.equal(back, boxes)


def test_zooms_and_crops_keep_boxes_on_their_objects() -> None:
    image = torch.full((3, 60, 80), 100, dtype=torch.uint8)
    image[:, 20:40, 30:60] = 255
    boxes, labels = torch.tensor([[30.0, 20.0, 60.0, 40.0]]), torch.tensor([4])
    sizes = set()
    for seed in range(20):
        changed, moved, kept = zoomed_or_cropped(image, boxes, labels, seed=seed)
        sizes.add(tuple(changed.shape))
        assert kept.tolist() == [4]
        x0, y0, x1, y1 = (round(value) for value in moved[0].tolist())
        assert int(changed[:, y0:y1, x0:x1].min()) == 255
    assert len(sizes) > 5


def test_a_batch_is_cut_into_parts_by_image(scenes: Path) -> None:
    batch = made(scenes)[0].to(torch.device("cpu"))
    assert len(batch.labels) == 3
    assert all(
        image.dtype == torch.float32 and 0 <= float(image.min()) <= float(image.max()) <= 1 for image in batch.images
    )
    assert [set(target) for target in batch.targets] == [{"boxes", "labels"}] * 3
