"""COCO's layout: annotations/instances_train2017.json below the root, its images in train2017 or images/train2017."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainables.detection.annotations import DetectionSet, DetectionSplits, LabelledBox, detection_set
from trainables.detector_config import DetectionDataConfig
from trainables.errors import DataMissingError

PARTS = ("images", "annotations", "categories")


def read_coco(config: DetectionDataConfig) -> DetectionSplits:
    """The annotation files of the settings; classes are their categories, in the order of their numbers."""
    root = Path(config.root).expanduser()
    files = {name: _read(root, name) for name in dict.fromkeys((*config.train, *config.validation))}
    by_file = {name: _categories(name, content["categories"]) for name, content in files.items()}
    first, categories = next(iter(by_file.items()))
    for name, others in by_file.items():
        if others != categories:
            differ = sorted(set(categories.items()) ^ set(others.items()))
            raise DataMissingError(
                f"{name} and {first} have different categories: {', '.join(f'{k} {v}' for k, v in differ)}; "
                "give files of one data set."
            )
    labels = {number: label for label, number in enumerate(sorted(categories), start=1)}
    train, validation = (
        _set(root, {name: files[name] for name in names}, labels) for names in (config.train, config.validation)
    )
    names = tuple(categories[number] for number in sorted(categories))
    return DetectionSplits(train=train, validation=validation, class_names=names)


def _read(root: Path, name: str) -> dict[str, Any]:
    path = root / "annotations" / f"{name}.json"
    try:
        content = json.loads(path.read_bytes(), object_hook=_without_outline)
    except OSError:
        there = sorted(entry.stem for entry in path.parent.glob("*.json"))
        raise DataMissingError(
            f"{path} cannot be read; {path.parent} has {', '.join(there) or 'no annotations'}. data.root must be the "
            "folder that holds annotations."
        ) from None
    except ValueError as error:
        raise DataMissingError(f"{path}: not JSON that can be read ({error}); get it again.") from None
    lacking = [part for part in PARTS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if lacking:
        raise DataMissingError(
            f"{path} has no list of {', '.join(lacking)}; give a file of instances, such as instances_train2017."
        )
    return content


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of a file, and as Python's numbers would take gigabytes; boxes are all that is read."""
    entry.pop("segmentation", None)
    return entry


def _categories(name: str, listed: list[Any]) -> dict[int, str]:
    try:
        found = {int(entry["id"]): str(entry["name"]) for entry in listed}
    except (KeyError, TypeError, ValueError) as error:
        raise DataMissingError(f"{name}: a category without id or name ({error}); get the file again.") from None
    if not found:
        raise DataMissingError(f"{name} has no categories; get the file again.")
    return found


def _set(root: Path, files: dict[str, dict[str, Any]], labels: dict[int, int]) -> DetectionSet:
    images: list[tuple[Path, list[LabelledBox]]] = []
    for name, content in files.items():
        folder = _image_folder(root, name.rpartition("_")[2])
        try:
            listed: dict[Any, list[LabelledBox]] = {entry["id"]: [] for entry in content["images"]}
            images += [(folder / entry["file_name"], listed[entry["id"]]) for entry in content["images"]]
        except (KeyError, TypeError) as error:
            raise DataMissingError(f"{name}: an image without id or file_name ({error}); get it again.") from None
        for place, entry in enumerate(content["annotations"]):
            try:
                listed[entry["image_id"]].append(_object(entry, labels))
            except (KeyError, TypeError, ValueError) as error:
                raise DataMissingError(
                    f"{name}: annotation {place}: {type(error).__name__} {error}; expected a bbox of x, y, width, "
                    "height, and the numbers of an image and of a category that the file lists. Get the file again."
                ) from None
    return detection_set(", ".join(files), images)


def _image_folder(root: Path, name: str) -> Path:
    return next((folder for folder in (root / name, root / "images" / name) if folder.is_dir()), root / name)


def _object(entry: dict[str, Any], labels: dict[int, int]) -> LabelledBox:
    x, y, width, height = (float(value) for value in entry["bbox"])
    return LabelledBox(
        box=(x, y, x + width, y + height),
        label=labels[entry["category_id"]],
        ignored=bool(entry.get("iscrowd", 0)),
        area=float(entry.get("area", width * height)),
    )
