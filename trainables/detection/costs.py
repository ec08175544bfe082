"""What a detector costs, and what its backbone costs as the paper counts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from trainables.bops import CostModel, LayerWork
from trainables.counting import measure
from trainables.detection.detectors import fresh_classifier
from trainables.policy import BitPolicy

PAPER_SIZES = {"resnet18": (600, 1000), "vgg16": (300, 300)}
"""Height and width of the images that the paper counts each backbone on."""


def count_detector(net: nn.Module, image: Tensor) -> CostModel:
    """The work of a detector on one `image` [3, H, W] of 0 to 1, the head of Faster R-CNN for all of its proposals."""
    with _all_proposals(net):
        return measure(net, image[None])


@contextmanager
def _all_proposals(net: nn.Module) -> Iterator[None]:
    """Faster R-CNN proposes as many boxes as it may, 1000, however many of them overlap.

    How many are left depends on the image and on the training, and the head runs once for each: a cost that is to be
    compared needs a number, and this is the largest.
    """
    if not isinstance(net, FasterRCNN):
        yield
        return
    threshold = net.rpn.nms_thresh
    net.rpn.nms_thresh = 1.0
    try:
        yield
    finally:
        net.rpn.nms_thresh = threshold


@cache
def paper_backbone(backbone: str) -> CostModel:
    """The convolutions of a classification network as Table 7 counts them: at the paper's sizes of images, with one
    more operation for the bias at each entry of an output.

    The biases are counted whether a layer has one or not, and pooling rounds down. In full precision 27787.7 G for
    VGG16 at 300×300 and 22534.8 G for ResNet18 at 600×1000.
    """
    work: dict[str, LayerWork] = {}
    # Sizes are all that is asked for, so nothing is computed.
    with torch.device("meta"):
        net, image = fresh_classifier(backbone), torch.empty(1, 3, *PAPER_SIZES[backbone])
        for name, layer in net.named_modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(
                    lambda conv, x, y, name=name: work.update({name: _biased(name, conv, x[0], y)})
                )
        net.eval()(image)
    return CostModel(work, 0)


def _biased(name: str, layer: nn.Conv2d, inputs: Tensor, outputs: Tensor) -> LayerWork:
    """Each entry of the output takes as many operations as a channel has weights, and one for the bias."""
    weights = layer.weight.numel()
    return LayerWork(
        kind="conv",
        macs=outputs.numel() * (weights // layer.out_channels + 1),
        weights=weights,
        inputs=inputs.numel(),
        reads_negative=False,
        reads=name,
        stream=name,
    )


def backbone_costs(policy: BitPolicy, backbone: str) -> dict[str, float]:
    """backbone_bops_g, each layer at its own bits, and backbone_bops_paper_g (10^9), of a classifier's policy."""
    model = paper_backbone(backbone)
    kept = replace(
        policy,
        bits={name: policy.bits[name] for name in model.layers},
        pinned=policy.pinned & set(model.layers),
    )
    costs = model.of(kept)
    return {f"backbone_{name}": costs[name] for name in ("bops_g", "bops_paper_g")}
