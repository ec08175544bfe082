"""Settings of a finetune: the short one that ends each trial of a sweep, and the long one of a promoted policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from trainables.checked import STRICT, check_not_negative, check_positive
from trainables.errors import ConfigError

DeployedQuantizer = Literal["pact", "hwgq", "lsq", "daq"]
"""Quantisers of a deployed network: those of the supernets, and those that only learn at fixed bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Finetune of a policy's quantised network. Defaults are the paper's: Adam, ×0.1 at half and three quarters."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    epochs: int
    batch_size: int = 256
    """Images per step, over all workers."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """`sgd` has Nesterov's momentum."""
    lr: float = 1e-3
    momentum: float = 0.9
    """Of `sgd`."""
    weight_decay: float = 0.0
    schedule: Literal["steps", "cosine"] = "steps"
    """`steps`: ×0.1 at each of `lr_steps`; `cosine`: half a cosine to zero."""
    lr_steps: tuple[float, ...] = (0.5, 0.75)
    """Shares of the epochs after which `steps` multiplies the learning rates by 0.1: 20 and 30 of 40 in the paper."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rates rise from zero."""
    quantizer: Literal["searched", "pact", "hwgq", "lsq", "daq"] = "searched"
    """Of weights and activations; `searched`: the one that the policy was searched with."""
    quantizer_lr: float = 0.0
    """Learning rate of the quantisers' own parameters (clips, steps, intervals), which Adam then trains apart from the
    weights, without decay; 0: they are trained as all others are."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    accumulate: int = 1
    """Parts into which each worker cuts its share of a batch, to need less memory; their gradients are added up."""
    grad_clip: float = 0.0
    """Longest gradient of a step, L2 norm over all parameters; 0: any."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is measured and kept; 0:
    none."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Precision of the forward pass where autocasting allows less than float32; `fp16` scales the loss."""
    channels_last: bool = False
    """Memory layout in which GPUs convolve faster."""
    checkpoint_every: int = 500
    """Steps between checkpoints within an epoch; one is kept after every epoch besides."""

    @property
    def named_quantizer(self) -> DeployedQuantizer:
        """The quantiser, where nothing was searched that it could be taken from."""
        if self.quantizer == "searched":
            raise ConfigError("finetune.quantizer is 'searched', but nothing was searched here; name a quantiser.")
        return self.quantizer

    def __post_init__(self) -> None:
        check_positive(
            "finetune",
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            accumulate=self.accumulate,
            checkpoint_every=self.checkpoint_every,
        )
        check_not_negative(
            "finetune",
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            warmup_epochs=self.warmup_epochs,
            quantizer_lr=self.quantizer_lr,
            grad_clip=self.grad_clip,
        )
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"finetune.{name} is {getattr(self, name)}; give 0, or a share below 1.")
        if not all(0 < share < 1 for share in self.lr_steps) or list(self.lr_steps) != sorted(set(self.lr_steps)):
            raise ConfigError(
                f"finetune.lr_steps is {list(self.lr_steps)}; give rising shares of the epochs between 0 and 1."
            )
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"finetune.warmup_epochs is {self.warmup_epochs}; give less than finetune.epochs, {self.epochs}."
            )
