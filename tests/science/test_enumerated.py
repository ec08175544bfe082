"""Each method's own scores on a network with few enough policies to try them all: exact solvers find the best, greedy
upgrades lose less than a hundredth."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainables import methods
from trainables.allocate import allocate
from trainables.api import EpochReport, ensure_reference
from trainables.bops import CostModel
from trainables.choices import Choices
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.finetune_config import FinetuneConfig
from trainables.greedy import allocate_greedily
from trainables.method_config import (
    EdmipsConfig,
    GmpqConfig,
    HawqConfig,
    LimpqConfig,
    MethodConfig,
    MpqcoConfig,
    RgmpqConfig,
)
from trainables.policy import BitPolicy
from trainables.reference import load_bench

SEARCH = {"zeta": 0.03, "epochs": 1, "batch_size": 64, "bit_lr": 0.1}
METHODS: dict[str, MethodConfig] = {
    "mpqco": MpqcoConfig(images=64),
    "hawq": HawqConfig(images=64, probes=16),
    "limpq": LimpqConfig(epochs=1, batch_size=64),
    "edmips": EdmipsConfig(**SEARCH),
    "gmpq": GmpqConfig(eta=1.0, **SEARCH),
    "rgmpq": RgmpqConfig(eta=1.0, gamma=0.5, **SEARCH),
}
TRIAL = TrialConfig(
    network=NetworkConfig(name="resnet8", pinned={"layer1.*": 4}),
    data=DataConfig(name="digits", image_size=16, fraction=0.3),
    reference=ReferenceConfig(epochs=3),
    method=METHODS["mpqco"],
    budget=BudgetConfig(compression=70.0),
    finetune=FinetuneConfig(epochs=1, quantizer="pact"),
)


class Enumerated:
    """All policies of some choices, with their scores and BOPs."""

    def __init__(self, choices: Choices, costs: CostModel) -> None:
        self.choices, self.costs = choices, costs
        owners = [*choices.weights.values(), *choices.acts.values()]
        self.widths = np.array(list(itertools.product(*(scores.widths for scores in owners))))
        values = [np.array([scores.of(w) for w in self.widths[:, n]]) for n, scores in enumerate(owners)]
        self.scores: NDArray[np.float64] = np.sum(values, axis=0)
        place = {group: len(choices.weights) + n for n, group in enumerate(choices.acts)}
        self.bops: NDArray[np.int64] = sum(
            (
                costs.work[name].macs * self.widths[:, n] * self.widths[:, place[choices.group_of[name]]]
                for n, name in enumerate(choices.weights)
            ),
            np.int64(costs.counts(choices.smallest).bops - costs.counts(choices.smallest).searched_bops),
        )

    def loss(self, policy: BitPolicy) -> float:
        """How much less it scores than the best of all."""
        return float(self.scores.max()) - self.choices.score(policy)

    def least(self, limit: int) -> float:
        """Loss of the best policy within a limit."""
        return float(self.scores.max() - self.scores[self.bops <= limit].max())

    def budgets(self) -> list[tuple[int, BudgetConfig]]:
        """Limits in even steps between the least BOPs and the most."""
        ends = int(self.bops.min()), int(self.bops.max())
        limits = [round(low) for low in np.linspace(*ends, 27)[1:-1]]
        return [(limit, BudgetConfig(bops_g=limit / 1e9)) for limit in limits]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TRIAL, quiet, store=folder)
    return folder


def quiet(epoch: EpochReport) -> None:
    """No report is wanted."""


def found_by(name: str, store: Path) -> Enumerated:
    trial = replace(TRIAL, method=METHODS[name])
    bench = load_bench(trial, store=store)
    return Enumerated(methods.search(bench, trial, quiet), bench.costs)


@pytest.mark.parametrize("name", METHODS)
def test_the_exact_policy_of_each_method_is_the_best_of_all(store: Path, name: str) -> None:
    every = found_by(name, store)
    assert len(every.widths) >= 3**6
    for limit, budget in every.budgets():
        policy = allocate(every.choices, every.costs, budget)
        assert every.costs.counts(policy).bops <= limit
        # TIE, of the solver, may give up so much of a score for fewer BOPs.
        assert every.loss(policy) <= every.least(limit) + 1e-6
        assert every.loss(policy) >= every.least(limit) - 1e-12


@pytest.mark.parametrize("name", ["mpqco", "hawq"])
def test_greedy_upgrades_lose_less_than_a_hundredth_more_than_the_best(store: Path, name: str) -> None:
    every = found_by(name, store)
    for limit, budget in every.budgets():
        policy = allocate_greedily(every.choices, every.costs, budget)
        assert every.costs.counts(policy).bops <= limit
        assert every.loss(policy) <= 1.01 * every.least(limit)
