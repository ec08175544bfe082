"""What a promotion came to, from stores that the promotion itself has made."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from dashboards.final_table import as_csv, as_json, as_markdown, as_table, write_final
from dashboards.page import sweep_page
from service.cli import main
from service.final_table import final_table
from service.records import SweepStore
from service.view import read_view

Make = Callable[..., SweepStore]
TARGET = {2: 60.0, 3: 71.0, 4: 72.0, 5: 80.0}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder


@pytest.fixture
def search(storage: Path, recorded_search: Make) -> SweepStore:
    return recorded_search(storage)


def text_of(table: object, width: int) -> str:
    console = Console(width=width, record=True, force_terminal=False)
    console.print(table)
    return console.export_text()


def test_each_policy_has_who_found_it_its_worth_on_both_data_sets_and_all_hours(
    search: SweepStore, recorded_promotion: Make
) -> None:
    table = final_table(recorded_promotion(search, TARGET))
    rows = {source.trial: row for row in table.rows for source in row.sources[:1]}
    assert [row.sources[0].trial for row in table.rows] == ["t0000", "t0001", "t0002", "t0003"]
    # Trial 4 found the bits of trial 1, and is no policy of its own.
    assert [source.name for source in rows["t0001"].sources] == ["s/t0001", "s/t0004"]
    assert (rows["t0001"].searched, rows["t0001"].metrics["top1"]) == (85.0, 71.0)
    assert (rows["t0001"].found_hours, rows["t0001"].search_hours, rows["t0001"].share) == (1.5, 7.5, 0.2)
    assert [row.finetune_hours for row in table.rows] == [2.0] * 4
    # The sweep is counted once, though all four come from it.
    assert (table.search_hours, table.found_hours, table.finetune_hours) == (7.5, 6.0, 8.0)
    assert table.correlation is not None
    assert table.correlation.rho == 1.0
    assert sum(row.is_knee for row in table.rows) == 1
    assert all(row.on_front for row in table.rows)


def test_hours_of_a_search_that_is_gone_are_not_made_up(search: SweepStore, recorded_promotion: Make) -> None:
    store = recorded_promotion(search, TARGET)
    shutil.rmtree(search.folder)
    table = final_table(store)
    # The trial's own result is known from its promotion.
    assert {row.found_hours for row in table.rows} == {1.5}
    assert {row.search_hours for row in table.rows} == {None}
    assert table.search_hours is None
    assert as_json(table)["search_device_hours"] is None
    assert "search not known, as a storage is gone in all of s (6 in the trials" in as_markdown(table)


def test_another_sweep_of_the_same_name_lends_no_hours(
    search: SweepStore, recorded_search: Make, recorded_promotion: Make
) -> None:
    store = recorded_promotion(search, TARGET)
    shutil.rmtree(search.folder)
    recorded_search(search.folder.parent, created_ms=5_000)
    assert final_table(store).search_hours is None


def test_policies_that_are_not_finetuned_yet_come_last_with_what_their_search_told(
    search: SweepStore, recorded_promotion: Make
) -> None:
    table = final_table(recorded_promotion(search, {4: 72.0, 5: 80.0}))
    assert [row.trial.state for row in table.rows] == ["done", "done", "pending", "pending"]
    waiting = table.rows[2]
    assert waiting.metrics["bops_g"] == waiting.sources[0].metrics["bops_g"]
    assert "top1" not in waiting.metrics
    assert waiting.policy_hash == waiting.trial.settings["policy"] + waiting.policy_hash[12:]
    # Two policies have no interval.
    assert table.correlation is None
    assert "2 policies do not say whether the search's order carries over" in as_markdown(table)


def test_all_forms_of_the_table_say_the_same(search: SweepStore, recorded_promotion: Make) -> None:
    store = recorded_promotion(search, TARGET)
    table = write_final(store)
    content = json.loads((store.folder / "final.json").read_text())
    assert content == json.loads(json.dumps(as_json(table)))
    lines = list(csv.DictReader(io.StringIO((store.folder / "final.csv").read_text())))
    assert [line["policy_hash"] for line in lines] == [one["policy_hash"] for one in content["policies"]]
    assert [float(line["top1"]) for line in lines] == [one["metrics"]["top1"] for one in content["policies"]]
    assert [line["found_by"] for line in lines] == ["s/t0000", "s/t0001 s/t0004", "s/t0002", "s/t0003"]
    assert [float(line["search_hours"]) for line in lines] == [one["sweep_device_hours"] for one in content["policies"]]
    markdown = (store.folder / "final.md").read_text()
    for one in content["policies"]:
        (row,) = (line for line in markdown.splitlines() if one["policy_hash"][:10] in line)
        assert f"| {one['search_top1']:.2f} | {one['metrics']['top1']:.2f} |" in row
    assert "Spearman's ρ = +1.00" in markdown
    assert as_csv(table) == (store.folder / "final.csv").read_text()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_every_terminal(search: SweepStore, recorded_promotion: Make, width: int) -> None:
    text = text_of(as_table(final_table(recorded_promotion(search, TARGET)), width=width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "p: 4 of 4 promoted policies finetuned, resnet8 on digits" in " ".join(text.split())
    assert "s/t0001 +1" in text
    # Hours of the whole sweep take room that narrow terminals lack, and are told below in any case.
    assert ("sweep h" in text) == (width == 120)
    assert "search 7.5 in all of s" in " ".join(text.split())
    assert "…" not in text


def test_detectors_have_map_and_ap_and_nothing_that_they_were_not_measured_for(
    search: SweepStore, recorded_promotion: Make
) -> None:
    store = recorded_promotion(search, TARGET, task="detection")
    table = final_table(store)
    assert table.accuracy.name == "map"
    text = as_markdown(table)
    assert "mAP, VOC 07 on target (%)" in text
    assert "AP at IoU 0.75 (%)" in text
    assert "ARD" not in text
    assert "BOPs of the backbone (G)" in text
    assert "mAP %" in text_of(as_table(table, width=120), 120)


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_the_page_of_a_promotion_has_what_a_promotion_has_and_no_empty_section(
    search: SweepStore, recorded_promotion: Make, task: str
) -> None:
    page = sweep_page(read_view(recorded_promotion(search, TARGET, task=task)))
    sections = re.findall(r'<section id="([\w-]+)"', page)
    ard = ["ard"] if task == "classification" else []
    assert sections == ["front", "final", "transfer", "bits", *ard, "spend"]
    assert 'data-run="s@1000/t0004"' in page
    assert "the search&#x27;s order carries over" in page
    assert "search, with a policy" not in page
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    accuracy = "top1" if task == "classification" else "map"
    assert (content["front"]["y"], content["front"]["x"]) == (accuracy, "bops_g")
    assert content["front"]["colour"] == ("ard" if task == "classification" else "storage_mb")
    xs = [x for trace in content["figures"]["transfer"]["data"] for x in trace["x"]]
    assert sorted(xs) == [70, 85, 90, 93]


def test_the_page_of_a_promotion_that_has_finetuned_nothing_yet_has_its_policies(
    search: SweepStore, recorded_promotion: Make
) -> None:
    page = sweep_page(read_view(recorded_promotion(search, {})))
    assert re.findall(r'<section id="([\w-]+)"', page) == ["front", "final", "bits", "spend"]
    assert page.count("(pending)") == 4


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_commands_read_promotions_as_they_read_sweeps(
    search: SweepStore, recorded_promotion: Make, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = recorded_promotion(search, TARGET, task=task)
    monkeypatch.setenv("BITFRONT_STORAGE", str(store.folder.parent))

    def invoke(*arguments: str) -> str:
        found = CliRunner().invoke(main, list(arguments))
        assert found.exit_code == 0, found.output
        return found.output

    best = "top-1 80.00 %" if task == "classification" else "mAP, VOC 07 80.00 %"
    assert f"best {best}" in invoke("status", "p")
    assert "p: promotion, finished" in invoke("status", "p")
    told = json.loads(invoke("status", "p", "--json"))
    assert (told["accuracy"], told["best_accuracy"]) == ("top1" if task == "classification" else "map", 80.0)
    assert (told["kind"], told["best_top1"]) == ("finetune", 80.0 if task == "classification" else None)
    assert [line.split()[-1] for line in invoke("list").splitlines()] == ["ago", "promotion"]
    front = invoke("front", "p")
    assert "80.00" in front
    assert "4 of 4 promoted policies finetuned" in " ".join(front.split())
    content = json.loads(invoke("front", "p", "--json"))
    assert content["sweeps"][0]["final"]["policies"][0]["found_by"][0]["sweep_id"] == "s@1000"
    assert "finetune 1/1" in invoke("logs", "p", store.trials()[0].trial_id)
    invoke("front", "p", "--csv")
    if task == "classification":
        told_of_both = " ".join(invoke("compare", "s", "p").split())
        assert "The policies were finetuned by different recipes, and accuracies show it (s: as their" in told_of_both
