"""Docs that cannot go stale: links lead somewhere, examples load, keys are all described."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from service.cli import main
from service.spec import SECTIONS, load_spec
from service.template import PlainTemplate, RegisterConfig
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import METHOD_CONFIGS

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "docs/reference", "benchmarks", "sweeps/*", "")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md".removeprefix("/")))
EQUATIONS = re.compile(r"[Ee]qs?\.? (\d+(?:(?:-| and |, | to )\d+)*)")


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


def test_every_outside_link_is_a_whole_address() -> None:
    wrong = []
    for page in PAGES:
        for link in re.findall(r"\]\(<?([^)\s>]*://[^)\s>]*)>?\)", page.read_text()):
            address = urlsplit(link)
            is_whole = address.scheme == "https" and re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", address.netloc)
            wrong += [] if is_whole else [f"{page.name}: {link}"]
    assert wrong == []


def test_the_generated_pages_are_what_the_code_makes_them() -> None:
    done = subprocess.run([sys.executable, "docs/generate", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"make reference writes them anew:\n{done.stdout}{done.stderr}"


def test_a_range_that_a_class_accepts_is_found_to_its_ends() -> None:
    spec = importlib.util.spec_from_file_location("accepted", ROOT / "docs" / "generate" / "accepted.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    told = {
        (kind, name): found.accepted(SECTIONS[kind], name)
        for kind, name in (
            ("network", "stem_bits"), ("data", "fraction"), ("finetune", "label_smoothing"), ("finetune", "lr"),
            ("sampler", "seed"), ("early_stopping", "share"), ("data", "augment"),
        )
    }  # fmt: skip
    assert list(told.values()) == ["2 to 16", "0 < · ≤ 1", "0 ≤ · < 1", "> 0", f"0 to {2**32 - 1}", "0 < · < 1", ""]


def test_what_leads_nowhere_fails_the_site(tmp_path: Path) -> None:
    warnings = {
        "[x](other.md)": "cross-reference target not found: 'other.md'",
        "[x](#nothing)": "target not found: 'nothing'",
        "[x](../README.md#nothing)": "local id not found in doc 'README': 'nothing'",
        "![x](no.png)": "image file not readable: docs/no.png",
    }
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")
    shutil.copytree(ROOT / "docs" / "static", tmp_path / "docs" / "static")
    (tmp_path / "README.md").write_text("# Readme\n")
    page = "\n\n".join(["# Index", *warnings, "## Pages", "- [readme](../README.md)\n"])
    (tmp_path / "docs" / "index.md").write_text(page)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "dummy", "-c", "docs", ".", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    told = done.stderr.strip().splitlines()
    assert len(told) == len(warnings)
    assert [warning for warning in warnings.values() if not any(warning in line for line in told)] == []


def test_every_command_that_the_docs_write_has_such_arguments() -> None:
    """Those of the blocks that are run elsewhere are parsed here, which takes no time."""
    written = []
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.DOTALL):
            written += [(page.name, line[2:]) for line in block.splitlines() if line.startswith("$ bitfront ")]
    assert len(written) > 10
    for name, line in written:
        words = shlex.split(line.partition("  #")[0])
        command: click.Command = main
        while isinstance(command, click.Group):
            words = words[1:]
            command = command.commands[words[0]]
        command.make_context(name, words[1:], resilient_parsing=False)


def _equations(text: str) -> set[int]:
    """Numbers of the equations that a text names."""
    named: set[int] = set()
    for numbers in EQUATIONS.findall(text):
        for part in re.split(r", | and ", numbers):
            first, last = (re.split(r"-| to ", part) * 2)[:2]
            named |= set(range(int(first), int(last) + 1))
    return named


def _docstring(path: str) -> str:
    """Of a function that is named by its import path, read without importing it."""
    parts = path.split(".")
    length = next(n for n in range(len(parts), 0, -1) if (ROOT / f"{'/'.join(parts[:n])}.py").is_file())
    node: ast.AST = ast.parse((ROOT / f"{'/'.join(parts[:length])}.py").read_text())
    for name in parts[length:]:
        below = {one.name: one for one in ast.iter_child_nodes(node) if isinstance(one, ast.FunctionDef | ast.ClassDef)}
        assert name in below, f"docs/science.md: {path} is not there"
        node = below[name]
    assert isinstance(node, ast.FunctionDef)
    return ast.get_docstring(node) or ""


def test_every_equation_of_the_map_stands_in_the_docstring_of_its_functions() -> None:
    page = (ROOT / "docs" / "science.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \| [^|]+ \| (`trainables[^|]+) \|$", page, flags=re.MULTILINE)
    mapped: set[int] = set()
    for numbers, functions in rows:
        wanted = {int(number) for number in numbers.split(", ")}
        mapped |= wanted
        for path in re.findall(r"`([\w.]+)`", functions):
            assert wanted <= _equations(_docstring(path)), f"{path}: its docstring lacks one of equations {numbers}"
    assert mapped == set(range(2, 17))
