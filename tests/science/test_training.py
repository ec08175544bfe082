"""The loop, the reference's store and a whole trial of each method on digits."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainables import reference
from trainables.api import EpochReport, ensure_reference, run_trial
from trainables.checkpoint import Checkpoint, StageCheckpoint
from trainables.config import DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.data.splits import Batch
from trainables.distributed import Workers
from trainables.errors import DivergedError, StorageError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import EdmipsConfig, GmpqConfig
from trainables.methods.loop import new_supernet
from trainables.quantizers.pact import CLIP_START
from trainables.stepping import TrainingPlan
from trainables.training import at_shares, cosine, every, train

ALONE = Workers(0, 1, torch.device("cpu"))
TINY = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, fraction=0.3),
    reference=ReferenceConfig(epochs=3),
    method=GmpqConfig(zeta=0.3, eta=1.0, epochs=2, batch_size=64),
    finetune=FinetuneConfig(epochs=2, batch_size=64),
)


def quiet(epoch: EpochReport) -> None:
    """No report is wanted."""


def batch_of(images: Tensor) -> Batch:
    return Batch(images, torch.zeros(len(images)), torch.arange(len(images)), None)


def none_kept(net: nn.Module) -> StageCheckpoint:
    return Checkpoint(None, ALONE).begin("search", net)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TINY, quiet, store=folder)
    return folder


def test_schedules_are_those_of_the_recipes() -> None:
    assert [every(10)(e) for e in (0, 9.9, 10, 24)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [at_shares(40)(e) for e in (0, 19.9, 20, 30, 39)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    assert [cosine(4)(e) for e in (0, 2, 4)] == pytest.approx([1, 0.5, 0])


def test_the_loop_is_plain_gradient_descent_on_the_loss_with_the_scheduled_rate() -> None:
    weight = nn.Linear(1, 1, bias=False)
    nn.init.constant_(weight.weight, 3.0)
    batches = [batch_of(torch.ones(2, 1)), batch_of(torch.ones(2, 1) * 2)]
    plan = TrainingPlan(
        epochs=2,
        batch_size=2,
        batches=lambda epoch: batches,
        optimizers=[torch.optim.SGD(weight.parameters(), lr=0.1)],
        lr_factor=lambda progress: 1 / (1 + progress),
    )
    seen = []

    def terms(batch: Batch) -> dict[str, Tensor]:
        return {"loss": weight(batch.images).square().mean()}

    train(
        weight,
        plan,
        terms,
        workers=ALONE,
        on_epoch=lambda epoch, means: seen.append((epoch, means["loss"])),
        checkpoint=none_kept(weight),
    )
    value, losses = 3.0, []
    for progress, x in ((0.0, 1.0), (0.5, 2.0), (1.0, 1.0), (1.5, 2.0)):
        losses.append((value * x) ** 2)
        value -= 0.1 / (1 + progress) * 2 * value * x * x
    assert float(weight.weight.detach()) == pytest.approx(value, rel=1e-5)
    assert seen == [(1, pytest.approx(sum(losses[:2]) / 2)), (2, pytest.approx(sum(losses[2:]) / 2))]


def test_a_loss_that_is_no_number_ends_the_training_by_name() -> None:
    net = nn.Linear(1, 1)
    plan = TrainingPlan(
        epochs=3,
        batch_size=2,
        batches=lambda epoch: [batch_of(torch.ones(2, 1))],
        optimizers=[torch.optim.SGD(net.parameters(), lr=0.1)],
        lr_factor=cosine(3),
    )

    def terms(batch: Batch) -> dict[str, Tensor]:
        return {"loss": net(batch.images).mean(), "task_risk": torch.tensor(math.inf)}

    with pytest.raises(DivergedError, match="epoch 1: task_risk no longer finite"):
        train(net, plan, terms, workers=ALONE, on_epoch=lambda epoch, means: None, checkpoint=none_kept(net))


def test_a_reference_is_trained_once_also_when_two_start_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(lambda _: ensure_reference(TINY, quiet, store=tmp_path), range(2)))
    (folder,) = tmp_path.iterdir()
    assert folder.name == TINY.reference_key
    assert sorted(path.name for path in folder.iterdir()) == ["model.pt", "record.json"]
    monkeypatch.setattr(reference, "train_reference", lambda *_: pytest.fail("trained again"))
    found = ensure_reference(TINY, quiet, store=tmp_path)
    assert found in records


def test_the_reference_depends_on_network_data_and_recipe_and_on_nothing_else() -> None:
    same = replace(TINY, seed=5, method=EdmipsConfig(zeta=1.0), data=replace(TINY.data, loader_workers=2))
    assert same.reference_key == TINY.reference_key
    for other in (
        replace(TINY, network=NetworkConfig(name="resnet20")),
        replace(TINY, data=replace(TINY.data, image_size=16)),
        replace(TINY, reference=replace(TINY.reference, lr=0.2)),
    ):
        assert other.reference_key != TINY.reference_key


def test_a_trial_without_its_reference_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no trained reference there"):
        run_trial(TINY, quiet, store=tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        GmpqConfig(zeta=0.3, eta=1.0, epochs=2, batch_size=64, resolution="input", top_k=30),
        GmpqConfig(zeta=0.3, eta=0.0, epochs=2, batch_size=64, start="scratch"),
        EdmipsConfig(zeta=0.3, epochs=2, batch_size=64),
    ],
    ids=["gmpq, maps at the input's size", "gmpq without attribution, from scratch", "edmips"],
)
def test_a_trial_reports_every_epoch_and_ends_with_finite_metrics(
    store: Path, method: GmpqConfig | EdmipsConfig
) -> None:
    reports: list[EpochReport] = []
    result = run_trial(replace(TINY, method=method), reports.append, store=store)
    assert [(r.stage, r.epoch) for r in reports] == [("search", 1), ("search", 2), ("finetune", 1), ("finetune", 2)]
    assert ("generalisation_risk" in reports[0].metrics) is (getattr(method, "eta", 0.0) > 0)
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert result.metrics["top1"] == reports[-1].metrics["top1"]
    assert result.metrics["bops_g"] == reports[1].metrics["policy_bops_g"]
    assert result.record.policy.pinned == {"conv1", "fc"}


def test_the_same_seed_gives_the_same_policy_and_metrics_bit_for_bit(store: Path) -> None:
    config = replace(TINY, data=replace(TINY.data, augment="crop-flip"))
    ensure_reference(config, quiet, store=store)
    first = run_trial(config, quiet, store=store)
    torch.rand(17)
    again = run_trial(config, quiet, store=store)
    timed = {"device_hours", "search_device_hours", "search_cost_hours", "finetune_device_hours", "images_per_s"}
    assert first.record == again.record
    assert {k: v for k, v in first.metrics.items() if k not in timed} == {
        k: v for k, v in again.metrics.items() if k not in timed
    }
    assert run_trial(replace(config, seed=1), quiet, store=store).metrics["ard"] != first.metrics["ard"]


def test_more_pressure_on_complexity_gives_cheaper_policies(store: Path) -> None:
    costs = []
    for zeta in (0.0, 10.0):
        method = GmpqConfig(zeta=zeta, eta=0.0, epochs=3, batch_size=64, bit_lr=0.5)
        costs.append(run_trial(replace(TINY, method=method), quiet, store=store).metrics["bops_paper_g"])
    assert costs[1] < 0.7 * costs[0]


def test_a_search_that_diverges_is_named(store: Path) -> None:
    method = GmpqConfig(zeta=0.1, eta=1.0, epochs=1, batch_size=64, weight_lr=1e30)
    with pytest.raises(DivergedError, match="no longer finite"):
        run_trial(replace(TINY, method=method), quiet, store=store)


def test_a_search_on_a_transformer_starts_with_no_activation_rounded_to_zero(tmp_path: Path) -> None:
    """With a clip of 6 everywhere the inputs of its projections are zeros: neither weights nor clips get a gradient."""
    config = replace(TINY, network=NetworkConfig(name="deit_tiny_patch4"), reference=ReferenceConfig(epochs=1))
    ensure_reference(config, quiet, store=tmp_path)
    bench = reference.load_bench(config, store=tmp_path)
    zeros: dict[str, float] = {}
    for start in ("release", "ours"):
        supernet = new_supernet(bench, config.method)
        for name, layer in supernet.searched.items():
            activations = layer.mixture.activations
            if start == "release":
                activations.clip.data.fill_(CLIP_START)
            activations.register_forward_hook(
                lambda m, i, out, name=name: zeros.__setitem__(name, float((out == 0).float().mean()))
            )
        supernet.net.eval()(bench.probe)
        if start == "release":
            assert max(zeros.values()) > 0.99
    assert max(zeros.values()) < 0.9
