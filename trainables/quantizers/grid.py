"""Integer codes of one width, and what the passes over a mixture of widths give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainables.quantizers.affine import AffineGrid

EVERYWHERE, POSITIVE_RANGE, SIGNED_RANGE, WINDOWS = 0, 1, 2, 3
"""Where gradients pass to x: everywhere, in (0, α], in [−α, α], in each width's window with its probability.

Compiled loops are kept on disk with these numbers in them: one never gets another meaning.
"""


@dataclass(frozen=True, slots=True)
class Grid:
    """Integer codes of one width: value = step · (code + offset), lo ≤ code ≤ hi."""

    lo: int
    hi: int
    offset: float = 0.0
    half_wave: bool = False
    """Negative x and zero give 0, outside of the codes."""
    windowed: bool = False
    """No gradient outside of the outermost levels; else it passes everywhere."""

    def codes(self, x: Tensor, step: Tensor, out: Tensor | None = None) -> Tensor:
        """code + offset of every element, in x's dtype; multiplied by `step` it is the quantised value."""
        codes = torch.mul(x, step.reciprocal(), out=out)
        if self.offset:
            codes.sub_(self.offset)
        codes.round_().clamp_(self.lo, self.hi)
        if self.offset:
            codes.add_(self.offset)
        if self.half_wave:
            codes.mul_(x > 0)
        return codes

    def window(self, x: Tensor, step: Tensor) -> Tensor:
        """Where the gradient passes."""
        low = 0.0 if self.half_wave else (self.lo + self.offset) * step
        return (x > low) & (x <= (self.hi + self.offset) * step)

    def passing(self, *, clipped: bool) -> int:
        """Where gradients pass, of the four kinds; `clipped`: all widths share a clip α."""
        if not clipped:
            return WINDOWS if self.windowed else EVERYWHERE
        return SIGNED_RANGE if self.lo < 0 else POSITIVE_RANGE

    def affine(
        self, scale: float, *, gain: float = 1.0, rounding: Literal["half_even", "half_down"] = "half_even"
    ) -> AffineGrid:
        """These codes with their scale, in plain numbers."""
        return AffineGrid(
            scale=scale,
            lo=self.lo,
            hi=self.hi,
            offset=self.offset,
            gain=gain,
            half_wave=self.half_wave,
            rounding=rounding,
        )


class Asked(NamedTuple):
    """Which gradients of a mixture are wanted."""

    x: bool
    dots: bool
    clip: bool


class Slopes(NamedTuple):
    """Gradients of a loss L by what a mixture y was made of; those not asked for hold anything."""

    x: Tensor
    dots: Tensor
    """[n] ⟨code_j + offset, ∂L/∂y⟩, in float32 or wider: without the steps s_j of ∂L/∂π_j."""
    clip: Tensor
    """∂L/∂α, a scalar in float32 or wider."""
