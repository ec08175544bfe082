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

QuantizerName = Literal["pact", "hwgq"]
Resolution = Literal["native", "input"]
Augment = Literal["none", "flip", "crop-flip", "resized-crop-flip"]
Concavity = Literal["sqrt", "linear", "square"]
Form = Literal["paper", "release"]
TargetClass = Literal["label", "argmax"]
Imitation = Literal["capacity", "dynamic"]

MAX_LEVELS = 12
"""Of a partition: with more, the coarsest map is a single pixel at any size of images."""


def _check_top_k(where: str, top_k: int) -> None:
    if top_k < 2:
        raise ConfigError(f"{where}.top_k is {top_k}; a rank needs at least 2 pixels.")


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
class SupernetConfig:
    """What every search on the supernet shares. Defaults are the GMPQ release's (batch 256, 25 epochs)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    zeta: float
    """Weight of the complexity risk (eq. 6-7); 1 means the uniform start's expected BOPs weigh as much as one nat."""
    quantizer: QuantizerName
    """Quantiser of the supernet's branches."""
    weight_bits: tuple[int, ...] = (2, 3, 4)
    """Widths offered to weights."""
    act_bits: tuple[int, ...] = (2, 3, 4)
    """Widths offered to activations."""
    epochs: int = 25
    batch_size: int = 256
    """Images per step, over all workers."""
    weight_lr: float = 0.1
    bit_lr: float = 0.01
    """Learning rate of the bit logits."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    lr_decay_every: int = 10
    """Epochs after which both learning rates are multiplied by 0.1, again and again."""
    start: Literal["reference", "scratch"] = "reference"
    """Float weights at the start of the search."""
    barrier: float = 0.0
    """Weight of a barrier against expected costs beyond the budget; 0: none, the budget is kept by allocation alone."""

    def __post_init__(self) -> None:
        check_positive(
            "method",
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_lr=self.weight_lr,
            bit_lr=self.bit_lr,
            lr_decay_every=self.lr_decay_every,
        )
        check_not_negative(
            "method",
            zeta=self.zeta,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            barrier=self.barrier,
        )
        for name, bits in (("weight_bits", self.weight_bits), ("act_bits", self.act_bits)):
            if not bits or len(set(bits)) != len(bits) or not all(1 <= b <= 8 for b in bits):
                raise ConfigError(f"method.{name} is {list(bits)}; give different widths from 1 to 8 bits.")
        if self.quantizer == "pact" and 1 in self.weight_bits:
            raise ConfigError(
                "method.weight_bits: 'pact' has no 1-bit weights (its step T/(2^(b-1)-1) divides by zero); "
                "start at 2 bits or use 'hwgq'."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GmpqConfig(SupernetConfig):
    """GMPQ: task + zeta·complexity + eta·generalisation risk (eqs 6-10)."""

    eta: float
    """Weight of the generalisation risk (eq. 6)."""
    capacity: float = 24.0
    """Q_w0·Q_a0 of eq. 10, bits squared; only the product matters."""
    top_k: int = 500
    """Pixels that the reference ranks highest and that are compared; maps with fewer pixels keep all."""
    resolution: Resolution = "native"
    """Maps are compared as the network makes them, or upsampled bilinearly to the image's size."""
    p: float = 0.0
    """Concentration of the target map (eq. 9); 0: from the capacity (eq. 10)."""
    concavity: Concavity = "linear"
    """How concentration follows the capacity: eq. 10, or one of eq. 16."""
    form: Form = "paper"
    """`paper`: sum of squares of maps that sum to 1 (eq. 9); `release`: mean of squares of maps of unit length."""
    target_class: TargetClass = "label"
    """Class whose attribution is compared: the label's, or the one that each network believes in."""
    quantizer: QuantizerName = "pact"

    def __post_init__(self) -> None:
        # Zero-argument super() does not work in a dataclass with slots: the class is made anew.
        SupernetConfig.__post_init__(self)
        check_not_negative("method", eta=self.eta)
        check_positive("method", capacity=self.capacity)
        check_not_negative("method", p=self.p)
        _check_top_k("method", self.top_k)


@dataclass(frozen=True, kw_only=True, slots=True)
class RgmpqConfig(GmpqConfig):
    """R-GMPQ: GMPQ with attribution smoothed over a hierarchical partition (eqs 11-13) and DCAI (eq. 14)."""

    resolution: Resolution = "input"
    levels: int = 3
    """Levels of the partition, coarse to fine; 0: maps are not smoothed."""
    ratio: int = 2
    """How many times narrower and lower the maps of a level are than those of the next."""
    gamma: float = 0.05
    """Pixels join whose activations differ by at most gamma standard deviations of the pixels' norms."""
    imitation: Imitation = "dynamic"
    """Concentration of the target: `dynamic`, each image's ratio of task risks (eq. 14); `capacity`, as GMPQ has it."""

    def __post_init__(self) -> None:
        GmpqConfig.__post_init__(self)
        check_not_negative("method", levels=self.levels, gamma=self.gamma)
        if self.levels > MAX_LEVELS:
            raise ConfigError(f"method.levels is {self.levels}; give at most {MAX_LEVELS}.")
        if self.ratio < 2:
            raise ConfigError(f"method.ratio is {self.ratio}; give at least 2.")


@dataclass(frozen=True, kw_only=True, slots=True)
class EdmipsConfig(SupernetConfig):
    """EdMIPS (Cai and Vasconcelos 2020): the same search without the generalisation risk."""

    quantizer: QuantizerName = "hwgq"


MethodConfig = GmpqConfig | RgmpqConfig | EdmipsConfig
METHOD_CONFIGS: dict[str, type[GmpqConfig] | type[RgmpqConfig] | type[EdmipsConfig]] = {
    "gmpq": GmpqConfig,
    "rgmpq": RgmpqConfig,
    "edmips": EdmipsConfig,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """What a policy may cost. The bits are then the most probable ones that keep every limit, found exactly."""

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
        _check_top_k("evaluation", self.top_k)


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
        if self.method.barrier and not self.budget.limits:
            raise ConfigError(
                f"method.barrier is {self.method.barrier:g}, but there is no budget that it could stand at; "
                f"set a limit under budget, or leave the barrier out."
            )

    @property
    def quantizer(self) -> DeployedQuantizer:
        """Of the deployed network."""
        return self.method.quantizer if self.finetune.quantizer == "searched" else self.finetune.quantizer


def method_name(config: MethodConfig) -> str:
    """The registry key of a method's settings."""
    return next(name for name, cls in METHOD_CONFIGS.items() if type(config) is cls)
