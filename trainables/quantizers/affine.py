"""The grid of a deployed quantiser in plain numbers, as an exporter needs it.

    value = gain · scale · (code + offset),  lo ≤ code ≤ hi

An activation's code is `x / scale − offset`, rounded and clipped; a weight's code is found from its quantised value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class AffineGrid:
    """The levels of one quantiser of one width."""

    scale: float
    """Distance of neighbouring codes in units of what is quantised; positive."""
    lo: int
    hi: int
    offset: float = 0.0
    """0: zero is a level; 1/2: it is not."""
    gain: float = 1.0
    """What the levels are multiplied by afterwards, positive: the next layer reads gain·scale·(code + offset)."""
    half_wave: bool = False
    """x ≤ 0 becomes 0, which is none of the codes."""
    rounding: Literal["half_even", "half_down"] = "half_even"
    """Where x lies in the middle between two codes."""

    def quantized(self, x: Tensor) -> Tensor:
        """The values of an activation, or of a weight that is rounded on its own scale (all but `daq`)."""
        places = x / self.scale - self.offset
        codes = (places.round() if self.rounding == "half_even" else (places - 0.5).ceil()).clamp(self.lo, self.hi)
        values = (codes + self.offset) * (self.scale * self.gain)
        return torch.where(x > 0, values, 0.0) if self.half_wave else values

    def codes(self, values: Tensor) -> Tensor:
        """int64 codes of values that this grid's quantiser has made; without the zeros of a half-wave grid."""
        return (values / (self.scale * self.gain) - self.offset).round().clamp(self.lo, self.hi).to(torch.int64)
