"""Networks by name: `build_network` is the way in, `registry.NETWORKS` the registry. All read RGB images.

Names are known without torch, so that a sweep's YAML can be checked in no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

NETWORK_NAMES = ("mobilenet_v2", "resnet18", "resnet20", "resnet50", "resnet8")


def check_network(name: str) -> None:
    """Raises ConfigError unless `name` is a known network."""
    if name not in NETWORK_NAMES:
        raise ConfigError(f"unknown network {name!r}{did_you_mean(name, NETWORK_NAMES)}.")


def build_network(name: str, *, num_classes: int) -> nn.Module:
    """A network with fresh weights."""
    check_network(name)
    from trainables.models.registry import NETWORKS

    return NETWORKS[name](num_classes)
