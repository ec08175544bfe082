"""What of a finetuned network becomes a graph: a classifier from pixels to logits, of a detector its backbone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.finetuned_model import LoadedModel

BACKBONE_STRIDE = 32
"""Detectors pad images to multiples of so many pixels."""


@dataclass(frozen=True, slots=True)
class Part:
    """A network with one tensor as its input, and the names of what it gives."""

    net: nn.Module
    """Its layers have the names that the policy knows them by."""
    example: Tensor
    """[2, 3, H, W]; the number of images is open, their size is not."""
    outputs: tuple[str, ...]


class _Backbone(nn.Module):
    """The feature maps of a detector's backbone, from the finest on. Images are normalised and of the right size."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """A map [N, C, h, w] for each level."""
        return tuple(self.backbone(images).values())


def exported_part(loaded: LoadedModel, *, backbone: bool) -> Part:
    """What is exported of the network. Raises ConfigError for a whole detector, and the backbone of a classifier."""
    card = loaded.card
    if card.task == "classification":
        if backbone:
            raise ConfigError(f"{card.network} is a classifier, of which all is exported; leave --backbone out.")
        return Part(loaded.net, torch.zeros(2, 3, card.image_size, card.image_size), ("logits",))
    if not backbone:
        raise ConfigError(
            f"{card.network} is a detector, whose boxes, matching and suppression depend on what it finds, and ONNX is "
            "written of one path; give --backbone for its feature maps, and keep boxes and suppression in PyTorch "
            "(trainables.finetuned_model.load_model)."
        )
    from trainables.detection.detectors import image_shape
    from trainables.detector_config import DetectorConfig
    from trainables.recorded_config import config_of

    config = config_of(card)
    assert isinstance(config, DetectorConfig)
    height, width = image_shape(config.detector)
    if config.detector.name != "ssd300_vgg16":
        height, width = (-(-side // BACKBONE_STRIDE) * BACKBONE_STRIDE for side in (height, width))
    part = _Backbone(loaded.net.get_submodule("backbone")).eval()
    example = torch.zeros(2, 3, height, width)
    with torch.no_grad():
        maps = part(example)
    return Part(part, example, tuple(f"map_{level}" for level in range(len(maps))))
