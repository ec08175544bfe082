"""MPQCO's loss perturbation: the time of four ways to find it, how it settles, and what it foretells of a ResNet.

First, for each network, ways to get <g_n, change> of every image, layer and width 2 to 8, taken in turn on one thread
and checked against each other. Then, of ResNet8 trained on digits at 16x16, how far the estimate of a few images is
from that of all, and what it says of random allocations against what rounding does to the loss.
Run: python benchmarks/perturbation.py [--rounds 5] [--epochs 6]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, linear

from trainables import perturbation
from trainables.api import ensure_reference
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.finetune_config import FinetuneConfig
from trainables.hessian_trace import HessianTraces
from trainables.method_config import MpqcoConfig
from trainables.methods.hawq import curvature_losses
from trainables.models import build_network
from trainables.perturbation import LossPerturbation
from trainables.quantizers.rounding import rounded
from trainables.reference import load_bench

CASES = (("resnet20", 32, 32), ("resnet18", 64, 16), ("resnet18", 224, 4), ("mobilenet_v2", 96, 8))
"""Network, pixels, images of a pass."""
WIDTHS = tuple(range(2, 9))
COUNTS = (16, 64, 256, 1024)
DRAWS = 200
ALLOCATIONS = 100


def changes_of(net: nn.Module, layers: list[str], widths: tuple[int, ...]) -> dict[str, Tensor]:
    """Q_b(W) - W of each layer, ranges of least squared error."""
    weights = {name: net.get_parameter(f"{name}.weight").detach() for name in layers}
    return {name: rounded(weight, widths, "mse") - weight for name, weight in weights.items()}


def convolved(layer: nn.Conv2d | nn.Linear, x: Tensor, grad_made: Tensor, changes: Tensor, *, images: int) -> Tensor:
    """The same products without any gradient of a weight: <gradient to the output, layer(x, change)>."""
    widths = len(changes)
    if isinstance(layer, nn.Linear):
        made = linear(x, changes.flatten(0, 1)).unflatten(-1, (widths, -1))
        return (made * grad_made.unsqueeze(-2)).reshape(images, -1, widths, grad_made.shape[-1]).sum((1, 3))
    stacked = changes.unflatten(1, (layer.groups, -1)).transpose(0, 1).flatten(0, 2)
    made = layer._conv_forward(x, stacked, None).unflatten(1, (layer.groups, widths, -1))
    return torch.einsum("ngbchw,ngchw->nb", made, grad_made.unflatten(1, (layer.groups, -1)))


def ways(
    net: nn.Module, changes: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> dict[str, Callable[[], Tensor | None]]:
    """What is compared, by name; each but the first gives [L, B]."""
    keys = [f"{name}.weight" for name in changes]
    weights = [net.get_parameter(key) for key in keys]
    ours = LossPerturbation(net, changes)

    def plain() -> None:
        net.requires_grad_(True)
        cross_entropy(net(images), labels).backward()
        net.requires_grad_(False).zero_grad(set_to_none=True)

    def by_convolution() -> Tensor:
        kept, perturbation.inner_products = perturbation.inner_products, convolved
        try:
            return ours.squares(images, labels)
        finally:
            perturbation.inner_products = kept

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(net, values, (image[None],)), label[None])

    def squares(grads: Mapping[str, Tensor]) -> Tensor:
        found = [
            grads[key].flatten(1) @ change.flatten(1).T for key, change in zip(keys, changes.values(), strict=True)
        ]
        return torch.stack(found).double().square().sum(1) / 2

    def by_vmap() -> Tensor:
        values = {key: weight.detach() for key, weight in zip(keys, weights, strict=True)}
        of_images = vmap(grad(loss), in_dims=(None, 0, 0))
        parts = zip(images.split(8), labels.split(8), strict=True)
        return torch.stack([squares(of_images(values, *part)) for part in parts]).sum(0)

    def by_loop() -> Tensor:
        for weight in weights:
            weight.requires_grad_(True)
        found = []
        for image, label in zip(images, labels, strict=True):
            grads = torch.autograd.grad(cross_entropy(net(image[None]), label[None]), weights)
            found.append(squares({key: each[None] for key, each in zip(keys, grads, strict=True)}))
        net.requires_grad_(False)
        return torch.stack(found).sum(0)

    return {
        "plain step": plain,
        "patches": lambda: ours.squares(images, labels),
        "convolution of changes": by_convolution,
        "vmap": by_vmap,
        "loop": by_loop,
    }


def time_ways(rounds: int) -> None:
    """Prints the table of times."""
    print("| network | pixels | images | plain step, ms | patches | convolution of changes | vmap | loop |")
    print("|---|---|---|---|---|---|---|---|")
    for network, size, count in CASES:
        torch.manual_seed(0)
        net = build_network(network, num_classes=10, image_size=size).eval().requires_grad_(False)
        layers = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)][1:-1]
        images, labels = torch.randn(count, 3, size, size), torch.randint(0, 10, (count,))
        compared = ways(net, changes_of(net, layers, WIDTHS), images, labels)
        times: dict[str, list[float]] = {name: [] for name in compared}
        found: dict[str, Tensor | None] = {}
        for number in range(rounds + 1):
            for name, compute in compared.items():
                began = time.perf_counter()
                found[name] = compute()
                if number:
                    times[name].append(time.perf_counter() - began)
        for name, losses in found.items():
            if losses is not None and found["loop"] is not None:
                least = 1e-4 * float(losses.max())
                torch.testing.assert_close(losses, found["loop"], rtol=1e-2, atol=least, msg=f"{network}: {name}")
        plain, *others = (statistics.median(seconds) for seconds in times.values())
        cells = " | ".join(f"{other / plain:.2f}" for other in others)
        print(f"| {network} | {size} | {count} | {1000 * plain:.0f} | {cells} |")


def show_predictions(epochs: int) -> None:
    """Prints the tables of convergence and of predictions."""
    config = TrialConfig(
        network=NetworkConfig(name="resnet8"),
        data=DataConfig(name="digits", image_size=16),
        reference=ReferenceConfig(epochs=epochs, lr=0.05),
        method=MpqcoConfig(quantizer="hwgq"),
        budget=BudgetConfig(mean_weight_bits=4.0),
        finetune=FinetuneConfig(epochs=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        ensure_reference(config, lambda epoch: None, store=Path(folder))
        bench = load_bench(config, store=Path(folder))
    net, layers = bench.reference, list(bench.roles.searched)
    images, labels = bench.data.train.batch(torch.arange(len(bench.data.train)), None)
    start = float(cross_entropy(net(images), labels))
    print(f"\nresnet8 on digits, top-1 {bench.record.top1:.1f} %, training loss {start:.4f} nats\n")
    changes = changes_of(net, layers, WIDTHS)
    products = LossPerturbation(net, changes).products(images, labels).double()
    show_convergence(products)
    traces = HessianTraces(net, layers, probes=16, seed=0).products(images[:256], labels[:256]).mean(1) / 256
    curved = torch.stack([curvature_losses(t, changes[name]) for name, t in zip(layers, traces, strict=True)])
    sizes = np.array([bench.costs.work[name].weights for name in layers])
    print("\n| mean bits | true, nats | prediction | median, nats | slope | r | rank r | median error |")
    print("|---|---|---|---|---|---|---|---|")
    for bits in (3, 4, 5, 6):
        drawn = allocations(sizes, bits)
        true = np.array([rounded_loss(net, changes, images, labels, places) - start for places in drawn])
        whole = [sum(products[row, :, at] for row, at in enumerate(places)) for places in drawn]
        block = products.square().mean(1) / 2
        predicted = {
            "whole Fisher": [float(torch.as_tensor(each).square().mean() / 2) for each in whole],
            "MPQCO": [sum(float(block[row, at]) for row, at in enumerate(places)) for places in drawn],
            "HAWQ-V2": [sum(float(curved[row, at]) for row, at in enumerate(places)) for places in drawn],
        }
        for name, values in predicted.items():
            guess = np.array(values)
            cells = (
                f"{np.median(guess):.3g} | {true @ guess / (true @ true):.2f} | {pearsonr(true, guess)[0]:.2f} | "
                f"{spearmanr(true, guess)[0]:.2f} | {100 * np.median(np.abs(true - guess) / np.abs(true)):.0f} %"
            )
            print(f"| {bits} | {np.median(true):.3g} | {name} | {cells} |")


def show_convergence(products: Tensor) -> None:
    """Deviation of a few images' estimate from that of all, for 4 bits in every layer; products [L, N, B]."""
    losses = (products[:, :, WIDTHS.index(4)].square() / 2).sum(0)
    random = torch.Generator().manual_seed(0)
    print("| images | deviation | that times the root of images |\n|---|---|---|")
    for count in COUNTS:
        drawn = [losses[torch.randperm(len(losses), generator=random)[:count]].mean() for _ in range(DRAWS)]
        # Drawn without putting back: all of them would deviate by nothing.
        spread = float((torch.stack(drawn) / losses.mean() - 1).square().mean() / (1 - count / len(losses))) ** 0.5
        print(f"| {count} | {100 * spread:.1f} % | {spread * count**0.5:.2f} |")


def allocations(sizes: np.ndarray, bits: int) -> list[list[int]]:
    """At random, as places in WIDTHS, with 97 to 100 % of so many bits a weight in the mean."""
    random, found = np.random.default_rng(0), []
    while len(found) < ALLOCATIONS:
        places = random.integers(0, len(WIDTHS), len(sizes))
        if 0.97 * bits <= (sizes * np.array(WIDTHS)[places]).sum() / sizes.sum() <= bits:
            found.append(places.tolist())
    return found


@torch.no_grad()
def rounded_loss(
    net: nn.Module, changes: Mapping[str, Tensor], images: Tensor, labels: Tensor, places: list[int]
) -> float:
    """Mean loss with the weights rounded; activations stay float."""
    weights = {
        f"{name}.weight": net.get_parameter(f"{name}.weight") + change[at]
        for (name, change), at in zip(changes.items(), places, strict=True)
    }
    return float(cross_entropy(functional_call(net, weights, (images,)), labels))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    parser.add_argument("--epochs", type=int, default=6, help="of the full-precision training on digits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"1 CPU thread ({platform.machine()}), torch {torch.__version__}, medians of {args.rounds} rounds in turn;")
    print(f"times over those of a plain step, widths {WIDTHS[0]} to {WIDTHS[-1]}\n")
    time_ways(args.rounds)
    show_predictions(args.epochs)


if __name__ == "__main__":
    main()
