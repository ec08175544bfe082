"""Where training goes on after it was cut off: one file, replaced after every epoch, exact to the last bit."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainables.choices import Choices
from trainables.distributed import Workers
from trainables.policy import BitPolicy, policy_of
from trainables.report import Stage

FORMAT = 2
"""Of the file, and of what it is loaded into: one more whenever parameters are named or ordered in another way."""


class Checkpoint:
    """The file of a trial, or of a reference: read by every worker, written by rank 0.

    Holds one stage: its finished epochs, weights, optimisers and generators, with the time spent in every stage so far
    and, once they are known, the choices and the policy. A file that cannot be read, or of another format, counts as
    none: its epochs are computed again.
    """

    def __init__(self, path: Path | None, workers: Workers) -> None:
        """Without a `path` nothing is kept."""
        self._path, self._workers = path, workers
        self._kept: dict[str, Any] = _read(path) if path else {}
        self._seconds: dict[str, float] = dict(self._kept.get("seconds", {}))
        self._began = time.perf_counter()
        self._stage = ""
        kept = self._kept.get("policy")
        self.policy = policy_of(kept["network"], kept["layers"], str(path)) if kept else None
        """What the search settled on, once the finetune has begun."""
        known = self._kept.get("choices") if self.policy else None
        self.choices = Choices.from_content(known, origin=str(path)) if known else None
        """What the policy was chosen from."""

    def begin(self, stage: Stage, net: nn.Module, *, policy: BitPolicy | None = None) -> StageCheckpoint:
        """The part of a stage that trains `net` (as it is, not as the workers wrap it)."""
        self.policy = policy
        return StageCheckpoint(self, stage, net)

    def watch(self, stage: Stage) -> None:
        """From now on the clock runs for `stage`."""
        self.stop()
        self._stage = stage

    def stop(self) -> None:
        """The clock stands."""
        now = time.perf_counter()
        if self._stage:
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._began
        self._began, self._stage = now, ""

    def hours(self, stage: Stage) -> float:
        """Device-hours of all workers in `stage`; of attempts that were cut off up to their last epoch."""
        return self._seconds.get(stage, 0.0) / 3600 * self._workers.size

    def emptied(self) -> Checkpoint:
        """The same file as if nothing were in it; it is written over after the first epoch."""
        fresh = Checkpoint(None, self._workers)
        fresh._path = self._path
        return fresh

    def remove(self) -> None:
        """The result is safe; nothing has to be gone on with."""
        if self._path and self._workers.rank == 0:
            self._path.unlink(missing_ok=True)

    def _restore(self, stage: Stage, net: nn.Module, optimizers: Sequence[Optimizer]) -> int:
        kept = self._kept
        if kept.get("stage") != stage:
            return 0
        net.load_state_dict(kept["net"])
        for optimizer, state in zip(optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(kept["generator"])
        if "device_generator" in kept and self._workers.device.type == "cuda":
            torch.cuda.set_rng_state(kept["device_generator"], self._workers.device)
        self._kept = {}
        return int(kept["epoch"])

    def _save(self, stage: Stage, epoch: int, net: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        if self._path is None or self._workers.rank != 0:
            return
        running = self._stage
        self.stop()
        self._stage = running
        content: dict[str, Any] = {
            "format": FORMAT,
            "stage": stage,
            "epoch": epoch,
            "net": net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "generator": torch.get_rng_state(),
            "seconds": self._seconds,
            "policy": {"network": self.policy.network, "layers": self.policy.layers} if self.policy else None,
            "choices": self.choices.to_content() if self.choices else None,
        }
        if self._workers.device.type == "cuda":
            content["device_generator"] = torch.cuda.get_rng_state(self._workers.device)
        _write(self._path, content)


@dataclass(frozen=True, slots=True)
class StageCheckpoint:
    """What the training loop needs of a checkpoint."""

    _checkpoint: Checkpoint
    _stage: Stage
    _net: nn.Module

    def restore(self, optimizers: Sequence[Optimizer]) -> int:
        """Epochs of this stage that are finished; network, optimisers and generators are as they were after them."""
        return self._checkpoint._restore(self._stage, self._net, optimizers)

    def save(self, epoch: int, optimizers: Sequence[Optimizer]) -> None:
        """Keeps the state after `epoch` finished epochs."""
        self._checkpoint._save(self._stage, epoch, self._net, optimizers)


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file fails in a dozen ways, all of which mean the same
        return {}
    return kept if isinstance(kept, dict) and kept.get("format") == FORMAT else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with unfinished.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
