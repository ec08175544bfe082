"""Everything that a detector's finetune stands on: data, the detector, its costs and its policy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from trainables.bops import CostModel
from trainables.data.images import decoded
from trainables.detection.annotations import DetectionSplits
from trainables.detection.batches import DetectionBatches, DetectionImages, batches
from trainables.detection.costs import backbone_costs, count_detector
from trainables.detection.data_sets import load_detection
from trainables.detection.detectors import Detector, build_detector, carried_over, fresh_classifier, image_shape
from trainables.detector_config import DETECTOR_BACKBONES, DetectorConfig, DetectorNetworkConfig
from trainables.distributed import Workers
from trainables.errors import ConfigError, DataMissingError
from trainables.policy_file import PolicyRecord, all_costs
from trainables.pretrained import begin_with


@dataclass(frozen=True, slots=True)
class DetectorBench:
    """All of it for one policy."""

    config: DetectorConfig
    workers: Workers
    data: DetectionSplits
    net: nn.Module
    """The detector in full precision, on the device, its backbone with the weights that it starts from."""
    costs: CostModel
    record: PolicyRecord
    """The detector's policy."""
    backbone_costs: dict[str, float]

    def training_batches(self, epoch: int) -> DetectionBatches:
        """This worker's share of an epoch's training batches."""
        data = self.config.data
        return batches(
            DetectionImages(self.data.train, flip=data.flip, zoom_crop=data.zoom_crop),
            self.workers,
            batch_size=self.config.finetune.batch_size,
            training=True,
            seed=self.config.seed,
            epoch=epoch,
            loader_workers=data.loader_workers,
        )

    def validation_batches(self) -> DetectionBatches:
        """This worker's share of the validation images."""
        return batches(
            DetectionImages(self.data.validation),
            self.workers,
            batch_size=self.config.evaluation.batch_size,
            training=False,
            loader_workers=self.config.data.loader_workers,
        )

    @property
    def all_costs(self) -> dict[str, float]:
        """Of the whole detector, and of its backbone as the paper counts it."""
        return {**all_costs(self.record.policy, self.costs), **self.backbone_costs}


def detector_bench(config: DetectorConfig, given: PolicyRecord, workers: Workers) -> DetectorBench:
    """Reads the data, builds the detector and counts it. `given` is a policy of its backbone's classification network.

    Raises a BitfrontError for all that would fail later.
    """
    backbone = DETECTOR_BACKBONES.get(config.detector.name, "")
    if backbone and given.policy.network != backbone:
        raise ConfigError(
            f"the policy is one of {given.policy.network!r}, but the backbone of {config.detector.name} is "
            f"{backbone!r}; give a policy of that."
        )
    data = load_detection(config.data)
    classifier = starting_classifier(config.detector) if backbone else None
    detector = build_detector(config.detector, num_classes=len(data.class_names), classifier=classifier)
    record, costs = _deployable(config, given, detector, data)
    detector.net.to(workers.device)
    return DetectorBench(
        config, workers, data, detector.net, costs, record, backbone_costs(given.policy, detector.backbone)
    )


def starting_classifier(config: DetectorNetworkConfig) -> nn.Module:
    """The classification network of the backbone with the weights of the settings; of its head nothing is used."""
    backbone = DETECTOR_BACKBONES[config.name]
    net = fresh_classifier(backbone)
    if config.weights:
        try:
            begin_with(net, config.weights, network=backbone, image_size=64)
        except (ConfigError, DataMissingError) as error:
            raise type(error)(str(error).replace("reference.weights", "detector.weights")) from None
    return net


def _deployable(
    config: DetectorConfig, given: PolicyRecord, detector: Detector, data: DetectionSplits
) -> tuple[PolicyRecord, CostModel]:
    """The detector's policy, and the work that it was counted on."""
    name = config.detector.name
    policy = carried_over(given.policy, detector, name=name, head_bits=config.detector.head_bits)
    costs = count_detector(detector.net, _probe(config, data))
    bits: dict[str, Any] = {layer: policy.bits[layer] for layer in costs.layers}
    record = PolicyRecord.measured(
        dataclasses.replace(policy, bits=bits),
        costs,
        method=given.method,
        settings=given.settings,
        image_size=0,
        num_classes=len(data.class_names),
        parent=given.policy.hash,
        changes=(*given.changes, f"carried over to {name}, head_bits {config.detector.head_bits}"),
    )
    return record, costs


def _probe(config: DetectorConfig, data: DetectionSplits) -> Tensor:
    """A validation image [3, H, W] of 0 to 1, of the size that costs are counted at."""
    image = decoded(data.validation.paths[0])
    return tv.resize(image, list(image_shape(config.detector)), antialias=True).float() / 255
