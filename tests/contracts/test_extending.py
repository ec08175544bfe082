"""The page on extending Bitfront does what it says: its listings are written, its changes made, its sweeps run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PACKAGES = ("dashboards", "service", "trainables")
TRIAL = """\
import json, sys
from pathlib import Path
from service.cli import main
from service.spec import load_spec
from trainables import api

told = {}
for name in sys.argv[1:]:
    main(["check", name], standalone_mode=False)
    spec = load_spec(Path(name))
    config = spec.trial_config(spec.example_settings())
    api.ensure_reference(config, lambda epoch: None, store=Path("references"))
    result = api.run_trial(config, lambda epoch: None, store=Path("references"))
    found = [[bits.weight, bits.act] for bits in result.record.policy.bits.values()]
    told[name] = {"top1": result.metrics["top1"], "bits": found, "trainables": api.__file__}
print(json.dumps(told))
"""


def listings(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def change(text: str, hunk: str) -> str:
    """The text after a hunk, whose lines of context and `-` stand in it one after the other, once."""
    lines = hunk.rstrip("\n").split("\n")
    before = "\n".join(line[1:] for line in lines if line[:1] != "+")
    after = "\n".join(line[1:] for line in lines if line[:1] != "-")
    places = text.count(before)
    assert places >= 1, f"not found:\n{before}"
    return text.replace(before, after, 1)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with all that the page adds to it, and the page's files beside it."""
    folder = tmp_path_factory.mktemp("extended")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package)  # compiled loops too, which are kept beside their source
    for listing in [*listings("python"), *listings("yaml")]:
        name, _, content = listing.partition("\n")
        (folder / name.removeprefix("# ")).write_text(content, encoding="utf-8")
    for listing in listings("diff"):
        for part in re.split(r"^--- ", listing, flags=re.MULTILINE)[1:]:
            name, *hunks = part.split("@@\n")
            path = folder / name.strip()
            text = path.read_text(encoding="utf-8")
            for hunk in hunks:
                text = change(text, hunk)
            path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def told(extended: Path) -> dict[str, Any]:
    """What `bitfront check` says of each sweep of the page, and a trial of each."""
    command = [sys.executable, "-c", TRIAL, "stripes.yaml", "roundoff.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(extended), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=extended, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    *checks, content = found.stdout.strip().splitlines()
    documented = [line for block in listings("console") for line in block.splitlines() if not line.startswith("$")]
    assert checks == documented
    told: dict[str, Any] = json.loads(content)
    return told


def test_a_users_network_on_a_users_data_is_searched_and_finetuned(told: dict[str, Any]) -> None:
    trial = told["stripes.yaml"]
    assert [trial["bits"][0], trial["bits"][-1]] == [[8, 8], [8, 8]]
    assert all({*pair} <= {2, 3, 4} for pair in trial["bits"][1:-1])
    assert len(trial["bits"]) == 6
    assert trial["top1"] > 50  # of three classes


def test_a_new_method_gives_bits_that_a_new_quantiser_deploys(told: dict[str, Any], extended: Path) -> None:
    trial = told["roundoff.yaml"]
    assert trial["trainables"] == str(extended / "trainables" / "api.py")
    assert len({tuple(pair) for pair in trial["bits"][1:-1]}) > 1
    assert trial["top1"] > 20  # of ten classes, after two epochs on 143 images


@pytest.mark.parametrize("name", ["trainables/method_config.py", "trainables/quantizers/layers.py"])
def test_the_listings_are_no_part_of_the_code_yet(name: str, extended: Path) -> None:
    assert (extended / name).read_text() != (ROOT / name).read_text()


@pytest.mark.long
def test_the_commands_of_the_page_end_well_one_after_the_other(extended: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    for block in listings("console"):
        for command in [line[2:] for line in block.splitlines() if line.startswith("$ ")]:
            code = command.replace("bitfront", f"{sys.executable} -c 'from service.cli import main; main()'", 1)
            done = subprocess.run(code, shell=True, cwd=extended, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
