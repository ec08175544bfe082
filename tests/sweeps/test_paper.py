"""The sweeps of the paper's figures and tables: they load, their budgets can be kept, their smoke runs run."""

import dataclasses
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from service.combinations import budgets, references
from service.records import SweepStore
from service.space import is_active, points, size
from service.spec import load_spec
from service.sweeps import find_sweep
from trainables import api
from trainables.bops import CostModel

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "sweeps" / "paper"
FILES = sorted(PAPER.glob("*.yaml"))
WITHOUT_BUDGET = ("paper", "fig9a", "fig9b", "fig10a", "fig10b")


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_each_is_a_sweep_of_its_own_with_a_short_run(path: Path) -> None:
    spec, smoke = load_spec(path), load_spec(path, smoke=True)
    assert (spec.name, smoke.name) == (path.stem, f"{path.stem}-smoke")
    assert spec.tags["paper"]
    assert smoke.names("data") == ("digits",)
    assert smoke.resources.gpus_per_worker == 0
    assert 2 <= smoke.trials <= 4
    # What a short run tries is a grid, and all of it.
    assert len(points(smoke.space)) == smoke.trials


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_each_varies_in_its_short_run_what_it_is_about(path: Path) -> None:
    spec, smoke = load_spec(path), load_spec(path, smoke=True)
    along = {"method.zeta", "method.eta", "budget.bops_paper_g", "data.name", "network.name"}
    about = {name for name, domain in spec.space.items() if size(domain) > 1} - along
    assert about <= set(smoke.space)
    assert any(size(domain) > 1 for domain in smoke.space.values())


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_each_says_at_its_head_what_the_paper_claims_and_the_readme_lists_it(path: Path) -> None:
    head = path.read_text().split("\nname:")[0]
    assert re.match(r"# (Figure|Table) \d+|# What the sweeps of this folder share", head)
    assert f"`{path.name}`" in (PAPER / "README.md").read_text()


@cache
def counted(network: str, image_size: int) -> CostModel:
    return api.count(network, image_size=image_size, num_classes=10)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in WITHOUT_BUDGET], ids=by_name)
@pytest.mark.parametrize("smoke", [False, True], ids=["whole", "smoke"])
def test_each_budget_lies_between_the_fewest_and_the_most_bits(path: Path, smoke: bool) -> None:
    """As the paper counts, a policy of equal bits has full precision · w · a / 32²."""
    found = budgets(load_spec(path, smoke=smoke))
    limits = [(config, config.budget.limits["bops_paper_g"]) for config, _ in found]
    for config, limit in limits:
        full = counted(config.network.name, config.data.image_size).full_bops_g
        widths = config.method.weight_bits, config.method.act_bits
        fewest, most = (full * end(widths[0]) * end(widths[1]) / 32**2 for end in (min, max))
        # At 8 pixels, which stand for another data set in a short run, nothing is above a budget for 16.
        assert fewest < limit
        assert limit < most or config.data.image_size == 8
    assert limits


NAMED = [
    # what a file's head says of it, with its number; and the bits of a weight times those of an activation
    (r"\{2, 3, 4\} bits begin at ([\d.]+) G", 4),
    (r"2/2 bits, the least of \{2, 3, 4\}, are 256 × or ([\d.]+) G", 4),
    (r"no policy has more than ([\d.]+) G", 16),
    (r"multiplications, (?:which are )?([\d.]+) G here", 32**2),
    (r"\(we count ([\d.]+)\)", 32**2),
]


def test_what_the_files_say_that_we_count_is_counted_with_their_own_ten_classes() -> None:
    found = []
    for path in FILES:
        spec = load_spec(path)
        head = re.sub(r"\n# ?", " ", path.read_text().split("\nname:")[0])
        for words, product in NAMED:
            for number in re.findall(words, head):
                full = counted(spec.names("network")[0], 224).full_bops_g
                assert f"{full * product / 32**2:.{len(number.split('.')[1])}f}" == number, path.name
                found.append((path.stem, words))
    assert len(found) == 10
    assert {words for _, words in found} == {words for words, _ in NAMED}
    for name in ("resnet18", "resnet50_v1", "mobilenet_v2", "deit_tiny", "deit_small"):
        assert (
            1 < api.count(name, image_size=224, num_classes=1000).full_bops_g / counted(name, 224).full_bops_g < 1.005
        )


def run_smoke(path: Path, folder: Path) -> tuple[SweepStore, str]:
    """The command, in a process and a folder of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "run", str(path), "--smoke"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return find_sweep(folder / "bitfront-sweeps", f"{path.stem}-smoke"), done.stdout


@pytest.mark.long
@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_its_short_run_comes_to_an_end_with_what_it_varies(path: Path, tmp_path: Path) -> None:
    store, said = run_smoke(path, tmp_path)
    spec, sweep, trials = load_spec(path, smoke=True), store.sweep(), store.trials()
    assert [(trial.state, trial.settings) for trial in trials] == [("done", point) for point in points(spec.space)]
    for trial in trials:
        assert all(is_active(spec.space[name], trial.settings) for name in trial.settings)
        for name, limit in spec.trial_config(trial.settings).budget.limits.items():
            assert trial.metrics[name] <= limit
    # What is varied reaches the search: no two trials have had the same one, or the same policy without one.
    searches = [[line["metrics"] for line in store.history(t.trial_id) if line["stage"] == "search"] for t in trials]
    told = [[{**epoch, "images_per_s": 0} for epoch in epochs] for epochs in searches]
    assert len({repr(t or trial.policy_hash) for t, trial in zip(told, trials, strict=True)}) == len(trials)
    # Every network on every data set has a reference of its own, trained before the trials, and named with its top-1.
    wanted = references(spec)
    known = sweep.references
    assert list(known) == list(wanted)
    assert len(list(store.references.glob("[!.]*"))) >= len(wanted)
    for trial in trials:
        record = known[spec.trial_config(trial.settings).reference_key]
        assert trial.metrics["reference_top1"] == record["top1"]
    # The title of a narrow table is wrapped.
    assert sweep.full_precision in " ".join(said.split())
    # The sweep that is kept says what ran, and is the same sweep.
    assert load_spec(store.folder / "spec.yaml").hash == spec.hash
    assert dataclasses.replace(load_spec(store.folder / "spec.yaml"), text=spec.text) == spec
