"""COCO's average precisions, by pycocotools: the same numbers as everybody's."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trainables.detection.annotations import Objects
from trainables.detection.voc_ap import Detections

NAMES = ("ap", "ap50", "ap75", "aps", "apm", "apl")
"""The first six of pycocotools' twelve numbers."""


def coco_metrics(detections: Sequence[Detections], truth: Sequence[Objects]) -> dict[str, float]:
    """ap, ap50, ap75, aps, apm, apl, percent; without the sizes of which there is no object.

    Over the classes that `truth` has. DEVIATION: VOC's difficult objects count as crowds, the one kind that by COCO's
    rules is neither missed nor wrong to find; a box that lies in one is ignored, however small.
    """
    labels = torch.cat([objects.labels for objects in truth]).unique().tolist()
    known = [_known(objects, image) for image, objects in enumerate(truth)]
    found = [_found(one, image) for image, one in enumerate(detections)]
    # pycocotools tells of its progress on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_as_coco(known, labels, len(truth)), _as_coco(found, labels, len(truth)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = dict(zip(NAMES, evaluation.stats.tolist(), strict=False))
    return {name: 100 * value for name, value in stats.items() if value >= 0}


def _as_coco(annotations: list[list[dict[str, Any]]], labels: list[int], images: int) -> COCO:
    made = COCO()
    # A number of 0 would stand for no annotation.
    numbered = [{**entry, "id": number} for number, entry in enumerate((e for one in annotations for e in one), 1)]
    made.dataset = {
        "images": [{"id": image} for image in range(images)],
        "annotations": numbered,
        "categories": [{"id": label} for label in labels],
    }
    made.createIndex()
    return made


def _known(objects: Objects, image: int) -> list[dict[str, Any]]:
    return [
        {**_placed(box, label, image), "area": area, "iscrowd": int(ignored)}
        for box, label, ignored, area in zip(*(values.tolist() for values in objects), strict=True)
    ]


def _found(detections: Detections, image: int) -> list[dict[str, Any]]:
    return [
        {**placed, "area": placed["bbox"][2] * placed["bbox"][3], "iscrowd": 0, "score": score}
        for box, score, label in zip(*(values.tolist() for values in detections), strict=True)
        for placed in (_placed(box, label, image),)
    ]


def _placed(box: list[float], label: int, image: int) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {"image_id": image, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0]}
