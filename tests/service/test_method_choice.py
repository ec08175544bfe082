"""Several methods in one sweep: which settings reach which, what a trial is made of, and what is refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from service.combinations import combinations
from service.space import points
from service.spec import SweepSpec, differences, load_spec
from trainables.errors import SpecError
from trainables.method_config import EdmipsConfig, RandomConfig, RgmpqConfig, UniformConfig

SEVERAL = """\
name: several
network: {name: resnet8}
data: {name: digits, image_size: 16}
reference: {epochs: 2}
method: {zeta: 0.1, epochs: 3, weight_bits: [2, 4], batch_size: 32}
finetune: {epochs: 1}
budget: {bops_g: 0.04}
space:
  method.name: {choice: [uniform, random, edmips, rgmpq]}
  method.eta: {grid: [1, 2], when: {method.name: rgmpq}}
  method.draw: {grid: [0, 1, 2], when: {method.name: random}}
  seed: {grid: [0, 5]}
sampler: {name: grid}
"""
Load = Callable[[str], SweepSpec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(text: str) -> SweepSpec:
        (tmp_path / "s.yaml").write_text(text)
        return load_spec(tmp_path / "s.yaml")

    return loaded


def test_each_method_gets_what_it_has_of_the_section_and_the_seed_of_the_space(load: Load) -> None:
    spec = load(SEVERAL)
    configs = [spec.trial_config(point) for point in points(spec.space)]
    assert len(configs) == spec.trials == 2 * (1 + 3 + 1 + 2)
    assert [type(config.method) for config in configs[::2]] == [
        UniformConfig, RandomConfig, RandomConfig, RandomConfig, EdmipsConfig, RgmpqConfig, RgmpqConfig
    ]  # fmt: skip
    assert [config.seed for config in configs] == [0, 5] * 7
    assert {config.method.weight_bits for config in configs} == {(2, 4)}
    assert {config.method.search_epochs for config in configs[8:]} == {3}
    assert [config.method.draw for config in configs if isinstance(config.method, RandomConfig)] == [0, 0, 1, 1, 2, 2]
    assert configs[-1].method == RgmpqConfig(zeta=0.1, eta=2.0, epochs=3, weight_bits=(2, 4), batch_size=32)


def test_combinations_are_told_apart_by_their_method_and_share_the_reference(load: Load) -> None:
    found = combinations(load(SEVERAL))
    assert [one.label for one in found] == [f"{m}: resnet8 on digits" for m in ("uniform", "random", "edmips", "rgmpq")]
    assert [one.share * 14 for one in found] == pytest.approx([2, 6, 2, 4])
    assert len({one.config.reference_key for one in found}) == 1


def test_the_hash_is_that_of_what_trials_depend_on(load: Load) -> None:
    spec = load(SEVERAL)
    same = load(SEVERAL.replace("zeta: 0.1", "zeta: 0.1, momentum: 0.9").replace("name: several", "name: other"))
    assert spec.hash == same.hash
    for old, new in (("zeta: 0.1", "zeta: 0.2"), ("[0, 5]", "[0, 6]"), ("random, edmips", "edmips, random")):
        assert load(SEVERAL.replace(old, new)).hash != spec.hash
    assert spec.method_name == "uniform, random, edmips, rgmpq"


@pytest.mark.parametrize(
    ("before", "old", "new"),
    [
        ("method.zeta: {fixed: 0.3, when: {method.name: rgmpq}}", "zeta: 0.1", "zeta: 0.2"),
        ("method.epochs: {fixed: 1, when: {method.name: rgmpq}}", "epochs: 3", "epochs: 30"),
        ("seed: {grid: [0, 5], when: {method.name: random}}", "name: several", "name: several\nseed: 7"),
    ],
)
def test_the_hash_depends_on_what_the_section_gives_where_a_condition_fails(
    load: Load, before: str, old: str, new: str
) -> None:
    text = SEVERAL.replace("  seed: {grid: [0, 5]}", f"  {before}")
    assert load(text).hash != load(text.replace(old, new)).hash
    assert differences(load(text).identity, load(text.replace(old, new)).identity)


def test_the_hash_depends_on_the_method_of_trials_to_which_the_space_gives_none(load: Load) -> None:
    def spec(method: str) -> SweepSpec:
        text = SEVERAL.replace("method: {", f"method: {{name: {method}, ")
        text = text.replace("  method.name: {", "  data.fraction: {choice: [1.0, 0.5]}\n  method.name: {")
        return load(text.replace("rgmpq]}", "rgmpq], when: {data.fraction: 1.0}}"))

    one, other = spec("uniform"), spec("edmips")
    assert one.hash != other.hash
    half = {"data.fraction": 0.5, "seed": 0}
    kinds = [type(spec.trial_config(half).method) for spec in (one, other)]
    assert kinds == [UniformConfig, EdmipsConfig]
    with pytest.raises(SpecError, match=r"s\.yaml:5:1: method\.eta: missing, which gmpq needs"):
        spec("gmpq")


def test_one_method_in_the_space_is_the_method(load: Load) -> None:
    text = SEVERAL.replace("choice: [uniform, random, edmips, rgmpq]", "fixed: rgmpq")
    text = "\n".join(line for line in text.splitlines() if "draw" not in line)
    spec = load(text)
    assert spec.methods == ("rgmpq",)
    assert {type(spec.trial_config(point).method) for point in points(spec.space)} == {RgmpqConfig}


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("rgmpq]}", "rgmqp]}", "9:51", r"space\.method\.name: unknown method 'rgmqp'.*'rgmpq'"),
        (", when: {method.name: rgmpq}", "", "10:3", r"uniform, random, edmips has no such setting; add when:"),
        ("zeta: 0.1, ", "", "5:1", r"method\.zeta: missing, which edmips needs"),
        ("zeta: 0.1", "zeta: 0.1, zata: 1", "5:21", r"method\.zata: unknown key 'zata'; did you mean 'zeta'"),
        ("zeta: 0.1", "zeta: 0.1, name: gmpq", "9:3", r"space\.method\.name: also fixed under 'method:'"),
        ("name: several", "name: several\nseed: 3", "13:3", r"space\.seed: also fixed at the top level"),
        ("seed: {grid: [0, 5]}", "seed: {grid: [0, -5]}", "12:9", r"space\.seed: give choice, grid, int or fixed"),
        ("seed: {grid: [0, 5]}", "seed: {uniform: [0, 5]}", "12:9", r"space\.seed: give choice, grid, int or fixed"),
        ("budget: {bops_g: 0.04}", "", "9:16", r"random chooses bits for a budget, and there is none; give one of"),
        ("{bops_g: 0.04}", "{storage_mb: 0.04}", "9:16", r"random .*; give one of bops_g, bops_paper_g, compression"),
        ("epochs: 3", "epochs: 0", "5:29", r"method\.epochs is 0; give a positive number \(of edmips\)"),
        ("grid: [0, 1, 2]", "grid: [0, -1]", "11:16", r"space\.method\.draw is -1; give zero or a positive"),
        (
            "sampler: {name: grid}", "sampler: {name: grid}\nearly_stopping: {name: successive-halving, min_epochs: 1}",
            "14:24", r"epochs of several methods do not compare; give name: none",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_at_its_place(load: Load, old: str, new: str, place: str, message: str) -> None:
    assert old in SEVERAL
    with pytest.raises(SpecError, match=message) as raised:
        load(SEVERAL.replace(old, new))
    assert f"s.yaml:{place}: " in str(raised.value), raised.value


def test_settings_of_a_trial_with_one_method_are_as_ever(load: Load) -> None:
    text = SEVERAL.replace("method: {zeta", "method: {name: edmips, zeta")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("  method."))
    config = load(text).trial_config({"seed": 5})
    assert dataclasses.asdict(config.method)["zeta"] == 0.1
    assert config.seed == 5
