"""Mean average precision of PASCAL VOC 2007: interpolated at 11 recalls, at an overlap of one half.

A detection belongs to the object of its class and image that it overlaps most, if by one half at least. It is right if
no better one belongs to that object, wrong if one does or if it belongs to none, and does not count if the object is
difficult; difficult objects need not be found.

    AP = 1/11 · Σ_{t = 0, 0.1, …, 1} max {precision_k : recall_k ≥ t},  0 where no recall is,

over the detections of a class in all images, best first: precision_k and recall_k of the k best (Everingham et al.
2010).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from trainables.detection.annotations import Objects

OVERLAP = 0.5
RECALLS = 10
"""Steps from recall 0 to 1."""


class Detections(NamedTuple):
    """What was found in one image, n of them, in its own pixels."""

    boxes: Tensor
    """[n, 4]."""
    scores: Tensor
    """[n]."""
    labels: Tensor
    """[n], from 1."""


class _Verdicts(NamedTuple):
    """On the detections of one class, in any order."""

    scores: Tensor
    objects: Tensor
    """Number of the object that each belongs to, −1 for none."""
    counts: Tensor
    """Whether it is right or wrong at all."""


def voc_map(detections: Sequence[Detections], truth: Sequence[Objects]) -> float:
    """Percent; the mean over the classes of which there are objects that are not difficult. One of each per image."""
    labels = torch.cat([objects.labels[~objects.ignored] for objects in truth]).unique().tolist()
    if not labels:
        raise ValueError("no object counts; there is nothing to find")
    return 100 * sum(_average_precision(detections, truth, label) for label in labels) / len(labels)


def _average_precision(detections: Sequence[Detections], truth: Sequence[Objects], label: int) -> float:
    positives = sum(int((~objects.ignored[objects.labels == label]).sum()) for objects in truth)
    parts = list(_verdicts(detections, truth, label))
    scores, belongs, counts = (torch.cat(part) for part in zip(*parts, strict=True))
    order = scores[counts].argsort(descending=True, stable=True)
    ranked = belongs[counts][order].numpy()
    right = np.zeros(len(ranked), dtype=np.int64)
    objects, first = np.unique(ranked, return_index=True)
    right[first[objects >= 0]] = 1
    return interpolated(right, positives)


def interpolated(right: np.ndarray[tuple[int], np.dtype[np.int64]], positives: int) -> float:
    """AP of detections, best first, of which those with a 1 are right, where there are so many objects to find."""
    found = right.cumsum()
    precision = found / np.arange(1, len(found) + 1)
    # In whole numbers: 3/10 of the objects reach the recall 0.3.
    reached = [precision[found * RECALLS >= step * positives] for step in range(RECALLS + 1)]
    return float(sum(part.max() for part in reached if len(part)) / (RECALLS + 1))


def _verdicts(detections: Sequence[Detections], truth: Sequence[Objects], label: int) -> Iterator[_Verdicts]:
    seen = 0
    for found, objects in zip(detections, truth, strict=True):
        ours, theirs = found.labels == label, objects.labels == label
        scores, difficult = found.scores[ours], objects.ignored[theirs]
        belongs = torch.full((len(scores),), -1)
        counts = torch.ones(len(scores), dtype=torch.bool)
        if len(scores) and len(difficult):
            overlap, which = box_iou(found.boxes[ours].double(), objects.boxes[theirs].double()).max(1)
            close = overlap >= OVERLAP
            belongs[close] = seen + which[close]
            counts[close] = ~difficult[which[close]]
        seen += len(difficult)
        yield _Verdicts(scores, belongs, counts)
