"""The mirror against a real SQLite store and a real server."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.store.tracking.dbmodels.models import SqlDataset
from mlflow.tracking import MlflowClient
from sqlalchemy import event
from sqlalchemy.orm import Session

from dashboards.front import as_json, as_markdown
from dashboards.front_picture import draw_front
from dashboards.page import sweep_page
from service import driver
from service.background_mirror import LONGEST_PAUSE_S, PAUSE_S, SHARE, BackgroundMirror, pause_s
from service.files import write_json, write_text
from service.front import find_front
from service.mirror import REFRESH_S, Tracker
from service.orchestrate.worker import settle_failure
from service.records import SweepRecord, SweepStore, TrialRecord
from service.tracking import resolve_uri
from service.view import read_view
from trainables.errors import TrackingError
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.report import EpochReport

ROOT = Path(__file__).parents[2]
FINGERPRINT = "0123456789abcdef" * 4
SWEEP = SweepRecord(
    name="s",
    spec_hash="h",
    facts={"network": "resnet8"},
    total_trials=5,
    created_ms=1_000,
    tags={"team": "a"},
    owner="ana",
    revision="c" * 40 + "-dirty",
    version="1.2",
    constraints=("bops_g <= 1",),
    references={
        "r8": {"key": "r8", "top1": 99.0, "data_fingerprint": FINGERPRINT, "data": {"name": "digits"}},
        "r9": {"key": "r9", "top1": 98.0, "data_fingerprint": "f" * 64, "data": {"name": "cars", "root": "/data"}},
    },
)
COSTS = {"bops_g": 0.02, "compression": 150.0, "storage_mb": 0.02}


def add_trial(
    store: SweepStore, number: int, *, state: str = "done", top1: float = 90.0, bops: float = 0.02, ard: float = 2.0
) -> None:
    trial_id, start = f"t{number:04d}", 2_000 + 100 * number
    if not store.trial_folder(trial_id).exists():
        store.plan_trial(trial_id, number=number, settings={"method.zeta": 0.1 * (number + 1)})
    begun = store.start_trial(trial_id, now_ms=start, reference="r8" if number else "r9")
    for epoch in (1, 2):
        report = EpochReport(stage="search", epoch=epoch, epochs=2, metrics={"loss": 1 / epoch, "p": 2.0})
        store.append_epoch(trial_id, report, seconds=18.0, now_ms=start + epoch)
    if state == "running":
        return
    policy = BitPolicy(network="resnet8", bits={"a": LayerBits(2, 2 + number % 3)})
    record = replace(begun, state=state, ended_ms=start + 50 * begun.attempts, error="why")
    if state == "done":
        store.save_policy(trial_id, PolicyRecord(policy=policy, method="gmpq", settings={}, costs=COSTS))
        metrics = {**COSTS, "top1": top1, "bops_g": bops, "ard": ard, "ard_normalised": 0.5, "device_hours": 0.1}
        record = replace(record, metrics=metrics, policy_hash=policy.hash, error="")
    store.finish_trial(record)


def publish(store: SweepStore, *, page: bool = False) -> None:
    found = find_front(store.trials(), store.sweep())
    write_json(store.folder / "front.json", as_json(store.sweep(), found))
    write_text(store.folder / "front.md", as_markdown(store.sweep(), found))
    if page:
        draw_front(read_view(store), store.folder / "front.png")
        write_text(store.folder / "front.html", sweep_page(read_view(store)))


def close(store: SweepStore, end: str = "finished") -> None:
    for trial in store.trials():
        store.interrupt_trial(trial.trial_id)
    store.save_sweep(replace(store.sweep(), ended_ms=9_002, end=end))
    publish(store, page=True)


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> SweepStore:
    store = SweepStore.create(tmp_path / "storage", SWEEP, spec_text="name: s\n")
    shutil.copy(empty_database, tmp_path / "storage")
    add_trial(store, 0, top1=95.0, bops=0.02)
    add_trial(store, 1, top1=90.0, bops=0.03)
    add_trial(store, 2, state="diverged")
    add_trial(store, 3, state="failed")
    add_trial(store, 4, state="running")
    publish(store)
    return store


def tracker(store: SweepStore, uri: str = "", **given: Any) -> Tracker:
    return Tracker(store, uri=resolve_uri(uri, store.folder.parent), experiment="bitfront", **given)


def everything(uri: str, *, sweep_id: str = "s@1000") -> dict[str, Any]:
    """All that MLflow knows of the sweep's runs; its own ids are replaced by the trials'."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bitfront")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    tags = ("bitfront.sweep", "bitfront.sweep_id")
    runs = [run for run in runs if {run.data.tags.get(tag) for tag in tags} & {sweep_id}]
    names = {run.info.run_id: run.data.tags.get("bitfront.trial", "parent") for run in runs}
    assert len(set(names.values())) == len(names), "two runs for one"

    def plain(text: str) -> str:
        for run_id, name in names.items():
            text = text.replace(run_id, name)
        return text.replace(f"experiments/{experiment.experiment_id}/", "experiments/E/")

    found: dict[str, Any] = {}
    for run in runs:
        run_id = run.info.run_id
        history = {
            name: [(p.step, p.timestamp, p.value) for p in client.get_metric_history(run_id, name)]
            for name in run.data.metrics
        }
        files = {}
        for artifact in client.list_artifacts(run_id):
            path = Path(client.download_artifacts(run_id, artifact.path))
            files[artifact.path] = path.read_bytes() if path.suffix == ".png" else plain(path.read_text())
        found[names[run_id]] = {
            "times": (run.info.status, run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "tags": {name: plain(value) for name, value in run.data.tags.items()},
            "history": history,
            "files": files,
            "datasets": sorted(
                (one.dataset.name, one.dataset.digest, one.dataset.source_type, one.dataset.source, one.tags[0].value)
                for one in run.inputs.dataset_inputs
            ),
        }
    return found


def runs(uri: str, query: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name("bitfront").experiment_id], query))


def search(uri: str, query: str) -> list[str]:
    return sorted(run.data.tags.get("bitfront.trial", "parent") for run in runs(uri, query))


def test_a_child_has_all_that_is_known_of_its_trial(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    found = everything(mirror.uri)
    assert set(found) == {"parent", *(f"t000{i}" for i in range(5))}
    one = found["t0000"]
    assert one["times"] == ("FINISHED", 2_000, 2_050)
    assert one["params"] == {"method.zeta": "0.1"}
    expected = {
        "bitfront.state": "done",
        "bitfront.front": "true",
        "bitfront.rank": "1",
        "bitfront.policy_hash": store.trial("t0000").policy_hash,
        "bitfront.spec_hash": "h",
        "bitfront.owner": "ana",
        "bitfront.sweep_name": "s",
        "bitfront.sweep_id": "s@1000",
        "bitfront.revision": "c" * 40 + "-dirty",
        "bitfront.version": "1.2",
        "bitfront.reference": "r9",
        "bitfront.data_fingerprint": "f" * 64,
        "mlflow.source.git.commit": "c" * 40,
    }
    assert {name: one["tags"].get(name) for name in expected} == expected
    assert one["history"]["search/loss"] == [(0, 2_001, 1.0), (1, 2_002, 0.5)]
    assert one["history"]["top1"] == [(0, 2_050, 95.0)]
    assert one["history"]["device_hours"] == [(0, 2_050, 0.1)]
    assert list(one["files"]) == ["policy.json"]
    local = ("local", '{"uri": "file:///data"}')
    assert one["datasets"] == [
        ("cars-train", "f" * 12, *local, "training"),
        ("cars-validation", "f" * 12, *local, "validation"),
    ]


def test_children_say_how_their_trials_ended_and_on_what_they_stand(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    found = everything(mirror.uri)
    assert [found[f"t000{i}"]["times"][0] for i in (1, 2, 3, 4)] == ["FINISHED", "FINISHED", "FAILED", "RUNNING"]
    tags = [found[f"t000{i}"]["tags"] for i in range(5)]
    assert [one["bitfront.state"] for one in tags] == ["done", "done", "diverged", "failed", "running"]
    assert [one["bitfront.front"] for one in tags] == ["true", "false", "false", "false", "false"]
    assert [one.get("bitfront.rank") for one in tags] == ["1", "2", None, None, None]
    assert tags[3]["bitfront.error"] == "why"
    # What a diverged trial took is known; a failed one may be run again.
    assert found["t0002"]["history"]["device_hours"] == [(0, 2_250, pytest.approx(0.01))]
    assert "device_hours" not in found["t0003"]["history"]
    assert [name for name, *_ in found["t0001"]["datasets"]] == ["digits-train", "digits-validation"]


def test_the_parent_has_the_sweeps_facts_and_its_course(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    parent = everything(mirror.uri)["parent"]
    assert (parent["times"][0], parent["params"], parent["tags"]["team"]) == ("RUNNING", {"network": "resnet8"}, "a")
    assert list(parent["files"]) == ["front.json", "front.md", "spec.yaml"]
    assert len(parent["datasets"]) == 4
    steps = [(1, 2_050), (2, 2_150), (3, 2_250), (4, 2_350)]
    course = {
        name: [value for step, time_ms, value in points if (step, time_ms) in steps]
        for name, points in parent["history"].items()
    }
    assert course["trials_done"] == [1, 2, 2, 2]
    assert course["trials_failed"] == [0, 0, 0, 1]
    assert course["front_size"] == [1, 1, 1, 1]
    assert course["best_top1"] == [95, 95, 95, 95]
    assert course["device_hours"] == pytest.approx([0.01, 0.02, 0.03, 0.04])


def test_the_search_for_the_front_gives_the_front_and_nothing_else(store: SweepStore) -> None:
    add_trial(store, 5, top1=99.0, bops=2.0)  # beyond the constraint
    add_trial(store, 6, top1=95.0, bops=0.02)  # equal to a member: a member
    mirror = tracker(store)
    mirror.sync()
    assert search(mirror.uri, "tags.\"bitfront.front\" = 'true'") == ["t0000", "t0006"]
    assert search(mirror.uri, "tags.`bitfront.front` = 'true' and tags.`bitfront.sweep_name` = 's'") == [
        "t0000", "t0006",
    ]  # fmt: skip
    assert search(mirror.uri, "tags.`bitfront.rank` = '1'") == ["t0000", "t0006"]
    assert len(search(mirror.uri, "tags.`bitfront.sweep_name` = 's'")) == 7


def test_a_sweep_of_a_name_that_was_used_before_has_its_own_front(store: SweepStore) -> None:
    tracker(store).sync(alive=False)
    shutil.rmtree(store.folder)
    second = SweepStore.create(store.folder.parent, replace(SWEEP, created_ms=2_000), spec_text="name: s\n")
    add_trial(second, 7)
    mirror = tracker(second)
    mirror.sync(alive=False)
    front = "tags.`bitfront.front` = 'true' and tags.`bitfront.sweep_id` = 's@{}'"
    assert search(mirror.uri, front.format(2_000)) == ["t0007"]
    assert search(mirror.uri, front.format(1_000)) == ["t0000"]
    assert search(mirror.uri, "tags.`bitfront.sweep` = 's@2000'") == ["parent"]
    assert (
        "tags.\"bitfront.sweep_id\" = 's@2000'"
        in everything(mirror.uri, sweep_id="s@2000")["parent"]["tags"]["mlflow.note.content"]
    )


def test_a_failed_trial_that_is_run_again_is_not_on_the_front_until_it_is_done(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    store.reopen_trial("t0003")
    again = tracker(store)
    again.sync()
    one = everything(mirror.uri)["t0003"]
    assert (one["tags"]["bitfront.state"], one["tags"]["bitfront.front"], one["times"][0]) == (
        "pending", "false", "KILLED",
    )  # fmt: skip
    assert "bitfront.error" not in one["tags"]
    add_trial(store, 3, top1=99.0, bops=0.01)
    again.sync()
    assert search(mirror.uri, "tags.`bitfront.front` = 'true'") == ["t0003"]


def test_the_course_goes_on_where_failed_trials_are_run_again_and_is_rebuilt_as_it_was(
    store: SweepStore, tmp_path: Path, empty_database: Path
) -> None:
    mirror = tracker(store)
    mirror.sync()
    store.reopen_trial("t0003")
    tracker(store).sync()
    add_trial(store, 3, top1=99.0, bops=0.01)
    again = tracker(store)
    again.sync()
    history = everything(mirror.uri)["parent"]["history"]

    def values(name: str) -> list[float]:
        assert [step for step, *_ in history[name]] == [1, 2, 3, 4, 5]
        return [value for *_, value in history[name]]

    # Until it ends again the trial counts as failed.
    assert values("trials_failed") == [0, 0, 0, 1, 0]
    assert values("trials_done") == [1, 2, 2, 2, 3]
    # Its two epochs came before the first end; the second attempt repeats none.
    assert values("device_hours") == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.04])
    # As a later process finds it, which has it from the storage alone.
    shutil.copy(empty_database, tmp_path / "second.db")
    rebuilt = tracker(store, f"sqlite:///{tmp_path / 'second.db'}")
    rebuilt.sync()
    assert everything(rebuilt.uri)["parent"]["history"] == history
    # Beside its database: the sweep's storage may be somebody else's.
    assert (tmp_path / "artifacts").is_dir()


def test_what_another_process_recorded_meanwhile_is_put_right_by_the_drivers_last_sync(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    tracker(store).sync(alive=False)  # saw no driver
    client = MlflowClient(mirror.uri)
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`bitfront.sweep` = 's@1000'")
    child = {"mlflow.parentRunId": parent.info.run_id, "bitfront.trial": "t0000", "bitfront.sweep_id": "s@1000"}
    client.create_run(experiment, tags={**child, "bitfront.front": "true"})
    mirror.sync(closing=True)
    found = everything(mirror.uri)
    assert found["t0004"]["times"][0] == "RUNNING"
    assert found["t0004"]["tags"]["bitfront.state"] == "running"
    assert found["parent"]["times"][0] == "RUNNING"


def test_what_cannot_be_recorded_of_one_trial_does_not_keep_the_rest_back(store: SweepStore) -> None:
    history = store.trial_folder("t0001") / "history.jsonl"
    history.write_text(history.read_text().replace('"loss": 0.5', '"loss": "much"'))
    mirror = tracker(store)
    with pytest.raises(TrackingError, match="much"):
        mirror.sync()
    found = everything(mirror.uri)
    assert [found[f"t000{i}"]["tags"].get("bitfront.state") for i in (0, 1, 2)] == ["done", None, "diverged"]
    assert found["parent"]["history"]["trials_done"][-1][-1] == 2
    # What is no epoch does not count.
    history.write_text('{"time_ms": 1, "seconds": 2}\n{"a')
    mirror.sync()
    assert everything(mirror.uri)["t0001"]["tags"]["bitfront.state"] == "done"


def test_an_error_that_no_encoding_has_is_recorded(store: SweepStore) -> None:
    store.reopen_trial("t0003")
    begun = store.start_trial("t0003", now_ms=3_000)
    settle_failure(store, begun, FileNotFoundError("no file b\udcff.png"))
    mirror = tracker(store)
    mirror.sync()
    assert everything(mirror.uri)["t0003"]["tags"]["bitfront.error"] == r"FileNotFoundError: no file b\udcff.png"
    assert r"b\udcff.png" in store.trial_folder("t0003").joinpath("error.txt").read_text()


def test_an_experiment_that_was_deleted_is_an_error_that_says_how_it_comes_back(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    client = MlflowClient(mirror.uri)
    client.delete_experiment(client.get_experiment_by_name("bitfront").experiment_id)
    for again in (mirror, tracker(store)):
        with pytest.raises(TrackingError, match=r"the experiment 'bitfront' is deleted there\. Restore it with .*id 1"):
            again.sync(alive=False)
    client.restore_experiment("1")
    mirror.sync()


def test_syncing_again_from_another_process_changes_nothing(store: SweepStore) -> None:
    tracker(store).sync()
    before = everything(resolve_uri("", store.folder.parent))
    again = tracker(store)
    again.sync()
    again.sync()
    assert everything(again.uri) == before


def test_a_sync_that_was_cut_off_after_the_metrics_does_not_double_them(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    before = everything(mirror.uri)
    client = MlflowClient(mirror.uri)
    for run in runs(mirror.uri, "tags.`bitfront.trial` != ''"):
        client.set_tag(run.info.run_id, "bitfront.epochs", "0")
        client.set_tag(run.info.run_id, "bitfront.state", "running")
    tracker(store).sync()
    assert everything(mirror.uri) == before


def finish_running(store: SweepStore) -> None:
    report = EpochReport(stage="finetune", epoch=1, epochs=1, metrics={"top1": 1.0})
    store.append_epoch("t0004", report, seconds=1.0, now_ms=9_000)
    policy = BitPolicy(network="resnet8", bits={"a": LayerBits(2, 2)})
    metrics = {**COSTS, "top1": 99.0, "bops_g": 0.01, "ard": 1.0, "ard_normalised": 0.1, "device_hours": 0.1}
    store.finish_trial(
        TrialRecord(
            trial_id="t0004", number=4, state="done", settings={"method.zeta": 0.5}, started_ms=2_400,
            ended_ms=9_001, metrics=metrics,
            policy_hash=policy.hash, reference="r8",
        )
    )  # fmt: skip


def test_running_trials_grow_and_the_front_is_corrected(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    finish_running(store)
    close(store)
    mirror.sync()
    found = everything(mirror.uri)
    assert found["t0004"]["history"]["finetune/top1"] == [(2, 9_000, 1.0)]
    assert found["t0004"]["history"]["search/loss"] == [(0, 2_401, 1.0), (1, 2_402, 0.5)]
    assert [found[f"t000{i}"]["tags"]["bitfront.front"] for i in (0, 1, 4)] == ["false", "false", "true"]
    assert [found[f"t000{i}"]["tags"]["bitfront.rank"] for i in (0, 1, 4)] == ["2", "3", "1"]
    assert found["parent"]["times"] == ("FINISHED", 1_000, 9_002)
    assert {"front.html", "front.png"} <= set(found["parent"]["files"])


def test_the_front_is_told_at_once_and_the_others_ranks_a_little_later(store: SweepStore) -> None:
    now = 100.0
    mirror = tracker(store, clock=lambda: now)
    assert mirror.sync() is None
    finish_running(store)
    now += 5.0
    assert mirror.sync() == pytest.approx(REFRESH_S - 5.0)
    tags = [everything(mirror.uri)[f"t000{i}"]["tags"] for i in (0, 1, 4)]
    assert [one["bitfront.front"] for one in tags] == ["false", "false", "true"]
    assert [one["bitfront.rank"] for one in tags] == ["1", "2", "1"]
    now += REFRESH_S
    assert mirror.sync() is None
    assert [everything(mirror.uri)[f"t000{i}"]["tags"]["bitfront.rank"] for i in (0, 1, 4)] == ["2", "3", "1"]


@pytest.mark.parametrize("over_a_server", [False, True])
def test_a_lost_record_is_rebuilt_from_the_storage(
    store: SweepStore, tmp_path: Path, empty_database: Path, serve: Callable[[Path], str], over_a_server: bool
) -> None:
    def place(name: str) -> str:
        (tmp_path / name).mkdir()
        shutil.copy(empty_database, tmp_path / name)
        return serve(tmp_path / name) if over_a_server else f"sqlite:///{tmp_path / name / 'mlflow.db'}"

    first = place("first")
    grown = tracker(store, first)
    grown.sync()
    finish_running(store)
    grown.sync()
    close(store)
    grown.sync(closing=True)
    before = everything(first)
    page = store.folder.joinpath("front.html").read_text()
    assert before["parent"]["times"][0] == "FINISHED"
    second = place("second")
    tracker(store, second).sync(alive=False)
    after = everything(second)
    if over_a_server:
        for found in (before, after):
            found["parent"]["files"]["front.html"] = found["parent"]["files"]["front.html"].replace(
                first if found is before else second, "SERVER"
            )
    assert after == before
    assert page != store.folder.joinpath("front.html").read_text()


def test_nothing_of_a_killed_driver_stays_running(store: SweepStore) -> None:
    tracker(store).sync()
    mirror = tracker(store)
    mirror.sync(alive=False)
    found = everything(mirror.uri)
    assert found["t0004"]["times"] == ("KILLED", 2_400, 2_402)
    assert found["t0004"]["tags"]["bitfront.state"] == "stale"
    assert found["parent"]["times"] == ("KILLED", 1_000, 2_350)


def test_the_page_links_every_trial_to_its_run_also_the_one_in_the_storage(store: SweepStore) -> None:
    close(store)
    mirror = tracker(store)
    with driver.hold(store.folder):
        page = store.folder.joinpath("front.html").read_text()
        # As the `sync` of another process, while the driver writes there.
        mirror.sync(alive=True)
        assert store.folder.joinpath("front.html").read_text() == page
        mirror.sync(closing=True)
    page = store.folder.joinpath("front.html").read_text()
    links = json.loads(page.partition('<script type="application/json" id="runs">')[2].partition("</script>")[0])
    assert links["base"] == "http://127.0.0.1:5000"
    assert set(links["runs"]) == {f"t000{i}" for i in range(5)}
    run_id = links["runs"]["t0000"].removeprefix("#/experiments/1/runs/")
    assert MlflowClient(mirror.uri).get_run(run_id).data.tags["bitfront.trial"] == "t0000"


MAKE = """
import os, sys, threading
from pathlib import Path
from service.records import SweepStore
from service.mirror import Tracker
from service.tracking import resolve_uri
store = SweepStore(Path(sys.argv[1]))
threading.Timer(float(sys.argv[2]), os._exit, [9]).start()
Tracker(store, uri=resolve_uri("", store.folder.parent), experiment="bitfront").sync()
os._exit(0)
"""


def test_a_process_killed_while_the_database_is_made_leaves_none_that_is_half_made(store: SweepStore) -> None:
    store.folder.parent.joinpath("mlflow.db").unlink()
    statuses = []
    for after in ("0.5", "1.5", "2.5", "3.5"):
        command = [sys.executable, "-c", MAKE, str(store.folder), after]
        statuses.append(subprocess.run(command, cwd=ROOT, check=False).returncode)
    assert 9 in statuses
    mirror = tracker(store)
    mirror.sync()
    assert len(everything(mirror.uri)) == 6


def test_two_processes_that_sync_at_once_leave_one_run_of_each(store: SweepStore) -> None:
    command = [sys.executable, "-c", MAKE, str(store.folder), "60"]
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    mirror = tracker(store)
    mirror.sync()
    assert len(everything(mirror.uri)) == 6


def test_a_data_set_that_another_process_notes_in_this_moment_is_noted_once(store: SweepStore) -> None:
    mirror = tracker(store)
    met = []

    @event.listens_for(Session, "before_flush")
    def come_first(session: Session, *_: Any) -> None:
        wanted = [one for one in session.new if isinstance(one, SqlDataset)]
        if not wanted or met:
            return
        one = wanted[0]
        values = [f"0{one.dataset_uuid[1:]}", one.experiment_id, one.name, one.digest, "t", "s"]
        with contextlib.closing(sqlite3.connect(store.folder.parent / "mlflow.db")) as other:
            columns = "dataset_uuid, experiment_id, name, digest, dataset_source_type, dataset_source"
            other.execute(f"INSERT INTO datasets ({columns}) VALUES (?, ?, ?, ?, ?, ?)", values)
            other.commit()
        met.extend(values)

    try:
        mirror.sync()
    finally:
        event.remove(Session, "before_flush", come_first)
    assert met
    assert len(everything(mirror.uri)) == 6


def test_a_run_that_is_deleted_while_it_is_written_is_made_anew_at_once(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    (running,) = runs(mirror.uri, "tags.`bitfront.trial` = 't0004'")
    MlflowClient(mirror.uri).delete_run(running.info.run_id)
    # A later sync of the process that knows the run.
    add_trial(store, 4)
    mirror.sync()
    assert everything(mirror.uri)["t0004"]["tags"]["bitfront.state"] == "done"


def test_a_second_parent_goes_with_its_children_and_who_wrote_there_goes_on_with_the_first(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    before = everything(mirror.uri)
    client = MlflowClient(mirror.uri)
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    second = client.create_run(experiment, tags={"bitfront.sweep": "s@1000"}).info.run_id
    child = {"mlflow.parentRunId": second, "bitfront.trial": "t0000", "bitfront.sweep_id": "s@1000"}
    client.create_run(experiment, tags=child)
    tracker(store).sync()
    assert everything(mirror.uri) == before
    # By who had not heard yet that its parent was gone.
    client.create_run(experiment, tags=child)
    tracker(store).sync()
    assert everything(mirror.uri) == before


def test_below_a_parent_that_was_deleted_nothing_stays(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    before = everything(mirror.uri)
    (parent,) = runs(mirror.uri, "tags.`bitfront.sweep` = 's@1000'")
    MlflowClient(mirror.uri).delete_run(parent.info.run_id)
    tracker(store).sync()
    assert everything(mirror.uri) == before


@pytest.mark.parametrize("over_a_server", [False, pytest.param(True, marks=pytest.mark.long)])
def test_variables_that_name_a_run_elsewhere_redirect_nothing(
    store: SweepStore,
    tmp_path: Path,
    serve: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    over_a_server: bool,
) -> None:
    foreign_uri = f"sqlite:///{tmp_path / 'theirs.db'}"
    foreign = MlflowClient(foreign_uri)
    theirs = foreign.create_run(foreign.create_experiment("theirs")).info
    place = resolve_uri("", store.folder.parent)
    here = MlflowClient(place)
    other = here.create_run("0").info.run_id
    model = here.create_logged_model("0", name="theirs").model_id
    uri = serve(store.folder.parent) if over_a_server else place
    monkeypatch.setenv("MLFLOW_RUN_ID", other)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", theirs.experiment_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", foreign_uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", foreign_uri)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_ACTIVE_MODEL_ID", model)
    before = [foreign.get_run(theirs.run_id).to_dictionary(), here.get_run(other).to_dictionary()]
    close(store)
    # In a process of its own, as some variables are read when MLflow is imported.
    code = (
        "import sys; from pathlib import Path; from service.mirror import Tracker;"
        "from service.records import SweepStore;"
        "Tracker(SweepStore(Path(sys.argv[1])), uri=sys.argv[2], experiment='bitfront').sync()"
    )
    subprocess.run([sys.executable, "-c", code, str(store.folder), uri], cwd=ROOT, check=True)
    assert [foreign.get_run(theirs.run_id).to_dictionary(), here.get_run(other).to_dictionary()] == before
    assert len(foreign.search_runs([theirs.experiment_id, "0"])) == 1
    assert not here.get_logged_model(model).metrics
    assert len(everything(place)) == 6


def test_the_ui_serves_runs_and_artifacts(store: SweepStore, serve: Callable[[Path], str]) -> None:
    tracker(store).sync()
    server = serve(store.folder.parent)
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    (run,) = client.search_runs([experiment], "tags.`bitfront.front` = 'true'")
    artifact = f"{server}/get-artifact?path=policy.json&run_id={run.info.run_id}"
    assert PolicyRecord.from_json(urllib.request.urlopen(artifact).read().decode(), origin="ui").policy.hash


def test_a_server_that_is_away_never_stops_the_sweep_and_the_next_sync_completes_the_record(
    store: SweepStore, closed_port: int
) -> None:
    away = tracker(store, f"http://127.0.0.1:{closed_port}")
    mirror = BackgroundMirror(away)
    started = time.monotonic()
    mirror.poke()
    assert time.monotonic() - started < 0.5
    error = mirror.close()
    assert "Connection refused" in str(error) or "Max retries" in str(error)
    # Back again, here as another database.
    back = tracker(store)
    mirror = BackgroundMirror(back)
    mirror.poke()
    assert mirror.close() is None
    assert len(everything(back.uri)) == 6


def test_what_a_cut_connection_left_out_is_told_by_the_next_sync(store: SweepStore) -> None:
    """Runs without their parameters, a run made twice, and somebody else's below the sweep."""
    mirror = tracker(store)
    mirror.sync()
    before = everything(mirror.uri)
    client = MlflowClient(mirror.uri)
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    (parent,) = [run for run in client.search_runs([experiment]) if "bitfront.trial" not in run.data.tags]
    for run in client.search_runs([experiment]):
        client.delete_run(run.info.run_id)
    tags = {"bitfront.sweep": "s@1000", "bitfront.spec_hash": "h", "team": "a"}
    bare = client.create_run(experiment, start_time=1_000, tags=tags, run_name="s").info.run_id
    child = {"mlflow.parentRunId": bare, "bitfront.trial": "t0000", "bitfront.state": "running", "bitfront.epochs": "0"}
    for _ in range(2):
        client.create_run(experiment, start_time=2_000, tags=child, run_name="s-0")
    theirs = client.create_run(experiment, tags={"mlflow.parentRunId": bare}).info.run_id
    again = tracker(store)
    again.sync()
    client.delete_run(theirs)
    assert everything(again.uri) == before
    assert parent.info.run_id != bare


def test_a_mirror_is_closed_while_it_is_asked_for_more(store: SweepStore) -> None:
    for _ in range(20):
        mirror = BackgroundMirror(tracker(store))
        mirror.poke()
        assert mirror.close() is None


def test_a_sweep_of_an_earlier_version_is_recorded_without_what_it_does_not_know(
    tmp_path: Path, empty_database: Path
) -> None:
    tmp_path.joinpath("storage").mkdir()
    shutil.copy(empty_database, tmp_path / "storage")
    old = replace(SWEEP, revision="", version="", owner="", constraints=(), references={}, facts={"data": "digits"})
    store = SweepStore.create(tmp_path / "storage", old, spec_text="name: s\n")
    add_trial(store, 0)
    result = store.trial_folder("t0000") / "result.json"
    write_json(result, {k: v for k, v in json.loads(result.read_text()).items() if k != "reference"})
    sweep = json.loads(store.folder.joinpath("sweep.json").read_text())
    del sweep["revision"], sweep["version"], sweep["references"]
    sweep["reference"] = {"key": "r8", "top1": 99.0, "device_hours": 0.1, "data_fingerprint": FINGERPRINT}
    write_json(store.folder / "sweep.json", sweep)
    mirror = tracker(SweepStore(store.folder))
    mirror.sync(alive=False)
    one = everything(mirror.uri)["t0000"]
    assert one["tags"]["bitfront.data_fingerprint"] == FINGERPRINT
    assert [name for name, *_ in one["datasets"]] == ["digits-train", "digits-validation"]
    assert "bitfront.revision" not in one["tags"]


def test_more_settings_and_epochs_than_a_request_takes_are_sent_in_several(
    tmp_path: Path, empty_database: Path
) -> None:
    tmp_path.joinpath("storage").mkdir()
    shutil.copy(empty_database, tmp_path / "storage")
    store = SweepStore.create(tmp_path / "storage", SWEEP, spec_text="name: s\n")
    settings = {f"method.s{i:03}": i for i in range(250)}
    store.plan_trial("t0000", number=0, settings=settings)
    begun = store.start_trial("t0000", now_ms=2_000)
    for epoch in range(1, 251):
        numbers = {f"m{i}": float(epoch) for i in range(10)}
        store.append_epoch(
            "t0000", EpochReport(stage="search", epoch=epoch, epochs=250, metrics=numbers), seconds=1.0, now_ms=epoch
        )
    store.finish_trial(replace(begun, state="pruned", ended_ms=3_000))
    mirror = tracker(store)
    mirror.sync()
    one = everything(mirror.uri)["t0000"]
    assert one["params"] == {name: str(value) for name, value in settings.items()}
    assert all(len(one["history"][f"search/m{i}"]) == 250 for i in range(10))
    assert one["tags"]["bitfront.state"] == "pruned"


def test_syncs_take_a_small_share_of_a_processor_and_neither_a_lone_event_nor_the_last_one_waits(
    store: SweepStore,
) -> None:
    begun: list[float] = []

    class Costly(Tracker):
        def sync(self, *, alive: bool = True, closing: bool = False) -> float | None:
            begun.append(time.monotonic())
            until = time.thread_time() + 0.02
            while time.thread_time() < until:
                pass
            return 0.0 if len(begun) == 1 else None

    mirror = BackgroundMirror(Costly(store, uri="", experiment=""))
    mirror.poke()
    deadline = time.monotonic() + 20
    while len(begun) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert begun[1] - begun[0] >= 0.02 / SHARE
    asked = time.monotonic()
    assert mirror.close() is None
    assert time.monotonic() - asked < 0.5 * 0.02 / SHARE
    # As long after the last one as it had to wait for, or an hour: only what comes with it is waited for.
    assert [pause_s(took_s=0.04, since_s=since) for since in (0.0, 1.25, 1.75, 3600.0)] == [2.0, 0.75, PAUSE_S, PAUSE_S]
    assert [pause_s(took_s=9.0, since_s=since) for since in (0.0, 9.0, 3600.0)] == [LONGEST_PAUSE_S, 1.0, PAUSE_S]
