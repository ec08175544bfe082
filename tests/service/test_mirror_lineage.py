"""What was found and what was finetuned of it lead to each other in MLflow, whoever syncs, in whatever order."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from dashboards.final_table import write_final
from dashboards.page import sweep_page
from service.files import write_text
from service.mirror import Tracker
from service.mirror_lineage import Lineage
from service.note_blocks import BLOCK_LENGTH, block, block_of, with_block
from service.promoted import save_sources, sources_of
from service.records import SweepStore
from service.run_facts import TAG_LENGTH, finders_in, found_by
from service.run_writer import RunWriter
from service.tracking import resolve_uri
from service.view import read_view

Make = Callable[..., SweepStore]
TARGET = {2: 60.0, 3: 71.0, 4: 72.0, 5: 80.0}


@pytest.fixture
def storage(tmp_path: Path, empty_database: Path) -> Path:
    folder = tmp_path / "storage"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


def sync(store: SweepStore, *, experiment: str = "bitfront") -> None:
    Tracker(store, uri=resolve_uri("", store.folder.parent), experiment=experiment).sync(alive=False)


def forget(storage: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, storage / "mlflow.db")
    shutil.rmtree(storage / "artifacts")


def everything(storage: Path) -> dict[str, Any]:
    """Tags of all runs; ids are replaced by what the runs are of."""
    client = MlflowClient(resolve_uri("", storage))
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    names = {}
    for run in runs:
        tags = run.data.tags
        trial = tags.get("bitfront.trial")
        names[run.info.run_id] = f"{tags['bitfront.sweep_id']}/{trial}" if trial else tags["bitfront.sweep"]
    assert len(set(names.values())) == len(names), "two runs for one"

    def plain(text: str) -> str:
        for run_id, name in names.items():
            text = text.replace(run_id, name)
        for experiment in experiments:
            text = text.replace(f"experiments/{experiment}/", "experiments/E/")
        return text

    return {names[run.info.run_id]: {k: plain(v) for k, v in run.data.tags.items()} for run in runs}


@pytest.fixture
def search(storage: Path, recorded_search: Make) -> SweepStore:
    return recorded_search(storage)


@pytest.fixture
def promotion(search: SweepStore, recorded_promotion: Make) -> SweepStore:
    return recorded_promotion(search, TARGET)


def id_of(promotion: SweepStore, trial: str) -> str:
    """The promotion's trial of the policy that a search's trial has found."""
    trials = promotion.trials()
    return next(
        t.trial_id for t in trials if trial in {s.trial for s in sources_of(promotion.trial_folder(t.trial_id))}
    )


def test_both_sides_lead_to_each_other(storage: Path, search: SweepStore, promotion: SweepStore) -> None:
    sync(search)
    sync(promotion)
    found, mine = everything(storage), id_of(promotion, "t0001")
    finetune = found[f"p@20000/{mine}"]
    assert finetune["bitfront.found_by"] == "s@1000/t0001, s@1000/t0004"
    assert finetune["bitfront.policy_hash"] == search.trial("t0001").policy_hash
    assert (finetune["bitfront.kind"], finetune["bitfront.accuracy"]) == ("finetune", "top1")
    link = "#/experiments/E/runs/"
    assert finetune["mlflow.note.content"] == (
        f"**Found by**\n\n- [s/t0001]({link}s@1000/t0001): top-1 85.00 % in the search\n"
        f"- [s/t0004]({link}s@1000/t0004): top-1 84.00 % in the search\n"
    )
    for trial in ("t0001", "t0004"):
        finder = found[f"s@1000/{trial}"]
        assert json.loads(finder["bitfront.finetuned"]) == {f"p@20000/{mine}": {"top1": 71.0}}
        assert finder["mlflow.note.content"] == (
            f"**Finetuned by**\n\n- [p/{mine}]({link}p@20000/{mine}): top-1 71.00 % on the target\n"
        )
    assert block_of(found["s@1000"]["mlflow.note.content"]) == (f"**Promoted by**\n\n- [p]({link}p@20000): 4 policies")
    assert block_of(found["p@20000"]["mlflow.note.content"]) == f"**Searched by**\n\n- [s]({link}s@1000): 4 policies"
    assert "**Promoted policies**, cheapest first" in found["p@20000"]["mlflow.note.content"]
    assert "Spearman's ρ = +1.00" in found["p@20000"]["mlflow.note.content"]
    assert "bitfront.kind" not in found["s@1000/t0001"]


def test_the_record_is_the_same_in_either_order_again_and_after_a_loss(
    storage: Path, search: SweepStore, promotion: SweepStore, empty_database: Path
) -> None:
    sync(search)
    sync(promotion)
    first = everything(storage)
    for store in (search, promotion, search):
        sync(store)
        assert everything(storage) == first
    forget(storage, empty_database)
    sync(promotion)
    alone = everything(storage)
    assert "s/t0001, which is not recorded here" in alone[f"p@20000/{id_of(promotion, 't0001')}"]["mlflow.note.content"]
    sync(search)
    assert everything(storage) == first


def test_syncing_again_changes_no_tag(
    search: SweepStore, promotion: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(search)
    sync(promotion)
    written: list[str] = []
    log_batch = MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, **given: Any) -> None:
        # The last step of a sweep's course is always sent again.
        written.extend(tag.key for tag in given["tags"])
        log_batch(self, run_id, **given)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    sync(search)
    sync(promotion)
    assert written == []


@pytest.mark.long
def test_two_promotions_of_two_searches_in_other_experiments_are_all_told(
    storage: Path, search: SweepStore, recorded_search: Make, recorded_promotion: Make
) -> None:
    other = recorded_search(storage, [(3, 86.0)], name="other", created_ms=2_000)
    first = recorded_promotion(search, TARGET)
    # The same policy, found by another sweep: the finetune is the same.
    assert recorded_promotion(other, TARGET).folder == first.folder
    second = recorded_promotion(search, {3: 50.0}, name="q", task="detection", now_ms=30_000)
    sync(search)
    sync(first, experiment="finetunes")
    sync(second, experiment="detectors")
    before = everything(storage)
    note = before[f"p@20000/{id_of(first, 't0001')}"]["mlflow.note.content"]
    assert "other/t0000, which is not recorded here" in note
    sync(other)
    found = everything(storage)
    finetune = found[f"p@20000/{id_of(first, 't0001')}"]
    assert finetune["bitfront.found_by"] == "s@1000/t0001, s@1000/t0004, other@2000/t0000"
    assert "[other/t0000](#/experiments/E/runs/other@2000/t0000): top-1 86.00 %" in finetune["mlflow.note.content"]
    told = json.loads(found["s@1000/t0001"]["bitfront.finetuned"])
    assert sorted(told.values(), key=str) == [{"map": 50.0}, {"top1": 71.0}]
    assert "mAP, VOC 07 50.00 % on the target" in found["s@1000/t0001"]["mlflow.note.content"]
    assert block_of(found["s@1000"]["mlflow.note.content"]).count("\n- ") == 2
    assert block_of(found["p@20000"]["mlflow.note.content"]).count("\n- ") == 2
    # Whatever else is synced changes none of it.
    for store in (first, second, search):
        sync(store, experiment={"p": "finetunes", "q": "detectors"}.get(store.folder.name, "bitfront"))
    assert everything(storage) == found


def test_a_promotion_whose_runs_are_deleted_is_told_of_no_more(
    storage: Path, search: SweepStore, promotion: SweepStore
) -> None:
    sync(search)
    alone = everything(storage)
    sync(promotion)
    client = MlflowClient(resolve_uri("", storage))
    experiments = [one.experiment_id for one in client.search_experiments()]
    for run in client.search_runs(experiments, "tags.`bitfront.kind` = 'finetune'"):
        client.delete_run(run.info.run_id)
    sync(search)
    found = everything(storage)
    assert found["s@1000"] == alone["s@1000"]
    assert [tags.get("bitfront.finetuned") for tags in found.values()] == [None] * 6
    assert not any("Finetuned by" in tags.get("mlflow.note.content", "") for tags in found.values())
    # The promotion makes its runs anew, and is told of again.
    sync(promotion)
    assert "p@20000" in everything(storage)["s@1000/t0001"]["bitfront.finetuned"]


def test_what_people_write_into_a_trials_note_stays(storage: Path, search: SweepStore, promotion: SweepStore) -> None:
    sync(search)
    client = MlflowClient(resolve_uri("", storage))
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    (run,) = client.search_runs([experiment], "tags.`bitfront.trial` = 't0001'")
    client.set_tag(run.info.run_id, "mlflow.note.content", "Looks odd in layer 3.")
    sync(promotion)
    sync(search)
    note = client.get_run(run.info.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("Looks odd in layer 3.\n\n**Finetuned by**\n\n- [p/")


def test_finetunes_that_have_not_ended_are_linked_without_an_accuracy(
    storage: Path, search: SweepStore, recorded_promotion: Make
) -> None:
    store = recorded_promotion(search, {})
    mine = id_of(store, "t0001")
    store.start_trial(mine, now_ms=30_000)
    sync(search)
    sync(store)
    found = everything(storage)["s@1000/t0001"]
    assert "bitfront.finetuned" not in found
    assert f"- [p/{mine}](#/experiments/E/runs/p@20000/{mine}): stale" in found["mlflow.note.content"]


def test_the_stored_page_links_the_runs_that_found_the_policies(search: SweepStore, promotion: SweepStore) -> None:
    write_final(promotion)
    write_text(promotion.folder / "front.html", sweep_page(read_view(promotion)))
    sync(search)
    sync(promotion)
    page = (promotion.folder / "front.html").read_text()
    assert '"s@1000/t0004":"#/experiments/' in page
    client = MlflowClient(resolve_uri("", promotion.folder.parent))
    (run,) = client.search_runs(["1"], "tags.`bitfront.sweep` = 'p@20000'")
    files = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"final.md", "final.json", "final.csv", "spec.yaml", "front.html"} <= files
    assert client.get_metric_history(run.info.run_id, "best_top1")[-1].value == 80.0


@pytest.mark.long
def test_sweeps_whose_names_hold_a_patterns_signs_are_not_mixed_up(
    storage: Path, recorded_search: Make, recorded_promotion: Make
) -> None:
    under = recorded_search(storage, [(3, 85.0)], name="a_b")
    dotted = recorded_search(storage, [(4, 85.0)], name="axb")
    sync(under)
    sync(dotted)
    sync(recorded_promotion(dotted, {4: 90.0}))
    sync(under)
    found = everything(storage)
    assert "bitfront.finetuned" in found["axb@1000/t0000"]
    assert "bitfront.finetuned" not in found["a_b@1000/t0000"]


def test_more_finders_than_a_tag_has_room_for_are_cut_between_two(search: SweepStore, promotion: SweepStore) -> None:
    folder = promotion.trial_folder(promotion.trials()[0].trial_id)
    (one,) = sources_of(folder)
    save_sources(folder, [one] * 1000)
    text = found_by(sources_of(folder))
    assert TAG_LENGTH - 20 < len(text) <= TAG_LENGTH
    assert set(finders_in(text)) == {"s@1000/t0000"}


def test_a_block_is_bounded_and_takes_the_place_of_the_one_before() -> None:
    long = block("Found by", [f"[s/t{i:04d}](#/experiments/1/runs/{i:032d})" for i in range(100)])
    assert len(long) <= BLOCK_LENGTH
    assert long.endswith(f"- and {100 - long.count('[s/t')} more")
    note = with_block("What I think.\n", long)
    assert block_of(note) == long
    short = block("Found by", ["s/t1"])
    assert with_block(note, short) == "What I think.\n\n**Found by**\n\n- s/t1\n"
    assert with_block(with_block(note, short) + "\nMore.\n", "") == "What I think.\n\nMore.\n"
    assert with_block("", "") == ""


def test_nothing_is_asked_for_a_sweep_without_promotions_but_whether_there_are_any(
    search: SweepStore, storage: Path
) -> None:
    sync(search)
    writer = RunWriter(resolve_uri("", storage), experiment="bitfront")
    asked: list[str] = []
    everywhere = writer.search_everywhere
    writer.search_everywhere = lambda query: asked.append(query) or everywhere(query)  # type: ignore[method-assign, func-returns-value]
    assert Lineage(writer, writer.find("bitfront.sweep", "s@1000")).update(["s@1000"]) == {}
    assert asked == ["tags.`bitfront.found_by` LIKE '%s@1000/%'"]
