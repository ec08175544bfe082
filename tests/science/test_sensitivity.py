"""MPQCO and HAWQ from end to end on digits: a function of the settings, whatever computes them."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables import methods
from trainables.api import EpochReport, allocate, ensure_reference, run_trial, survey, times
from trainables.choices import Choices
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.data.splits import Batch
from trainables.errors import ConfigError, DivergedError, InfeasibleBudgetError
from trainables.finetune_config import FinetuneConfig
from trainables.greedy import allocate_greedily
from trainables.method_config import HawqConfig, MpqcoConfig
from trainables.methods.sensitivity import Passes
from trainables.quantizers.layers import calibrate
from trainables.quantizers.rounding import rounded
from trainables.reference import Bench, load_bench
from trainables.supernet import deploy
from trainables.timing import as_in_a_trial

MPQCO = MpqcoConfig(weight_bits=(2, 3, 5), act_bits=(3, 4), images=40, batch_size=16)
HAWQ = HawqConfig(weight_bits=(2, 3, 5), act_bits=(3, 4), images=40, batch_size=16, probes=3, solver="greedy")
TRIAL = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, augment="crop-flip"),
    reference=ReferenceConfig(epochs=1),
    method=MPQCO,
    budget=BudgetConfig(mean_weight_bits=4.0),
    finetune=FinetuneConfig(epochs=1, batch_size=128),
)
BOTH = pytest.mark.parametrize("method", [MPQCO, HAWQ], ids=["mpqco", "hawq"])


def quiet(epoch: EpochReport) -> None:
    """No report is wanted."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TRIAL, quiet, store=folder)
    return folder


def bench_of(store: Path, config: TrialConfig = TRIAL, checkpoint: Path | None = None) -> Bench:
    return load_bench(config, store=store, checkpoint=checkpoint)


@BOTH
def test_a_trial_keeps_its_budget_and_says_what_it_chose_from(store: Path, method: MpqcoConfig | HawqConfig) -> None:
    config = replace(TRIAL, method=method)
    found = run_trial(config, quiet, store=store)
    assert config.budget.broken(found.metrics) == []
    assert found.record.method == ("mpqco" if isinstance(method, MpqcoConfig) else "hawq")
    work = found.record.work
    assert work is not None
    solve = allocate if method.solver == "exact" else allocate_greedily
    assert solve(found.choices, work, config.budget) == found.record.policy
    assert {scores.widths for scores in found.choices.weights.values()} == {(2, 3, 5)}
    (act,) = {scores.widths for scores in found.choices.acts.values()}
    assert act in ((3,), (4,))
    # The same settings give the same choices to the last bit.
    assert methods.search(bench_of(store, config), config, quiet) == found.choices


def test_scores_are_the_definition_over_the_first_images_of_the_seed(store: Path) -> None:
    """Forty images that no augmentation changed, in passes of sixteen, whose last is smaller."""
    bench = bench_of(store)
    found = methods.search(bench, TRIAL, quiet)
    places = torch.randperm(len(bench.data.train), generator=torch.Generator().manual_seed(TRIAL.seed))[:40]
    images, labels = bench.data.train.batch(places, None)
    net = bench.reference.double()
    for name, scores in found.weights.items():
        weight = net.get_parameter(f"{name}.weight").requires_grad_()
        changes = rounded(weight, MPQCO.weight_bits, "mse") - weight.detach()
        losses = torch.zeros(3, dtype=torch.float64)
        for image, label in zip(images.double(), labels, strict=True):
            (grad,) = torch.autograd.grad(cross_entropy(net(image[None]), label[None]), weight)
            losses += (changes * grad).flatten(1).sum(1).square() / 80
        torch.testing.assert_close(torch.tensor(scores.values, dtype=torch.float64), -losses, rtol=1e-3, atol=1e-12)
    assert any(losses > 0)


def worker(rank: int, store: str, folder: str, configs: list[TrialConfig]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for number, config in enumerate(configs):
        found = methods.search(bench_of(Path(store), config), config, quiet)
        (Path(folder) / f"{rank}-{number}.json").write_text(found.to_json())
    dist.destroy_process_group()


def test_two_workers_find_what_one_finds_and_agree_to_the_last_bit(store: Path, tmp_path: Path) -> None:
    # Of the last pass, a single image, the second worker has nothing.
    configs = [replace(TRIAL, method=replace(method, images=33)) for method in (MPQCO, HAWQ)]
    mp.spawn(worker, args=(str(store), str(tmp_path), configs), nprocs=2)
    for number, config in enumerate(configs):
        first, second = (tmp_path / f"{rank}-{number}.json" for rank in range(2))
        assert first.read_text() == second.read_text()
        shared, alone = Choices.load(first), methods.search(bench_of(store, config), config, quiet)
        assert shared.acts == alone.acts
        for name, scores in alone.weights.items():
            assert shared.weights[name].values == pytest.approx(scores.values, rel=1e-4, abs=1e-9)


class CutOffError(Exception):
    """The process has gone."""


@BOTH
def test_a_search_that_was_cut_off_goes_on_from_its_last_pass(
    store: Path, tmp_path: Path, method: MpqcoConfig | HawqConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, file = replace(TRIAL, method=method), tmp_path / "checkpoint.pt"
    whole = methods.search(bench_of(store, config), config, quiet)
    after, read = Passes.after, [0]

    def breaking(self: Passes, passes: int):  # type: ignore[no-untyped-def]
        for batch in after(self, passes):
            if read[0] == 2:
                raise CutOffError
            read[0] += 1
            yield batch

    monkeypatch.setattr(Passes, "after", breaking)
    with pytest.raises(CutOffError):
        methods.search(bench_of(store, config, file), config, quiet)
    asked: list[int] = []
    monkeypatch.setattr(Passes, "after", lambda self, passes: asked.append(passes) or after(self, passes))
    assert methods.search(bench_of(store, config, file), config, quiet) == whole
    # Two of the three passes are kept; both activation widths are tried on all.
    assert asked == [2, 0, 0]


def test_activations_have_the_width_whose_quantised_network_has_the_least_loss(store: Path) -> None:
    """Five widths, of which the widest leaves the weights too few bits, or none at all, under one limit on BOPs."""
    bench = bench_of(store)
    low, high = survey(replace(TRIAL, method=replace(MPQCO, act_bits=(2, 3, 4, 6, 8)))).reach["bops_g"]
    budget = BudgetConfig(bops_g=low + 0.35 * (high - low))
    losses = {}
    for width in (2, 3, 4, 6, 8):
        config = replace(TRIAL, method=replace(MPQCO, act_bits=(width,)), budget=budget)
        try:
            choices = methods.search(bench, config, quiet)
        except InfeasibleBudgetError:
            continue
        net = deploy(bench.reference, bench.costs, allocate(choices, bench.costs, budget), "pact")
        calibrate(net, bench.calibration_images(config.finetune.batch_size))
        passes = Passes(bench, MPQCO)
        losses[width] = passes.loss(net)
    assert set(losses) >= {2, 3, 4}
    assert len(set(losses.values())) == len(losses)
    config = replace(TRIAL, method=replace(MPQCO, act_bits=(8, 2, 3, 6, 4)), budget=budget)
    found = methods.search(bench, config, quiet)
    assert {scores.widths for scores in found.acts.values()} == {(min(losses, key=losses.__getitem__),)}


def test_the_loss_is_the_mean_over_the_images_and_infinite_where_it_is_no_number(store: Path) -> None:
    bench = bench_of(store)
    passes = Passes(bench, MPQCO)
    batches = [batch for batch in passes.after(0) if batch]
    assert [len(batch.labels) for batch in batches] == [16, 16, 8]
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    exact = float(cross_entropy(bench.reference(images), labels))
    assert passes.loss(bench.reference) == pytest.approx(exact, rel=1e-6)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).repeat(1, 4) * torch.nan

    assert passes.loss(Broken()) == float("inf")

    def broken(batch: Batch) -> Tensor:
        return torch.tensor(torch.inf)

    with pytest.raises(DivergedError, match="not finite for some images; train it anew"):
        passes.mean(broken, like=torch.zeros(()))


def test_what_cannot_be_searched_is_known_before_anything_is_computed(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"budget: mpqco chooses bits for a budget, and there is none"):
        replace(TRIAL, budget=BudgetConfig())
    with pytest.raises(ConfigError, match=r"method\.images is 2000, but there are only 1438 training images"):
        survey(replace(TRIAL, method=replace(HAWQ, images=2000)))
    with pytest.raises(ConfigError, match=r"'pact' has no 1-bit weights"):
        replace(TRIAL, method=replace(MPQCO, weight_bits=(1, 2)))
    narrow = replace(TRIAL, budget=BudgetConfig(mean_weight_bits=1.5))
    with pytest.raises(InfeasibleBudgetError, match=r"budget\.mean_weight_bits is 1\.5, but"):
        methods.search(bench_of(store), narrow, quiet)


@BOTH
def test_steps_of_a_search_are_its_passes_and_are_timed(method: MpqcoConfig | HawqConfig) -> None:
    config = replace(TRIAL, method=method)
    assert survey(config).search_steps == 3 * (1 if isinstance(method, MpqcoConfig) else 3)
    (found,) = times([config], threads=1, workers=1)
    assert 0 < found.search_s < 30


@pytest.mark.long
@pytest.mark.parametrize(
    "method",
    [replace(MPQCO, images=192, act_bits=(2, 3)), replace(HAWQ, images=64, probes=12, act_bits=(2, 3, 4, 5, 6))],
    ids=["mpqco", "hawq"],
)
def test_what_a_search_does_once_is_counted_once_in_its_hours(store: Path, method: MpqcoConfig | HawqConfig) -> None:
    """Within a factor of two of the search itself; widths are rounded and networks deployed once, passes are many."""
    config = replace(TRIAL, method=method)
    steps, bench, ratios = survey(config).search_steps, bench_of(store, config), []
    for _ in range(3):
        (found,) = times([config], threads=1, workers=1)
        with as_in_a_trial(config.seed, 1, torch.device("cpu")):
            began = time.perf_counter()
            methods.search(bench, config, quiet)
            ratios.append(found.search_s * steps / (time.perf_counter() - began))
        if 0.5 <= ratios[-1] <= 2:
            return
    pytest.fail(f"estimated over measured: {ratios}")
