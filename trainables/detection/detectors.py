"""The detectors, and what a policy of their backbone's classification network means in them.

torchvision takes the classifier apart: its convolutions become the detector's under other names. Which became which is
known because they are the same modules, so a policy is carried over by the names that it has, without any table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG

from trainables.detector_config import DETECTOR_BACKBONES, DetectorConfig, DetectorNetworkConfig
from trainables.errors import ConfigError, StorageError, did_you_mean
from trainables.model_files import ModelCard
from trainables.models import build_network
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.recorded_config import config_of
from trainables.supernet import deploy

CLASSIFIER_HEADS = {"resnet18": ("fc",), "vgg16": ("classifier",)}
"""Modules of each classification network that have no place in a detector."""
SSD_SIZE = 300
"""Side of SSD300's images, pixels."""
LOWEST_SCORE = 0.01
"""Of a detection that is kept: low, as precision is averaged over all recalls. torchvision's own for SSD; it has 0.05
for Faster R-CNN."""
FPN_CHANNELS = 256
RESNET18_CHANNELS = {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}
SSD_ASPECTS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
SSD_SCALES = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
"""Of default boxes over the image, for VOC and COCO alike (torchvision's)."""
SSD_STEPS = [8, 16, 32, 64, 100, 300]


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector in full precision."""

    net: nn.Module
    """In training mode it takes images and targets and gives its losses, in eval mode it gives detections."""
    places: Mapping[str, str]
    """Layers of the classification network -> the same layers of the detector."""
    backbone: str
    """The classification network."""


def build_detector(config: DetectorNetworkConfig, *, num_classes: int, classifier: nn.Module | None = None) -> Detector:
    """A detector of `num_classes`, the background not counted, around the convolutions of `classifier` itself.

    Without a classifier around fresh ones. Images are normalised as ImageNet's are, the same as classifiers of image
    files are trained on.
    """
    if config.name not in DETECTORS:
        raise ConfigError(f"unknown detector {config.name!r}{did_you_mean(config.name, DETECTORS)}.")
    backbone = DETECTOR_BACKBONES[config.name]
    classifier = classifier or fresh_classifier(backbone)
    names = {module: name for name, module in layers_of(classifier).items()}
    net = DETECTORS[config.name](classifier, config, num_classes)
    places = {names[module]: name for name, module in layers_of(net).items() if module in names}
    return Detector(net, places, backbone)


def fresh_classifier(backbone: str) -> nn.Module:
    """The classification network with fresh weights; its head, which no detector has, is as small as can be."""
    return build_network(backbone, num_classes=1, image_size=224)


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def _ssd300_vgg16(classifier: nn.Module, config: DetectorNetworkConfig, num_classes: int) -> nn.Module:
    # The third pooling rounds up from here on, as SSD has it: 38×38 pixels in the first map.
    features = SSDFeatureExtractorVGG(classifier.features, highres=False)
    net = SSD(
        features,
        DefaultBoxGenerator(SSD_ASPECTS, scales=SSD_SCALES, steps=SSD_STEPS),
        (SSD_SIZE, SSD_SIZE),
        num_classes + 1,
        score_thresh=LOWEST_SCORE,
    )
    _in_float32(net.head)
    return net


def _fasterrcnn_resnet18(classifier: nn.Module, config: DetectorNetworkConfig, num_classes: int) -> nn.Module:
    """DEVIATION: torchvision freezes the statistics and factors of its backbone's normalisation. Quantised weights and
    activations have other statistics than the float ones that were trained, so here they are trained on."""
    returned = {layer: str(level) for level, layer in enumerate(RESNET18_CHANNELS)}
    features = BackboneWithFPN(classifier, returned, list(RESNET18_CHANNELS.values()), FPN_CHANNELS)
    net = FasterRCNN(
        features,
        num_classes + 1,
        min_size=config.min_size,
        max_size=config.max_size,
        box_score_thresh=LOWEST_SCORE,
    )
    _in_float32(net.rpn.head)
    _in_float32(net.roi_heads.box_predictor)
    return net


DETECTORS: dict[str, Callable[[nn.Module, DetectorNetworkConfig, int], nn.Module]] = {
    "fasterrcnn_resnet18": _fasterrcnn_resnet18,
    "ssd300_vgg16": _ssd300_vgg16,
}
"""Builders, called with a classification network, settings and the number of classes; they take the network apart."""


def image_shape(config: DetectorNetworkConfig) -> tuple[int, int]:
    """Height and width of the image that costs are counted on: the largest, lying on its longer side."""
    return (SSD_SIZE, SSD_SIZE) if config.name == "ssd300_vgg16" else (config.min_size, config.max_size)


def carried_over(policy: BitPolicy, detector: Detector, *, name: str, head_bits: int) -> BitPolicy:
    """The policy of the detector `name`: its backbone's layers as `policy` has them, all others at `head_bits`.

    The others are pinned, and so is what `policy` pins. Raises ConfigError where `policy` has layers without a place in
    the detector, other than the classifier's own head, or lacks one that has.
    """
    heads = CLASSIFIER_HEADS[detector.backbone]
    given = {layer for layer in policy.bits if layer.partition(".")[0] not in heads}
    lost, lacking = sorted(given - set(detector.places)), sorted(set(detector.places) - given)
    if lost or lacking:
        raise ConfigError(
            f"the policy, of {policy.network!r}, does not fit {name}, whose backbone is {detector.backbone}: layers "
            f"without a place in it: {', '.join(lost) or 'none'}; its layers without bits: "
            f"{', '.join(lacking) or 'none'}. Give a policy of {detector.backbone}."
        )
    origins = {place: layer for layer, place in detector.places.items()}
    head = LayerBits(head_bits, head_bits)
    layers = list(layers_of(detector.net))
    return BitPolicy(
        network=name,
        bits={place: policy.bits[origins[place]] if place in origins else head for place in layers},
        pinned=frozenset(place for place in layers if origins.get(place) not in policy.searched),
    )


def build_for(card: ModelCard, record: PolicyRecord) -> nn.Module:
    """The quantised detector that a model's files describe, with fresh weights, as `finetuned_model` loads it.

    Raises StorageError where they describe none.
    """
    config = config_of(card)
    if record.work is None or not isinstance(config, DetectorConfig):
        raise StorageError("the files do not say what the detector's layers do; finetune the policy again.")
    detector = build_detector(config.detector, num_classes=card.num_classes)
    try:
        return deploy(detector.net, record.work, record.policy, card.quantizer)
    except AttributeError:
        raise StorageError(
            f"the policy file names layers that {card.network} does not have; the files are of different networks, or "
            "the network's code has changed: finetune the policy again."
        ) from None


def _in_float32(head: nn.Module) -> None:
    """What `head` gives is in float32, also where autocasting computes it in less.

    Boxes are decoded and matched in the precision of the head's outputs; bfloat16 would round them to 4 pixels.
    """
    head.register_forward_hook(_as_float32)


def _as_float32(head: nn.Module, inputs: Any, outputs: Any) -> Any:
    return tree_map(lambda value: value.float() if isinstance(value, Tensor) else value, outputs)
