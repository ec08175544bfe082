"""Settings of a detector's finetune: frozen, torch-free, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from trainables.checked import STRICT, check_not_negative, check_positive
from trainables.errors import ConfigError
from trainables.finetune_config import DeployedQuantizer, FinetuneConfig

DETECTOR_BACKBONES = {"fasterrcnn_resnet18": "resnet18", "ssd300_vgg16": "vgg16"}
"""Detectors by name, with the classification network whose convolutions are their backbone."""
FLOAT_BITS = 32
"""Bits of a layer that is not quantised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorNetworkConfig:
    """A detector with a backbone in a policy's bits."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    """`ssd300_vgg16` or `fasterrcnn_resnet18`."""
    weights: str = ""
    """Where the backbone's float weights start: `torchvision` for those that torchvision publishes, a file of the
    classification network's state dict, or empty for fresh ones."""
    head_bits: int = 8
    """Weight and activation bits of all layers outside of the backbone; 32 leaves them in floating point."""
    min_size: int = 600
    """Shorter side of the images given to Faster R-CNN, pixels; SSD300 takes 300×300."""
    max_size: int = 1000
    """Longer side at most."""

    def __post_init__(self) -> None:
        if self.head_bits != FLOAT_BITS and not 2 <= self.head_bits <= 16:
            raise ConfigError(f"detector.head_bits is {self.head_bits}; give 2 to 16 bits, or 32 for floating point.")
        check_positive("detector", min_size=self.min_size)
        if self.max_size < self.min_size:
            raise ConfigError(f"detector.max_size is {self.max_size}; give at least min_size, {self.min_size}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionDataConfig:
    """Images with labelled boxes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    format: Literal["voc", "coco"]
    root: str
    """Folder of the data set: for `voc` the one that holds VOC2007 (VOCdevkit), for `coco` the one with annotations."""
    train: tuple[str, ...]
    """`voc`: year/list, such as 2007/trainval; `coco`: annotation files without their .json, such as
    instances_train2017, with the images in a folder that is called as the last part: train2017."""
    validation: tuple[str, ...]
    """The same for the images that are measured on."""
    flip: bool = True
    """Mirror half of the training images."""
    zoom_crop: bool = False
    """SSD's own changes of training images: half are zoomed out of, then a part that holds objects is cut out."""
    loader_workers: int = 0
    """Processes that decode images; 0 decodes in the worker's own process."""

    def __post_init__(self) -> None:
        for name in ("train", "validation"):
            if not getattr(self, name):
                raise ConfigError(f"data.{name} is empty; name at least one list of images.")
        check_not_negative("data", loader_workers=self.loader_workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionEvaluationConfig:
    """How a detector is measured."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    batch_size: int = 16
    """Images per pass, over all workers."""
    every: int = 1
    """Epochs between measures; the last epoch is always measured."""

    def __post_init__(self) -> None:
        check_positive("evaluation", batch_size=self.batch_size, every=self.every)


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """All that a detector's finetune and its measures depend on, besides policy and machine."""

    detector: DetectorNetworkConfig
    data: DetectionDataConfig
    finetune: FinetuneConfig
    evaluation: DetectionEvaluationConfig = field(default_factory=DetectionEvaluationConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.finetune.label_smoothing:
            raise ConfigError(
                f"finetune.label_smoothing is {self.finetune.label_smoothing}, but detectors' losses have none; leave "
                "it out."
            )

    @property
    def quantizer(self) -> DeployedQuantizer:
        """Of the deployed network."""
        return self.finetune.named_quantizer
