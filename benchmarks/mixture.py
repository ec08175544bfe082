"""Time and memory of the mixture of widths, forward and backward: fused, piecewise, and as autograd has it of branches.

*Fused* is what the quantisers use on this device, *piecewise* the same by torch's operations, *branches* a sum of
fake-quantised tensors, one for each width, that autograd differentiates. All take turns in one process; ratios count.
Run: python benchmarks/mixture.py [--device cuda --dtype bf16] [--elements 2097152] [--rounds 7]
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from memory import peak_bytes
from torch import Tensor

from trainables.distributed import make_repeatable
from trainables.quantizers import piecewise, staircase
from trainables.quantizers.grid import Grid
from trainables.quantizers.hwgq import HwgqActivations, HwgqWeights
from trainables.quantizers.pact import PactActivations, PactWeights

WIDTHS = [(4,), (2, 3), (2, 3, 4), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 7, 8)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Pass(torch.autograd.Function):
    """Rounding passes the gradient on."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


def branch(x: Tensor, step: Tensor, grid: Grid, clip: Tensor | None) -> Tensor:
    """One width, by operations that autograd knows."""
    if clip is not None:
        x = torch.minimum(x, clip).clamp_min(0) if grid.lo == 0 else torch.maximum(torch.minimum(x, clip), -clip)
    code = _Pass.apply(x / step - grid.offset).clamp(grid.lo, grid.hi) + grid.offset
    return (code * (x > 0) if grid.half_wave else code) * step


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """What is mixed."""

    x: Tensor
    grad: Tensor
    probs: Tensor
    steps: Tensor
    clip: Tensor | None
    grids: tuple[Grid, ...]

    def differentiate(self, y: Tensor) -> None:
        """Backward to all that learns."""
        wanted = [t for t in (self.x, self.probs, self.clip) if t is not None and t.requires_grad]
        torch.autograd.grad(y, wanted, self.grad)

    def fused(self) -> None:
        """A step of the quantisers' own function."""
        self.differentiate(staircase.staircase(self.x, self.probs, self.steps, self.grids, clip=self.clip))

    def piecewise(self) -> None:
        """The same, by the plain passes."""
        chosen = staircase._passes
        staircase._passes = _plain
        self.fused()
        staircase._passes = chosen

    def branches(self) -> None:
        """A tensor for each width."""
        x, probs = self.x, self.probs.to(self.x.dtype)
        clip = None if self.clip is None else self.clip.to(x.dtype)
        parts = (p * branch(x, s.to(x.dtype), g, clip) for p, s, g in zip(probs, self.steps, self.grids, strict=True))
        self.differentiate(sum(parts, torch.zeros((), device=x.device, dtype=x.dtype)))


def _plain(*_: Tensor) -> ModuleType:
    return piecewise


def mixture(kind: str, bits: tuple[int, ...], elements: int, device: str, dtype: torch.dtype) -> Mixture:
    """A tensor of normal numbers with the grids of a quantiser."""
    torch.manual_seed(0)
    x = torch.randn(elements, device=device)
    x = (x if kind.endswith("weights") else x.relu()).to(torch.float32 if kind.endswith("weights") else dtype)
    clip = None
    if kind == "pact activations":
        quantizer, clip = PactActivations(bits, signed=False), torch.tensor(2.0)
        steps = clip / quantizer.levels
    elif kind == "hwgq activations":
        quantizer = HwgqActivations(bits, signed=False)
        steps = quantizer.steps
    else:
        quantizer = (PactWeights if kind == "pact weights" else HwgqWeights)(bits)
        steps = quantizer._steps(x).cpu()
    probs = torch.full((len(bits),), 1 / len(bits), device=device, requires_grad=len(bits) > 1)
    return Mixture(
        x=x.requires_grad_(),
        grad=torch.randn(elements, device=device).to(x.dtype),
        probs=probs,
        steps=steps.to(device),
        clip=None if clip is None else clip.to(device).requires_grad_(),
        grids=quantizer.grids,
    )


def seconds(step: Callable[[], None], device: str) -> float:
    """CPU time of this thread, or a GPU's."""
    if device == "cuda":
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.thread_time()
    step()
    return time.thread_time() - began


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="of activations; weights are fp32")
    parser.add_argument("--elements", type=int, default=1 << 21)
    parser.add_argument("--rounds", type=int, default=7, help="of which the fastest counts, after one that does not")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # As trials do.
    make_repeatable(0)
    name = platform.processor() or platform.machine() if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, {args.elements} elements, {args.dtype}; ms and MB, forward and backward")
    print(
        "\n| what | widths | fused | piecewise | ratio | branches | ratio | fused, MB | piecewise, MB | branches, MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for kind in ("pact activations", "hwgq activations", "pact weights", "hwgq weights"):
        for bits in WIDTHS:
            made = mixture(kind, bits, args.elements, args.device, DTYPES[args.dtype])
            steps = [made.fused, made.piecewise, made.branches] if len(bits) > 1 or "acti" in kind else []
            if not steps:
                continue
            for step in steps:
                step()
            rounds = [[seconds(step, args.device) for step in steps] for _ in range(args.rounds)]
            fused, pieces, naive = (1000 * min(times) for times in zip(*rounds, strict=True))
            bytes_ = [peak_bytes(step, device=args.device) / 1e6 for step in steps]
            print(
                f"| {kind} | {len(bits)} | {fused:.2f} | {pieces:.2f} | {pieces / fused:.1f} | {naive:.2f} "
                f"| {naive / fused:.1f} | {bytes_[0]:.0f} | {bytes_[1]:.0f} | {bytes_[2]:.0f} |"
            )


if __name__ == "__main__":
    main()
