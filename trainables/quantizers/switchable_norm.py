"""Batch normalisation kept apart for networks of other widths that share their weights (Yu et al. 2019).

With k the chosen of n sets, each with its own statistics, scale and shift:

    y = γ_k·(x − μ_k)/√(σ²_k + ε) + β_k

The sets are rows of one parameter: each pass uses every parameter, as several workers need it, and the gradient of the
rows that it does not choose is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PlainNorm = nn.BatchNorm1d | nn.BatchNorm2d


class SwitchableBatchNorm(nn.Module):
    """A batch normalisation with n sets, all of which start as `norm` is."""

    def __init__(self, norm: PlainNorm, count: int) -> None:
        super().__init__()
        self.eps, self.momentum, self.chosen = norm.eps, norm.momentum, 0

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.detach().repeat(count, 1)

        for name in ("weight", "bias"):
            start = rows(getattr(norm, name))
            self.register_parameter(name, None if start is None else nn.Parameter(start))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, rows(getattr(norm, name)))

    def choose(self, place: int) -> None:
        """From now on the set at this place is used, and no other changes."""
        self.chosen = place

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...] normalised by the chosen set; in training by the batch's own statistics, which it takes up."""
        mean, spread, seen = (self._row(name) for name in ("running_mean", "running_var", "num_batches_tracked"))
        share = self.momentum or 0.0
        if self.training and seen is not None:
            seen += 1
            # No momentum: the mean over all batches.
            share = 1 / float(seen) if self.momentum is None else self.momentum
        alone = self.training or mean is None
        return F.batch_norm(x, mean, spread, self._row("weight"), self._row("bias"), alone, share, self.eps)

    def _row(self, name: str) -> Tensor | None:
        rows: Tensor | None = getattr(self, name)
        return None if rows is None else rows[self.chosen]


def switch_norms(
    net: nn.Module, images: Tensor, layers: Collection[str], *, count: int
) -> dict[str, list[SwitchableBatchNorm]]:
    """Gives `net`, in place, `count` sets of each batch normalisation that reads what some of `layers` make.

    Returns them by the one of `layers` that ran last before them when `images` passed; what runs before all of them
    sees the same at any width, and is left as it is.
    """
    found: dict[str, list[SwitchableBatchNorm]] = {}
    switched: dict[nn.Module, SwitchableBatchNorm] = {}
    for norm, layer in _layer_before(net, images, layers).items():
        switched[norm] = SwitchableBatchNorm(norm, count).train(norm.training)
        found.setdefault(layer, []).append(switched[norm])
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            if child in switched:
                setattr(parent, name, switched[child])
    return found


@torch.no_grad()
def _layer_before(net: nn.Module, images: Tensor, layers: Collection[str]) -> dict[PlainNorm, str]:
    """Each batch normalisation with the layer that ran last before its first run."""
    ran: list[str] = []
    before: dict[PlainNorm, str] = {}

    def note_norm(norm: nn.Module, *_: object) -> None:
        if ran and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            before.setdefault(norm, ran[-1])

    def noting(name: str) -> Callable[..., None]:
        return lambda *_: ran.append(name)

    hooks = [net.get_submodule(name).register_forward_hook(noting(name)) for name in layers]
    norms = [module for module in net.modules() if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d)]
    hooks += [norm.register_forward_hook(note_norm) for norm in norms]
    was_training = net.training
    net.eval()(images)
    net.train(was_training)
    for hook in hooks:
        hook.remove()
    return before
