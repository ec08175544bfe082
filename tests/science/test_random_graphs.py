"""Budgets on random networks: residual adds, concatenations, grouped convolutions, branches, shared activations.

What the network shares is known from its recipe, what it costs is recounted from the deployed network.
"""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.allocate import allocate
from trainables.bops import CostModel
from trainables.choices import Choices
from trainables.config import BudgetConfig, NetworkConfig
from trainables.counting import measure
from trainables.errors import ConfigError, InfeasibleBudgetError
from trainables.method_config import GmpqConfig
from trainables.policy import BitPolicy
from trainables.quantizers.layers import quant_layers
from trainables.recount import recount
from trainables.supernet import assign_roles, build_supernet, deploy

GRAPHS = 40
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class RandomGraph(nn.Module):
    """A stem, steps that each read activations made before, a pooled linear head; the recipe is drawn from a seed.

    `value[i]` tells activation i from others: identity, dropout and views keep it. `added` has a set for each sum, and
    for what ReLU makes of one: the values that tied residuals make one.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.convs = nn.ModuleList()
        self.steps: list[tuple[str, tuple[int, ...]]] = []
        self.channels, self.value = [3], [0]
        self.reads: dict[str, int] = {}
        self.added: list[set[int]] = []
        self._conv(0, rng)
        self._conv(1, rng)
        for _ in range(rng.randint(4, 9)):
            kind = rng.choice(["conv", "conv", "conv", "add", "add", "cat", "relu", "view", "dropout"])
            alike = [(i, j) for i in range(1, len(self.value)) for j in range(1, i) if self._alike(i, j)]
            if kind == "conv":
                # Also of the image, and of activations that others read.
                self._conv(rng.randrange(len(self.value)), rng)
            elif kind in ("add", "cat") and alike:
                self._join(kind, *rng.choice(alike))
            elif kind in ("relu", "view", "dropout"):
                self._keep(kind, rng.randrange(1, len(self.value)))
        self.head = nn.Linear(self.channels[-1], 5)
        self.reads["head"] = -1

    def _alike(self, i: int, j: int) -> bool:
        return self.channels[i] == self.channels[j] <= 8

    def _conv(self, source: int, rng: random.Random) -> None:
        inputs = self.channels[source]
        outputs = rng.choice([4, 4, 8])
        groups = rng.choice([g for g in (1, 2, inputs) if inputs % g == 0 and (outputs % g == 0)])
        kernel = rng.choice([1, 3])
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=rng.random() < 0.5)
        self.reads[f"convs.{len(self.convs)}.0"] = self.value[source]
        self.convs.append(nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=rng.random() < 0.5)))
        self._make("conv", (source, len(self.convs) - 1), outputs)

    def _make(self, kind: str, arguments: tuple[int, ...], channels: int, value: int = -1) -> None:
        self.steps.append((kind, arguments))
        self.channels.append(channels)
        self.value.append(len(self.value) if value < 0 else value)

    def _join(self, kind: str, i: int, j: int) -> None:
        self._make(kind, (i, j), self.channels[i] * (2 if kind == "cat" else 1))
        if kind == "add":
            self.added.append({self.value[i], self.value[j], self.value[-1]})

    def _keep(self, kind: str, i: int) -> None:
        self._make(kind, (i,), self.channels[i], -1 if kind == "relu" else self.value[i])
        if kind == "relu" and any(self.value[i] == max(sums) for sums in self.added):
            # The largest value of a set is the sum itself, and then what became of it.
            self.added.append({self.value[i], self.value[-1]})

    def forward(self, images: Tensor) -> Tensor:
        made = [images]
        for kind, (i, *rest) in self.steps:
            match kind:
                case "conv":
                    made.append(self.convs[rest[0]](made[i]))
                case "add":
                    made.append(made[i] + made[rest[0]])
                case "cat":
                    made.append(torch.cat([made[i], made[rest[0]]], dim=1))
                case "relu":
                    made.append(F.relu(made[i]))
                case "view":
                    made.append(made[i].flatten(2).view_as(made[i]))
                case "dropout":
                    made.append(F.dropout(nn.Identity()(made[i]), training=self.training))
        return self.head(made[-1].mean((2, 3)))

    def groups(self, *, tied: bool) -> set[frozenset[str]]:
        """Layers that must share an activation's bits, from the recipe alone."""
        sets = [{value} for value in {*self.value, -1}] + (self.added if tied else [])
        merged: list[set[int]] = []
        for values in sets:
            touching = [other for other in merged if other & values]
            merged = [other for other in merged if not other & values] + [values.union(*touching)]
        groups = [frozenset(name for name, value in self.reads.items() if value in values) for values in merged]
        return {group for group in groups if group}


def random_network_config(rng: random.Random, costs: CostModel) -> NetworkConfig:
    names = list(costs.layers)
    pinned = {name: rng.choice([4, 8]) for name in rng.sample(names[1:-1], rng.randint(0, 1))}
    return NetworkConfig(name="graph", pinned=pinned, tie_residuals=rng.random() < 0.5)


def random_choices(net: nn.Module, costs: CostModel, config: NetworkConfig, method: GmpqConfig) -> Choices:
    supernet = build_supernet(net, costs, assign_roles(costs, config), method)
    with torch.no_grad():
        for logits in supernet.bit_logits():
            logits.normal_()
    return supernet.choices("graph")


def random_budget(rng: random.Random, choices: Choices, costs: CostModel) -> BudgetConfig:
    """One to three limits between a tenth below the smallest widths' cost and the most probable ones'."""
    low, high = costs.of(choices.smallest), costs.of(choices.best)
    names = rng.sample(["bops_g", "bops_paper_g", "compression", "storage_mb", "mean_weight_bits", "mean_act_bits"], 3)
    limits = {}
    for name in names[: rng.randint(1, 3)]:
        share = rng.choice([0.0, rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, 1)])
        limit = low[name] + share * (high[name] - low[name])
        limits[name] = limit * (rng.choice([0.9, 1.1]) if rng.random() < 0.1 else 1.0)
    return BudgetConfig(**limits)


def check_deployed(graph: RandomGraph, policy: BitPolicy, costs: CostModel, budget: BudgetConfig, tied: bool) -> None:
    deployed = deploy(graph, costs, policy, "pact")
    counts = recount(deployed, IMAGES, searched=policy.searched)
    assert counts == costs.counts(policy)
    assert budget.broken(costs.costs(counts)) == []
    layers = quant_layers(deployed)
    for group in graph.groups(tied=tied):
        assert len({layers[name].mixture.act_bits for name in group}) == 1
    for group in graph.groups(tied=False):
        assert len({id(layers[name].mixture.activations) for name in group}) == 1


def test_no_graph_exceeds_its_budget_and_what_is_shared_has_one_width() -> None:
    refused = infeasible = tight = shared = 0
    for seed in range(GRAPHS):
        rng = random.Random(seed)
        graph = RandomGraph(seed).eval()
        costs = measure(graph, IMAGES)
        config = random_network_config(rng, costs)
        groups = graph.groups(tied=config.tie_residuals)
        method = GmpqConfig(zeta=0.1, eta=0.0, weight_bits=(2, 3, 5), act_bits=(2, 4, 6))
        pinned = {"convs.0.0": 8, "head": 8, **config.pinned}
        if any(len({pinned[name] for name in group if name in pinned}) > 1 for group in groups):
            refused += 1
            with pytest.raises(ConfigError, match=r"network\.pinned: .* share an activation, which has one width"):
                assign_roles(costs, config)
            continue
        if len(pinned) == len(costs.layers):
            continue
        choices = random_choices(graph, costs, config, method)
        shared += any(len(group) > 1 for group in groups)
        budget = random_budget(rng, choices, costs)
        floor = costs.of(choices.smallest)
        if broken := budget.broken(floor):
            infeasible += 1
            with pytest.raises(
                InfeasibleBudgetError, match=rf"budget\.{broken[0]} is .* still [\d.]+: give at"
            ) as raised:
                allocate(choices, costs, budget)
            assert list(raised.value.problems) == broken
            continue
        policy = allocate(choices, costs, budget)
        tight += policy != choices.best
        check_deployed(graph, policy, costs, budget, config.tie_residuals)
    # Otherwise this proves little.
    assert min(refused, infeasible) >= 1
    assert min(tight, shared) >= GRAPHS // 3


def test_what_layers_share_is_what_the_recipe_says() -> None:
    for seed in range(GRAPHS):
        graph = RandomGraph(seed).eval()
        work = measure(graph, IMAGES).work
        for tied in (False, True):
            found: dict[str, set[str]] = {}
            for name, layer in work.items():
                found.setdefault(layer.stream if tied else layer.reads, set()).add(name)
            assert {frozenset(names) for names in found.values()} == graph.groups(tied=tied), seed
