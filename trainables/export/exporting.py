"""Exports of a finetuned network's folder: build, check, write whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainables.config import BenchConfig
from trainables.errors import ConfigError, DataMissingError, StorageError
from trainables.export.api import with_root
from trainables.export.layer_grids import layer_grids
from trainables.export.report import Agreement, AimetReport, OnnxReport
from trainables.export.table import Scales, layer_table
from trainables.finetuned_model import LoadedModel, load_model
from trainables.recorded_config import config_of

if TYPE_CHECKING:
    from onnx import ModelProto

    from trainables.export.onnx_model import OnnxNetwork, Pixels

DETECTOR_IMAGES = 2
"""On which a backbone is compared: they are large."""


def export_onnx(
    folder: Path, output: Path, *, opset: int, takes: Pixels, images: int, data_root: str | None, backbone: bool
) -> OnnxReport:
    """See `trainables.export.api.export_onnx`."""
    _check_installed("onnx", "onnxscript")
    from trainables.export.onnx_model import build_onnx

    loaded = load_model(folder)
    built = build_onnx(loaded, opset=opset, takes=takes, backbone=backbone)
    agreement, unchecked = _checked(loaded, built, takes=takes, images=images, data_root=data_root)
    with _written(output) as unfinished:
        unfinished.write_bytes(_serialised(built.model))
    return OnnxReport(
        network=loaded.card.network,
        policy_hash=loaded.record.policy.hash,
        bytes=output.stat().st_size,
        opset=opset,
        layers={
            name: {
                "weight": built.grids[name].weight.bits,
                "act": built.grids[name].act_bits,
                "weight_type": one.weight_type.name,
                "act_type": one.act_type.name,
            }
            for name, one in built.stored.items()
        },
        wider=_wider(built),
        agreement=agreement,
        unchecked=unchecked,
    )


def _wider(built: OnnxNetwork) -> dict[str, int]:
    pairs = [(built.grids[name].weight.bits, one.weight_type) for name, one in built.stored.items()]
    counted = Counter((bits, kind.name) for bits, kind in pairs if kind.bits > bits)
    return {f"{bits} bits in {kind}": count for (bits, kind), count in sorted(counted.items())}


def _checked(
    loaded: LoadedModel, built: OnnxNetwork, *, takes: Pixels, images: int, data_root: str | None
) -> tuple[Agreement | None, str]:
    """onnxruntime's agreement with PyTorch, or why there is none."""
    if not images:
        return None, "as you said"
    if find_spec("onnxruntime") is None:
        return None, 'onnxruntime is not installed: pip install "bitfront[export]"'
    from trainables.export.agreement import compare

    card = loaded.card
    batch, real = _images(loaded, built, images, data_root)
    pixels = takes == "pixels"
    found = compare(
        built,
        batch,
        real=real,
        mean=torch.tensor(card.mean) if pixels else None,
        std=torch.tensor(card.std) if pixels else None,
    )
    return found, ""


def _images(loaded: LoadedModel, built: OnnxNetwork, count: int, data_root: str | None) -> tuple[Tensor, bool]:
    """The first validation images of the network's data set, or noise where it is not here; of detectors always."""
    from trainables.data import load_data
    from trainables.data.splits import loader

    size = built.part.example.shape[1:]
    torch.manual_seed(0)
    try:
        config = with_root(config_of(loaded.card), data_root)
        if not isinstance(config, BenchConfig):
            return torch.randn(min(count, DETECTOR_IMAGES), *size), False
        # Nobody has asked for a download.
        splits = load_data(dataclasses.replace(config.data, download=False))
    except (ConfigError, DataMissingError, StorageError):
        if data_root is not None:
            raise
        return torch.randn(count, *size), False
    batches = loader(splits.validation, batch_size=min(count, len(splits.validation)), shuffle=False, seed=0, epoch=0)
    return next(iter(batches)).images, True


def export_aimet(folder: Path, output: Path, *, backbone: bool) -> AimetReport:
    """See `trainables.export.api.export_aimet`."""
    _check_installed("onnx", "onnxscript")
    from trainables.export.aimet import FEWEST_BITS, aimet_encodings

    loaded = load_model(folder)
    content, model = aimet_encodings(loaded, backbone=backbone)
    with _written(output) as unfinished, _written(output.with_suffix(".onnx")) as unfinished_graph:
        unfinished_graph.write_bytes(_serialised(model))
        unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    bits = loaded.record.policy.bits
    return AimetReport(
        network=loaded.card.network,
        policy_hash=loaded.record.policy.hash,
        params=len(content["param_encodings"]),
        activations=len(content["activation_encodings"]),
        narrow=tuple(name for name, one in bits.items() if min(one) < FEWEST_BITS),
    )


def table_of_network(folder: Path) -> str:
    """See `trainables.export.api.table`."""
    loaded = load_model(folder)
    scales = {name: Scales(one.weight.scale, one.act.scale) for name, one in layer_grids(loaded.net).items()}
    return layer_table(loaded.record, scales)


def _serialised(model: ModelProto) -> bytes:
    try:
        return model.SerializeToString()
    except ValueError:
        raise ConfigError("the network is larger than the 2 GB that one ONNX file holds.") from None


def _check_installed(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"exporting needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            'pip install "bitfront[export]"'
        )


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its name once all of it has reached the disk, or goes."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
