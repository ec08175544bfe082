"""Ratio of a search step, attribution included, to a plain full-precision step of the same network.

Both are taken in turn in one process on one thread, so that a machine's drift touches both; the medians' ratio is what
counts. Run: python benchmarks/step.py [--network resnet18] [--image-size 64] [--batch 32] [--pairs 9]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainables.config import NetworkConfig
from trainables.counting import measure
from trainables.data.splits import Batch
from trainables.method_config import GmpqConfig, RgmpqConfig
from trainables.methods.gmpq import ImitationTerms
from trainables.methods.loop import Generalisation, make_objective, make_optimizers
from trainables.models import build_network
from trainables.reference_maps import AskedMaps, KeptMaps, MapSetting
from trainables.supernet import assign_roles, build_supernet

Step = Callable[[], None]


def plain_step(net: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """Forward, backward and SGD update of the float network."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def search_step(
    reference: nn.Module, images: Tensor, labels: Tensor, config: GmpqConfig, *, network: str, kept: bool
) -> Step:
    """A step of the search loop's own objective and optimisers.

    `kept`: the reference's maps come from memory; else it is asked in every step.
    """
    reference.eval().requires_grad_(False)
    costs = measure(reference, images[:8])
    batch = Batch(images, labels, torch.arange(len(labels)), None)
    supernet = build_supernet(reference, costs, assign_roles(costs, NetworkConfig(name=network)), config)
    supernet.net.requires_grad_(True).train()
    asked = AskedMaps(reference, MapSetting.of(config, images.shape[2]), probe=images[:8])
    terms = ImitationTerms(supernet, KeptMaps(*asked(batch)) if kept else asked, config, probe=images[:8])
    generalisation = Generalisation(config.eta, terms) if config.eta else None
    objective = make_objective(supernet.net, supernet, config, generalisation)
    optimizers = make_optimizers(supernet, config)

    def step() -> None:
        loss = objective(batch)["loss"]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def seconds(step: Step) -> float:
    """Wall time of one step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--pairs", type=int, default=9, help="timed rounds, after two that are not")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.image_size, args.image_size)
    labels = torch.randint(0, 10, (args.batch,))

    def net() -> nn.Module:
        return build_network(args.network, num_classes=10, image_size=args.image_size)

    def search(config: GmpqConfig, *, kept: bool) -> Step:
        return search_step(net(), images, labels, config, network=args.network, kept=kept)

    steps = {
        "plain full-precision step": plain_step(net(), images, labels),
        "search step, no attribution (eta = 0)": search(GmpqConfig(zeta=0.1, eta=0.0), kept=False),
        "GMPQ step, reference asked": search(GmpqConfig(zeta=0.1, eta=1.0), kept=False),
        "GMPQ step, reference's maps kept": search(GmpqConfig(zeta=0.1, eta=1.0), kept=True),
        "R-GMPQ step, reference asked": search(RgmpqConfig(zeta=0.1, eta=1.0), kept=False),
        "R-GMPQ step, reference's maps kept": search(RgmpqConfig(zeta=0.1, eta=1.0), kept=True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(args.pairs + 2):
        for name, step in steps.items():
            elapsed = seconds(step)
            if round_number >= 2:
                times[name].append(elapsed)
    plain = statistics.median(times["plain full-precision step"])
    print(
        f"{args.network}, {args.image_size}x{args.image_size}, batch {args.batch}, 1 CPU thread ({platform.machine()}),"
    )
    print(f"torch {torch.__version__}, medians of {args.pairs} rounds taken in turn")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:40s} {1000 * middle:9.1f} ms   ratio {middle / plain:5.2f}")


if __name__ == "__main__":
    main()
