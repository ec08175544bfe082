"""Average precisions: closed forms, and the definition of VOC's spelled out."""

import random

import pytest
import torch

from trainables.detection.annotations import Objects
from trainables.detection.coco_ap import coco_metrics
from trainables.detection.voc_ap import Detections, voc_map

Box = tuple[float, float, float, float]
EVERYTHING = {"ap": 100.0, "ap50": 100.0, "ap75": 100.0}


def objects(*rows: tuple[Box, int], ignored: tuple[int, ...] = ()) -> Objects:
    boxes = torch.tensor([box for box, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return Objects(
        boxes=boxes,
        labels=torch.tensor([label for _, label in rows], dtype=torch.int64),
        ignored=torch.tensor([place in ignored for place in range(len(rows))], dtype=torch.bool),
        areas=((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).double(),
    )


def found(*rows: tuple[Box, int, float]) -> Detections:
    return Detections(
        boxes=torch.tensor([box for box, _, _ in rows], dtype=torch.float64).reshape(-1, 4),
        scores=torch.tensor([score for _, _, score in rows], dtype=torch.float64),
        labels=torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
    )


def square(x: float, y: float, side: float) -> Box:
    return (x, y, x + side, y + side)


def test_what_is_there_found_exactly_is_worth_a_hundred_and_only_at_the_sizes_that_are_there() -> None:
    truth = [objects((square(5, 5, 20), 1), (square(100, 50, 50), 2)), objects()]
    detections = [found((square(5, 5, 20), 1, 0.3), (square(100, 50, 50), 2, 0.9)), found()]
    assert voc_map(detections, truth) == 100
    assert coco_metrics(detections, truth) == pytest.approx({**EVERYTHING, "aps": 100.0, "apm": 100.0})


def test_nothing_found_is_worth_nothing() -> None:
    truth = [objects((square(5, 5, 120), 1))]
    assert voc_map([found()], truth) == 0
    assert coco_metrics([found()], truth) == dict.fromkeys((*EVERYTHING, "apl"), 0.0)


def test_an_overlap_of_0_6_counts_at_three_of_cocos_ten_thresholds() -> None:
    # Two boxes of equal size whose overlap is 3/4 of either: 0.75 / 1.25 = 0.6.
    truth = [objects(((0, 0, 40, 40), 1))]
    detections = [found(((10, 0, 50, 40), 1, 0.5))]
    assert voc_map(detections, truth) == 100
    assert coco_metrics(detections, truth) == pytest.approx({"ap": 30.0, "ap50": 100.0, "ap75": 0.0, "apm": 30.0})


def test_a_better_wrong_box_halves_the_precision_and_an_object_missed_the_recall() -> None:
    truth = [objects((square(0, 0, 40), 1), (square(100, 100, 40), 1))]
    detections = [found((square(200, 200, 40), 1, 0.9), (square(0, 0, 40), 1, 0.8))]
    # Precision 1/2 up to recall 1/2: at 6 of 11 recalls, and at 51 of COCO's 101.
    assert voc_map(detections, truth) == pytest.approx(100 * 6 / 11 / 2)
    assert coco_metrics(detections, truth)["ap50"] == pytest.approx(100 * 51 / 101 / 2)


def test_a_recall_of_three_in_ten_reaches_0_3() -> None:
    # 0.1 · 3 is more than 3 / 10 in floating point.
    truth = [objects(*((square(100 * n, 0, 40), 1) for n in range(10)))]
    detections = [found(*((square(100 * n, 0, 40), 1, 0.9) for n in range(3)))]
    assert voc_map(detections, truth) == pytest.approx(100 * 4 / 11)


def test_an_object_found_twice_is_one_wrong_box() -> None:
    truth = [objects((square(0, 0, 40), 1), (square(100, 0, 40), 1))]
    twice = [found((square(0, 0, 40), 1, 0.9), (square(1, 0, 40), 1, 0.8), (square(100, 0, 40), 1, 0.7))]
    assert voc_map(twice, truth) == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)


def test_difficult_objects_are_neither_missed_nor_wrong_to_find() -> None:
    truth = [objects((square(0, 0, 40), 1), (square(100, 0, 40), 1), ignored=(1,))]
    alone = [found((square(0, 0, 40), 1, 0.5))]
    both = [found((square(0, 0, 40), 1, 0.5), (square(100, 0, 40), 1, 0.9), (square(101, 0, 40), 1, 0.8))]
    for detections in (alone, both):
        assert voc_map(detections, truth) == 100
        assert coco_metrics(detections, truth)["ap"] == pytest.approx(100)


def test_pycocotools_says_nothing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    coco_metrics([found()], [objects((square(0, 0, 40), 1))])
    assert capsys.readouterr().out == ""


def overlap(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


def spelled_out(detections: list[Detections], truth: list[Objects]) -> float:
    """VOC 2007's mean average precision, one detection after the other, as its development kit goes."""
    averages = []
    for label in {int(n) for one in truth for n, hard in zip(one.labels, one.ignored, strict=True) if not hard}:
        ranked = sorted(
            (
                (-float(score), image, box.tolist())
                for image, one in enumerate(detections)
                for box, score, own in zip(*one, strict=True)
                if own == label
            ),
            key=lambda row: row[0],
        )
        positives = sum(
            1 for one in truth for n, hard in zip(one.labels, one.ignored, strict=True) if n == label and not hard
        )
        taken: set[tuple[int, int]] = set()
        right, wrong, curve = 0, 0, []
        for _, image, box in ranked:
            one = truth[image]
            overlaps = [
                (overlap(box, known.tolist()), place)
                for place, known in enumerate(one.boxes)
                if one.labels[place] == label
            ]
            best, place = max(overlaps, key=lambda pair: pair[0], default=(0.0, -1))
            if best >= 0.5 and one.ignored[place]:
                continue
            if best >= 0.5 and (image, place) not in taken:
                taken.add((image, place))
                right += 1
            else:
                wrong += 1
            curve.append((right, right / (right + wrong)))
        levels = [max((p for r, p in curve if 10 * r >= k * positives), default=0.0) for k in range(11)]
        averages.append(sum(levels) / 11)
    return 100 * sum(averages) / len(averages)


def test_vocs_precision_equals_its_definition_spelled_out_on_random_images() -> None:
    random.seed(0)
    for _ in range(60):
        truth, detections = [], []
        for _ in range(random.randint(1, 4)):
            known = [
                (square(random.randint(0, 60), random.randint(0, 60), random.randint(10, 40)), random.randint(1, 3))
                for _ in range(random.randint(0, 5))
            ]
            near = [
                (tuple(value + random.uniform(-5, 5) for value in box), random.choice([label, label, 1]))
                for box, label in known
                for _ in range(random.randint(0, 2))
            ]
            truth.append(objects(*known, ignored=tuple(n for n in range(len(known)) if random.random() < 0.3)))
            detections.append(found(*((box, label, random.random()) for box, label in near)))
        if any(bool((~one.ignored).any()) for one in truth):
            assert voc_map(detections, truth) == pytest.approx(spelled_out(detections, truth))
