"""Networks by name: `build_network` is the way in, `registry.NETWORKS` the registry. All read RGB images.

Names are known without torch, so that a sweep's YAML can be checked in no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.errors import ConfigError, did_you_mean
from trainables.user_code import check_import_path, is_import_path

if TYPE_CHECKING:
    from torch import nn

NETWORK_NAMES = (
    "deit_small",
    "deit_small_patch4",
    "deit_tiny",
    "deit_tiny_patch4",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet50",
    "resnet50_v1",
    "resnet8",
    "vgg16",
)


def check_network(name: str) -> None:
    """Raises ConfigError unless `name` is a known network, or may be a `module:function`; that is not imported."""
    if is_import_path(name):
        check_import_path(name)
    elif name not in NETWORK_NAMES:
        raise ConfigError(f"unknown network {name!r}{did_you_mean(name, NETWORK_NAMES)}.")


def build_network(name: str, *, num_classes: int, image_size: int) -> nn.Module:
    """A network with fresh weights for images of `image_size` pixels a side."""
    check_network(name)
    if is_import_path(name):
        from trainables.models.user_network import build_user_network

        return build_user_network(name, num_classes=num_classes, image_size=image_size)
    from trainables.models.registry import NETWORKS

    return NETWORKS[name](num_classes, image_size)
