"""The table of methods, from records, through `bitfront table` and on the sweep's page."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from dashboards import method_table as shown
from dashboards.method_notes import notes
from dashboards.page import sweep_page
from dashboards.plots_methods import look, methods_section
from service.cli import main
from service.method_table import LABELS, MethodRow, method_table, num_weights
from service.records import SweepStore
from service.view import read_view
from trainables.bops import CostModel
from trainables.errors import ConfigError
from trainables.method_config import METHOD_CONFIGS

MakeMethods = Callable[..., SweepStore]
SMALL, LARGE = {"budget.bops_g": 0.03}, {"budget.bops_g": 0.06}
UNIFORM, RGMPQ, EDMIPS = {"method.name": "uniform"}, {"method.name": "rgmpq"}, {"method.name": "edmips"}


def seeds(settings: dict[str, Any], measured: Sequence[Any]) -> list[tuple[dict[str, Any], Any]]:
    return [({**settings, "seed": seed}, one) for seed, one in enumerate(measured)]


BOTH = [
    *seeds(UNIFORM | SMALL, [80.0, 82.0, 81.0]),
    *seeds(RGMPQ | SMALL, [90.0, 93.0, 90.0]),
    *seeds(UNIFORM | LARGE, [90.0, 91.0, 92.0]),
    *seeds(RGMPQ | LARGE, [91.0, 92.0, "failed"]),
]


@pytest.fixture
def both(recorded_methods: MakeMethods) -> SweepStore:
    return recorded_methods(BOTH)


def rows_of(store: SweepStore, **given: str) -> list[MethodRow]:
    return method_table(read_view(store), **given).rows


def test_every_method_has_a_label_and_a_look_of_its_own() -> None:
    assert set(METHOD_CONFIGS) <= set(LABELS)
    assert len({look(name) for name in LABELS}) == len(LABELS)
    # No two of the series have one colour; ink stands for what is no search.
    colours = [look(name)[1] for name in LABELS]
    assert len(set(colours)) == len(LABELS) - 1


def test_rows_are_the_methods_of_each_budget_the_largest_first(both: SweepStore) -> None:
    rows = rows_of(both)
    assert [(row.budget["bops_g"], row.method, len(row.done), len(row.trials)) for row in rows] == [
        (0.06, "uniform", 3, 3), (0.06, "rgmpq", 2, 3), (0.03, "uniform", 3, 3), (0.03, "rgmpq", 3, 3),
    ]  # fmt: skip


def test_means_spreads_and_pairs_are_those_of_the_seeds(both: SweepStore) -> None:
    large, ours, small, best = rows_of(both)
    assert (small.measured["top1"].mean, small.measured["top1"].deviation) == (81.0, 1.0)
    assert (best.measured["top1"].mean, best.measured["top1"].deviation) == (91.0, pytest.approx(3**0.5))
    # Seed by seed: -10, -11, -9; of the larger budget the third seed has no pair.
    found = small.differences["top1"]
    assert (found.count, found.mean, found.deviation, found.least, found.most) == (3, -10.0, 1.0, -11.0, -9.0)
    assert (large.differences["top1"].count, large.differences["top1"].mean) == (2, -1.0)
    assert small.differences["ard"].mean == 10.0
    assert not best.differences
    assert [row.is_best for row in (large, ours, small, best)] == [False, False, False, True]


def test_another_method_can_be_the_one_that_is_compared_with(both: SweepStore) -> None:
    found = {(row.budget["bops_g"], row.method): row.differences for row in rows_of(both, against="uniform")}
    assert found[0.03, "rgmpq"]["top1"].mean == 10.0
    assert not found[0.03, "uniform"]
    with pytest.raises(ConfigError, match=r"--against: m has no trial of 'rgmp'; did you mean 'rgmpq'\?"):
        rows_of(both, against="rgmp")


def test_the_baseline_is_the_reference_with_four_bytes_a_weight(both: SweepStore, work: CostModel) -> None:
    full = method_table(read_view(both)).groups[0].full
    assert full.storage_mb == work.weights * 4 / 1e6
    assert (full.top1, full.bops_g, full.training_hours) == (98.0, work.full_bops_g, 0.25)
    for trial in both.trials():
        if trial.state == "done":
            assert num_weights(trial.metrics) == work.weights
    assert num_weights({}) is None


def test_the_share_of_the_budget_is_that_of_the_limit_which_is_nearest(recorded_methods: MakeMethods) -> None:
    budget = {"budget.bops_g": 0.03, "budget.compression": 100.0}
    (row,) = rows_of(recorded_methods([(UNIFORM | budget, (80.0, 3, 0.01))]))
    costs = row.trials[0].metrics
    assert row.measured["budget_used"].mean == pytest.approx(100 * costs["bops_g"] / 0.03)
    assert costs["bops_g"] / 0.03 > 100.0 / costs["compression"]


def test_what_the_space_does_not_vary_is_what_the_file_fixes(recorded_methods: MakeMethods) -> None:
    fixed = "method: {name: edmips, zeta: 0.1}\nbudget: {bops_g: 0.04}\nseed: 5\n"
    store = recorded_methods([({"method.zeta": 0.1}, 80.0), ({"method.zeta": 0.2}, 82.0)], fixed=fixed)
    table = method_table(read_view(store))
    (row,) = table.rows
    assert (row.method, dict(row.budget), row.label) == ("edmips", {"bops_g": 0.04}, "EdMIPS")
    assert table.besides == ("method.zeta",)
    assert table.against == ""
    assert "over the seeds and over method.zeta, in which a row's trials differ" in notes(table, "s")[0]


def test_where_other_settings_vary_too_a_seed_has_the_mean_of_its_trials(recorded_methods: MakeMethods) -> None:
    trials = [
        (EDMIPS | SMALL | {"method.zeta": zeta, "seed": seed}, top1)
        for seed, tops in enumerate([(80.0, 84.0), (81.0, 85.0)])
        for zeta, top1 in zip((0.1, 0.2), tops, strict=True)
    ]
    store = recorded_methods([*trials, *seeds(RGMPQ | SMALL, [90.0, 92.0])])
    edmips, _ = rows_of(store)
    assert (edmips.differences["top1"].count, edmips.differences["top1"].mean) == (2, -8.5)


def test_without_a_budget_a_row_tells_ranges_and_nothing_is_best(recorded_methods: MakeMethods) -> None:
    trials = [*seeds(EDMIPS, [(70.0, 2, 0.1), (90.0, 4, 0.1)]), *seeds(RGMPQ, [(75.0, 2, 0.1), (75.0, 2, 0.1)])]
    table = method_table(read_view(recorded_methods(trials)))
    assert [row.is_best for row in table.rows] == [False, False]
    assert not any(row.differences for row in table.rows)
    text = shown.as_markdown(table)
    assert "| EdMIPS | none | 2/2 | 0.01934 to 0.03868 | 0.01250 to 0.05001 | 64.0 to 256.0 | 70.00 to 90.00 |" in text
    assert "from the least to the most" in text
    assert "Nothing is marked" not in text


def test_networks_on_data_are_compared_each_for_itself(recorded_methods: MakeMethods) -> None:
    other = {"network.name": "resnet20"}
    trials = [*seeds(UNIFORM | SMALL, [80.0, 80.5]), *seeds(UNIFORM | SMALL | other, [90.0, 90.5])]
    groups = method_table(read_view(recorded_methods(trials))).groups
    assert [(group.network, group.data, len(group.rows)) for group in groups] == [
        ("resnet8", "digits", 1), ("resnet20", "digits", 1),
    ]  # fmt: skip


def test_the_search_cost_is_the_whole_one_where_the_record_has_it(recorded_methods: MakeMethods) -> None:
    store = recorded_methods(seeds(UNIFORM | SMALL, [(80.0, 3, 0.01), (81.0, 3, 0.01)]))
    (row,) = rows_of(store)
    assert row.measured["search_cost_hours"].mean == pytest.approx(0.01)
    path = store.trial_folder("t0000") / "result.json"
    path.write_text(
        path.read_text().replace('"search_device_hours"', '"search_cost_hours": 0.03, "search_device_hours"')
    )
    table = method_table(read_view(SweepStore(store.folder)))
    assert table.rows[0].measured["search_cost_hours"].mean == pytest.approx(0.02)
    assert "of older trials their own search alone" in " ".join(notes(table, "s"))


@pytest.mark.parametrize(("hours", "unit", "text"), [(0.01, "s", "36.0"), (0.1, "min", "6.0"), (5.0, "h", "5.000")])
def test_all_costs_of_a_table_have_one_readable_unit(
    recorded_methods: MakeMethods, hours: float, unit: str, text: str
) -> None:
    table = method_table(read_view(recorded_methods([(UNIFORM | SMALL, (80.0, 3, hours))])))
    column = shown.columns(table)[-1]
    assert (column.head, column.text(table.rows[0])) == (f"Cost ({unit})", text)


def test_trials_without_a_result_are_counted_and_named(recorded_methods: MakeMethods) -> None:
    states = ["failed", "diverged", "pending", "pruned"]
    store = recorded_methods([*seeds(RGMPQ | SMALL, [90.0, *states]), *BOTH[:3]], total_trials=20)
    table = method_table(read_view(store))
    text = " ".join(notes(table, "s"))
    assert "R-GMPQ (≤ 0.03 G) trial 1 failed (out of memory), trial 2 diverged, trial 3 pending, trial 4 pruned" in text
    assert "12 of 20 trials not begun" in text
    assert "| R-GMPQ | ≤ 0.03 G | 1/5 |" in shown.as_markdown(table)


def test_what_is_marked_is_explained_and_why_nothing_is(recorded_methods: MakeMethods) -> None:
    def told(name: str, trials: Sequence[Any]) -> str:
        return " ".join(notes(method_table(read_view(recorded_methods(trials, name=name))), "s"))

    assert "*: within a budget the highest mean top-1" in told("a", BOTH)
    few = [*seeds(UNIFORM | SMALL, [80.0]), *seeds(RGMPQ | SMALL, [90.0, 91.0])]
    assert "within no budget have two methods two finished trials" in told("b", few)
    level = [*seeds(UNIFORM | SMALL, [80.0, 90.0]), *seeds(RGMPQ | SMALL, [81.0, 91.0])]
    assert "within no budget is a method told apart" in told("c", level)
    assert "marked" not in told("d", seeds(UNIFORM | SMALL, [80.0, 90.0]))


def test_finished_trials_beyond_a_constraint_are_told_and_kept(recorded_methods: MakeMethods) -> None:
    table = method_table(read_view(recorded_methods(BOTH[:6], constraints=("top1 >= 85",))))
    assert [len(row.done) for row in table.rows] == [3, 3]
    assert "3 finished trials break the sweep's constraints (top1 >= 85)" in " ".join(notes(table, "s"))


@pytest.fixture
def run(both: SweepStore, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("BITFRONT_STORAGE", str(both.folder.parent))

    def run(*arguments: str, status: int = 0) -> Result:
        found = CliRunner().invoke(main, ["table", *arguments])
        assert found.exit_code == status, found.output
        assert found.exception is None or isinstance(found.exception, SystemExit)
        return found

    return run


def test_the_command_prints_a_table_with_the_best_marked(run: Callable[..., Result]) -> None:
    text = run("m").stdout
    lines = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    assert next(line for line in lines if line[0] == "Baseline")[1:] == [
        "0.3094",
        "3.201",
        "–",
        "–",
        "98.00",
        "–",
        "–",
        "–",
    ]
    assert [line[0] for line in lines if line[-1].endswith("36.0")] == ["Uniform", "R-GMPQ"] * 2
    assert [line[:3] for line in lines if "91.00 ± 1.73 *" in line] == [["R-GMPQ", "≤ 0.03 G", "3/3"]]
    assert "Trained in 0.25 device-h" in text
    assert "−10.00 ± 1.00" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_the_table_fits_any_terminal_and_keeps_the_accuracy(both: SweepStore, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(shown.as_report(method_table(read_view(both)), width=width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert any("91.00 ± 1.73 *" in line for line in lines)


def test_markdown_has_the_papers_columns_and_the_best_in_bold(run: Callable[..., Result], tmp_path: Path) -> None:
    text = run("m", "--markdown").stdout
    head = next(line for line in text.splitlines() if line.startswith("| Method"))
    names = [cell.strip() for cell in head.strip("|").split("|")]
    assert names == [
        "Method", "Budget", "Trials", "Param. (MB)", "BOPs (G)", "Comp. (×)", "used (%)", "Top-1 (%)", "to R-GMPQ (%)",
        "ARD", "Cost (s)",
    ]  # fmt: skip
    assert re.findall(r"\*\*(.*?)\*\*", text) == ["91.00 ± 1.73"]
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {len(names) + 1}
    path = tmp_path / "methods.md"
    run("m", "--markdown", "-o", str(path))
    assert path.read_text() == text
    assert "exists; give another file, or --force" in run("m", "-o", str(path), status=2).stderr
    run("m", "-o", str(path), "--force")
    assert "R-GMPQ" in path.read_text()


def test_csv_and_json_say_the_same_with_spreads_and_ends(run: Callable[..., Result]) -> None:
    lines = list(csv.DictReader(io.StringIO(run("m", "--csv").stdout)))
    content = json.loads(run("m", "--json").stdout)
    (group,) = content["groups"]
    assert [line["method"] for line in lines] == ["baseline", *(row["method"] for row in group["rows"])]
    assert float(lines[0]["storage_mb"]) == group["baseline"]["storage_mb"]
    for line, row in zip(lines[1:], group["rows"], strict=True):
        top1 = row["measured"]["top1"]
        assert [float(line[f"top1{end}"]) for end in ("", "_sd", "_min", "_max")] == [
            top1["mean"], top1["deviation"], top1["least"], top1["most"],
        ]  # fmt: skip
        assert (line["budget"], line["finished"]) == (f"bops_g={row['budget']['bops_g']:g}", str(row["finished"]))
    assert [line["top1_difference_seeds"] for line in lines[1:]] == ["2", "", "3", ""]
    assert group["rows"][1]["states"] == {"done": 2, "failed": 1}
    assert [row["best"] for row in group["rows"]] == [False, False, False, True]
    assert {line["against"] for line in lines[1:]} == {content["against"]} != {""}


def test_what_cannot_be_shown_is_said_in_a_line(run: Callable[..., Result], recorded_methods: MakeMethods) -> None:
    recorded_methods([], name="empty")
    assert "no trial is planned yet" in run("empty").stdout
    assert "No trial is planned yet" in run("empty", "--markdown").stdout
    assert "holds no sweep 'n'" in run("n", status=2).stderr
    assert "Give one of --markdown, --csv and --json" in run("m", "--csv", "--json", status=2).stderr
    assert "has no trial of 'hawq'; it has no trials yet" in run("empty", "--against", "hawq", status=2).stderr
    assert "has no trial of 'hawq'" in run("m", "--against", "hawq", status=2).stderr


def test_a_promotion_is_sent_to_its_own_table(
    recorded_search: Callable[..., SweepStore], recorded_promotion: Callable[..., SweepStore], tmp_path: Path
) -> None:
    promotion = recorded_promotion(recorded_search(tmp_path / "searches"), {3: 80.0})
    with pytest.raises(ConfigError, match=r"p is a promotion, which has no methods.*bitfront front p"):
        method_table(read_view(promotion))


def test_the_page_draws_every_trial_and_every_mean_of_several_methods(both: SweepStore) -> None:
    view = read_view(both)
    found = methods_section(view)
    assert found is not None
    section, figures = found
    (figure,) = figures.values()
    points = [trace for trace in figure["data"] if trace["mode"] == "markers"]
    means = [trace for trace in figure["data"] if trace["mode"] != "markers"]
    done = [trial for trial in view.trials if trial.state == "done"]
    for axis in ("x", "x2"):
        drawn = sorted(y for trace in points if trace["xaxis"] == axis for y in trace["y"])
        assert drawn == sorted(trial.metrics["top1"] for trial in done)
    assert {(trace["name"], trace["xaxis"]): trace["y"] for trace in means} == {
        (name, axis): [row.measured["top1"].mean for row in rows_of(both) if row.label == name]
        for name in ("Uniform", "R-GMPQ") for axis in ("x", "x2")
    }  # fmt: skip
    assert [trace["name"] for trace in means if trace["showlegend"]] == ["Uniform", "R-GMPQ"]
    assert means[0]["error_y"]["array"] == [1.0, 1.0]
    assert "91.00 ± 1.73 *" in section.body
    page = sweep_page(view)
    assert '<section id="methods"' in page
    assert 'data-figure="methods-0"' in page


def test_a_sweep_of_one_method_has_no_such_part_on_its_page(recorded_methods: MakeMethods) -> None:
    store = recorded_methods(seeds(RGMPQ | SMALL, [80.0, 81.0]))
    assert methods_section(read_view(store)) is None
    assert '<section id="methods"' not in sweep_page(read_view(store))
    assert len(rows_of(store)) == 1
