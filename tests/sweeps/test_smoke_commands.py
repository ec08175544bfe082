"""`--smoke` on the command line: what is checked, what is missing."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli import main

PAPER = Path(__file__).parents[2] / "sweeps" / "paper"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bitfront(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_smoke_run_is_checked_where_the_sweeps_own_data_are_not_there() -> None:
    whole = bitfront("check", str(PAPER / "fig10b.yaml"), "--set", "resources.cpus_per_worker=1")
    assert whole.exit_code == 2
    # Each of the seven data sets, at the folder that all of them share.
    lines = (PAPER / "paper.yaml").read_text().splitlines()
    place = f"paper.yaml:{lines.index(next(line for line in lines if line.startswith('  root:'))) + 1}:9: "
    problems = [line for line in whole.stderr.splitlines() if place in line]
    assert len(problems) == 7
    assert f"{place}cifar10 is not complete in datasets" in whole.stderr
    smoke = bitfront("check", str(PAPER / "fig10b.yaml"), "--smoke")
    assert (smoke.exit_code, smoke.stdout) == (0, f"{PAPER}/fig10b.yaml: fine, 2 trials of gmpq on resnet8\n")


def test_a_budget_below_the_floor_is_refused_before_anything_runs() -> None:
    done = bitfront("run", str(PAPER / "table9.yaml"), "--smoke", "--set", "budget.bops_paper_g=0.003")
    assert done.exit_code == 2
    # The value stands in one place; the smaller images are the second combination of network and data.
    first, second = done.stderr.splitlines()
    start = "--set budget.bops_paper_g=0.003: resnet8 on digits (data.image_size {}): budget.bops_paper_g is 0.003, but"
    assert first.startswith(
        f"bitfront: {start.format(16)} with the smallest widths everywhere bops_paper_g is still 0.0125"
    )
    assert second.startswith(start.format(8))
    assert not list(Path().iterdir())


def test_a_sweep_without_a_profile_says_how_to_give_it_one() -> None:
    Path("s.yaml").write_text("name: s\n")
    for command in ("run", "check", "plan"):
        done = bitfront(command, "s.yaml", "--smoke")
        assert done.exit_code == 2
        assert "s.yaml:1:1: --smoke: the file has no profile; say what a short run changes, as smoke: {" in done.stderr
