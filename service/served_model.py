"""A finetuned network behind MLflow's generic loader: `mlflow.pyfunc.load_model("models:/NAME@ALIAS").predict(images)`.

The MLmodel file of a registered network names this module (flavour python_function, key loader_module). Nothing is
pickled: the network is built from model.json and policy.json and reads its tensors from model.pt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainables.finetuned_model import LoadedModel

BATCH = 64
"""Images that go through a classifier at once."""


def _load_pyfunc(path: str) -> ServedModel:
    """The network whose files lie in this folder. MLflow asks for this name."""
    from trainables.finetuned_model import load_model

    return ServedModel(load_model(Path(path)))


class ServedModel:
    """Predicts with a finetuned network, on the CPU."""

    def __init__(self, model: LoadedModel) -> None:
        self._model, self.card = model, model.card

    def predict(self, images: Any) -> Any:
        """What the network says of some images; pixels are uint8, or floating point numbers from 0 to 1.

        Args:
            images: [N, C, S, S] of a classifier; of a detector that, or a list of [3, H, W].

        Returns: logits [N, num_classes], float32, of a classifier. Of a detector a dict for each image: boxes [n, 4]
        (x0, y0, x1, y1 in pixels), labels [n] from 1, scores [n].
        """
        if self.card.task == "detection":
            return self._detections([_pixels(image, dimensions=3) for image in images])
        return self._logits(_pixels(images, dimensions=4))

    def _logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        card = self.card
        side = card.image_size
        if images.shape[1:] != (len(card.mean), side, side):
            raise ConfigError(f"images are {list(images.shape)}; give [N, {len(card.mean)}, {side}, {side}].")
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (card.mean, card.std))
        with torch.inference_mode():
            batches = torch.from_numpy(images).split(BATCH)
            found = [self._model.net((batch - mean) / std) for batch in batches]
        empty = torch.empty(0, card.num_classes)
        return np.asarray(torch.cat([empty, *found]).numpy(), dtype=np.float32)

    def _detections(self, images: Sequence[NDArray[np.float32]]) -> list[dict[str, NDArray[Any]]]:
        import torch

        with torch.inference_mode():
            # One at a time: they differ in size. The detector normalises them itself.
            found = [self._model.net([torch.from_numpy(image)])[0] for image in images]
        return [{name: one[name].numpy() for name in ("boxes", "labels", "scores")} for one in found]


def _pixels(images: Any, *, dimensions: int) -> NDArray[np.float32]:
    """The images as numbers from 0 to 1. Raises ConfigError for what is neither."""
    pixels = np.asarray(images)
    if pixels.ndim != dimensions:
        form = "[N, C, S, S]" if dimensions == 4 else "[3, H, W] each"
        raise ConfigError(f"images are {list(pixels.shape)}; give {form}.")
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ConfigError(f"images are of {pixels.dtype}; give uint8, or floating point numbers from 0 to 1.")
    if pixels.size and not 0 <= float(pixels.min()) <= float(pixels.max()) <= 1:
        raise ConfigError(
            f"images have values from {pixels.min():.4g} to {pixels.max():.4g}; give pixels from 0 to 1, which are "
            "normalised here, or uint8."
        )
    return np.ascontiguousarray(pixels, dtype=np.float32)
