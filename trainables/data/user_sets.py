"""Data sets of a user's own: calls the function, and checks what it returns before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.config import DataConfig
from trainables.data.assembly import LabelledFiles, LabelledPixels, from_files, from_memory
from trainables.data.splits import DataSplits
from trainables.data.user_data import UserData
from trainables.errors import ConfigError
from trainables.user_code import load_function, user_errors

WHERE = "data.name"


def read_user_data(config: DataConfig) -> DataSplits:
    """What the function `config.name` returns. Raises ConfigError where that is no data set, and says why."""
    function = load_function(config.name, where=WHERE)
    root = Path(config.root).expanduser() if config.root else Path()
    with user_errors(config.name, where=WHERE):
        found = function(str(root) if config.root else "", image_size=config.image_size)
    try:
        return _checked(config, root, found)
    except ConfigError as error:
        raise ConfigError(f"{WHERE}: {config.name!r} returned {error}") from None


def _checked(config: DataConfig, root: Path, found: Any) -> DataSplits:
    if not isinstance(found, UserData):
        raise ConfigError(f"a {type(found).__name__}; return a trainables.data.UserData.")
    num_classes = found.num_classes
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ConfigError(f"num_classes {num_classes!r}; give a whole number of at least 2.")
    kinds = set()
    for split in ("train", "validation"):
        pair = getattr(found, split)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ConfigError(f"a {type(pair).__name__} as {split}; give a pair (images, labels).")
        kinds.add(isinstance(pair[0], Tensor | np.ndarray))
    if len(kinds) == 2:
        raise ConfigError("pixels for one split and files for the other; give both the same way.")
    if kinds == {True}:
        pixels = [_pixels(split, *getattr(found, split), num_classes=num_classes) for split in ("train", "validation")]
        return from_memory(config, *pixels, num_classes=num_classes)
    files = [_files(split, root, *getattr(found, split), num_classes=num_classes) for split in ("train", "validation")]
    return from_files(config, *files, num_classes=num_classes)


def _pixels(split: str, images: Tensor | np.ndarray[Any, Any], labels: Any, *, num_classes: int) -> LabelledPixels:
    shape = list(images.shape)
    if images.dtype not in (torch.uint8, np.dtype(np.uint8)):
        raise ConfigError(f"{split} images of {images.dtype}; give uint8, 0 to 255.")
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3] or shape[2] == 0:
        hint = "; channels come before height and width" if len(shape) == 4 and shape[3] in (1, 3) else ""
        raise ConfigError(f"{split} images of shape {shape}; give [N, C, S, S], C 1 or 3, squares{hint}.")
    # A copy: an array may be read-only, or lie backwards in memory.
    pixels = images.detach().cpu() if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    return pixels, _labels(split, labels, len(pixels), num_classes)


def _files(split: str, root: Path, images: Any, labels: Any, *, num_classes: int) -> LabelledFiles:
    if not isinstance(images, list | tuple) or not all(isinstance(path, str | Path) for path in images):
        raise ConfigError(f"a {type(images).__name__} as {split} images; give uint8 pixels, or a list of paths.")
    paths = [root / Path(path).expanduser() for path in images]
    return paths, _labels(split, labels, len(paths), num_classes)


def _labels(split: str, labels: Any, count: int, num_classes: int) -> Tensor:
    """int64 [N]."""
    try:
        values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError as error:
        raise ConfigError(f"{split} labels that are no list of numbers ({error}).") from None
    if count == 0:
        raise ConfigError(f"no {split} images.")
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise ConfigError(f"{split} labels of {values.dtype}, shape {list(values.shape)}; give [N] whole numbers.")
    if len(values) != count:
        raise ConfigError(f"{count} {split} images, but {len(values)} labels; give one for each image.")
    wrong = values[(values < 0) | (values >= num_classes)]
    if len(wrong):
        raise ConfigError(f"a {split} label {wrong[0]}; give 0 to {num_classes - 1}, or more num_classes.")
    return torch.from_numpy(values.astype(np.int64))
