"""One step of training: the gradients of a batch, in parts, from several workers, then the optimisers.

Notation: a batch of G images over W workers, of which this one has n; its share is cut into parts of n_p images each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainables.averaging import AveragedWeights
from trainables.checkpoint import Stateful
from trainables.distributed import Workers
from trainables.errors import ConfigError
from trainables.method_config import Precision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Images(Protocol):
    """A named tuple of images with their labels; tensors and lists in it have an entry for each image."""

    @property
    def labels(self) -> Any: ...
    def to(self, device: torch.device) -> Any: ...


B = TypeVar("B", bound=Images)
B_co = TypeVar("B_co", bound=Images, covariant=True)
StepTerms = Callable[[B], Mapping[str, Tensor]]
"""Batch -> scalars of a step; the one named `loss` is minimised, all are averaged over the epoch."""
Passes = StepTerms[B] | Sequence[StepTerms[B]]
"""Several are passes over the same batch, whose losses are added up: each goes backward before the next one begins."""


class Batches(Protocol[B_co]):
    """Batches with their number, which a schedule needs beforehand."""

    def __iter__(self) -> Iterator[B_co]: ...
    def __len__(self) -> int: ...
    def after(self, steps: int) -> Iterator[B_co]:
        """Those that follow the first `steps`, without these being made."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan(Generic[B]):
    """How long, and with which steps."""

    epochs: int
    batch_size: int
    """Images of a step, over all workers."""
    batches: Callable[[int], Batches[B]]
    """This worker's shares of the training batches of an epoch (from 0)."""
    optimizers: Sequence[Optimizer]
    lr_factor: Callable[[float], float]
    """Multiplies every learning rate; of the progress in epochs (0 ≤ progress < epochs)."""
    accumulate: int = 1
    """Parts into which a worker's share is cut."""
    grad_clip: float = 0.0
    """Longest gradient, L2 norm over all parameters; 0: any."""
    precision: Precision = "none"
    """Of the forward pass, where autocasting allows it."""
    average: AveragedWeights | None = None
    checkpoint_every: int = 0
    """Steps between checkpoints within an epoch; 0: none."""


class Step(Generic[B]):
    """Does steps of one training."""

    def __init__(self, model: nn.Module, plan: TrainingPlan[B], step_terms: Passes[B], workers: Workers) -> None:
        """`model` as the workers wrap it. Each pass has to use all of its parameters."""
        self._model, self._plan, self._workers = model, plan, workers
        self._passes = [step_terms] if callable(step_terms) else list(step_terms)
        self._scaler = torch.amp.GradScaler(workers.device.type, enabled=plan.precision == "fp16")
        self._parameters = [p for o in plan.optimizers for group in o.param_groups for p in group["params"]]

    @property
    def parts(self) -> dict[str, Stateful]:
        """All that steps change besides the network."""
        found: dict[str, Stateful] = {f"optimizer {n}": o for n, o in enumerate(self._plan.optimizers)}
        if self._plan.precision == "fp16":
            found["scaler"] = self._scaler
        if self._plan.average:
            found["average"] = self._plan.average
        return found

    def __call__(self, batch: B) -> dict[str, Tensor]:
        """Trains on this worker's share of a batch; its terms, weighed so that their mean over workers is the batch's.

            g = (1/W) Σ_workers Σ_p (n_p·W/G)·∇loss_p

        which is the gradient of the mean over all G images, however uneven the parts are. Only what batch normalisation
        sees is another: each part's own statistics.
        """
        for optimizer in self._plan.optimizers:
            optimizer.zero_grad(set_to_none=True)
        rounds, sums = list(product(_parts(batch, self._plan.accumulate), self._passes)), dict[str, Tensor]()
        for number, (part, step_terms) in enumerate(rounds, 1):
            weight = len(part.labels) * self._workers.size / self._plan.batch_size
            with self._together(last=number == len(rounds)):
                with self._autocast():
                    terms = step_terms(part)
                # A whole share of one keeps its bits.
                weighed = terms if weight == 1 else {name: weight * term for name, term in terms.items()}
                self._scaler.scale(weighed["loss"]).backward()
            for name, term in weighed.items():
                value = term.detach().float()
                sums[name] = value + sums[name] if name in sums else value
        self._apply()
        return sums

    def _apply(self) -> None:
        plan = self._plan
        if plan.grad_clip:
            for optimizer in plan.optimizers:
                self._scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(self._parameters, plan.grad_clip)
            if self._scaler.is_enabled() and not bool(norm.isfinite()):
                # One overflow clips all gradients to nothing, of which an optimiser with finite ones would not know.
                self._scaler.update()
                return
        for optimizer in plan.optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        if plan.average:
            plan.average.update(self._bare)

    @property
    def _bare(self) -> nn.Module:
        model = self._model
        return model.module if isinstance(model, DistributedDataParallel) else model

    def _together(self, *, last: bool) -> AbstractContextManager[None]:
        """Workers tell each other their gradients once, when those of all parts and passes are added up."""
        model = self._model
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._plan.precision == "none":
            return nullcontext()
        return torch.autocast(self._workers.device.type, dtype=_DTYPES[self._plan.precision])


def memory_layout(*, channels_last: bool) -> torch.memory_format:
    """Of images, and of the weights that meet them."""
    return torch.channels_last if channels_last else torch.contiguous_format


def has_precision(precision: Precision, device: torch.device) -> bool:
    """Whether steps on `device` can have it."""
    if device.type != "cuda":
        return precision != "fp16"
    with torch.cuda.device(device):
        # Emulated it would be slower than float32.
        return precision != "bf16" or torch.cuda.is_bf16_supported(including_emulation=False)


def nearest_precision(precision: Precision, device: torch.device) -> Precision:
    """For steps that are only timed, on a machine that may not be the one that trains: none where it is not there."""
    return precision if has_precision(precision, device) else "none"


def check_precision(setting: str, precision: Precision, device: torch.device) -> None:
    """Raises ConfigError for one that `device` does not have; `setting` is what asks for it, such as finetune.amp."""
    if has_precision(precision, device):
        return
    if precision == "fp16":
        raise ConfigError(
            f"{setting} is fp16, which scales losses on a GPU, but there is none here; give bf16 or none, or "
            "resources.gpus_per_worker."
        )
    raise ConfigError(f"{setting} is bf16, which {torch.cuda.get_device_name(device)} lacks; give fp16 or none.")


def _parts(batch: B, count: int) -> list[B]:
    """The batch in as many parts of nearly equal size as it has images for, at most `count`."""
    size = len(batch.labels)
    ends = [size * n // min(count, size) for n in range(min(count, size) + 1)]
    if len(ends) == 2:
        return [batch]
    return [_cut(batch, slice(*pair)) for pair in pairwise(ends)]


def _cut(batch: Any, part: slice) -> Any:
    entries = batch._asdict().items()
    return batch._replace(**{name: value[part] for name, value in entries if isinstance(value, Tensor | list)})
