"""The networks themselves: torchvision's, timm's DeiT, and the small ones for small images."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision import models

from trainables.models.cifar_resnet import CifarResNet
from trainables.models.deit import deit
from trainables.models.resnet50_v1 import resnet50_v1

NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "deit_small": lambda num_classes, image_size: deit("small", 16, num_classes, image_size),
    "deit_small_patch4": lambda num_classes, image_size: deit("small", 4, num_classes, image_size),
    "deit_tiny": lambda num_classes, image_size: deit("tiny", 16, num_classes, image_size),
    "deit_tiny_patch4": lambda num_classes, image_size: deit("tiny", 4, num_classes, image_size),
    "mobilenet_v2": lambda num_classes, _: models.mobilenet_v2(num_classes=num_classes),
    "resnet18": lambda num_classes, _: models.resnet18(num_classes=num_classes),
    "resnet20": lambda num_classes, _: CifarResNet(blocks_per_stage=3, num_classes=num_classes),
    "resnet50": lambda num_classes, _: models.resnet50(num_classes=num_classes),
    "resnet50_v1": lambda num_classes, _: resnet50_v1(num_classes),
    "resnet8": lambda num_classes, _: CifarResNet(blocks_per_stage=1, num_classes=num_classes),
    "vgg16": lambda num_classes, _: models.vgg16(num_classes=num_classes),
}
"""Builders, called with the number of classes and the side of the images in pixels."""
