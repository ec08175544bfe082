"""What the full-precision reference says of each image: its attribution map, smoothed or not, and its task risk.

That depends on nothing that a search changes. So it is computed once for each (reference, data, setting), kept beside
the reference as memory-mapped arrays, and read by all trials and workers:

    <references>/<reference>/maps/<digest>/maps.npy    [images, h, w] float32, sums 1
                                           risks.npy   [images] float32, cross-entropies, nats
                                           record.json what they were made of, and what that took
                                  <digest>.lock        who fills it; the system takes it from a process that dies

The digest is of contents: the reference's weights, the images, the setting. What was made of other weights or images is
deleted when new maps are made.

An image that is flipped has its map flipped, one that is shifted has it shifted: the reference is not asked again.
Its own map of the changed image would differ a little. Random crops that are resized show another picture; then the
reference looks at every batch.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.attribution import Attribution, at_size
from trainables.config import Augment
from trainables.data.images import augmented
from trainables.data.splits import Batch, ImageSet, loader
from trainables.errors import StorageError
from trainables.folders import published
from trainables.method_config import GmpqConfig, RgmpqConfig, TargetClass
from trainables.partition import partition, smooth
from trainables.patience import unavailable
from trainables.reference import Bench
from trainables.report import RECORD_FILE

FORMAT = 2
BATCH = 256
MOST_BYTES_ON_DEVICE = 1 << 30
"""Of maps that are kept on a GPU; larger stores stay in files, from which each batch is copied."""
Split = Literal["train", "validation"]


class Said(NamedTuple):
    """Of each image of a batch."""

    maps: Tensor
    """[N, h, w], sums 1, or all zero; of a shifted image less what left it."""
    risks: Tensor
    """Cross-entropy of the label [N], nats."""


class ReferenceMaps(Protocol):
    """Tells of a batch what the reference says."""

    def __call__(self, batch: Batch) -> Said: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class MapSetting:
    """Which maps."""

    target_class: TargetClass = "label"
    levels: int = 0
    """Of the partition that they are smoothed over; 0: not smoothed, and as the network makes them."""
    ratio: int = 2
    gamma: float = 0.0
    size: int = 0
    """Side of smoothed maps, to which they are upsampled before; 0: as the network makes them."""

    @classmethod
    def of(cls, config: GmpqConfig, image_size: int) -> MapSetting:
        """The maps that a search imitates."""
        if not isinstance(config, RgmpqConfig) or config.levels == 0:
            return cls(target_class=config.target_class)
        return cls(
            target_class=config.target_class,
            levels=config.levels,
            ratio=config.ratio,
            gamma=config.gamma,
            size=image_size if config.resolution == "input" else 0,
        )


class AskedMaps:
    """The reference looks at every batch."""

    def __init__(self, reference: nn.Module, setting: MapSetting, *, probe: Tensor) -> None:
        """`reference` is frozen; `probe` [N, 3, S, S] a few real images."""
        self._reference, self._setting = reference, setting
        self._tap = Attribution(reference, probe)

    def __call__(self, batch: Batch) -> Said:
        """See `ReferenceMaps`."""
        setting = self._setting
        classes = batch.labels if setting.target_class == "label" else None
        logits, maps, features = self._tap.observe(self._reference, batch.images, classes)
        if setting.levels:
            maps = at_size(maps, setting.size)
            groups = partition(
                features, size=maps.shape[2], levels=setting.levels, ratio=setting.ratio, gamma=setting.gamma
            )
            maps = smooth(maps, groups.to(maps.device))
        return Said(maps, cross_entropy(logits, batch.labels, reduction="none"))

    def detach(self) -> None:
        """Takes the tap off the reference."""
        self._tap.detach()


@dataclass(frozen=True, slots=True)
class KeptMaps:
    """Those of all images of a split, by their places."""

    maps: Tensor
    """[images, h, w]."""
    risks: Tensor
    """[images]."""
    augment: Augment = "none"
    device_hours: float = 0.0
    """That all workers of whichever trial made them spent on that."""

    def __call__(self, batch: Batch) -> Said:
        """See `ReferenceMaps`."""
        device = batch.images.device
        places = _moved(batch.places, self.maps.device)
        maps, risks = self.maps[places], self.risks[places]
        if batch.draws is not None:
            maps = augmented(maps[:, None], self.augment, _moved(batch.draws, maps.device))[:, 0]
        return Said(_moved(maps, device), _moved(risks, device))

    def near(self, device: torch.device) -> KeptMaps:
        """On a GPU where they are few enough: then a step copies none there."""
        if device.type == "cpu" or self.maps.nbytes > MOST_BYTES_ON_DEVICE:
            return self
        return dataclasses.replace(self, maps=self.maps.to(device), risks=self.risks.to(device))


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """On `device`, without waiting for what it does."""
    if values.device == device or device.type == "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@contextmanager
def training_maps(bench: Bench, setting: MapSetting) -> Iterator[ReferenceMaps]:
    """What the reference says of training images: kept where that can be, else asked of it."""
    augment = bench.config.data.augment
    if keeps(augment, setting):
        clock = bench.checkpoint
        with clock.apart("maps"):
            kept = kept_maps(bench, setting, "train")
        clock.book("shared maps", kept.device_hours)
        yield dataclasses.replace(kept, augment=augment).near(bench.workers.device)
        return
    asked = AskedMaps(bench.reference, setting, probe=bench.probe)
    try:
        yield asked
    finally:
        asked.detach()


def keeps(augment: Augment, setting: MapSetting) -> bool:
    """Whether maps of the unchanged images serve: flips do any map, shifts by pixels those of the image's own size."""
    return augment in ("none", "flip") or (augment == "crop-flip" and setting.size > 0)


def kept_maps(bench: Bench, setting: MapSetting, split: Split) -> KeptMaps:
    """Those of the unchanged images, from the store; computed, and stored, where they are not in it."""
    if bench.store is None:
        began = time.perf_counter()
        said = list(_computed(bench, setting, split))
        maps, risks = (torch.cat(parts) for parts in zip(*said, strict=True))
        return KeptMaps(maps, risks, device_hours=_hours_since(began, bench))
    content = _content(bench, setting, split)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = bench.store / bench.record.key / "maps" / digest
    if not folder.exists():
        with _alone(folder):
            if not folder.exists():
                _remove_stale(folder.parent, content)
                _write(folder, bench, setting, split, content)
    return _read(folder)


def _hours_since(began: float, bench: Bench) -> float:
    """Device-hours of all workers: those that make nothing wait."""
    return (time.perf_counter() - began) * bench.workers.size / 3600


def _content(bench: Bench, setting: MapSetting, split: Split) -> dict[str, Any]:
    data = bench.config.data
    return {
        "format": FORMAT,
        "reference": _weights_digest(bench.reference),
        "data": [bench.data.fingerprint, data.image_size, data.fraction],
        "split": split,
        "setting": dataclasses.asdict(setting),
    }


def _weights_digest(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _computed(bench: Bench, setting: MapSetting, split: Split) -> Iterator[Said]:
    """Maps and risks of all images of a split, in order, on the CPU."""
    asked = AskedMaps(bench.reference, setting, probe=bench.probe)
    loaders = bench.config.data.loader_workers
    for batch in loader(_images(bench, split), batch_size=BATCH, shuffle=False, seed=0, epoch=0, workers=loaders):
        said = asked(batch.to(bench.workers.device))
        yield Said(said.maps.cpu(), said.risks.cpu())
    asked.detach()


def _images(bench: Bench, split: Split) -> ImageSet:
    return bench.data.train if split == "train" else bench.data.validation


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While others that want the same wait."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        otherwise = StorageError(f"{folder.parent} cannot be written and locked ({error.strerror}); check it.")
        raise unavailable(error, folder.parent) or otherwise from None
    with lock:
        yield


def _remove_stale(folder: Path, content: dict[str, Any]) -> None:
    """Deletes maps of other weights or images: nothing can ask for them any more. Who reads them goes on reading."""
    # Not the hidden ones: they are being filled, under locks of their own.
    for record in folder.glob(f"[!.]*/{RECORD_FILE}"):
        try:
            found = json.loads(record.read_text())
        except (OSError, ValueError):
            found = {}
        if any(found.get(name) != content[name] for name in ("format", "reference", "data")):
            shutil.rmtree(record.parent, ignore_errors=True)


def _write(folder: Path, bench: Bench, setting: MapSetting, split: Split, content: dict[str, Any]) -> None:
    """Whole or not at all. A batch at a time: all maps together may be larger than the memory."""
    for abandoned in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    count, began = len(_images(bench, split)), time.perf_counter()
    try:
        # Where a lock does not reach other machines, another of them may be first.
        with published(folder) as unfinished:
            with (unfinished / "maps.npy").open("wb") as maps, (unfinished / "risks.npy").open("wb") as risks:
                for said in _computed(bench, setting, split):
                    for file, part in zip((maps, risks), said, strict=True):
                        if not file.tell():
                            header = {"descr": "<f4", "fortran_order": False, "shape": (count, *part.shape[1:])}
                            np.lib.format.write_array_header_2_0(file, header)
                        # Written and not mapped: a full disk is then an error, and no signal that ends the process.
                        file.write(part.numpy().astype("<f4").data)
            record = {**content, "device_hours": _hours_since(began, bench)}
            (unfinished / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        otherwise = StorageError(
            f"{folder}: {count} attribution maps cannot be written ({error.strerror}); make room, or give storage.path "
            "another place."
        )
        raise unavailable(error, folder.parent) or otherwise from None


def _read(folder: Path) -> KeptMaps:
    # Copy on write: torch wants memory that it may write to, and nobody does.
    maps, risks = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("maps", "risks"))
    hours = json.loads((folder / RECORD_FILE).read_text())["device_hours"]
    return KeptMaps(torch.from_numpy(maps), torch.from_numpy(risks), device_hours=hours)
