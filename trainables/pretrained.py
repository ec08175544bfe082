"""Published float weights, or a user's own, for a network to begin with.

A file is a state dict: .pt and .pth as torch saves it, .safetensors as safetensors does. Nothing but tensors is read.
Names may stand below `state_dict` or `model`, and behind `module.` or `_orig_mod.`, as wrappers of networks leave them.
"""

from __future__ import annotations

import hashlib
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models

from trainables.counting import measure
from trainables.errors import ConfigError, DataMissingError

PUBLISHED = {
    "mobilenet_v2": models.MobileNet_V2_Weights.IMAGENET1K_V1,
    "resnet18": models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": models.ResNet50_Weights.IMAGENET1K_V1,
    "vgg16": models.VGG16_Weights.IMAGENET1K_V1,
}
"""What torchvision publishes of our networks, as trained by its first recipe."""
SUFFIXES = (".pt", ".pth", ".safetensors")
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_NAMED = 8
"""Entries that an error lists."""


class Begun(NamedTuple):
    """What a network began with."""

    digest: str
    """SHA-256 of the file, hexadecimal."""
    fresh: tuple[str, ...]
    """Layers that keep fresh weights: the head, where the file's is of another number of classes."""


def begin_with(net: nn.Module, weights: str, *, network: str, image_size: int) -> Begun:
    """Loads `reference.weights` into `net`, the network of that name with fresh weights, for such images, on the CPU.

    Everything must match but the head's number of classes. Raises ConfigError where it does not, and DataMissingError
    for a file that is missing or damaged.
    """
    path = weights_file(weights, network)
    found = _state(path)
    head = [*measure(net, torch.zeros(1, 3, image_size, image_size)).layers][-1]
    own = net.state_dict()
    fresh = (head,) if _of_other_classes(own, found, head) else ()
    if fresh:
        found = {**found, **{name: own[name] for name in _entries(own, head)}}
    problems = _differences(own, found)
    if problems:
        raise ConfigError(
            f"reference.weights: {path} does not fit {network}: {'; '.join(problems)}. Give weights of the same "
            "network; only the head's number of classes may be another."
        )
    net.load_state_dict({name: found.get(name, tensor) for name, tensor in own.items()})
    return Begun(digest_of(path), fresh)


def weights_file(weights: str, network: str) -> Path:
    """The file that `reference.weights` names, downloaded if it is torchvision's and not there yet."""
    if weights == "torchvision":
        return _published(network)
    path = Path(weights).expanduser()
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"reference.weights is {weights!r}; give torchvision, or a file {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise DataMissingError(f"reference.weights: {path.absolute()} is no file; name one that every worker sees.")
    return path


def _published(network: str) -> Path:
    if network not in PUBLISHED:
        raise ConfigError(
            f"reference.weights is torchvision, which publishes none for {network}, but for {', '.join(PUBLISHED)}; "
            "name a file of its state dict."
        )
    url = PUBLISHED[network].url
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Published names end in the first digits of the file's SHA-256, which is checked.
        prefix = path.stem.rpartition("-")[2]
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise DataMissingError(
                f"reference.weights: {url} cannot be fetched ({error}); put {name} into {path.parent} "
                "(TORCH_HOME/hub/checkpoints) on every machine, or name a file."
            ) from None
    return path


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ConfigError(
            f"reference.weights: {path} needs the package safetensors; pip install safetensors, or give a .pt file."
        ) from None
    except Exception as error:  # a damaged file, or one with code in it, fails in a dozen ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataMissingError(
            f"reference.weights: {path} cannot be read as tensors alone ({lines[0][:200]}); get it again, or save the "
            "network's state_dict() with torch.save."
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = content if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ConfigError(f"reference.weights: {path} holds no state dict; save the network's state_dict() in it.")
    return _unwrapped({str(name): tensor for name, tensor in tensors.items()})


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in (*_PREFIXES, *_PREFIXES):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _entries(state: Mapping[str, Tensor], layer: str) -> list[str]:
    return [name for name in state if name.rpartition(".")[0] == layer]


def _of_other_classes(own: Mapping[str, Tensor], found: Mapping[str, Tensor], head: str) -> bool:
    """Whether the file has the head, for the same features and another number of classes."""
    entries = _entries(own, head)
    return all(
        name in found and found[name].ndim == own[name].ndim and found[name].shape[1:] == own[name].shape[1:]
        for name in entries
    ) and any(found[name].shape != own[name].shape for name in entries)


def _differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    # Old files lack the number of batches, which nothing reads.
    missing = [name for name in own if name not in found and not name.endswith(".num_batches_tracked")]
    extra = [name for name in found if name not in own]
    shapes = [
        f"{name} {list(found[name].shape)} for {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in found and found[name].shape != tensor.shape
    ]
    lists = (("missing", missing), ("too much", extra), ("of another shape", shapes))
    return [f"{what}: {_listed(names)}" for what, names in lists if names]


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
