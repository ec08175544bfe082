"""One step against closed forms: parts and workers add up to the whole batch, whatever their sizes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.averaging import AveragedWeights
from trainables.checkpoint import Checkpoint
from trainables.data.images import MemoryImages
from trainables.data.splits import Batch, loader
from trainables.distributed import Workers
from trainables.finetune.recipe import schedule, training_plan
from trainables.finetune_config import FinetuneConfig
from trainables.quantizers.layers import BitMixture, quantize_layers, quantizer_parameters
from trainables.stepping import Step, TrainingPlan
from trainables.training import train

ALONE = Workers(0, 1, torch.device("cpu"))
IMAGES, BATCH, WORKERS = 208, 64, 3
CONFIG = FinetuneConfig(
    epochs=2, batch_size=BATCH, optimizer="sgd", lr=0.1, ema=0.5, grad_clip=0.5, weight_decay=1e-3, checkpoint_every=2
)


def net() -> nn.Module:
    """Without batch normalisation, which sees parts and not the batch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5)).double()


def batch_of(size: int) -> Batch:
    random = torch.Generator().manual_seed(1)
    images = torch.rand(size, 3, 4, 4, generator=random, dtype=torch.float64)
    return Batch(images, torch.randint(0, 5, (size,), generator=random), torch.arange(size), torch.rand(size, 5))


def plan_of(model: nn.Module, batch_size: int, *, accumulate: int = 1, grad_clip: float = 0.0) -> TrainingPlan[Batch]:
    return TrainingPlan(
        epochs=1,
        batch_size=batch_size,
        batches=lambda epoch: pytest.fail("none are asked for"),
        optimizers=[torch.optim.SGD(model.parameters(), lr=1.0)],
        lr_factor=lambda progress: 1.0,
        accumulate=accumulate,
        grad_clip=grad_clip,
    )


def gradients(batch: Batch, *, accumulate: int, grad_clip: float = 0.0) -> tuple[list[Tensor], dict[str, Tensor], int]:
    """Of a step's parameters, its terms, and how many forward passes it took."""
    model, passes = net(), []

    def terms(part: Batch) -> dict[str, Tensor]:
        assert part.draws is not None
        assert len(part.images) == len(part.labels) == len(part.places) == len(part.draws)
        passes.append(len(part.labels))
        return {"loss": cross_entropy(model(part.images), part.labels), "one": torch.ones(())}

    plan = plan_of(model, len(batch.labels), accumulate=accumulate, grad_clip=grad_clip)
    told = Step(model, plan, terms, ALONE)(batch)
    assert sum(passes) == len(batch.labels)
    assert max(passes) - min(passes) <= 1
    return [p.grad for p in model.parameters() if p.grad is not None], told, len(passes)


@pytest.mark.parametrize(("size", "accumulate", "passes"), [(12, 3, 3), (13, 3, 3), (13, 5, 5), (2, 4, 2)])
def test_gradients_of_the_parts_of_a_batch_add_up_to_those_of_the_whole(
    size: int, accumulate: int, passes: int
) -> None:
    whole, told, _ = gradients(batch_of(size), accumulate=1)
    summed, also_told, made = gradients(batch_of(size), accumulate=accumulate)
    assert made == passes
    assert len(whole) == 4
    for one, other in zip(whole, summed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)
    assert float(also_told["loss"]) == pytest.approx(float(told["loss"]), rel=1e-6)
    assert float(also_told["one"]) == pytest.approx(1.0)


def test_a_gradient_is_cut_to_its_longest_after_all_parts_are_added_up() -> None:
    whole, _, _ = gradients(batch_of(13), accumulate=1)
    length = float(torch.cat([g.flatten() for g in whole]).norm())
    clipped, _, _ = gradients(batch_of(13), accumulate=3, grad_clip=length / 4)
    for one, other in zip(whole, clipped, strict=True):
        torch.testing.assert_close(other, one / 4, rtol=1e-5, atol=1e-9)
    longer, _, _ = gradients(batch_of(13), accumulate=3, grad_clip=length * 2)
    for one, other in zip(whole, longer, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)


def test_the_average_is_the_sum_over_all_steps_with_decaying_weights() -> None:
    layer = nn.BatchNorm1d(1).double()
    average = AveragedWeights(layer, 0.8)
    expected, statistics = float(layer.weight.detach()), float(layer.running_mean)  # type: ignore[arg-type]
    for step in range(1, 5):
        layer.weight.data.fill_(step**2)
        layer(torch.full((3, 1), 10.0 * step, dtype=torch.float64) + torch.rand(3, 1))
        average.update(layer)
        expected = 0.8 * expected + 0.2 * step**2
        statistics = 0.8 * statistics + 0.2 * float(layer.running_mean)  # type: ignore[arg-type]
    assert float(average.net.weight) == pytest.approx(expected)  # type: ignore[arg-type]
    assert float(average.net.running_mean) == pytest.approx(statistics)  # type: ignore[arg-type]
    assert int(average.net.num_batches_tracked) == 4  # type: ignore[arg-type]
    assert not average.net.training


def test_schedules_are_those_of_the_settings() -> None:
    paper = schedule(FinetuneConfig(epochs=40))
    assert [paper(e) for e in (0, 19.9, 20, 30, 39.9)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    own = schedule(FinetuneConfig(epochs=10, lr_steps=(0.1, 0.2, 0.9)))
    assert [own(e) for e in (0.9, 1, 2, 8.9, 9)] == pytest.approx([1, 0.1, 0.01, 0.01, 0.001])
    release = schedule(FinetuneConfig(epochs=100, schedule="cosine"))
    assert [release(e) for e in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    warm = schedule(FinetuneConfig(epochs=4, warmup_epochs=0.5))
    assert [warm(e) for e in (0, 0.25, 0.5, 1, 2)] == pytest.approx([0, 0.5, 1, 1, 0.1])


def test_quantisers_have_an_optimiser_of_their_own_where_they_have_a_rate() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    mixture = BitMixture("pact", weight_bits=(3,), act_bits=(3,), signed=False)
    quantize_layers(model, {"1": mixture})
    (clip,) = quantizer_parameters(model)
    config = FinetuneConfig(epochs=1, optimizer="sgd", momentum=0.7, weight_decay=0.1, quantizer_lr=0.25)
    weights, own = training_plan(model, config, lambda epoch: pytest.fail("none are asked for")).optimizers
    assert [p is clip for group in own.param_groups for p in group["params"]] == [True]
    assert (type(own).__name__, own.defaults["lr"], own.defaults["weight_decay"]) == ("Adam", 0.25, 0)
    assert [p for group in weights.param_groups for p in group["params"] if p is clip] == []
    assert sum(len(group["params"]) for group in weights.param_groups) == 4
    told = {name: weights.defaults[name] for name in ("momentum", "weight_decay", "nesterov")}
    assert told == {"momentum": 0.7, "weight_decay": 0.1, "nesterov": True}
    (together,) = training_plan(
        model, replace(config, quantizer_lr=0.0), lambda epoch: pytest.fail("none are asked for")
    ).optimizers
    assert sum(len(group["params"]) for group in together.param_groups) == 5


class StopError(Exception):
    """Enough steps."""


def trained(
    workers: Workers, config: FinetuneConfig, file: Path | None, *, stop_after: int = 1000
) -> dict[str, object]:
    """Weights, average and reports of a training on this worker's shares."""
    random = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (IMAGES, 3, 4, 4), generator=random, dtype=torch.uint8)
    images = MemoryImages(
        pixels, torch.randint(0, 5, (IMAGES,), generator=random), torch.tensor(128.0), torch.tensor(64.0)
    )
    model = copy.deepcopy(net())
    wrapped = workers.wrap(model)
    steps: list[int] = []
    reports: list[float] = []

    def batches(epoch: int) -> object:
        return loader(
            images, batch_size=BATCH, shuffle=True, seed=0, epoch=epoch, rank=workers.rank, world_size=workers.size
        )

    def terms(batch: Batch) -> dict[str, Tensor]:
        if len(steps) == stop_after:
            raise StopError
        steps.append(len(batch.labels))
        return {"loss": cross_entropy(wrapped(batch.images.double()), batch.labels)}

    plan = training_plan(model, config, batches)  # type: ignore[arg-type]
    kept = Checkpoint(file, workers).begin("finetune", model)
    train(
        wrapped,
        plan,
        terms,
        workers=workers,
        on_epoch=lambda epoch, means: reports.append(means["loss"]),
        checkpoint=kept,
    )
    assert plan.average
    return {"net": model.state_dict(), "average": plan.average.state_dict(), "reports": reports, "steps": steps}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    workers = Workers(rank, WORKERS, torch.device("cpu"))
    torch.save(trained(workers, CONFIG, None), f"{folder}/{rank}.pt")
    torch.save(trained(workers, replace(CONFIG, accumulate=2), None), f"{folder}/{rank}-parts.pt")
    with pytest.raises(StopError):
        trained(workers, CONFIG, Path(folder) / "checkpoint.pt", stop_after=5)
    dist.destroy_process_group()


def check_close(found: dict[str, object], expected: dict[str, object]) -> None:
    for part in ("net", "average"):
        state = expected[part]
        assert isinstance(state, dict)
        for name, tensor in state.items():
            torch.testing.assert_close(found[part][name], tensor, rtol=1e-9, atol=1e-11)  # type: ignore[index]


def test_three_workers_train_a_batch_of_64_as_one_does_and_one_goes_on_where_they_were_cut_off(tmp_path: Path) -> None:
    """64 images are 22, 21 and 21; means of terms are kept in single precision."""
    mp.spawn(worker, args=(str(tmp_path),), nprocs=WORKERS)
    alone = trained(ALONE, CONFIG, None)
    assert alone["steps"] == [64] * 6
    for name in ("", "-parts"):
        for rank in range(WORKERS):
            found = torch.load(tmp_path / f"{rank}{name}.pt", weights_only=True)
            assert sum(found["steps"]) == (22 if rank == 0 else 21) * 6
            check_close(found, alone)
            assert found["reports"] == pytest.approx(alone["reports"], rel=1e-6)
    # After step 2 of epoch 2, three workers' sums are one worker's.
    found = trained(ALONE, CONFIG, tmp_path / "checkpoint.pt")
    assert found["steps"] == [64]
    check_close(found, alone)
    assert found["reports"] == pytest.approx(alone["reports"][1:], rel=1e-6)  # type: ignore[index]


def test_a_share_without_an_image_is_an_error() -> None:
    images = MemoryImages(torch.zeros(9, 3, 4, 4), torch.zeros(9), torch.tensor(0.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"4 workers cannot share 9 images in batches of 3: each needs at least one"):
        loader(images, batch_size=3, shuffle=True, seed=0, epoch=0, world_size=4)


def test_an_overflow_in_the_weights_moves_no_quantiser_when_gradients_are_cut() -> None:
    weight, clip = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    plan = plan_of(nn.ParameterList([weight]), 4, grad_clip=1.0)
    plan = replace(plan, optimizers=[torch.optim.Adam([weight]), torch.optim.Adam([clip])])

    def step_terms(batch: Batch) -> dict[str, Tensor]:
        return {"loss": (weight * torch.tensor([float("nan"), 1.0])).sum() + clip.sum()}

    step = Step(nn.ParameterList([weight, clip]), plan, step_terms, ALONE)
    step._scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=1024.0)
    step(batch_of(4))
    assert torch.equal(clip, torch.ones(2))
    assert torch.equal(weight, torch.ones(2))
    assert step._scaler.get_scale() == 512.0
