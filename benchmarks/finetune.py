"""Ratio of a finetune step with each of its options to a plain full-precision step of the same network.

All are the training loop's own steps, taken in turn in one process, so that a machine's drift touches all; the ratio of
medians is what counts. Run: python benchmarks/finetune.py [--network resnet18] [--device cuda] [--batch 256]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.counting import measure
from trainables.data.splits import Batch
from trainables.distributed import Workers
from trainables.finetune.recipe import training_plan
from trainables.finetune_config import DeployedQuantizer, FinetuneConfig
from trainables.models import build_network
from trainables.policy import BitPolicy, LayerBits
from trainables.quantizers.layers import calibrate
from trainables.stepping import Step, has_precision
from trainables.supernet import deploy

BITS = LayerBits(4, 4)


def step_of(net: nn.Module, config: FinetuneConfig, batch: Batch, device: torch.device) -> Callable[[], None]:
    """A step of `net` as the finetune makes it."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    net.train().requires_grad_(True).to(memory_format=layout)
    plan = training_plan(net, config, lambda epoch: [batch])  # type: ignore[arg-type,return-value]  # never asked for

    def terms(part: Batch) -> dict[str, Tensor]:
        return {"loss": cross_entropy(net(part.images.contiguous(memory_format=layout)), part.labels)}

    step = Step(net, plan, terms, Workers(0, 1, device))

    def timed() -> None:
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return timed


def quantized(net: nn.Module, network: str, quantizer: DeployedQuantizer, batch: Batch) -> nn.Module:
    """`net` in BITS, calibrated."""
    costs = measure(net.eval(), batch.images[:8])
    policy = BitPolicy(network=network, bits=dict.fromkeys(costs.layers, BITS))
    deployed = deploy(net, costs, policy, quantizer)
    calibrate(deployed, batch.images)
    return deployed


def options(batch_size: int, device: torch.device) -> dict[str, tuple[DeployedQuantizer, FinetuneConfig]]:
    """What is timed beside the plain step: one option at a time."""
    plain = FinetuneConfig(epochs=1, batch_size=batch_size)
    found: dict[str, tuple[DeployedQuantizer, FinetuneConfig]] = {
        "pact": ("pact", plain),
        "lsq": ("lsq", plain),
        "lsq, quantizer_lr": ("lsq", replace(plain, quantizer_lr=1e-3)),
        "pact, amp bf16": ("pact", replace(plain, amp="bf16")),
        "pact, amp fp16": ("pact", replace(plain, amp="fp16")),
        "pact, channels_last": ("pact", replace(plain, channels_last=True)),
        "pact, amp bf16, channels_last": ("pact", replace(plain, amp="bf16", channels_last=True)),
        "pact, ema 0.999": ("pact", replace(plain, ema=0.999)),
        "pact, accumulate 2": ("pact", replace(plain, accumulate=2)),
        "pact, grad_clip 1": ("pact", replace(plain, grad_clip=1.0)),
    }
    return {name: option for name, option in found.items() if has_precision(option[1].amp, device)}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after two that are not")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.image_size, args.image_size, device=device)
    batch = Batch(images, torch.randint(0, 10, (args.batch,), device=device), torch.arange(args.batch), None)

    def net() -> nn.Module:
        return build_network(args.network, num_classes=10, image_size=args.image_size).to(device)

    steps = {"plain full-precision": step_of(net(), FinetuneConfig(epochs=1, batch_size=args.batch), batch, device)}
    for name, (quantizer, config) in options(args.batch, device).items():
        steps[name] = step_of(quantized(net(), args.network, quantizer, batch), config, batch, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(args.rounds + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_number >= 2:
                times[name].append(time.perf_counter() - started)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"1 CPU thread ({platform.machine()})"
    print(
        f"{args.network}, {args.image_size}x{args.image_size}, batch {args.batch}, {where}, torch {torch.__version__}"
    )
    plain = statistics.median(times["plain full-precision"])
    for name, values in times.items():
        middle = statistics.median(values)
        ratio, images_per_s = middle / plain, args.batch / middle
        print(f"{name:32s} {1000 * middle:9.1f} ms   {images_per_s:9.1f} images/s   ratio {ratio:5.2f}")


if __name__ == "__main__":
    main()
