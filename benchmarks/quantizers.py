"""Time of each quantiser's mixture of widths, forward and backward, over that of a plain operation on floats.

All are taken in turn in one process on one thread; CPU times, medians. *Weights* are those of a convolution of
512 x 512 x 3 x 3, *activations* what a layer of ResNet18 reads of 32 images at 64x64. The plain operation is a ReLU:
one pass forward and one backward. *Plain*: DAQ and LSQ on whole tensors, as where nothing is compiled.

Run: python benchmarks/quantizers.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainables.distributed import make_repeatable
from trainables.finetune_config import DeployedQuantizer
from trainables.quantizers import daq, learned_passes, lsq
from trainables.quantizers.layers import ACT_QUANTIZERS, WEIGHT_QUANTIZERS

BITS = {"1 width": (4,), "3 widths": (2, 3, 4), "7 widths": (2, 3, 4, 5, 6, 7, 8)}
NAMES: tuple[DeployedQuantizer, ...] = ("pact", "hwgq", "lsq", "daq")
KINDS = {"weights": (512, 512, 3, 3), "activations": (32, 64, 16, 16)}


def seconds(quantizer: nn.Module, x: Tensor, widths: int) -> float:
    """CPU time of one pass forward and backward."""
    x = x.detach().requires_grad_()
    probs = torch.full((widths,), 1 / max(1, widths), requires_grad=widths > 1)
    upstream = torch.ones_like(x)
    began = time.thread_time()
    y = quantizer(x) if isinstance(quantizer, nn.ReLU) else quantizer(x, probs)
    y.backward(upstream)
    return time.thread_time() - began


def quantizers(kind: str, bits: tuple[int, ...], x: Tensor) -> dict[str, nn.Module]:
    """Each, calibrated on x."""
    found: dict[str, nn.Module] = {}
    for name in NAMES:
        weights = kind == "weights"
        made = WEIGHT_QUANTIZERS[name](bits) if weights else ACT_QUANTIZERS[name](bits, signed=False)
        made.calibrate(x)
        found[name] = made
    return found


def with_passes(fused: Callable[..., object]) -> None:
    """Lets DAQ and LSQ ask `fused` which passes serve a tensor."""
    for module in (daq, lsq):
        module.fused = fused  # type: ignore[attr-defined]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds, after one that is not")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # As trials do.
    make_repeatable(0)
    print(f"torch {torch.__version__}, one thread, CPU time, medians of {args.rounds} rounds taken in turn")
    print(f"{'':24s} {'plain op, ms':>13s} " + " ".join(f"{name:>6s}" for name in (*NAMES, "lsq, plain", "daq, plain")))
    for kind, shape in KINDS.items():
        x = torch.randn(shape) * 0.05 if kind == "weights" else torch.randn(shape).relu() * 2
        for title, bits in BITS.items():
            made = quantizers(kind, bits, x)
            times: dict[str, list[float]] = {}
            for number in range(args.rounds + 1):
                taken = {"plain": seconds(nn.ReLU(), x, 0)}
                taken |= {name: seconds(quantizer, x, len(bits)) for name, quantizer in made.items()}
                with_passes(lambda *_: None)
                taken |= {f"{name}, plain": seconds(made[name], x, len(bits)) for name in ("lsq", "daq")}
                with_passes(learned_passes.fused)
                for name, each in taken.items():
                    times.setdefault(name, []).extend([each] if number else [])
            middle = {name: statistics.median(values) for name, values in times.items()}
            plain = middle.pop("plain")
            ratios = " ".join(f"{each / plain:{max(6, len(name))}.2f}" for name, each in middle.items())
            print(f"{kind:12s} {title:11s} {1e3 * plain:13.2f} {ratios}")


if __name__ == "__main__":
    main()
