"""Settings of a trial: frozen, torch-free, checked where they are made.

The YAML of a sweep is read straight into these classes, so that a field is written once: its name, its type,
its unit (in the text below it) and its limits (in `__post_init__`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any, ClassVar, Literal

from trainables.checked import STRICT, check_not_negative, check_positive
from trainables.errors import ConfigError, InfeasibleBudgetError
from trainables.finetune_config import DeployedQuantizer, FinetuneConfig
from trainables.method_config import MethodConfig, Resolution, SupernetConfig, check_one_bit, check_top_k, method_name

Augment = Literal["none", "flip", "crop-flip", "resized-crop-flip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """The network whose bits are searched."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    """A network of `trainables.models`, or `module:function` of a user's own."""
    stem_bits: int = 8
    """Weight and activation bits of the first convolution on deployment; float during search."""
    head_bits: int = 8
    """Weight and activation bits of the classifier on deployment; float during search."""
    pinned: Mapping[str, int] = field(default_factory=dict)
    """Glob pattern of layer names -> weight and activation bits; these layers leave the search."""
    tie_residuals: bool = False
    """Activations that are added to each other share their bits; those read by several layers always do."""

    def __post_init__(self) -> None:
        patterns = [(f"pinned: {pattern!r}", bits) for pattern, bits in self.pinned.items()]
        for where, bits in (("stem_bits", self.stem_bits), ("head_bits", self.head_bits), *patterns):
            if not 2 <= bits <= 16:
                raise ConfigError(f"network.{where} is {bits}; give 2 to 16 bits.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The small data set of the search. Images become RGB squares; grey ones are repeated."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    """A data set of `trainables.data`, or `module:function` of a user's own."""
    image_size: int
    """Side of the images given to the network, pixels."""
    root: str = ""
    """Folder of the data set; empty for one that is embedded or has a system-wide place."""
    download: bool = False
    """Fetch into `root` what torchvision can fetch, where the network allows it."""
    augment: Augment = "none"
    """Random changes of training images."""
    fraction: float = 1.0
    """Share of the training images that is used, stratified by class and seeded."""
    loader_workers: int = 0
    """Processes that decode images; 0 decodes in the trial's own process."""

    def __post_init__(self) -> None:
        check_positive("data", image_size=self.image_size)
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"data.fraction is {self.fraction}; give a share above 0 and up to 1.")
        check_not_negative("data", loader_workers=self.loader_workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """Recipe of the full-precision reference: SGD with momentum, cosine to zero."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    epochs: int
    """0 takes the `weights` as they are."""
    weights: str = ""
    """Where its float weights start: empty for fresh ones, `torchvision` for those that torchvision publishes, or a
    file of a state dict (.pt, .pth, .safetensors)."""
    batch_size: int = 64
    """Images per step, over all workers."""
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive("reference", batch_size=self.batch_size, lr=self.lr)
        check_not_negative("reference", epochs=self.epochs)
        if not self.epochs and not self.weights:
            raise ConfigError("reference.epochs is 0, which leaves fresh weights untrained; give epochs, or weights.")
        check_not_negative("reference", momentum=self.momentum, weight_decay=self.weight_decay, seed=self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """What a policy may cost. Of the bits that keep every limit those of the highest score are taken, found exactly."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    bops_g: float = 0.0
    """Bit operations at most, G, pinned layers included; 0, here and below: no limit."""
    bops_paper_g: float = 0.0
    """Bit operations at most as the paper counts them, G."""
    compression: float = 0.0
    """Times fewer bit operations than in full precision, at least."""
    storage_mb: float = 0.0
    """Weights at most, 10^6 bytes."""
    mean_weight_bits: float = 0.0
    """Bits of a weight at most, mean over all weights of convolutions and linear layers."""
    mean_act_bits: float = 0.0
    """Bits of an activation at most, mean over all that convolutions and linear layers read."""

    def __post_init__(self) -> None:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        check_not_negative("budget", **values)
        for name, value in values.items():
            if math.isinf(value):
                raise ConfigError(f"budget.{name} is {value}; give a finite number, or 0 for no limit.")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by the name of the cost."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value}

    def broken(self, costs: Mapping[str, float]) -> list[str]:
        """The limits that these costs break; the cost as reported counts, and an equal one is kept."""
        return [
            name
            for name, limit in self.limits.items()
            if (costs[name] < limit if name in AT_LEAST else costs[name] > limit)
        ]

    def check_floor(self, costs: Mapping[str, float]) -> None:
        """Raises InfeasibleBudgetError for limits that the costs of the smallest widths break."""
        problems = {name: _infeasible(name, self.limits[name], costs[name]) for name in self.broken(costs)}
        if problems:
            raise InfeasibleBudgetError(problems)


AT_LEAST = ("compression",)
"""Costs of which a budget names the least; of the others it names the most."""


def named_floor(name: str, reached: float) -> str:
    """What the smallest widths reach, in four digits, rounded so that the number that is named can be kept."""
    context = Context(prec=4, rounding=ROUND_FLOOR if name in AT_LEAST else ROUND_CEILING)
    return f"{context.create_decimal(repr(reached)).normalize():f}"


def _infeasible(name: str, limit: float, reached: float) -> str:
    floor = named_floor(name, reached)
    return (
        f"budget.{name} is {limit:g}, but with the smallest widths everywhere {name} is still {floor}: give "
        f"{'at most' if name in AT_LEAST else 'at least'} {floor}, offer smaller widths (method.weight_bits, "
        f"method.act_bits) or pin fewer layers and to fewer bits (network)."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How the ARD of a finished policy is measured: equal for all trials of a sweep, whatever they searched with."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    batch_size: int = 256
    """Images per pass, over all workers."""
    top_k: int = 500
    """Pixels that the reference ranks highest; maps with fewer pixels keep all."""
    resolution: Resolution = "native"
    """Maps as the network makes them, or upsampled bilinearly to the image's size."""

    def __post_init__(self) -> None:
        check_positive("evaluation", batch_size=self.batch_size)
        check_top_k("evaluation", self.top_k)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """All that the finetune of a policy and its measures depend on, besides policy and machine."""

    network: NetworkConfig
    data: DataConfig
    reference: ReferenceConfig
    finetune: FinetuneConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    images: int = 0
    """Validation images of which the result has attribution maps, for people to look at; no other number depends on
    it."""

    @property
    def quantizer(self) -> DeployedQuantizer:
        """Of the deployed network."""
        return self.finetune.named_quantizer

    @property
    def reference_key(self) -> str:
        """Name of the reference that this needs: equal for equal network, data and recipe."""
        reference = dataclasses.asdict(self.reference)
        if not self.reference.weights:
            del reference["weights"]
        content = [
            self.network.name,
            {k: v for k, v in dataclasses.asdict(self.data).items() if k not in ("download", "loader_workers")},
            reference,
        ]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        names = re.sub(r"[^A-Za-z0-9._-]", "-", f"{self.network.name}-{self.data.name}")
        return f"{names}-{digest[:12]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig(BenchConfig):
    """All that a trial's result depends on, besides the machine."""

    method: MethodConfig
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        method, limits = self.method, self.budget.limits
        if method.needs is not None and not (set(limits) & set(method.needs) if method.needs else limits):
            named = f"one of {', '.join(method.needs)}" if method.needs else "a limit, such as bops_g"
            raise ConfigError(
                f"budget: {method_name(method)} chooses bits for a budget, and there is none; give {named}."
            )
        if isinstance(method, SupernetConfig) and method.barrier and not limits:
            raise ConfigError(
                f"method.barrier is {method.barrier:g}, but there is no budget that it could stand at; "
                f"set a limit under budget, or leave the barrier out."
            )
        check_one_bit("finetune.quantizer", self.quantizer, method.weight_bits)

    @property
    def quantizer(self) -> DeployedQuantizer:
        """See `BenchConfig`."""
        return self.method.quantizer if self.finetune.quantizer == "searched" else self.finetune.quantizer
