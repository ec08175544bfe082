"""Two workers: what they need not tell each other changes nothing that is kept."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables import same_host
from trainables.averaging import AveragedWeights
from trainables.checkpoint import Checkpoint
from trainables.data.images import MemoryImages
from trainables.data.splits import Batch, loader
from trainables.distributed import Workers
from trainables.same_host import SharedMemory
from trainables.stepping import TrainingPlan
from trainables.training import train


class Centred(nn.Module):
    """Subtracts a mean that it follows itself: a buffer that steps read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = x - self.mean
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean()
        return y


def net(*, centred: bool) -> nn.Module:
    torch.manual_seed(0)
    first: list[nn.Module] = [Centred()] if centred else []
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)]
    return nn.Sequential(*first, *body)


def trained(workers: Workers, *, centred: bool, always: bool) -> dict[str, dict[str, Tensor]]:
    """Network and average after two epochs with a report between them; `always`: buffers are told in every step."""
    random = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (96, 3, 4, 4), generator=random, dtype=torch.uint8)
    images = MemoryImages(pixels, torch.arange(96) % 5, torch.tensor(128.0), torch.tensor(64.0))
    model = copy.deepcopy(net(centred=centred))
    wrapped = workers.wrap(model)
    assert wrapped.broadcast_buffers == centred
    if always:
        wrapped.broadcast_buffers = True
    average, seen = AveragedWeights(model, 0.5), []
    plan: TrainingPlan[Batch] = TrainingPlan(
        epochs=2,
        batch_size=32,
        batches=lambda epoch: loader(
            images, batch_size=32, shuffle=True, seed=0, epoch=epoch, rank=workers.rank, world_size=workers.size
        ),
        optimizers=[torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)],
        lr_factor=lambda progress: 1.0,
        average=average,
    )
    train(
        wrapped,
        plan,
        lambda batch: {"loss": cross_entropy(wrapped(batch.images), batch.labels)},
        workers=workers,
        on_epoch=lambda epoch, means: seen.append(copy.deepcopy(model.state_dict())),
        checkpoint=Checkpoint(None, workers).begin("finetune", model),
    )
    return {"first": seen[0], "second": seen[1], "average": average.net.state_dict()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    workers = Workers(rank, 2, torch.device("cpu"))
    for centred, always in ((False, False), (False, True), (True, False), (True, True)):
        torch.save(trained(workers, centred=centred, always=always), f"{folder}/{rank}-{centred}-{always}.pt")
    torch.save(exchanged(rank), f"{folder}/{rank}-exchanged.pt")
    refused = pytest.MonkeyPatch()
    if rank == 1:
        refused.setattr(same_host, "_mapped", lambda path, token, size: None)
    assert SharedMemory.of(nn.Linear(3, 2), rank=rank, size=2) is None
    refused.undo()
    dist.destroy_process_group()


def gradients(rank: int, step: int) -> list[Tensor]:
    """Two buckets of a worker, of different types and of sizes that two workers cannot share evenly."""
    random = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randn(7001, generator=random), torch.randn(33, generator=random, dtype=torch.float64)]


def exchanged(rank: int) -> list[list[Tensor]]:
    """What this worker has after each of three steps."""
    net = nn.ParameterList([torch.zeros(7001), torch.zeros(33, dtype=torch.float64)])
    shared = SharedMemory.of(net, rank=rank, size=2)
    assert shared is not None
    steps = []
    for step in range(3):
        buckets = gradients(rank, step)
        for number, bucket in enumerate(buckets):
            shared.average(bucket, first=number == 0)
        steps.append(buckets)
    return steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("workers")
    mp.spawn(worker, args=(str(found),), nprocs=2)
    return found


@pytest.mark.parametrize("centred", [False, True])
def test_networks_and_averages_are_bit_for_bit_those_of_workers_that_tell_buffers_in_every_step(
    folder: Path, centred: bool
) -> None:
    """Running statistics are rank 0's in the end; a buffer that steps read is told in every step in any case."""
    found = [
        torch.load(folder / f"{rank}-{centred}-{always}.pt", weights_only=True)
        for rank in (0, 1)
        for always in (False, True)
    ]
    for part in ("first", "second", "average"):
        for name, tensor in found[0][part].items():
            assert all(torch.equal(other[part][name], tensor) for other in found[1:]), (part, name)
    assert found[0]["second"]["2.running_mean" if centred else "1.running_mean"].abs().max() > 0
    assert (found[0]["second"].keys() >= {"0.mean"}) == centred


def test_gradients_that_are_averaged_in_shared_memory_are_their_mean_with_the_same_bits_on_all(folder: Path) -> None:
    """And no worker uses it where one of them cannot."""
    found = [torch.load(folder / f"{rank}-exchanged.pt", weights_only=True) for rank in (0, 1)]
    for step in range(3):
        for number in (0, 1):
            expected = (gradients(0, step)[number] + gradients(1, step)[number]) / 2
            assert torch.equal(found[0][step][number], expected)
            assert torch.equal(found[1][step][number], expected)


def test_memory_of_another_host_is_not_taken_for_the_own(tmp_path: Path) -> None:
    size, token = 128, bytes(range(32))
    (tmp_path / "file").write_bytes(bytes(size - 32) + token)
    found = same_host._mapped(str(tmp_path / "file"), token, size)
    assert found is not None
    assert found.tolist() == [0] * (size - 32) + list(token)
    assert same_host._mapped(str(tmp_path / "file"), bytes(32), size) is None
    assert same_host._mapped(str(tmp_path / "none"), token, size) is None
    # One that has ended, or runs on another host.
    assert same_host._mapped("/proc/999999999/fd/3", token, size) is None
