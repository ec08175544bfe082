"""What a detector finds in the validation images, over all workers, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainables.detection.annotations import DetectionSet
from trainables.detection.batches import DetectionBatch, DetectionBatches
from trainables.detection.coco_ap import coco_metrics
from trainables.detection.voc_ap import Detections, voc_map
from trainables.distributed import Workers

COLUMNS = 7
"""Of a detection: place of the image, label, score, x0, y0, x1, y1."""


def precision(net: nn.Module, batches: DetectionBatches, found: DetectionSet, workers: Workers) -> dict[str, float]:
    """map (VOC 2007), ap, ap50, ap75, aps, apm, apl, percent, of all images of `found`; the same on every worker.

    `batches` have each image with one worker. A size of which there is no object is left out.
    """
    detections = _of_all(detected(net, batches, workers), len(found), workers)
    truth = [found.of(place) for place in range(len(found))]
    # Once: it takes minutes of time and gigabytes of memory on COCO.
    scores = {"map": voc_map(detections, truth), **coco_metrics(detections, truth)} if workers.rank == 0 else {}
    return workers.told(scores)


@torch.no_grad()
def detected(net: nn.Module, batches: Iterable[DetectionBatch], workers: Workers) -> Tensor:
    """This worker's detections [n, COLUMNS]."""
    was_training = net.training
    net.eval()
    rows = [torch.empty(0, COLUMNS, dtype=torch.float64)]
    for batch in batches:
        outputs = net(batch.to(workers.device).images)
        for place, output in zip(batch.places.tolist(), outputs, strict=True):
            columns = [output["labels"][:, None], output["scores"][:, None], output["boxes"]]
            values = torch.cat([column.double().cpu() for column in columns], dim=1)
            rows.append(torch.cat([torch.full((len(values), 1), float(place), dtype=torch.float64), values], dim=1))
    net.train(was_training)
    return torch.cat(rows)


def _of_all(rows: Tensor, images: int, workers: Workers) -> list[Detections]:
    """Detections of all workers by place of the image."""
    gathered = _gathered(rows, workers)
    ordered = gathered[gathered[:, 0].argsort(stable=True)]
    counts = torch.bincount(ordered[:, 0].long(), minlength=images).tolist()
    return [
        Detections(boxes=part[:, 3:], scores=part[:, 2], labels=part[:, 1].long()) for part in ordered.split(counts)
    ]


def _gathered(rows: Tensor, workers: Workers) -> Tensor:
    """The rows of all workers, on each: each fills in its own part of a sum, which is exact as all else is zero."""
    counts = torch.zeros(workers.size, dtype=torch.int64, device=workers.device)
    counts[workers.rank] = len(rows)
    parts = workers.total(counts).tolist()
    before = sum(parts[: workers.rank])
    everything = torch.zeros(sum(parts), COLUMNS, dtype=torch.float64, device=workers.device)
    everything[before : before + len(rows)] = rows.to(workers.device)
    return workers.total(everything).cpu()
