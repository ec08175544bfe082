"""The search against brute force on a small net, and its gradient with two workers against one."""

import itertools
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from trainables.checkpoint import Checkpoint
from trainables.config import DataConfig, NetworkConfig
from trainables.counting import measure
from trainables.data import load_data
from trainables.data.splits import Batch, loader
from trainables.distributed import Workers
from trainables.method_config import GmpqConfig
from trainables.methods.gmpq import ImitationTerms
from trainables.methods.loop import Generalisation, make_objective, make_optimizers
from trainables.quantizers.layers import calibrate
from trainables.reference_maps import AskedMaps, MapSetting
from trainables.risks import complexity_risk
from trainables.stepping import TrainingPlan
from trainables.supernet import Supernet, assign_roles, build_supernet
from trainables.training import cosine, train

Bits = tuple[tuple[int, int], ...]


def four_layer_net() -> nn.Module:
    """Stem, four searched layers of very different sizes, head; no batch normalisation."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for channels, out, stride in ((8, 8, 2), (8, 32, 1), (32, 8, 1), (8, 12, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def digits() -> tuple[Tensor, Tensor]:
    data = load_data(DataConfig(name="digits", image_size=8))
    batch = next(iter(loader(data.train, batch_size=1024, shuffle=True, seed=0, epoch=0)))
    return batch.images, batch.labels


def trained_net(images: Tensor, labels: Tensor) -> nn.Module:
    net = four_layer_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(400):
        part = slice(128 * (step % 8), 128 * (step % 8) + 128)
        loss = nn.functional.cross_entropy(net(images[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def force(supernet: Supernet, policy: Bits) -> None:
    """Makes the supernet the quantised network of `policy`, clips and all."""
    with torch.no_grad():
        for layer, pair in zip(supernet.searched.values(), policy, strict=True):
            for logits, bits in zip(layer.mixture.parameters(recurse=False), pair, strict=True):
                logits.copy_(torch.where(torch.tensor(layer.mixture.weight_bits) == bits, 40.0, -40.0))


def search_and_brute_force(widths: tuple[int, int], zeta: float) -> tuple[Bits, list[Bits]]:
    """What the search settles on, and all 256 policies, best first.

    Weights stay as they are (a learning rate of 1e-12), so that the objective of every policy is known exactly.
    """
    torch.set_num_threads(1)
    images, labels = digits()
    net = trained_net(images, labels)
    costs = measure(net, images[:8])
    config = GmpqConfig(
        zeta=zeta,
        eta=0.0,
        weight_bits=widths,
        act_bits=widths,
        weight_lr=1e-12,
        bit_lr=0.5,
        epochs=60,
        weight_decay=0.0,
    )

    def fresh() -> Supernet:
        supernet = build_supernet(net, costs, assign_roles(costs, NetworkConfig(name="net")), config)
        calibrate(supernet.net, images)
        return supernet

    batch = Batch(images[:512], labels[:512], torch.arange(512), None)
    values, supernet = {}, fresh()
    with torch.no_grad():
        for policy in itertools.product(itertools.product(widths, widths), repeat=len(supernet.searched)):
            force(supernet, policy)
            task = nn.functional.cross_entropy(supernet.net(batch.images), batch.labels)
            complexity = complexity_risk(*supernet.expected_bits(), macs=supernet.macs, start=supernet.start)
            values[policy] = float(task + zeta * complexity)

    supernet = fresh()
    plan = TrainingPlan(
        epochs=config.epochs,
        batch_size=512,
        batches=lambda epoch: [batch],
        optimizers=make_optimizers(supernet, config),
        lr_factor=cosine(config.epochs),
    )
    objective = make_objective(supernet.net, supernet, config, None)
    workers = Workers(0, 1, torch.device("cpu"))
    kept = Checkpoint(None, workers).begin("search", supernet.net)
    train(supernet.net, plan, objective, workers=workers, on_epoch=lambda epoch, means: None, checkpoint=kept)
    found = tuple(tuple(bits) for bits in supernet.choices("net").best.searched.values())
    return found, sorted(values, key=values.__getitem__)


@pytest.mark.parametrize(("widths", "zeta"), [((3, 8), 0.1), ((3, 6), 0.2)])
def test_the_search_finds_the_policy_that_brute_force_finds(widths: tuple[int, int], zeta: float) -> None:
    found, best_first = search_and_brute_force(widths, zeta)
    assert found == best_first[0]
    # The answer is at neither end of the search space.
    assert set(widths) == {bits for pair in found for bits in pair}


def test_where_the_mixture_is_not_the_policy_the_search_ends_among_the_best_tenth() -> None:
    """At this price 3-bit noise is no longer small, and a mixture of 3 and 8 bits has less of it than either choice."""
    found, best_first = search_and_brute_force((3, 8), 0.3)
    assert best_first.index(found) < 26


def gmpq_gradients(rank: int, world_size: int, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradients of one GMPQ step on this worker's half of the batch."""
    net = four_layer_net()
    reference = four_layer_net()
    torch.manual_seed(7)
    for parameter in reference.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    reference.requires_grad_(False)
    costs = measure(net, images[:8])
    config = GmpqConfig(zeta=0.3, eta=5.0)
    supernet = build_supernet(net, costs, assign_roles(costs, NetworkConfig(name="net")), config)
    theirs = AskedMaps(reference, MapSetting(), probe=images[:8])
    terms = ImitationTerms(supernet, theirs, config, probe=images[:8])
    model = Workers(rank, world_size, torch.device("cpu")).wrap(supernet.net)
    objective = make_objective(model, supernet, config, Generalisation(config.eta, terms))
    share = len(images) // world_size
    part = slice(rank * share, (rank + 1) * share)
    objective(Batch(images[part], labels[part], torch.arange(len(labels[part])), None))["loss"].backward()
    return {name: p.grad.clone() for name, p in supernet.net.named_parameters()}


def worker(rank: int, folder: str, images: Tensor, labels: Tensor) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(gmpq_gradients(rank, 2, images, labels), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_give_the_gradient_of_one(tmp_path: Path) -> None:
    images, labels = digits()
    images, labels = images[:64], labels[:64]
    mp.spawn(worker, args=(str(tmp_path), images, labels), nprocs=2)
    one = gmpq_gradients(0, 1, images, labels)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert {name for name in one if "logits" in name} != set()
    for name, gradient in one.items():
        torch.testing.assert_close(both[0][name], both[1][name], rtol=0, atol=0)
        torch.testing.assert_close(both[0][name], gradient, rtol=1e-3, atol=1e-5)
