"""Settings of the methods that choose bits: one class each, in `METHOD_CONFIGS` by the name that a YAML gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from trainables.checked import STRICT, check_not_negative, check_positive
from trainables.errors import ConfigError
from trainables.finetune_config import DeployedQuantizer

QuantizerName = Literal["pact", "hwgq", "lsq", "daq"]
Resolution = Literal["native", "input"]
Concavity = Literal["sqrt", "linear", "square"]
Form = Literal["paper", "release"]
TargetClass = Literal["label", "argmax"]
Imitation = Literal["capacity", "dynamic"]
Solver = Literal["exact", "greedy"]
Precision = Literal["none", "bf16", "fp16"]
ADDED_LATER: dict[str, Any] = {"amp": "none", "channels_last": False}
"""Settings that searches once did not have, with what these did; they are named only where they say something else."""

MAX_LEVELS = 12
"""Of a partition: with more, the coarsest map is a single pixel at any size of images."""
WITHOUT_ONE_BIT: tuple[DeployedQuantizer, ...] = ("pact", "lsq")
"""Quantisers that have no 1-bit weights."""
BOPS_LIMITS = ("bops_g", "bops_paper_g", "compression")
"""Limits of a budget that name bit operations."""


def check_top_k(where: str, top_k: int) -> None:
    """Raises ConfigError for too few pixels."""
    if top_k < 2:
        raise ConfigError(f"{where}.top_k is {top_k}; a rank needs at least 2 pixels.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthsConfig:
    """What every method has: the widths that it chooses from."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    needs: ClassVar[tuple[str, ...] | None] = None
    """Limits of a budget one of which it needs, () for any; None: it chooses without one as well."""
    epochs_setting: ClassVar[str] = ""
    """The setting that is the number of epochs that its search reports; empty where it reports none."""

    weight_bits: tuple[int, ...] = (2, 3, 4)
    """Widths offered to weights."""
    act_bits: tuple[int, ...] = (2, 3, 4)
    """Widths offered to activations."""

    def __post_init__(self) -> None:
        for name, bits in (("weight_bits", self.weight_bits), ("act_bits", self.act_bits)):
            if not bits or len(set(bits)) != len(bits) or not all(1 <= b <= 8 for b in bits):
                raise ConfigError(f"method.{name} is {list(bits)}; give different widths from 1 to 8 bits.")

    @property
    def search_epochs(self) -> int:
        """Epochs that the search reports; 0 where it reports none."""
        return int(getattr(self, self.epochs_setting)) if self.epochs_setting else 0


def check_one_bit(where: str, quantizer: DeployedQuantizer, weight_bits: tuple[int, ...]) -> None:
    """Raises ConfigError where the quantiser has no 1-bit weights, and they are offered."""
    if quantizer in WITHOUT_ONE_BIT and 1 in weight_bits:
        reason = (
            "its step T/(2^(b-1)-1) divides by zero"
            if quantizer == "pact"
            else "its codes -1 and 0 have no positive one"
        )
        raise ConfigError(
            f"{where}: {quantizer!r} has no 1-bit weights ({reason}); start at 2 bits or use 'hwgq' or 'daq'."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetConfig(WidthsConfig):
    """What every search on the supernet shares. Defaults are the GMPQ release's (batch 256, 25 epochs)."""

    epochs_setting: ClassVar[str] = "epochs"

    zeta: float
    """Weight of the complexity risk (eq. 6-7); 1 means the uniform start's expected BOPs weigh as much as one nat."""
    quantizer: QuantizerName
    """Quantiser of the supernet's branches."""
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
    amp: Precision = "none"
    """Precision of the forward pass where autocasting allows less than float32; `fp16` scales the loss."""
    channels_last: bool = False
    """Memory layout in which GPUs convolve faster."""

    def __post_init__(self) -> None:
        # Zero-argument super() does not work in a dataclass with slots: the class is made anew.
        WidthsConfig.__post_init__(self)
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
        check_one_bit("method.weight_bits", self.quantizer, self.weight_bits)


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
        SupernetConfig.__post_init__(self)
        check_not_negative("method", eta=self.eta)
        check_positive("method", capacity=self.capacity)
        check_not_negative("method", p=self.p)
        check_top_k("method", self.top_k)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class BpnasConfig(EdmipsConfig):
    """EdMIPS with a barrier at the budget in place of the complexity risk, the idea of BP-NAS (Yu et al. 2020)."""

    needs: ClassVar[tuple[str, ...] | None] = ()

    zeta: float = 0.0
    """Weight of the complexity risk, which the barrier takes the place of."""
    barrier: float = 0.03
    """Weight of the barrier against expected costs beyond the budget; above 0. Its slope is 10 times its weight where a
    tenth of the limit is free, and 20 times at the limit; further below it still presses, as a logarithm does."""

    def __post_init__(self) -> None:
        EdmipsConfig.__post_init__(self)
        check_positive("method", barrier=self.barrier)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployedConfig(WidthsConfig):
    """What methods share that train no supernet: the quantiser of what they choose bits for."""

    quantizer: DeployedQuantizer = "pact"
    """Of the deployed network, where `finetune.quantizer` names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformConfig(DeployedConfig):
    """The same bits in every searched layer: of those that keep the budget the costliest, weights and activations as
    equal as can be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomConfig(DeployedConfig):
    """A random policy that takes 97 to 100 % of the budget's BOPs, each of those as likely as every other."""

    needs: ClassVar[tuple[str, ...] | None] = BOPS_LIMITS

    draw: int = 0
    """Number of the drawn policy: another for every number and every seed."""

    def __post_init__(self) -> None:
        DeployedConfig.__post_init__(self)
        check_not_negative("method", draw=self.draw)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlackboxConfig(DeployedConfig):
    """A black-box search of the bits by Optuna's estimator: a stand-in for HAQ (Wang et al. 2019), and not HAQ, whose
    agent is trained by reinforcement learning."""

    needs: ClassVar[tuple[str, ...] | None] = ()
    epochs_setting: ClassVar[str] = "evaluations"

    evaluations: int = 64
    """Policies that are tried; each is quantised, tuned and scored."""
    tune_steps: int = 20
    """Training steps of a policy before it is scored; 0: its quantisers are calibrated, and that is all."""
    batch_size: int = 64
    """Images of a step, and of a pass when it is scored, over all workers."""
    lr: float = 0.001
    """Of the tuning steps: Adam."""
    images: int = 512
    """Training images, held out from the tuning, on which a policy is scored: about so many, at least one of each
    class."""

    def __post_init__(self) -> None:
        DeployedConfig.__post_init__(self)
        check_positive(
            "method", evaluations=self.evaluations, batch_size=self.batch_size, lr=self.lr, images=self.images
        )
        check_not_negative("method", tune_steps=self.tune_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class LimpqConfig(DeployedConfig):
    """LIMPQ (Tang et al. 2022): learned step sizes as indicators, from one joint training; then exact allocation.

    Defaults are the authors' settings for ResNet18, but for the widths, which are those of the other methods (they: 2
    to 6 bits).
    """

    needs: ClassVar[tuple[str, ...] | None] = ()
    epochs_setting: ClassVar[str] = "epochs"

    quantizer: DeployedQuantizer = "lsq"
    """Of the deployed network, where `finetune.quantizer` names none; indicators are always LSQ's steps."""
    epochs: int = 5
    """Of the joint training of all indicators."""
    fraction: float = 0.5
    """Share of an epoch's batches that is used."""
    batch_size: int = 256
    """Images per step, over all workers."""
    lr: float = 0.01
    """Of weights and indicators: SGD with momentum, cosine to zero."""
    momentum: float = 0.9
    weight_decay: float = 2.5e-5
    """Of the weights; indicators have none."""
    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes."""
    alpha: float = 2.0
    """Weight of the weights' indicators beside those of the activations."""
    amp: Precision = "none"
    """Precision of the forward passes where autocasting allows less than float32; `fp16` scales the loss."""
    channels_last: bool = False
    """Memory layout in which GPUs convolve faster."""

    def __post_init__(self) -> None:
        DeployedConfig.__post_init__(self)
        check_positive("method", epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, alpha=self.alpha)
        check_not_negative("method", momentum=self.momentum, weight_decay=self.weight_decay)
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"method.fraction is {self.fraction}; give a share above 0 and up to 1.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"method.label_smoothing is {self.label_smoothing}; give a share from 0 to below 1.")
        check_one_bit("method.weight_bits", "lsq", self.weight_bits)

    def steps(self, batches: int) -> int:
        """Steps of an epoch that has so many batches in all."""
        return max(1, round(self.fraction * batches))


@dataclass(frozen=True, kw_only=True, slots=True)
class SensitivityConfig(DeployedConfig):
    """What MPQCO and HAWQ share: the loss that each width of each layer's weights would cost, without training.

    Activations have one width for all layers: of those that a budget leaves the one whose network has the least loss.
    """

    needs: ClassVar[tuple[str, ...] | None] = ()

    images: int = 256
    """Training images that the loss is taken of."""
    batch_size: int = 32
    """Images of a pass, over all workers."""
    rounding: Literal["minmax", "mse"] = "mse"
    """Range of the weights that are rounded: their own, or the one of least squared error."""
    solver: Solver = "exact"
    """`greedy`: upgrades along each layer's lower convex hull, best loss for its cost first."""

    def __post_init__(self) -> None:
        DeployedConfig.__post_init__(self)
        check_positive("method", images=self.images, batch_size=self.batch_size)

    @property
    def passes(self) -> int:
        """Over the images, of a batch each."""
        return math.ceil(self.images / self.batch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class MpqcoConfig(SensitivityConfig):
    """MPQCO (Chen, Wang and Cheng 2021): loss from per-sample gradients, for all widths in one backward of an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HawqConfig(SensitivityConfig):
    """HAWQ-V2's allocation (Dong et al. 2020): a layer's mean Hessian eigenvalue by Hutchinson's estimate, times the
    squared change of its weights."""

    probes: int = 32
    """Random vectors of the trace's estimate."""

    def __post_init__(self) -> None:
        SensitivityConfig.__post_init__(self)
        check_positive("method", probes=self.probes)


MethodConfig = (
    GmpqConfig
    | RgmpqConfig
    | EdmipsConfig
    | BpnasConfig
    | UniformConfig
    | RandomConfig
    | BlackboxConfig
    | LimpqConfig
    | MpqcoConfig
    | HawqConfig
)
METHOD_CONFIGS: dict[str, type[MethodConfig]] = {
    "gmpq": GmpqConfig,
    "rgmpq": RgmpqConfig,
    "edmips": EdmipsConfig,
    "bpnas": BpnasConfig,
    "uniform": UniformConfig,
    "random": RandomConfig,
    "blackbox": BlackboxConfig,
    "limpq": LimpqConfig,
    "mpqco": MpqcoConfig,
    "hawq": HawqConfig,
}


def method_name(config: MethodConfig) -> str:
    """The registry key of a method's settings."""
    return next(name for name, cls in METHOD_CONFIGS.items() if type(config) is cls)
