"""Trials under a budget: what is reported, kept, and gone on with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.science.reports import Reports
from trainables import trial
from trainables.api import TrialResult, allocate, ensure_reference, run_trial, survey
from trainables.choices import Choices
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.errors import InfeasibleBudgetError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import GmpqConfig
from trainables.policy import BitPolicy
from trainables.recount import recount
from trainables.supernet import deploy

FREE = TrialConfig(
    network=NetworkConfig(name="resnet8", tie_residuals=True),
    data=DataConfig(name="digits", image_size=8, fraction=0.3),
    reference=ReferenceConfig(epochs=1),
    method=GmpqConfig(zeta=0.0, eta=0.0, epochs=2, batch_size=64, bit_lr=0.3),
    finetune=FinetuneConfig(epochs=1, batch_size=128),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(FREE, Reports(), store=folder)
    return folder


@pytest.fixture(scope="module")
def free(store: Path) -> TrialResult:
    return run_trial(FREE, Reports(), store=store)


def halfway(free: TrialResult, *names: str) -> BudgetConfig:
    """Limits halfway between the smallest widths and what the search chooses freely."""
    work = free.record.work
    assert work is not None
    low, high = work.of(free.choices.smallest), work.of(free.choices.best)
    return BudgetConfig(**{name: (low[name] + high[name]) / 2 for name in names})


def test_a_trial_without_a_budget_takes_the_most_probable_widths(free: TrialResult) -> None:
    assert free.record.policy == free.choices.best
    assert free.choices.acts.keys() >= {"layer1.0.conv1"}
    assert free.choices.group_of["layer2.0.downsample.0"] == "layer1.0.conv1"


def test_a_budget_is_kept_in_every_epoch_and_in_the_result(store: Path, free: TrialResult) -> None:
    budget = halfway(free, "bops_g", "storage_mb")
    reports = Reports()
    found = run_trial(replace(FREE, budget=budget), reports, store=store)
    assert budget.broken(found.metrics) == []
    # The same search, so the same choices; and without the budget other bits.
    assert found.choices == free.choices
    assert free.metrics["bops_g"] > budget.bops_g
    spent = [epoch.metrics.get("policy_bops_g", epoch.metrics.get("bops_g")) for epoch in reports.seen]
    assert len(spent) == 3
    assert all(bops_g <= budget.bops_g for bops_g in spent)
    assert found.record.work is not None
    assert allocate(found.choices, found.record.work, budget) == found.record.policy


def test_a_trial_that_was_cut_off_in_its_finetune_still_knows_its_choices(
    store: Path, free: TrialResult, tmp_path: Path
) -> None:
    config = replace(FREE, budget=halfway(free, "mean_act_bits"), finetune=replace(FREE.finetune, epochs=2))
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run_trial(config, Reports(3), store=store, checkpoint=file)
    reports = Reports()
    found = run_trial(config, reports, store=store, checkpoint=file)
    assert [epoch.stage for epoch in reports.seen] == ["finetune"]
    assert found.choices == free.choices
    assert config.budget.broken(found.metrics) == []
    path = tmp_path / "choices.json"
    path.write_text(found.choices.to_json())
    assert Choices.load(path) == found.choices


def test_a_barrier_keeps_the_expected_cost_within_the_budget(store: Path) -> None:
    low, high = survey(FREE).reach["bops_g"]
    budget = BudgetConfig(bops_g=low + 0.2 * (high - low))
    found = {}
    for barrier in (0.0, 0.1):
        method = replace(FREE.method, barrier=barrier, epochs=3, bit_lr=0.05)
        reports = Reports()
        result = run_trial(replace(FREE, method=method, budget=budget), reports, store=store)
        found[barrier] = (result, reports.seen[2].metrics)
    free, kept = found[0.0][0].choices, found[0.1][0].choices
    work = found[0.0][0].record.work
    assert work is not None
    # The most probable widths alone keep the budget with the barrier, and break it without.
    assert budget.broken(work.of(free.best)) == ["bops_g"]
    assert budget.broken(work.of(kept.best)) == []
    assert "barrier" not in found[0.0][1]
    assert 0 < found[0.1][1]["barrier"] < 10
    assert all(budget.broken(result.metrics) == [] for result, _ in found.values())


def test_a_budget_below_the_floor_ends_the_trial_before_its_first_step(store: Path) -> None:
    reports = Reports()
    config = replace(FREE, budget=BudgetConfig(compression=1000.0))
    with pytest.raises(
        InfeasibleBudgetError, match=r"budget\.compression is 1000, but .* is still [\d.]+: give at most"
    ):
        run_trial(config, reports, store=store)
    assert reports.seen == []


def test_a_deployed_network_that_costs_something_else_ends_the_trial(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment that gives a layer other bits than its policy does."""

    def forgetful(net: object, costs: object, policy: BitPolicy, quantizer: object) -> object:
        bits = {**policy.bits, "layer1.0.conv2": policy.bits["fc"]}
        return deploy(net, costs, replace(policy, bits=bits), quantizer)  # type: ignore[arg-type]

    monkeypatch.setattr(trial, "deploy", forgetful)
    with pytest.raises(RuntimeError, match="the deployed network costs"):
        run_trial(FREE, Reports(), store=store)


def test_a_layer_without_a_quantiser_is_recounted_in_full_precision() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    counts = recount(net, torch.randn(5, 3, 2, 2), searched=["0"])
    assert (counts.bops, counts.searched_bops) == (1024 * (48 + 32), 1024 * 48)
    assert (counts.weight_bits, counts.act_bits) == (32 * (12 + 32), 32 * (12 + 16))
