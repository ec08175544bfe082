"""The float weights that a detector's backbone starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainables.detection.detectors import CLASSIFIER_HEADS, fresh_classifier
from trainables.detector_config import DETECTOR_BACKBONES, DetectorNetworkConfig
from trainables.errors import ConfigError, DataMissingError

WHERE = "detector.weights"


def starting_classifier(config: DetectorNetworkConfig) -> nn.Module:
    """The classification network of the backbone with the weights of the settings; whatever its head holds is left out.

    Raises ConfigError for weights of another network.
    """
    backbone = DETECTOR_BACKBONES[config.name]
    net = fresh_classifier(backbone)
    if not config.weights:
        return net
    weights = _published(backbone) if config.weights == "torchvision" else _from_file(config.weights)
    heads = CLASSIFIER_HEADS[backbone]
    kept = {name: value for name, value in weights.items() if name.partition(".")[0] not in heads}
    own = net.state_dict()
    expected = {name: value.shape for name, value in own.items() if name.partition(".")[0] not in heads}
    wrong = sorted(name for name in kept.keys() & expected.keys() if kept[name].shape != expected[name])
    unknown, missing = sorted(kept.keys() - expected.keys()), sorted(expected.keys() - kept.keys())
    if wrong or unknown or missing:
        raise ConfigError(
            f"{WHERE}: {config.weights} does not hold the weights of {backbone}: not of its network: "
            f"{_listed(unknown)}; missing: {_listed(missing)}; of another shape: {_listed(wrong)}."
        )
    net.load_state_dict({**own, **kept})
    return net


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"


def _published(backbone: str) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    try:
        weights: dict[str, Any] = get_model_weights(backbone)["IMAGENET1K_V1"].get_state_dict(progress=False)
    except OSError as error:
        raise DataMissingError(
            f"{WHERE}: torchvision's weights of {backbone} cannot be fetched ({error}); give the path of a file that "
            "holds them, or make them known to torch's cache (TORCH_HOME)."
        ) from None
    return weights


def _from_file(given: str) -> dict[str, Any]:
    path = Path(given).expanduser()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{WHERE}: {path} is not there; give a state dict's file, or 'torchvision'.") from None
    except Exception as error:  # a damaged file fails in a dozen ways, all of which mean the same
        raise ConfigError(
            f"{WHERE}: {path} cannot be read ({type(error).__name__}); give a state dict that torch.save has written."
        ) from None
    if not isinstance(weights, dict):
        raise ConfigError(f"{WHERE}: {path} holds a {type(weights).__name__}; give a state dict.")
    return weights
