"""Handwritten digits (scikit-learn's, real ones) on textured canvases with their boxes, as VOC's and COCO's layouts.

Each image has digits of COCO's three sizes: up to 32² pixels, up to 96², and more. Both layouts have the same
images and boxes. Some objects are VOC's difficult ones, which are COCO's crowds; the last image of each list has none.

    python -m tests.detection.digit_scenes FOLDER --train 200 --validation 50 --digits 0 1 7
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDES = {"small": (20, 28), "medium": (44, 80), "large": (130, 170)}
"""Shortest and longest side of a digit's box, pixels; digits are about 3 wide to 4 high."""
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CANVAS = ((200, 260), (260, 340))
"""Heights and widths of images, pixels, from and below."""
TRAINING_SHARE = 0.8
"""Of the digits; the others are only in validation images."""


@dataclass(frozen=True, slots=True)
class Scene:
    """An image with its digits."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    """[H, W, 3]."""
    boxes: tuple[tuple[int, int, int, int], ...]
    """x0, y0, x1, y1; x1 and y1 are the first that do not belong to it."""
    digits: tuple[int, ...]
    difficult: tuple[bool, ...]


def scenes(count: int, *, seed: int, digits: Sequence[int], training: bool) -> list[Scene]:
    """So many images; the last is empty, and every third one has a difficult object."""
    random = np.random.default_rng((seed, training))
    found = load_digits()
    wanted = np.flatnonzero(np.isin(found.target, digits))
    cut = int(len(wanted) * TRAINING_SHARE)
    wanted = wanted[:cut] if training else wanted[cut:]
    return [
        _scene(random, found.images[wanted], found.target[wanted], empty=number == count - 1, hard=number % 3 == 1)
        for number in range(count)
    ]


def _scene(random: np.random.Generator, images: Any, labels: Any, *, empty: bool, hard: bool) -> Scene:
    height, width = (int(random.integers(*limits)) for limits in CANVAS)
    canvas = _texture(random, height, width)
    boxes: list[tuple[int, int, int, int]] = []
    digits, difficult = [], []
    for size in [] if empty else ["large", "medium", "small", "small"]:
        for _ in range(50):
            which = int(random.integers(len(labels)))
            ink = _ink(images[which], int(random.integers(*SIDES[size])))
            y = int(random.integers(0, height - ink.shape[0]))
            x = int(random.integers(0, width - ink.shape[1]))
            box = (x, y, x + ink.shape[1], y + ink.shape[0])
            if not any(_touch(box, other) for other in boxes):
                canvas[box[1] : box[3], box[0] : box[2]] += ink[:, :, None] * random.uniform(0.8, 1.0, 3)
                boxes.append(box)
                digits.append(int(labels[which]))
                difficult.append(hard and len(boxes) == 2)
                break
    return Scene((canvas.clip(0, 1) * 255).astype(np.uint8), tuple(boxes), tuple(digits), tuple(difficult))


def _texture(random: np.random.Generator, height: int, width: int) -> Any:
    """Coloured noise of several sizes [H, W, 3], 0 to 0.4."""
    layers = []
    for cell in (4, 16, 64):
        noise = random.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        layers.append(np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)))
    return np.mean(layers, axis=0) / 255 * 0.4


def _ink(image: Any, side: int) -> Any:
    """The digit alone, 0 to 1, its longer side so many pixels."""
    rows, columns = (np.flatnonzero(image.max(axis) > 0) for axis in (1, 0))
    cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / 16
    scale = side / max(cut.shape)
    size = (round(cut.shape[1] * scale), round(cut.shape[0] * scale))
    return np.asarray(Image.fromarray(cut.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def _touch(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def write_scenes(root: Path, *, train: int, validation: int, digits: Sequence[int] = (0, 1), seed: int = 0) -> None:
    """VOC's layout and COCO's, both below `root`: lists 2007/train and 2007/val; instances_train and instances_val."""
    splits = {
        "train": scenes(train, seed=seed, digits=digits, training=True),
        "val": scenes(validation, seed=seed, digits=digits, training=False),
    }
    for split, made in splits.items():
        names = [f"{split}{number:05}" for number in range(len(made))]
        for folder in (root / "VOC2007" / "JPEGImages", root / split):
            folder.mkdir(parents=True, exist_ok=True)
            for name, scene in zip(names, made, strict=True):
                Image.fromarray(scene.pixels).save(folder / f"{name}.jpg", quality=95)
        _write_voc(root / "VOC2007", split, names, made)
        _write_coco(root, split, names, made, digits)


def _write_voc(folder: Path, split: str, names: list[str], made: list[Scene]) -> None:
    for below in ("Annotations", "ImageSets/Main"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for name, scene in zip(names, made, strict=True):
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
        for (x0, y0, x1, y1), digit, difficult in zip(scene.boxes, scene.digits, scene.difficult, strict=True):
            element = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(element, "name").text = NAMES[digit]
            ElementTree.SubElement(element, "difficult").text = str(int(difficult))
            bndbox = ElementTree.SubElement(element, "bndbox")
            for corner, value in {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}.items():
                ElementTree.SubElement(bndbox, corner).text = str(value)
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{name}.xml")


def category(digit: int) -> int:
    """COCO's number of a class: neither from 1 nor without gaps."""
    return 3 + 7 * digit


def _write_coco(root: Path, split: str, names: list[str], made: list[Scene], digits: Sequence[int]) -> None:
    annotations = [
        {
            "image_id": 100 + number,
            "category_id": category(digit),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": int(difficult),
        }
        for number, scene in enumerate(made)
        for (x0, y0, x1, y1), digit, difficult in zip(scene.boxes, scene.digits, scene.difficult, strict=True)
    ]
    content = {
        "images": [
            {"id": 100 + number, "file_name": f"{name}.jpg", "height": len(scene.pixels), "width": len(scene.pixels[0])}
            for number, (name, scene) in enumerate(zip(names, made, strict=True))
        ],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, 1)],
        "categories": [{"id": category(digit), "name": NAMES[digit]} for digit in sorted(digits)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--validation", type=int, default=50)
    parser.add_argument("--digits", type=int, nargs="+", default=[0, 1], choices=range(10))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    write_scenes(
        chosen.folder, train=chosen.train, validation=chosen.validation, digits=chosen.digits, seed=chosen.seed
    )
