"""Detection data sets by their layout."""

from __future__ import annotations

from collections.abc import Callable

from trainables.detection.annotations import DetectionSplits
from trainables.detection.coco import read_coco
from trainables.detection.voc import read_voc
from trainables.detector_config import DetectionDataConfig
from trainables.errors import ConfigError

READERS: dict[str, Callable[[DetectionDataConfig], DetectionSplits]] = {"coco": read_coco, "voc": read_voc}


def load_detection(config: DetectionDataConfig) -> DetectionSplits:
    """Images and objects to train on and to be measured on. Raises DataMissingError with what is missing, and how to
    get it."""
    if not config.root:
        raise ConfigError("data.root is empty; give the folder that holds the data set.")
    return READERS[config.format](config)
