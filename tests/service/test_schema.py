"""The schema for editors: what loads is right by it, what is misspelt is not, and every setting is explained."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.schema import descriptions, schema
from service.settings import PlainConfig
from service.spec import SECTIONS, TOP_KEYS
from service.yaml_source import parse_yaml
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import METHOD_CONFIGS

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    path
    for path in (ROOT / "sweeps").rglob("*.yaml")
    if path.parent.name != "finetune" and not path.name.endswith(".expect.yaml")
)
"""Sweeps; finetune templates and expectations have tests of their own."""
VALIDATOR = jsonschema.Draft202012Validator(schema())
GOOD = (ROOT / "sweeps" / "quickstart.yaml").read_text()


def mistakes(text: str) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(parse_yaml(text, "s.yaml").content)]


def test_the_schema_is_one_and_survives_json() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(json.dumps(schema())) == schema()
    assert set(schema()["properties"]) == set(TOP_KEYS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_sweep_that_is_shipped_is_right_by_the_schema(path: Path) -> None:
    assert mistakes(path.read_text()) == []


def test_the_readmes_sweep_is_right_by_the_schema() -> None:
    blocks = re.findall(r"```yaml\n(name:.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    assert mistakes(blocks[0]) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trials: 12", "trails: 12"),
        ("trials: 12", "trials: 12\nbudget: {bops_g: -1}"),
        ("space:", "space:\n  data.fraction: {uniform: [0.1, 1.0]}"),
        ("trials: 12", ""),
        ("stem_bits: 8", "stem_bit: 8"),
        ("name: resnet8 ", "name: resnet9 "),
        ("bit_lr: 0.1", "bit_rl: 0.1"),
        ("name: gmpq", "name: gmqp"),
        ("name: gmpq", "name: edmips\n  top_k: 5"),
        ("name: gmpq", ""),
        ("method.zeta", "method.zetta"),
        ("{int: [6, 16]}", "{int: [6, 16.5]}"),
        ("{int: [6, 16]}", "{int: [6, 16], uniform: [6, 16]}"),
        ("{int: [6, 16]}", "{whole: [6, 16]}"),
        ("{int: [6, 16]}", "{int: [6, 16], when: {}}"),
        ("seed: 0\n\nresources", "objectives: [top2]\nresources"),
        ("network:\n", "base: other.yaml\nnetwork:\n  nam: x\n"),
        ("network:\n", "smoke: {netwrok: {name: resnet8}}\nnetwork:\n"),
        ("network:\n", "smoke: {trials: few}\nnetwork:\n"),
        ("network:\n", "smoke: {name: short}\nnetwork:\n"),
        ("  name: resnet8 ", "  tie_residuals: true "),
        ("network:\n", "budget: {bops: 7}\nnetwork:\n"),
    ],
)
def test_what_is_misspelt_is_wrong_by_the_schema(old: str, new: str) -> None:
    assert GOOD.count(old) == 1
    assert mistakes(GOOD.replace(old, new)) != []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trials: 12", "sampler: {name: grid}"),
        ("{int: [6, 16]}", "{grid: [6, 1e1], when: {method.capacity: [12.0, 24.0]}}"),
        ("{int: [6, 16]}", "{fixed: 6, when: {method.capacity: 12.0}}"),
        ("network:\n", "smoke: {data: {root: ''}, trials: 2, space: {method.eta: {fixed: 1.0}}}\nnetwork:\n"),
        ("network:\n", "smoke: {method: {epochs: 1}}\nnetwork:\n"),
        ("network:\n", "budget: {bops_g: 7.2}\nnetwork:\n"),
        ("  name: resnet8 ", "  name: my_networks:small "),
        (
            "  method.top_k: {int: [6, 16]}",
            "  data.fraction: {grid: [0.5, 1]}\n  budget.compression: {uniform: [90, 99]}",
        ),
    ],
)
def test_what_the_grammar_offers_is_right_by_the_schema(old: str, new: str) -> None:
    text = GOOD.replace("sampler:\n  name: tpe\n  seed: 0\n", "")
    assert mistakes(text.replace(old, new)) == []


def test_a_name_may_stand_in_the_space_instead() -> None:
    text = GOOD.replace("  name: resnet8 ", "  stem_bits: 4 ").replace("  stem_bits: 8", "  tie_residuals: false")
    assert mistakes(text) != []
    assert mistakes(text.replace("space:", "space:\n  network.name: {choice: [resnet8, resnet20]}\n#")) == []


def test_what_the_docs_show_is_right_by_the_schema() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "sweeps.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    assert [mistakes(block if "base:" in block else f"base: other.yaml\n{block}") for block in blocks] == [[]] * 5


def test_it_is_made_without_anything_heavy() -> None:
    heavy = {"torch", "ray", "mlflow", "optuna", "numpy", "scipy", "cronsim"}
    code = "import service.schema, sys; service.schema.schema(); print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) & heavy == set()


def test_a_sweep_with_a_base_may_leave_out_anything() -> None:
    assert mistakes("base: other.yaml\nmethod: {eta: 2.0}\n") == []


@pytest.mark.parametrize(
    "kind", [PlainConfig, *SECTIONS.values(), *METHOD_CONFIGS.values(), FinetuneConfig], ids=lambda kind: kind.__name__
)
def test_every_setting_has_a_description(kind: type) -> None:
    texts = descriptions(kind)
    assert set(texts) == {f.name for f in dataclasses.fields(kind)}
    assert all(len(text) > 5 and text.endswith(".") for text in texts.values()), texts


def test_every_property_of_the_schema_has_a_description() -> None:
    def bare(part: Any, path: str) -> list[str]:
        found = []
        for name, value in part.get("properties", {}).items():
            found += [f"{path}.{name}"] if "description" not in value else []
            found += bare(value, f"{path}.{name}")
        return found

    whole = schema()
    assert bare(whole, "") == []
    assert [name for key, part in whole["$defs"].items() for name in bare(part, key)] == []


@pytest.mark.parametrize(
    ("entry", "is_right"),
    [
        ("method.name: {choice: [uniform, rgmpq]}", True),
        ("method.name: {fixed: edmips}", True),
        ("method.name: {choice: [rand]}", False),
        ("seed: {grid: [0, 1, 2]}", True),
        ("seed: {int: [0, 9]}", True),
        ("seed: {choice: [0.5]}", False),
        ("seed: {grid: [-1]}", False),
        ("seed: {uniform: [0, 1]}", False),
    ],
)
def test_methods_and_seeds_of_a_space_are_such(entry: str, is_right: bool) -> None:
    assert (mistakes(f"base: other.yaml\nspace:\n  {entry}\n") == []) is is_right
