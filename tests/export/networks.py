"""Deployed networks on real images, with a width from 2 to 8 drawn for each layer."""

from functools import cache
from random import Random

import torch
from torch import Tensor

from trainables.config import DataConfig
from trainables.counting import measure
from trainables.data import load_data
from trainables.data.splits import DataSplits, loader
from trainables.finetune_config import DeployedQuantizer
from trainables.finetuned_model import LoadedModel
from trainables.model_files import ModelCard
from trainables.models import build_network
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.quantizers.layers import calibrate
from trainables.supernet import deploy


@cache
def splits(data: str, image_size: int) -> DataSplits:
    return load_data(DataConfig(name=data, image_size=image_size))


def images_of(data: str, image_size: int, count: int) -> Tensor:
    """The first validation images, normalised."""
    validation = splits(data, image_size).validation
    return next(iter(loader(validation, batch_size=count, shuffle=False, seed=0, epoch=0))).images


def mixed_policy(network: str, *, image_size: int, num_classes: int, images: Tensor, seed: int) -> PolicyRecord:
    """Widths from 2 to 8, the same for layers that read one activation; stem and head have 8."""
    net = build_network(network, num_classes=num_classes, image_size=image_size)
    work, random = measure(net, images[:8]), Random(seed)
    acts: dict[str, int] = {}
    names = list(work.layers)
    bits = {
        name: LayerBits(random.randint(2, 8), acts.setdefault(work.layers[name].reads, random.randint(2, 8)))
        for name in names
    }
    bits |= dict.fromkeys((names[0], names[-1]), LayerBits(8, 8))
    policy = BitPolicy(network=network, bits=bits, pinned=frozenset((names[0], names[-1])))
    return PolicyRecord.measured(
        policy, work, method="gmpq", settings={}, image_size=image_size, num_classes=num_classes
    )


def deployed(
    network: str, quantizer: DeployedQuantizer, *, data: str = "digits", image_size: int = 16, seed: int = 0
) -> LoadedModel:
    """Fresh weights, quantisers calibrated on real images, as a finetune begins."""
    torch.manual_seed(seed)
    found, images = splits(data, image_size), images_of(data, image_size, 32)
    record = mixed_policy(network, image_size=image_size, num_classes=found.num_classes, images=images, seed=seed)
    assert record.work is not None
    net = build_network(network, num_classes=found.num_classes, image_size=image_size)
    quantized = deploy(net, record.work, record.policy, quantizer).eval()
    calibrate(quantized, images)
    normalisation = found.validation.normalisation
    card = ModelCard(
        task="classification",
        network=network,
        num_classes=found.num_classes,
        image_size=image_size,
        quantizer=quantizer,
        mean=normalisation.mean,
        std=normalisation.std,
        class_names=tuple(f"class {label}" for label in range(found.num_classes)),
    )
    return LoadedModel(quantized, card, record)
