"""PACT (Choi et al. 2018): the quantiser of GMPQ and R-GMPQ.

Weights, b bits, symmetric with zero:   s = T / (2^(b−1) − 1),  T = max|w|
Activations, b bits, unsigned:          s = α / (2^b − 1),      u = clip(x, 0, α),  α learned from 6
                                        ∂u/∂α = 1[x > α],       ∂u/∂x = 1[0 < x ≤ α]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.quantizers.affine import AffineGrid
from trainables.quantizers.grid import Grid
from trainables.quantizers.staircase import staircase

CLIP_START = 6.0


class PactWeights(nn.Module):
    """Mixture of symmetric weight quantisers that share the range ±max|w|, recomputed at every call.

    DEVIATION: the release freezes T at the first step; a trained weight then leaves its own range.
    """

    def __init__(self, bits: tuple[int, ...]) -> None:
        super().__init__()
        if min(bits) < 2:
            raise ConfigError("pact: 1-bit weights do not exist (the step T/(2^(b-1)-1) divides by zero); use 2 bits.")
        self.grids = tuple(Grid(lo=-(2 ** (b - 1) - 1), hi=2 ** (b - 1) - 1) for b in bits)
        self.register_buffer("levels", torch.tensor([float(grid.hi) for grid in self.grids]), persistent=False)
        self.levels: Tensor

    def forward(self, weight: Tensor, probs: Tensor) -> Tensor:
        """Mixed weight, shape of `weight`; probs [n]."""
        return staircase(weight, probs, self._steps(weight), self.grids)

    def calibrate(self, weight: Tensor) -> None:
        """Nothing to set: the range follows the weight at every call."""

    def affine(self, weight: Tensor) -> AffineGrid:
        """The grid of `weight` in plain numbers, of a quantiser of one width."""
        (grid,) = self.grids
        return grid.affine(float(self._steps(weight)))

    def _steps(self, weight: Tensor) -> Tensor:
        # A layer of zeros would make the step zero; any positive step quantises zeros to zeros.
        low, high = torch.aminmax(weight.detach())
        return torch.maximum(-low, high).clamp_min(1e-12) / self.levels


class PactActivations(nn.Module):
    """Mixture of activation quantisers that share one learned clip α.

    DEVIATION: an activation that can be negative (after a residual add or a linear bottleneck, and the image itself) is
    clipped to ±α with step α/(2^(b−1) − 1); PACT assumes a ReLU in front and would lose the sign.
    """

    def __init__(self, bits: tuple[int, ...], *, signed: bool) -> None:
        super().__init__()
        if signed and min(bits) < 2:
            raise ConfigError("pact: a signed activation needs at least 2 bits; this layer reads negative values.")
        self.signed = signed
        top = [2 ** (b - 1) - 1 if signed else 2**b - 1 for b in bits]
        self.grids = tuple(Grid(lo=-hi if signed else 0, hi=hi) for hi in top)
        self.clip = nn.Parameter(torch.tensor(CLIP_START))
        self.register_buffer("levels", torch.tensor([float(hi) for hi in top]), persistent=False)
        self.levels: Tensor

    def forward(self, x: Tensor, probs: Tensor) -> Tensor:
        """Mixed activation, shape of `x`; probs [n]."""
        clip = self._positive_clip()
        return staircase(x, probs, clip.detach() / self.levels, self.grids, clip=clip)

    def affine(self) -> AffineGrid:
        """The grid in plain numbers, of a quantiser of one width."""
        (grid,) = self.grids
        return grid.affine(float(self._positive_clip().detach() / self.levels))

    def _positive_clip(self) -> Tensor:
        # A clip that training drove to zero or below would turn the range inside out.
        return self.clip.clamp_min(1e-3)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Sets α to the clip of least mean squared quantisation error on `x`, averaged over the widths."""
        top = float(x.abs().amax())
        if top == 0.0:
            return
        sample = x.flatten()[:: max(1, x.numel() // 65536)]
        clips = [top * i / 50 for i in range(1, 51)]
        errors = [self._error(sample, clip) for clip in clips]
        self.clip.fill_(clips[errors.index(min(errors))])

    def _error(self, x: Tensor, clip: float) -> float:
        clipped = x.clamp(-clip if self.signed else 0.0, clip)
        steps = clip / self.levels
        return sum(
            float((grid.codes(clipped, step) * step - x).square().mean())
            for grid, step in zip(self.grids, steps, strict=True)
        )
