"""Searches on a supernet whose widths have LSQ steps of their own."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables.api import EpochReport, ensure_reference, run_trial
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import EdmipsConfig, GmpqConfig
from trainables.methods.loop import new_supernet
from trainables.quantizers.layers import quantizer_parameters
from trainables.reference import load_bench

TINY = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, fraction=0.3),
    reference=ReferenceConfig(epochs=3),
    method=EdmipsConfig(zeta=0.1, quantizer="lsq", epochs=3, batch_size=64, bit_lr=0.5),
    finetune=FinetuneConfig(epochs=1, batch_size=64),
    budget=BudgetConfig(compression=90.0),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TINY, lambda epoch: None, store=folder)
    return folder


def test_every_step_is_calibrated_before_the_search_and_narrower_widths_have_longer_ones(store: Path) -> None:
    supernet = new_supernet(load_bench(TINY, store=store), TINY.method)
    assert len(quantizer_parameters(supernet.net)) == 8 + 6
    for steps in quantizer_parameters(supernet.net):
        assert steps.requires_grad
        assert steps.tolist() == sorted(set(steps.tolist()), reverse=True)


@pytest.mark.parametrize(
    "method", [TINY.method, GmpqConfig(zeta=0.1, eta=1.0, quantizer="lsq", epochs=3, batch_size=64, bit_lr=0.5)]
)
def test_a_search_learns_and_its_policy_is_deployed_on_the_same_quantiser(
    store: Path, method: EdmipsConfig | GmpqConfig
) -> None:
    reports: list[EpochReport] = []
    result = run_trial(replace(TINY, method=method), reports.append, store=store)
    risks = [report.metrics["task_risk"] for report in reports if report.stage == "search"]
    assert risks[2] < risks[0] < math.log(10)
    assert result.metrics["compression"] >= 90
    assert any(len(set(scores.values)) == 3 for scores in result.choices.weights.values())
    assert result.record.settings["quantizer"] == "lsq"
