"""Docs that cannot go stale: links lead somewhere, examples load, keys are all described."""

import dataclasses
import re
from pathlib import Path

import pytest

from service.cli import main
from service.spec import SECTIONS, load_spec
from service.template import PlainTemplate, RegisterConfig
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import METHOD_CONFIGS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_whole_sweep_in_the_docs_loads(tmp_path: Path) -> None:
    blocks = [b for page in PAGES for b in re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)]
    whole = [block for block in blocks if block.startswith("name:")]
    for block in whole:
        (tmp_path / "s.yaml").write_text(block)
        assert load_spec(tmp_path / "s.yaml").trials > 0
    assert len(whole) == 1


@pytest.mark.parametrize("kind", [PlainTemplate, RegisterConfig], ids=lambda k: k.__name__)
def test_every_setting_of_a_template_stands_in_the_page_on_finetunes(kind: type) -> None:
    described = set(re.findall(r"`([a-z_0-9]+)`", (ROOT / "docs" / "finetune.md").read_text()))
    assert [f.name for f in dataclasses.fields(kind) if f.name not in described] == []


def test_every_command_stands_in_the_page_on_running() -> None:
    page = (ROOT / "docs" / "running.md").read_text()
    assert [name for name in main.commands if f"\nbitfront {name} " not in page] == []


@pytest.mark.parametrize(
    "kind", [*SECTIONS.values(), *METHOD_CONFIGS.values(), FinetuneConfig], ids=lambda k: k.__name__
)
def test_every_setting_stands_in_the_page_on_sweeps(kind: type) -> None:
    described = set(re.findall(r"`([a-z_0-9]+)`", (ROOT / "docs" / "sweeps.md").read_text()))
    dotted = re.findall(r"`[a-z]+\.([a-z_0-9]+)`", (ROOT / "docs" / "sweeps.md").read_text())
    assert [f.name for f in dataclasses.fields(kind) if f.name not in described.union(dotted)] == []
