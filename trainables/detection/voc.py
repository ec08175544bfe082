"""PASCAL VOC's layout: VOC2007/{JPEGImages,Annotations,ImageSets/Main} below the root, one XML file for each image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from trainables.detection.annotations import DetectionSet, DetectionSplits, LabelledBox, detection_set
from trainables.detector_config import DetectionDataConfig
from trainables.errors import ConfigError, DataMissingError

LISTS = Path("ImageSets", "Main")
CORNERS = ("xmin", "ymin", "xmax", "ymax")

NamedBox = tuple[str, LabelledBox]
"""The class, and a box that has no label yet."""


def read_voc(config: DetectionDataConfig) -> DetectionSplits:
    """The lists of the settings; classes are all that occur in them, in alphabetical order."""
    root = Path(config.root).expanduser()
    train, validation = (
        {path: list(_objects(path, root)) for name in names for path in _annotations(root, name)}
        for names in (config.train, config.validation)
    )
    classes = tuple(sorted({name for split in (train, validation) for boxes in split.values() for name, _ in boxes}))
    labels = {name: label for label, name in enumerate(classes, start=1)}
    return DetectionSplits(
        train=_set(config.train, train, labels),
        validation=_set(config.validation, validation, labels),
        class_names=classes,
    )


def _set(lists: tuple[str, ...], found: dict[Path, list[NamedBox]], labels: dict[str, int]) -> DetectionSet:
    images = (
        (_image(annotation), [box._replace(label=labels[name]) for name, box in boxes])
        for annotation, boxes in found.items()
    )
    return detection_set(", ".join(lists), images)


def _image(annotation: Path) -> Path:
    return annotation.parent.parent / "JPEGImages" / f"{annotation.stem}.jpg"


def _annotations(root: Path, name: str) -> Iterator[Path]:
    """The annotation files of a list, such as 2007/trainval."""
    year, _, listed = name.partition("/")
    if not listed:
        raise ConfigError(f"data: {name!r} names no list; give year/list, such as 2007/trainval.")
    folder = root / f"VOC{year}"
    path = folder / LISTS / f"{listed}.txt"
    try:
        lines = path.read_text().splitlines()
    except OSError:
        there = sorted(entry.stem for entry in path.parent.glob("*.txt") if "_" not in entry.stem)
        raise DataMissingError(
            f"{path} cannot be read; {folder / LISTS} has the lists: {', '.join(there) or 'none'}. data.root must be "
            f"the folder that holds VOC{year}."
        ) from None
    # The lists of single classes have a second column.
    yield from (folder / "Annotations" / f"{line.split()[0]}.xml" for line in lines if line.strip())


def _objects(path: Path, root: Path) -> Iterator[NamedBox]:
    try:
        tree = ElementTree.parse(path)
    except FileNotFoundError:
        raise DataMissingError(f"{path} is missing; unpack the data set again in {root}.") from None
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise DataMissingError(f"{path}: not XML that can be read ({error}); get it again.") from None
    for place, element in enumerate(tree.getroot().iterfind("object")):
        try:
            yield _object(element)
        except (ValueError, TypeError) as error:
            raise DataMissingError(
                f"{path}: object {place}: {error}; expected a name and a bndbox of {', '.join(CORNERS)}. "
                "Mend the file or get it again."
            ) from None


def _object(element: ElementTree.Element) -> NamedBox:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("it has no name")
    texts = {corner: element.findtext(f"bndbox/{corner}") for corner in CORNERS}
    missing = [corner for corner, text in texts.items() if text is None]
    if missing:
        raise ValueError(f"its bndbox lacks {', '.join(missing)}")
    x0, y0, x1, y1 = (float(text or "") for text in texts.values())
    # Corners are pixels that belong to the box, counted from 1.
    box = (x0 - 1, y0 - 1, x1, y1)
    difficult = (element.findtext("difficult") or "0").strip() not in ("", "0")
    return name, LabelledBox(box, 0, difficult, (box[2] - box[0]) * (box[3] - box[1]))
