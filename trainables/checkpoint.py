"""Where training goes on after it was cut off: a file, replaced after every epoch and, where that is asked for, after
every so many steps, and the one before it; exact to the last bit."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trainables.choices import Choices
from trainables.distributed import Workers
from trainables.patience import patiently
from trainables.policy import BitPolicy, policy_of
from trainables.report import Stage, checkpoint_files
from trainables.tensor_files import DamagedError, read_tensors, replace_tensors

log = logging.getLogger("bitfront.checkpoint")

FORMAT = 4
"""Of the file, and of what it is loaded into: one more whenever parameters are named or ordered in another way, or
optimisers keep other things."""


Booked = Stage | Literal["maps", "shared maps"]
"""What device-hours are booked under: stages, what a trial spent on the reference's maps, and what these took whoever
made them."""


class Stateful(Protocol):
    """Whatever changes during training: networks, optimisers, loss scalers, averages of weights."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a stage has come."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the epoch that follows."""
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """This worker's terms, float32, summed over these steps."""
    seconds: float = 0.0
    """Spent on these steps, in all attempts."""
    means: Mapping[str, float] = field(default_factory=dict)
    """What was reported of the last finished epoch."""


class Checkpoint:
    """The files of a trial, or of a reference: read by every worker, written by rank 0.

    Holds one stage: how far it is, all that training changes, and every worker's generators, with the time spent in
    every stage so far and, once they are known, the choices and the policy. A file that is damaged, or of another
    format, counts as none: training goes on from the one before it, or begins anew, and is computed again from there.
    """

    def __init__(self, path: Path | None, workers: Workers) -> None:
        """Without a `path` nothing is kept."""
        self._path, self._workers = path, workers
        self._kept: dict[str, Any] = {}
        self._whole = False
        """Whether the newest file is one that can be gone on from; else it is not worth keeping."""
        self._is_other = False
        """Whether what the files hold is of another policy, the one before the newest, too."""
        if path:
            self._kept, self._whole = _read(path, tells=workers.rank == 0)
        self._seconds: dict[str, float] = dict(self._kept.get("seconds", {}))
        self._began = time.perf_counter()
        self._stage: Booked | Literal[""] = ""
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

    def watch(self, stage: Booked) -> None:
        """From now on the clock runs for `stage`."""
        self.stop()
        self._stage = stage

    def stop(self) -> None:
        """The clock stands."""
        now = time.perf_counter()
        if self._stage:
            # Of all workers: the next attempt may have another number of them.
            spent = (now - self._began) * self._workers.size
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + spent
        self._began, self._stage = now, ""

    @contextmanager
    def apart(self, what: Booked) -> Iterator[None]:
        """Meanwhile the clock runs for `what`."""
        before = self._stage
        self.watch(what)
        try:
            yield
        finally:
            self.stop()
            self._stage = before

    def book(self, what: Booked, hours: float) -> None:
        """Device-hours that were spent elsewhere; in place of those that were booked before."""
        self._seconds[what] = hours * 3600

    def hours(self, stage: Booked) -> float:
        """Device-hours of all workers in `stage`; of attempts that were cut off up to what they had last kept."""
        return self._seconds.get(stage, 0.0) / 3600

    def emptied(self) -> Checkpoint:
        """The same file as if nothing were in it; it is written over by what is kept first."""
        fresh = Checkpoint(None, self._workers)
        fresh._path, fresh._is_other = self._path, True
        return fresh

    def remove(self) -> None:
        """The result is safe; nothing has to be gone on with."""
        if self._path and self._workers.rank == 0:
            for path in checkpoint_files(self._path):
                path.unlink(missing_ok=True)

    def _restore(self, stage: Stage, parts: Mapping[str, Stateful]) -> Position:
        kept, self._kept = self._kept, {}
        # Other parts are those of other settings.
        if kept.get("stage") != stage or kept["parts"].keys() != parts.keys():
            return Position()
        for name, part in parts.items():
            part.load_state_dict(kept["parts"][name])
        ours = self._workers.rank % len(kept["generators"])
        torch.set_rng_state(kept["generators"][ours])
        if "device_generators" in kept and self._workers.device.type == "cuda":
            torch.cuda.set_rng_state(kept["device_generators"][ours], self._workers.device)
        return Position(**{**kept["position"], "sums": self._own_sums(kept["sums"])})

    def _own_sums(self, kept: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """This worker's; where there were more workers or fewer before, each goes on with the mean of theirs."""
        size, rank = self._workers.size, self._workers.rank
        own = {name: each[rank] if len(each) == size else torch.stack(each).mean(0) for name, each in kept.items()}
        return {name: total.to(self._workers.device) for name, total in own.items()}

    def _save(self, stage: Stage, parts: Mapping[str, Stateful], position: Position) -> None:
        """Called by all workers at once."""
        if self._path is None:
            return
        gathered = self._workers.gathered
        generators = gathered(torch.get_rng_state())
        sums = {name: gathered(total) for name, total in position.sums.items()}
        cuda = self._workers.device.type == "cuda"
        on_devices = gathered(torch.cuda.get_rng_state(self._workers.device)) if cuda else []
        if self._workers.rank != 0:
            return
        running = self._stage
        self.stop()
        self._stage = running
        content: dict[str, Any] = {
            "format": FORMAT,
            "stage": stage,
            "position": {name: getattr(position, name) for name in ("epoch", "step", "seconds")}
            | {"means": dict(position.means)},
            "sums": sums,
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "generators": generators,
            "seconds": self._seconds,
            "policy": {"network": self.policy.network, "layers": self.policy.layers} if self.policy else None,
            "choices": self.choices.to_content() if self.choices else None,
        }
        if cuda:
            content["device_generators"] = on_devices
        newest, before = checkpoint_files(self._path)
        old = before if self._whole else None
        if self._is_other:
            patiently(lambda: before.unlink(missing_ok=True), newest.parent)
        patiently(lambda: replace_tensors(content, newest, old=old), newest.parent)
        self._whole, self._is_other = True, False


@dataclass(frozen=True, slots=True)
class StageCheckpoint:
    """What the training loop needs of a checkpoint."""

    _checkpoint: Checkpoint
    _stage: Stage
    _net: nn.Module

    def restore(self, parts: Mapping[str, Stateful]) -> Position:
        """How far this stage has come; network, `parts` and generators are as they were then."""
        return self._checkpoint._restore(self._stage, {"net": self._net, **parts})

    def save(self, parts: Mapping[str, Stateful], position: Position) -> None:
        """Keeps the state at `position`, which is the same on all workers."""
        self._checkpoint._save(self._stage, {"net": self._net, **parts}, position)


def _read(newest: Path, *, tells: bool) -> tuple[dict[str, Any], bool]:
    """What training goes on from, empty where there is nothing, and whether that is the newest file."""
    for path in checkpoint_files(newest):
        kept = _read_one(path, tells=tells)
        if kept:
            if tells and path != newest:
                log.warning(
                    "%s: gone on with instead, after %s epoch %d", path, kept["stage"], kept["position"]["epoch"]
                )
            return kept, path == newest
    return {}, False


def _read_one(path: Path, *, tells: bool) -> dict[str, Any]:
    try:
        kept = patiently(lambda: read_tensors(path), path.parent)
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        if tells:
            log.warning("%s It is not gone on with.", error)
        return {}
    return kept if isinstance(kept, dict) and kept.get("format") == FORMAT else {}
