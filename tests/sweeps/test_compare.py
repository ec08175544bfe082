"""The sweeps that compare methods: they load, give every method the same, and their budgets leave a choice."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest

from service.method_table import LABELS
from service.space import points
from service.spec import load_spec
from trainables import api
from trainables.bops import CostModel
from trainables.config import TrialConfig
from trainables.method_config import METHOD_CONFIGS, BpnasConfig, SupernetConfig, method_name
from trainables.policy import BitPolicy, LayerBits

ROOT = Path(__file__).parents[2]
COMPARE = ROOT / "sweeps" / "compare"
FILES = sorted(COMPARE.glob("*.yaml"))


def by_name(path: Path) -> str:
    return path.stem


def configs(path: Path) -> list[TrialConfig]:
    spec = load_spec(path)
    return [spec.trial_config(point) for point in points(spec.space)]


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_each_has_every_method_at_three_budgets_with_three_seeds(path: Path) -> None:
    found = configs(path)
    places = {(method_name(c.method), tuple(c.budget.limits.items()), c.seed) for c in found}
    assert len(found) == len(places) == len(METHOD_CONFIGS) * 3 * 3
    assert {name for name, _, _ in places} == set(METHOD_CONFIGS) == set(LABELS)
    assert {seed for _, _, seed in places} == {0, 1, 2}


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_methods_differ_in_nothing_but_the_search(path: Path) -> None:
    found = configs(path)
    first = found[0]
    for config in found:
        same = dataclasses.replace(config, method=first.method, budget=first.budget, seed=first.seed)
        assert same == first
        assert config.quantizer == first.quantizer
        assert (config.method.weight_bits, config.method.act_bits) == ((2, 3, 4), (2, 3, 4))
    assert first.finetune.quantizer != "searched"
    assert len({config.reference_key for config in found}) == 1
    supernets = [config.method for config in found if isinstance(config.method, SupernetConfig)]
    assert len({(m.epochs, m.batch_size, m.bit_lr, m.weight_lr) for m in supernets}) == 1
    # Of BP-NAS the barrier stands in place of the complexity risk.
    (zeta,) = {m.zeta for m in supernets if not isinstance(m, BpnasConfig)}
    assert {(m.zeta, m.barrier) for m in supernets if isinstance(m, BpnasConfig)} == {(0.0, zeta / 10)}


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_a_short_run_tries_every_method_on_digits(path: Path) -> None:
    smoke = load_spec(path, smoke=True)
    assert [point["method.name"] for point in points(smoke.space)] == list(LABELS)
    assert smoke.trials == len(METHOD_CONFIGS)
    assert smoke.names("network") == ("resnet8",)
    assert smoke.resources.gpus_per_worker == 0
    assert f"`{path.name}`" in (COMPARE / "README.md").read_text()


@cache
def counted(network: str, image_size: int) -> CostModel:
    return api.count(network, image_size=image_size, num_classes=10)


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_its_budgets_leave_a_choice_and_reach_from_near_the_fewest_bits_to_near_the_most(path: Path) -> None:
    found = configs(path)
    work = counted(found[0].network.name, found[0].data.image_size)
    names = list(work.layers)
    ends = [
        work.of(
            BitPolicy(
                network=found[0].network.name,
                bits={name: LayerBits(8, 8) if name in (names[0], names[-1]) else LayerBits(b, b) for name in names},
                pinned=frozenset((names[0], names[-1])),
            )
        )
        for b in (2, 4)
    ]
    limits = sorted({next(iter(config.budget.limits.items())) for config in found})
    shares = [(limit - ends[0][name]) / (ends[1][name] - ends[0][name]) for name, limit in limits]
    assert 0 < shares[0] < 0.1
    assert 0.3 < shares[1] < 0.5
    assert 0.8 < shares[2] < 1


def test_table_4_has_all_else_as_the_papers_sweeps() -> None:
    paper, table = (load_spec(ROOT / "sweeps" / "paper" / f"{name}.yaml") for name in ("paper", "table4"))
    for name in ("network", "data", "finetune"):
        assert table.fixed[name] == paper.fixed[name]
    assert {key: table.fixed["method"][key] for key in paper.fixed["method"] if key != "name"} == {
        key: value for key, value in paper.fixed["method"].items() if key != "name"
    }
    assert (table.reference, table.evaluation, table.resources) == (paper.reference, paper.evaluation, paper.resources)
    drawn = [table.trial_config(point) for point in points(table.space) if point["method.name"] == "random"]
    assert [config.method.draw for config in drawn] == list(range(10))  # type: ignore[union-attr]
