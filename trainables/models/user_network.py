"""Networks of a user's own, by import path."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.user_code import load_function, user_errors

WHERE = "network.name"


def build_user_network(name: str, *, num_classes: int, image_size: int) -> nn.Module:
    """What the `module:function` returns for num_classes and, where its signature has that name, image_size.

    It is tried on one black image, so that a network that does not fit is known before anything is trained.
    """
    function = load_function(name, where=WHERE)
    sizes = {"image_size": image_size} if _takes_image_size(function) else {}
    with user_errors(name, where=WHERE):
        net = function(num_classes=num_classes, **sizes)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{WHERE}: {name!r} returned a {type(net).__name__}; return a torch.nn.Module.")
    was_training = net.training
    with user_errors(name, where=WHERE), torch.no_grad():
        logits = net.eval()(torch.zeros(1, 3, image_size, image_size))
    found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if found != (1, num_classes):
        raise ConfigError(
            f"{WHERE}: {name!r}: of one image of {image_size}×{image_size} pixels and {num_classes} classes its "
            f"network makes {found}; return logits of shape (1, {num_classes})."
        )
    return net.train(was_training)


def _takes_image_size(function: Callable[..., Any]) -> bool:
    try:
        return "image_size" in inspect.signature(function).parameters
    except ValueError:
        # Written in C, without a signature.
        return False
