"""The seam's part for finetuned networks: exports and measuring one again, in values without tensors.

Imports torch only when a function is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainables.config import BenchConfig
from trainables.detector_config import DetectorConfig
from trainables.errors import ConfigError
from trainables.export.report import Agreement, AimetReport, OnnxReport
from trainables.export.table import layer_table
from trainables.model_files import ModelCard
from trainables.policy_file import PolicyRecord
from trainables.recorded_config import config_of

__all__ = ["Agreement", "AimetReport", "Evaluation", "OnnxReport", "evaluate", "export_aimet", "export_onnx", "table"]

MEASURED = ("top1", "top5", "map", "ap", "ap50", "ap75", "aps", "apm", "apl")
"""What a network is measured again for; percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A finetuned network, measured again."""

    network: str
    data: str
    recorded: Mapping[str, float]
    """By metric, percent, what its card says."""
    measured: Mapping[str, float]
    other_data: bool
    """Whether the data set is another one than it was measured on; looked at where the numbers differ."""

    def different(self, within: float) -> list[str]:
        """Metrics whose two values are more than `within` percentage points apart."""
        return [name for name, value in self.measured.items() if not abs(value - self.recorded[name]) <= within]


def export_onnx(
    folder: Path,
    output: Path,
    *,
    opset: int,
    takes: Literal["normalised", "pixels"],
    images: int,
    data_root: str | None,
    backbone: bool,
) -> OnnxReport:
    """Writes the classifier in `folder`, or a detector's `backbone`, as quantised ONNX, whole or not at all.

    Args:
        folder: of a finetuned network.
        output: replaced where it exists.
        opset: ONNX operator set.
        takes: images as the network sees them, or pixels of 0 to 1.
        images: on so many validation images it is compared with PyTorch first; 0: not.
        data_root: where the data set is, if not where the network's card says.
        backbone: of a detector, of which nothing else is exported.

    Raises ConfigError where a package is missing, the network cannot be expressed, or the file would compute something
    else than PyTorch does.
    """
    from trainables.export import exporting

    return exporting.export_onnx(
        folder, output, opset=opset, takes=takes, images=images, data_root=data_root, backbone=backbone
    )


def export_aimet(folder: Path, output: Path, *, backbone: bool) -> AimetReport:
    """Writes AIMET encodings of the classifier in `folder`, or of a detector's `backbone`, and the float graph beside
    them with the suffix .onnx.

    Raises ConfigError where a package is missing or the format cannot express a grid.
    """
    from trainables.export import exporting

    return exporting.export_aimet(folder, output, backbone=backbone)


def table(source: Path | PolicyRecord) -> str:
    """CSV of the layers of a finetuned network, with its quantisers' scales, or of a policy; that needs no torch."""
    if isinstance(source, PolicyRecord):
        return layer_table(source, {})
    from trainables.export import exporting

    return exporting.table_of_network(source)


def evaluate(folder: Path, *, data_root: str | None) -> Evaluation:
    """Measures the network in `folder` on the validation data of its finetune, or those in `data_root`.

    Raises StorageError for a network that cannot be read, DataMissingError where the data are not there.
    """
    from trainables.finetuned_model import measure_model

    card = ModelCard.load(folder)
    config = with_root(config_of(card), data_root)
    found = {name: value for name, value in measure_model(folder, config).items() if name in MEASURED}
    lacking = [name for name in found if name not in card.metrics]
    if lacking:
        raise ConfigError(f"the card of {folder} does not say what its {', '.join(lacking)} was; finetune again.")
    recorded = {name: card.metrics[name] for name in found}
    return Evaluation(
        network=card.network,
        data=config.data.name if isinstance(config, BenchConfig) else config.data.format,
        recorded=recorded,
        measured=found,
        other_data=recorded != found and _other_data(card, config),
    )


def with_root(config: BenchConfig | DetectorConfig, data_root: str | None) -> BenchConfig | DetectorConfig:
    """The same settings with the data set in another folder."""
    if data_root is None:
        return config
    if isinstance(config, DetectorConfig):
        return dataclasses.replace(config, data=dataclasses.replace(config.data, root=data_root))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=data_root, download=False))


def _other_data(card: ModelCard, config: BenchConfig | DetectorConfig) -> bool:
    if isinstance(config, DetectorConfig) or not card.data_fingerprint:
        return False
    from trainables.data import load_data

    return load_data(config.data).fingerprint != card.data_fingerprint
