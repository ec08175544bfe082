"""Throughput of two workers on two cores against one worker on one core: a GMPQ search step, the reference's maps kept.

    efficiency = throughput of two workers / (2 · throughput of one)

*Weak* scaling gives each worker as many images as the one has, *strong* scaling half of them. What the machine itself
gives is measured beside it: two workers that do not talk to each other share caches, memory and clock, too. Each worker
has one thread and a core of its own; the kinds are taken in turn in one invocation, medians count. CPU time leaves out
what others take of the cores, and waiting for the other worker. With `--device cuda` each worker has a GPU of its own,
gradients go through NCCL, and the clock alone counts.

Run: python benchmarks/ddp.py [--network resnet18] [--image-size 64] [--batch 32] [--rounds 7] [--steps 3]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainables.config import NetworkConfig
from trainables.counting import measure
from trainables.data.splits import Batch
from trainables.distributed import Workers
from trainables.method_config import GmpqConfig
from trainables.methods.gmpq import ImitationTerms
from trainables.methods.loop import Generalisation, make_objective, training_plan
from trainables.models import build_network
from trainables.reference_maps import AskedMaps, KeptMaps, MapSetting
from trainables.stepping import Step
from trainables.supernet import assign_roles, build_supernet

SIZE = 2
CONFIG = GmpqConfig(zeta=0.1, eta=1.0)
Seconds = dict[str, list[tuple[float, float]]]
"""Of a step, by kind of round: on the clock, and of this worker's CPU time."""


def search_steps(workers: Workers, args: argparse.Namespace, images: int) -> Callable[[], None]:
    """Steps of the search loop on a share of `images` images, which `workers` wrap and average."""
    torch.manual_seed(0)
    device = workers.device
    pixels = torch.randn(images, 3, args.image_size, args.image_size, device=device)
    batch = Batch(pixels, torch.randint(0, 10, (images,), device=device), torch.arange(images), None)
    reference = build_network(args.network, num_classes=10, image_size=args.image_size).to(device)
    reference.eval().requires_grad_(False)
    costs = measure(reference, pixels[:8])
    supernet = build_supernet(reference, costs, assign_roles(costs, NetworkConfig(name=args.network)), CONFIG)
    supernet.net.requires_grad_(True).train()
    asked = AskedMaps(reference, MapSetting.of(CONFIG, args.image_size), probe=pixels[:8])
    terms = ImitationTerms(supernet, KeptMaps(*asked(batch)), CONFIG, probe=pixels[:8])
    model = workers.wrap(supernet.net)
    config = replace(CONFIG, batch_size=images * workers.size)
    plan = training_plan(supernet, config, lambda epoch: [batch])  # type: ignore[arg-type,return-value]  # never asked
    step = Step(model, plan, make_objective(model, supernet, CONFIG, Generalisation(CONFIG.eta, terms)), workers)

    def steps() -> None:
        for _ in range(args.steps):
            step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return steps


def worker(rank: int, folder: str, args: argparse.Namespace, barrier: Any) -> None:
    """Takes all rounds with the other worker; leaves its times in `folder`."""
    if args.device == "cpu":
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    else:
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    backend = "nccl" if args.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=SIZE)
    device = torch.device(args.device, rank if args.device == "cuda" else None)
    alone = Workers(0, 1, device)
    share, whole = search_steps(alone, args, args.batch), search_steps(alone, args, SIZE * args.batch)
    both = search_steps(Workers(rank, SIZE, device), args, args.batch)
    kinds = {"alone, share": (share, 1), "alone, whole": (whole, 1), "apart": (share, SIZE), "together": (both, SIZE)}
    found: Seconds = {kind: [] for kind in kinds}
    for number in range(args.rounds + 1):
        for kind, (steps, taking_part) in kinds.items():
            # Waiting here takes no CPU, unlike waiting in a collective.
            barrier.wait()
            if rank < taking_part:
                began, busy = time.perf_counter(), time.process_time()
                steps()
                if number:
                    clock, cpu = time.perf_counter() - began, time.process_time() - busy
                    found[kind].append((clock / args.steps, cpu / args.steps))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def measured(args: argparse.Namespace) -> Seconds:
    """Seconds of a step in each round, the slower worker's where both take part."""
    with tempfile.TemporaryDirectory() as folder:
        barrier = multiprocessing.get_context("spawn").Barrier(SIZE)
        mp.spawn(worker, args=(folder, args, barrier), nprocs=SIZE)
        first, second = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(SIZE))
    slower = {kind: list(map(max, first[kind], second[kind])) for kind in ("apart", "together")}
    return {**first, **slower}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images of a worker's step")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one that is not")
    parser.add_argument("--steps", type=int, default=3, help="steps of a round")
    args = parser.parse_args()
    here = torch.cuda.device_count() if args.device == "cuda" else len(os.sched_getaffinity(0))
    if here < SIZE:
        parser.exit(message=f"two workers need two of {args.device}; found {here}, nothing was measured\n")
    print(f"{args.network}, {args.image_size}x{args.image_size}, {args.device} ({platform.machine()}), a thread each,")
    print(f"torch {torch.__version__}, medians of {args.rounds} rounds of {args.steps} steps taken in turn")
    found = measured(args)
    for what, place in (("clock", 0), ("CPU", 1)):
        times = {kind: statistics.median(pair[place] for pair in pairs) for kind, pairs in found.items()}
        print(", ".join(f"{kind}: {1000 * seconds:.0f} ms" for kind, seconds in times.items()))
        print(f"{what:8s} {'images':>14s} {'efficiency':>11s} {'ceiling':>8s} {'share of it':>12s}")
        for scaling, one, alone in (("weak", 1, times["alone, share"]), ("strong", SIZE, times["alone, whole"])):
            efficiency, ceiling = (alone / one * each for each in (1 / times["together"], 1 / times["apart"]))
            sizes = f"{one * args.batch}, 2 x {args.batch}"
            print(f"{scaling:8s} {sizes:>14s} {efficiency:11.3f} {ceiling:8.3f} {efficiency / ceiling:12.3f}")


if __name__ == "__main__":
    main()
