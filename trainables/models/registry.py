"""The networks themselves: torchvision's, and the small ones for small images."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision import models

from trainables.models.cifar_resnet import CifarResNet

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "mobilenet_v2": lambda num_classes: models.mobilenet_v2(num_classes=num_classes),
    "resnet18": lambda num_classes: models.resnet18(num_classes=num_classes),
    "resnet20": lambda num_classes: CifarResNet(blocks_per_stage=3, num_classes=num_classes),
    "resnet50": lambda num_classes: models.resnet50(num_classes=num_classes),
    "resnet8": lambda num_classes: CifarResNet(blocks_per_stage=1, num_classes=num_classes),
}
