"""The mirror against a real SQLite store and a real server."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dashboards.front import as_json, as_markdown, as_page
from service.front import find_front
from service.mirror import BackgroundMirror, Tracker
from service.records import SweepRecord, SweepStore, TrialRecord, write_json, write_text
from service.tracking import check_tracking, first_line, resolve_uri
from trainables.errors import TrackingError
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.report import EpochReport

SWEEP = SweepRecord(
    name="s", spec_hash="h", facts={"network": "resnet8"}, total_trials=5, created_ms=1_000, tags={"team": "a"}
)
COSTS = {"bops_g": 0.02, "compression": 150.0, "storage_mb": 0.02}


def add_trial(store: SweepStore, number: int, *, state: str = "done", top1: float = 90.0, bops: float = 0.02) -> None:
    trial_id, start = f"t{number:04d}", 2_000 + 100 * number
    store.plan_trial(trial_id, number=number, settings={"method.zeta": 0.1 * (number + 1)})
    begun = store.start_trial(trial_id, now_ms=start)
    for epoch in (1, 2):
        report = EpochReport(stage="search", epoch=epoch, epochs=2, metrics={"loss": 1 / epoch, "p": 2.0})
        store.append_epoch(trial_id, report, seconds=1.0, now_ms=start + epoch)
    if state == "running":
        return
    policy = BitPolicy(network="resnet8", bits={"a": LayerBits(2, 2 + number % 3)})
    record = replace(begun, state=state, ended_ms=start + 50, error="why")
    if state == "done":
        store.save_policy(trial_id, PolicyRecord(policy=policy, method="gmpq", settings={}, costs=COSTS))
        metrics = {**COSTS, "top1": top1, "bops_g": bops, "ard": 2.0, "ard_normalised": 0.5, "device_hours": 0.1}
        record = replace(record, metrics=metrics, policy_hash=policy.hash, error="")
    store.finish_trial(record)


def write_front(store: SweepStore) -> None:
    found = find_front(store.trials(), store.sweep())
    write_json(store.folder / "front.json", as_json(store.sweep(), found))
    write_text(store.folder / "front.md", as_markdown(store.sweep(), found))
    write_text(store.folder / "front.html", as_page(store.sweep(), found))


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    store = SweepStore.create(tmp_path / "storage", SWEEP, spec_text="name: s\n")
    add_trial(store, 0, top1=95.0, bops=0.02)
    add_trial(store, 1, top1=90.0, bops=0.03)
    add_trial(store, 2, state="diverged")
    add_trial(store, 3, state="failed")
    add_trial(store, 4, state="running")
    write_front(store)
    return store


def tracker(store: SweepStore, uri: str = "") -> Tracker:
    return Tracker(store, uri=resolve_uri(uri, store.folder.parent), experiment="bitfront")


def everything(uri: str) -> dict[str, object]:
    """All that MLflow knows, without its own ids."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bitfront")
    found: dict[str, object] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        history = {
            name: [(p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        tags = {k: v for k, v in run.data.tags.items() if k.startswith("bitfront.") or k in ("team", "mlflow.runName")}
        artifacts = sorted(a.path for a in client.list_artifacts(run.info.run_id))
        times = (run.info.status, run.info.start_time, run.info.end_time)
        name = run.data.tags.get("bitfront.trial", "parent")
        assert name not in found, f"two runs for {name}"
        found[name] = (times, run.data.params, tags, history, artifacts)
    return found


def test_the_mirror_has_a_parent_and_a_child_for_each_trial_with_all_that_is_known(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    found = everything(mirror.uri)
    assert set(found) == {"parent", *(f"t000{i}" for i in range(5))}
    (status, start, end), params, tags, history, artifacts = found["t0000"]
    assert (status, start, end) == ("FINISHED", 2_000, 2_050)
    assert params == {"method.zeta": "0.1"}
    assert tags["bitfront.state"] == "done"
    assert tags["bitfront.front"] == "true"
    assert tags["bitfront.policy_hash"] == store.result("t0000").policy_hash
    assert history["search/loss"] == [(0, 2_001, 1.0), (1, 2_002, 0.5)]
    assert history["top1"] == [(0, 2_050, 95.0)]
    assert artifacts == ["policy.json"]
    assert found["t0001"][2]["bitfront.front"] == "false"
    assert [found[f"t000{i}"][0][0] for i in (2, 3, 4)] == ["FINISHED", "FAILED", "RUNNING"]
    assert found["t0002"][2]["bitfront.state"] == "diverged"
    assert found["t0003"][2]["bitfront.error"] == "why"
    (status, *_), params, tags, _, artifacts = found["parent"]
    assert (status, params, tags["team"]) == ("RUNNING", {"network": "resnet8"}, "a")
    assert artifacts == ["front.json", "front.md", "spec.yaml"]


def test_children_hang_below_the_parent_whose_note_holds_the_front(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    client = MlflowClient(mirror.uri)
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`bitfront.sweep` = 's@1000'")
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 5
    members = client.search_runs([experiment], "tags.`bitfront.front` = 'true'")
    assert [run.data.tags["bitfront.trial"] for run in members] == ["t0000"]
    assert "| 95.00 |" in parent.data.tags["mlflow.note.content"]


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
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    for run in client.search_runs([experiment], "tags.`bitfront.trial` != ''"):
        client.set_tag(run.info.run_id, "bitfront.epochs", "0")
        client.set_tag(run.info.run_id, "bitfront.state", "running")
    tracker(store).sync()
    assert everything(mirror.uri) == before


def test_running_trials_grow_and_the_front_is_corrected(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    report = EpochReport(stage="finetune", epoch=1, epochs=1, metrics={"top1": 1.0})
    store.append_epoch("t0004", report, seconds=1.0, now_ms=9_000)
    policy = BitPolicy(network="resnet8", bits={"a": LayerBits(2, 2)})
    metrics = {**COSTS, "top1": 99.0, "bops_g": 0.01, "ard": 1.0, "ard_normalised": 0.1, "device_hours": 0.1}
    store.finish_trial(
        TrialRecord(
            trial_id="t0004", number=4, state="done", settings={}, started_ms=2_400, ended_ms=9_001, metrics=metrics,
            policy_hash=policy.hash,
        )
    )  # fmt: skip
    write_front(store)
    store.save_sweep(replace(store.sweep(), ended_ms=9_002, end="finished"))
    mirror.sync()
    found = everything(mirror.uri)
    assert found["t0004"][3]["finetune/top1"] == [(2, 9_000, 1.0)]
    assert found["t0004"][3]["search/loss"] == [(0, 2_401, 1.0), (1, 2_402, 0.5)]
    assert [found[f"t000{i}"][2]["bitfront.front"] for i in (0, 1, 4)] == ["false", "false", "true"]
    assert found["parent"][0] == ("FINISHED", 1_000, 9_002)
    assert "front.html" in found["parent"][4]


def test_a_lost_database_is_rebuilt_from_the_storage(store: SweepStore) -> None:
    mirror = tracker(store)
    mirror.sync()
    before = everything(mirror.uri)
    (store.folder.parent / "mlflow.db").unlink()
    shutil.rmtree(store.folder.parent / "artifacts")
    rebuilt = f"sqlite:///{store.folder.parent / 'again.db'}"
    tracker(store, rebuilt).sync()
    assert everything(rebuilt) == before


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
    statuses = []
    for after in ("0.5", "1.5", "2.5", "3.5"):
        command = [sys.executable, "-c", MAKE, str(store.folder), after]
        statuses.append(subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode)
    assert 9 in statuses
    mirror = tracker(store)
    mirror.sync()
    assert len(everything(mirror.uri)) == 6


def test_a_run_id_in_the_environment_redirects_nothing(store: SweepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tracker(store)
    other = MlflowClient(mirror.uri).create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", other)
    mirror.sync()
    untouched = MlflowClient(mirror.uri).get_run(other)
    assert untouched.data.metrics == {}
    assert len(everything(mirror.uri)) == 6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:{port}", r"http://127\.0\.0\.1:\d+ cannot be reached"),
        ("http://me:secret@127.0.0.1:{port}", r"http://127\.0\.0\.1:\d+ cannot be reached"),
        ("htp://x", r"has the scheme 'htp'; did you mean 'http'\?"),
        ("sqlite:////dev/null/mlflow.db", "cannot be created: /dev/null is not a writable folder"),
    ],
)
def test_a_tracking_place_that_cannot_work_is_one_clear_error_within_seconds(uri: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match=message) as caught:
        check_tracking(uri.format(port=free_port()))
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_a_file_that_is_no_database_is_refused_and_a_missing_one_is_not_created(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, and long enough to have a header of one hundred bytes" * 3)
    with pytest.raises(TrackingError, match=r"text\.db cannot be used as an SQLite database"):
        check_tracking(f"sqlite:///{tmp_path / 'text.db'}")
    check_tracking(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}")
    assert [p.name for p in tmp_path.iterdir()] == ["text.db"]


@pytest.fixture
def server(store: SweepStore) -> Iterator[str]:
    """`bitfront ui` on a synced store."""
    tracker(store).sync()
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "ui", "--storage", str(store.folder.parent), "--port", str(port)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def test_the_ui_serves_runs_and_artifacts(server: str, store: SweepStore) -> None:
    check_tracking(server)
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("bitfront").experiment_id
    (run,) = client.search_runs([experiment], "tags.`bitfront.front` = 'true'")
    artifact = f"{server}/get-artifact?path=policy.json&run_id={run.info.run_id}"
    assert PolicyRecord.from_json(urllib.request.urlopen(artifact).read().decode(), origin="ui").policy.hash


def test_a_server_that_is_away_never_stops_the_sweep_and_the_next_sync_completes_the_record(store: SweepStore) -> None:
    away = tracker(store, f"http://127.0.0.1:{free_port()}")
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
    for run in client.search_runs([experiment]):
        client.delete_run(run.info.run_id)
    (parent,) = [
        run for run in client.search_runs([experiment], run_view_type=2) if "bitfront.trial" not in run.data.tags
    ]
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


def test_credentials_of_an_address_are_in_no_message() -> None:
    error = OSError("HTTPConnectionPool: http://me:secret@host:5000/api failed\nand more")
    assert first_line(error) == "HTTPConnectionPool: http://host:5000/api failed"


def test_an_address_with_credentials_reaches_the_server(server: str) -> None:
    check_tracking(server.replace("http://", "http://me:secret@"))
