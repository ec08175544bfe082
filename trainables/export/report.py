"""What an export did, in values without tensors; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """onnxruntime against PyTorch on some images."""

    images: int
    real: bool
    """Whether they are validation images of the network's data set, else noise."""
    same_class: int | None
    """Images whose largest logit is the same class's; None of feature maps."""
    max_error: float
    """Largest difference of two logits, or of two entries of the maps."""
    mean_error: float
    largest_logit: float
    """In size, of PyTorch's; of feature maps the largest entry."""
    layer_images: int
    """Images of the comparison layer by layer."""
    activations: int
    """Quantised activations that were compared there."""
    ties: int
    """Those that were rounded to different levels, as float32 sums in another order left them on two sides of a tie."""
    input_error: float
    """Largest difference of what comes to a quantiser, relative to the largest entry there."""
    output_error: float
    """Largest difference of two logits where all layers read the same, relative to the largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxReport:
    """An ONNX file that was written."""

    network: str
    policy_hash: str
    bytes: int
    opset: int
    layers: Mapping[str, Mapping[str, str | int]]
    """By layer: weight and act bits of the policy, weight_type and act_type of the file."""
    wider: Mapping[str, int]
    """By `N bits in TYPE`: layers whose weights have fewer bits than the integers that hold them."""
    agreement: Agreement | None
    """None where it was not checked."""
    unchecked: str
    """Why it was not; empty where it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AimetReport:
    """An encodings file that was written."""

    network: str
    policy_hash: str
    params: int
    activations: int
    narrow: tuple[str, ...]
    """Layers of fewer bits than the format's description allows."""
