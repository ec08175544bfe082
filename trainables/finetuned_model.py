"""A finetuned network, read from its folder and measured again. Written by `trainables.model_folder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trainables.config import BenchConfig
from trainables.data import load_data
from trainables.detector_config import DetectorConfig
from trainables.distributed import Workers
from trainables.errors import ConfigError, StorageError
from trainables.evaluation import accuracy
from trainables.model_files import CARD_FILE, POLICY_FILE, ModelCard
from trainables.model_folder import load_weights
from trainables.models import build_network
from trainables.policy_file import PolicyRecord
from trainables.reference import validation_batches
from trainables.supernet import deploy


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A finetuned network with what is known of it."""

    net: nn.Module
    """In eval mode, on the CPU."""
    card: ModelCard
    record: PolicyRecord


def load_model(folder: Path) -> LoadedModel:
    """The finetuned network in `folder`. Reads nothing but tensors and JSON.

    Raises StorageError for files that are missing, damaged or not of one network.
    """
    card, record = ModelCard.load(folder), _policy(folder)
    match card.task:
        case "classification":
            net = _classifier(folder, card, record)
        case "detection":
            net = _detector(card, record)
        case _:
            raise StorageError(
                f"{folder / CARD_FILE}: the task {card.task!r} is not known; expected classification or detection."
            )
    load_weights(net, folder)
    return LoadedModel(net.eval(), card, record)


def _policy(folder: Path) -> PolicyRecord:
    try:
        return PolicyRecord.load(folder / POLICY_FILE)
    except ConfigError as error:
        raise StorageError(f"{error} Finetune the policy again, or copy the whole folder again.") from None


def _classifier(folder: Path, card: ModelCard, record: PolicyRecord) -> nn.Module:
    if record.work is None:
        raise StorageError(
            f"{folder / POLICY_FILE} does not say what the network's layers do; finetune the policy again."
        )
    float_net = build_network(card.network, num_classes=card.num_classes, image_size=card.image_size)
    try:
        return deploy(float_net, record.work, record.policy, card.quantizer)
    except AttributeError:
        raise StorageError(
            f"{folder}: {POLICY_FILE} names layers that {card.network} does not have; the files are of different "
            "networks, or the network's code has changed: finetune the policy again."
        ) from None


def _detector(card: ModelCard, record: PolicyRecord) -> nn.Module:
    from trainables.detection.detectors import build_for

    return build_for(card, record)


def measure_model(folder: Path, config: BenchConfig | DetectorConfig) -> Mapping[str, float]:
    """What the network in `folder` scores on the validation data, as its finetune measured it.

    A classifier's top1 (percent), and top5 of more than five classes; a detector's map, ap, ap50 and so on (percent).
    Raises ConfigError where the network's images are not of the size, or its classes not of the number, of the data.
    """
    model = load_model(folder)
    task = "detection" if isinstance(config, DetectorConfig) else "classification"
    if model.card.task != task:
        raise ConfigError(f"{folder} is a network for {model.card.task}; measure it with settings of such a finetune.")
    if isinstance(config, DetectorConfig):
        return _precision(folder, model, config)
    return _accuracy(folder, model, config)


def _placed(net: nn.Module, channels_last: bool, workers: Workers) -> nn.Module:
    """On the device, in the layout of its finetune: another one adds up in another order."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return net.to(device=workers.device, memory_format=layout)  # type: ignore[call-overload]  # torch has it untyped


def _precision(folder: Path, model: LoadedModel, config: DetectorConfig) -> Mapping[str, float]:
    from trainables.detection.batches import DetectionImages, batches
    from trainables.detection.data_sets import load_detection
    from trainables.detection.evaluation import precision

    data, workers = load_detection(config.data), Workers.current()
    if len(data.class_names) != model.card.num_classes:
        raise ConfigError(
            f"{folder} was made for {model.card.num_classes} classes, but data has {len(data.class_names)}; measure it "
            "on data like its own."
        )
    found = batches(
        DetectionImages(data.validation),
        workers,
        batch_size=config.evaluation.batch_size,
        training=False,
        loader_workers=config.data.loader_workers,
    )
    net = _placed(model.net, config.finetune.channels_last, workers)
    return precision(net, found, data.validation, workers)


def _accuracy(folder: Path, model: LoadedModel, config: BenchConfig) -> Mapping[str, float]:
    data, workers, card = load_data(config.data), Workers.current(), model.card
    expected = (card.image_size, card.num_classes)
    if (config.data.image_size, data.num_classes) != expected:
        raise ConfigError(
            f"{folder} was made for images of {expected[0]} pixels in {expected[1]} classes, but data has "
            f"{config.data.image_size} pixels and {data.num_classes} classes; measure it on data like its own."
        )
    batches = validation_batches(config, data, workers)
    return accuracy(_placed(model.net, config.finetune.channels_last, workers), batches, workers)
