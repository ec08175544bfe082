"""The nightly sweeps: all load, with their schedules and expectations, and what these say of our counting is true."""

import re
from functools import cache
from pathlib import Path

import pytest

from service.combinations import budgets
from service.expectations import Expectations, load_expectations, selects
from service.space import points
from service.spec import SweepSpec, load_spec
from trainables import api
from trainables.bops import CostModel

ROOT = Path(__file__).parents[2]
NIGHTLY = ROOT / "sweeps" / "nightly"
PAPER = ROOT / "sweeps" / "paper"
PAPERS = {"fig9a.yaml": "table10.yaml", "imagenet-resnet18.yaml": "table3.yaml"}
"""Files whose budgets those of a sweep are, where that is not the file of the same name."""
EXPECT = ".expect.yaml"
SMALL, FULL = (
    sorted(path for path in folder.glob("*.yaml") if not path.name.endswith(EXPECT))
    for folder in (NIGHTLY, NIGHTLY / "full")
)


def by_name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def expected(path: Path, spec: SweepSpec) -> Expectations:
    file = path.with_suffix(EXPECT)
    assert file.exists()
    return load_expectations(file, spec)


def limits(spec: SweepSpec) -> set[float]:
    return {config.budget.limits["bops_paper_g"] for config, _ in budgets(spec) if config.budget.limits}


@cache
def counted(network: str, image_size: int, num_classes: int) -> CostModel:
    return api.count(network, image_size=image_size, num_classes=num_classes)


@pytest.mark.parametrize("path", [*SMALL, *FULL], ids=by_name)
def test_each_is_a_grid_over_several_seeds_with_a_schedule_and_expectations(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem
    assert spec.tags["nightly"] == ("small" if path in SMALL else "full")
    assert spec.schedule.cron
    assert spec.sampler.name == "grid"
    seeds = {point["seed"] for point in points(spec.space)}
    assert len(seeds) >= 2
    assert len(points(spec.space)) == spec.trials
    for point in points(spec.space):
        spec.trial_config(point)
    assert expected(path, spec).claims


@pytest.mark.parametrize("path", [*SMALL, *FULL], ids=by_name)
def test_each_claim_is_about_trials_that_the_sweep_has_and_names_its_source(path: Path) -> None:
    spec = load_spec(path)
    trials = points(spec.space)
    for claim in expected(path, spec).claims:
        assert re.search(r"(Tables?|Figure|eqs?\.|section|abstract)", claim.source), claim.claim
        for side in [claim.left] if claim.relation == "band" else [claim.left, claim.than]:
            assert any(selects({**side, **claim.at}, trial) for trial in trials), (claim.claim, side)


@pytest.mark.parametrize("path", SMALL, ids=by_name)
def test_the_small_profile_needs_no_gpu_and_no_file_but_what_the_machine_has(path: Path) -> None:
    spec = load_spec(path)
    assert spec.resources.gpus_per_worker == 0
    assert spec.resources.workers * spec.resources.cpus_per_worker * spec.resources.concurrency <= 2
    assert set(spec.names("data")) <= {"digits", "fashion-mnist"}
    assert (spec.gallery.images, spec.gallery.random) == (0, False)


@pytest.mark.parametrize("path", FULL, ids=by_name)
def test_the_full_profile_has_the_papers_budgets_and_a_short_run_on_digits(path: Path) -> None:
    """Those of sweeps/paper are tested to lie between the fewest and the most bits."""
    assert load_spec(path, smoke=True).names("data") == ("digits",)
    spec, paper = load_spec(path), PAPER / PAPERS.get(path.name, path.name)
    assert limits(spec) == limits(load_spec(paper))


BANDED = [path for path in FULL if any(c.metric == "full_bops_g" for c in expected(path, load_spec(path)).claims)]


@pytest.mark.parametrize("path", BANDED, ids=by_name)
def test_what_the_tables_count_in_full_precision_is_what_we_count(path: Path) -> None:
    """The paper's figures that need no training: 1853.4, 3952.6 and 4694.2 G, within half a per cent."""
    spec = load_spec(path)
    (claim,) = (one for one in expected(path, spec).claims if one.metric == "full_bops_g")
    low, high = claim.band
    (printed,) = re.findall(r"([\d.]+) G", claim.source)
    assert (low, high) == (round(0.995 * float(printed), 1), round(1.005 * float(printed), 1))
    classes = 1000 if spec.names("data") == ("imagenet",) else 10
    (network,) = spec.names("network")
    assert low <= counted(network, 224, classes).full_bops_g <= high


def test_the_readmes_list_every_sweep() -> None:
    for folder, files in ((NIGHTLY, SMALL), (NIGHTLY / "full", FULL)):
        text = (folder / "README.md").read_text()
        assert [path.name for path in files if f"`{path.name}`" not in text] == []


def test_what_reproduction_rests_on_is_claimed() -> None:
    """GMPQ against EdMIPS on ARD, three levels against one in cost, p of eq. 10 against fixed ones."""
    said = {
        (path.stem, claim.metric, claim.relation, name)
        for path in (*SMALL, *FULL)
        for claim in expected(path, load_spec(path)).claims
        if claim.required
        for name in claim.left
    }
    assert said >= {
        ("digits-methods", "ard", "less", "method.name"),
        ("digits-imitation", "ard", "not_more", "method.p"),
        ("digits-imitation", "top1", "not_less", "method.levels"),
        ("table2", "search_cost_hours", "less", "method.levels"),
        ("fig9a", "top1", "not_less", "method.p"),
        ("table5-resnet18", "ard", "less", "method.eta"),
    }
