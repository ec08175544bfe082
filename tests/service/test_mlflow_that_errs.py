"""A real MLflow server that errs for a while: trials go on, it is left alone, and then the record is complete.

What a server that is not there does, `test_mirror` and `orchestrate.test_commands` show.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from service import background_mirror
from service.background_mirror import BackgroundMirror, backoff_s
from service.mirror import Tracker
from service.records import SweepStore
from service.tracking_errors import meaning
from tests.orchestrate.conftest import wait_for
from tests.orchestrate.test_commands import free_port, mlflow_server
from tests.service.faulty_server import FaultyServer, Mode, faulty
from tests.service.test_mirror import SWEEP, add_trial
from trainables.errors import TrackingError

TIMEOUT_S = 5
"""Of a request of MLflow's client here, which takes whole seconds."""
NEVER_MS = 250.0
"""Less than any request that fails takes; what a driver's loop may lose to a poke on a machine that does more."""
TAGS = ("bitfront.state", "bitfront.epochs", "bitfront.trial", "bitfront.front", "bitfront.rank")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A tracking server that stores artifacts itself; its address and their folder."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "art").mkdir()
    port = free_port()
    with mlflow_server(folder, port):
        yield f"http://127.0.0.1:{port}", folder / "art"


@pytest.fixture
def front_of(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """In front of the server; a client waits five seconds, and minutes of patience are seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))
    monkeypatch.setattr(background_mirror, "FIRST_RETRY_S", 0.2)
    monkeypatch.setattr(background_mirror, "LONGEST_RETRY_S", 1.0)
    monkeypatch.setattr(background_mirror, "SHARE", 1.0)
    with faulty(server[0]) as proxy:
        yield proxy


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    sweep = replace(SWEEP, total_trials=8, created_ms=time.time_ns() // 1_000_000)
    return SweepStore.create(tmp_path / "st", sweep, spec_text="name: s\n")


def tracker(store: SweepStore, uri: str) -> Tracker:
    return Tracker(store, uri=uri, experiment="bitfront")


def recorded(uri: str, store: SweepStore) -> dict[str, Any]:
    """What MLflow has of the sweep, by trial; a run or a point that is there twice fails."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bitfront")
    found: dict[str, Any] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []:
        data = run.data
        if store.sweep().sweep_id not in (data.tags.get("bitfront.sweep"), data.tags.get("bitfront.sweep_id")):
            continue
        name = data.tags.get("bitfront.trial", "parent")
        assert name not in found, "two runs of one trial"
        history = {}
        for metric in data.metrics:
            points = [(p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, metric)]
            assert len({step for step, *_ in points}) == len(points), "a point twice"
            history[metric] = points
        files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        tags = {tag: data.tags[tag] for tag in TAGS if tag in data.tags}
        found[name] = (run.info.status, run.info.end_time, data.params, tags, history, files)
    return found


def reference(store: SweepStore, tmp_path: Path, empty_database: Path) -> dict[str, Any]:
    """The same from a database that has never erred."""
    (tmp_path / "other").mkdir()
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'other')}"
    tracker(store, uri).sync(alive=False)
    return recorded(uri, store)


def log_lines(store: SweepStore, part: str) -> list[str]:
    path = store.folder / "log.txt"
    return [line for line in path.read_text().splitlines() if part in line] if path.exists() else []


def trials_go_on(store: SweepStore, mirror: BackgroundMirror, numbers: range) -> float:
    """As a driver tells of them; the longest that it was held up, ms."""
    longest = 0.0
    for number in numbers:
        add_trial(store, number)
        began = time.monotonic()
        mirror.poke()
        longest = max(longest, 1000 * (time.monotonic() - began))
        time.sleep(0.05)
    return longest


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (500, "answers with status 500"),
        (502, "answers with status 502"),
        (503, "answers with status 503"),
        (429, "answers with status 429"),
        ("hangs", f"does not answer within {TIMEOUT_S} s"),
        ("resets", "breaks connections off"),
        ("forgets", "breaks connections off"),
    ],
)
@pytest.mark.long
def test_a_server_that_errs_for_a_while_holds_nothing_up_and_the_record_catches_up_by_itself(
    store: SweepStore, front_of: FaultyServer, tmp_path: Path, empty_database: Path, mode: Mode, said: str
) -> None:
    mirror = BackgroundMirror(tracker(store, front_of.uri))
    add_trial(store, 0)
    mirror.poke()
    wait_for(lambda: len(recorded(front_of.uri, store)) == 2)
    front_of.mode = mode
    before = len(front_of.asked)
    assert trials_go_on(store, mirror, range(1, 4)) < NEVER_MS
    wait_for(lambda: len(front_of.asked) >= before + 4)
    assert trials_go_on(store, mirror, range(4, 6)) < NEVER_MS
    time.sleep(2 * TIMEOUT_S)
    front_of.mode = "well"
    # Nobody asks for it any more.
    wait_for(lambda: log_lines(store, "complete again"))
    mirror.poke()
    assert mirror.close() is None
    (behind,) = log_lines(store, "the tracking record is behind")
    assert f"{front_of.uri} {said}" in behind
    assert len(log_lines(store, "complete again")) == 1
    tracker(store, front_of.uri).sync(alive=False)
    assert recorded(front_of.uri, store) == reference(store, tmp_path, empty_database)
    assert len(recorded(front_of.uri, store)) == 7


@pytest.mark.long
def test_credentials_that_are_no_longer_taken_are_told_and_nothing_of_them(
    store: SweepStore, front_of: FaultyServer
) -> None:
    add_trial(store, 0)
    front_of.mode = 401
    mirror = BackgroundMirror(tracker(store, front_of.uri.replace("http://", "http://ana:s3cret@")))
    mirror.poke()
    error = mirror.close()
    assert isinstance(error, TrackingError)
    assert "s3cret" not in str(error) + (store.folder / "log.txt").read_text()
    front_of.mode = "well"
    tracker(store, front_of.uri).sync(alive=False)
    assert len(recorded(front_of.uri, store)) == 2


@pytest.mark.long
def test_an_artifact_store_that_is_full_is_told_and_the_record_is_completed_once_there_is_room(
    store: SweepStore, server: tuple[str, Path], front_of: FaultyServer, tmp_path: Path, empty_database: Path
) -> None:
    artifacts = server[1]
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(artifacts)], check=False)
    if mounted.returncode:
        pytest.skip("a file system of 64 kB cannot be mounted here")
    try:
        ballast = artifacts / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(100_000))
        mirror = BackgroundMirror(tracker(store, front_of.uri))
        trials_go_on(store, mirror, range(3))
        wait_for(lambda: log_lines(store, "status 500 (storing artifacts)"))
        ballast.unlink()
        wait_for(lambda: log_lines(store, "complete again"))
        assert mirror.close() is None
        tracker(store, front_of.uri).sync(alive=False)
        assert recorded(front_of.uri, store) == reference(store, tmp_path, empty_database)
    finally:
        subprocess.run(["umount", str(artifacts)], check=True)


@pytest.mark.long
def test_a_sweep_that_ends_while_the_server_hangs_or_crawls_waits_for_so_long_and_sync_completes_the_record(
    store: SweepStore, front_of: FaultyServer, tmp_path: Path, empty_database: Path
) -> None:
    add_trial(store, 0)
    front_of.mode = "hangs"
    mirror = BackgroundMirror(tracker(store, front_of.uri))
    began = time.monotonic()
    assert "does not answer within" in str(mirror.close())
    assert time.monotonic() - began < 10 * TIMEOUT_S

    # Each request is answered, in just less than a client waits for; six trials take minutes so.
    front_of.mode, front_of.delay_s = "well", 0.8 * TIMEOUT_S
    for number in range(1, 6):
        add_trial(store, number)
    mirror = BackgroundMirror(tracker(store, front_of.uri), closing_s=3.0)
    began = time.monotonic()
    assert "is too slow: the rest was left out" in str(mirror.close())
    assert time.monotonic() - began < 3.0 + 3 * TIMEOUT_S
    asked = len(front_of.asked)
    time.sleep(2 * TIMEOUT_S)
    assert len(front_of.asked) == asked

    front_of.delay_s = 0.0
    tracker(store, front_of.uri).sync(alive=False)
    assert recorded(front_of.uri, store) == reference(store, tmp_path, empty_database)


@pytest.mark.long
def test_minutes_of_status_503_cost_a_server_few_requests(
    store: SweepStore, server: tuple[str, Path], tmp_path: Path, empty_database: Path
) -> None:
    with faulty(server[0]) as proxy:
        add_trial(store, 0)
        mirror = BackgroundMirror(tracker(store, proxy.uri))
        mirror.poke()
        wait_for(lambda: len(recorded(proxy.uri, store)) == 2)
        proxy.mode, before = 503, len(proxy.asked)
        until = time.monotonic() + 150
        while time.monotonic() < until:
            mirror.poke()
            time.sleep(0.1)
        asked = proxy.asked[before:]
        # After 1, 2, 4 … 60 s or half of it, in which 1500 pokes came; an attempt is two requests at most.
        assert 2 <= len(asked) <= 2 * 12
        for number in range(1, 4):
            add_trial(store, number)
        proxy.mode = "well"
        wait_for(lambda: log_lines(store, "complete again"), seconds=90)
        assert mirror.close() is None
        tracker(store, proxy.uri).sync(alive=False)
        assert recorded(proxy.uri, store) == reference(store, tmp_path, empty_database)


def test_a_server_that_errs_is_left_alone_for_longer_and_longer_whatever_happens_meanwhile(
    store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_mirror, "FIRST_RETRY_S", 0.1)
    monkeypatch.setattr(background_mirror, "LONGEST_RETRY_S", 0.4)
    begun: list[float] = []

    class Errs(Tracker):
        def sync(self, *, alive: bool = True, closing: bool = False) -> float | None:
            begun.append(time.monotonic())
            if len(begun) < 6:
                raise TrackingError(f"http://host answers with status {500 + len(begun)}")
            return None

    mirror = BackgroundMirror(Errs(store, uri="", experiment=""))
    deadline = time.monotonic() + 20
    while len(begun) < 5 and time.monotonic() < deadline:
        mirror.poke()
        time.sleep(0.01)
    # Nobody asks any more, and it comes back all the same.
    wait_for(lambda: log_lines(store, "complete again"))
    assert mirror.close() is None
    gaps = [later - earlier for earlier, later in pairwise(begun[:6])]
    assert all(gap >= whole / 2 for gap, whole in zip(gaps, (0.1, 0.2, 0.4, 0.4, 0.4), strict=True))
    assert [line.split("; ")[0].split(": ")[1] for line in log_lines(store, "is behind")] == [
        "http://host answers with status 501"
    ]


def test_waiting_doubles_up_to_a_minute_and_chance_takes_half_of_it_at_most() -> None:
    assert [backoff_s(n, chance=0.0) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_s(10**6, chance=0.0) == 60
    assert backoff_s(4, chance=0.5) == 6
    assert backoff_s(1, chance=1.0) == 0.5


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("… (Caused by ResponseError('too many 503 error responses'))", "answers with status 503"),
        (
            "API request to endpoint /api failed with error code 401 != 200. Response body: 'no'",
            "answers with status 401: are its credentials still valid?",
        ),
        (
            "507 Server Error: Insufficient Storage for url: http://h/api/2.0/mlflow-artifacts/artifacts/1",
            "answers with status 507 (storing artifacts)",
        ),
        ("Read timed out. (read timeout=20)", "does not answer within 20 s"),
        ("('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))", "breaks connections off"),
        ("[Errno 111] Connection refused", "cannot be reached (Connection refused)"),
        ("RESOURCE_DOES_NOT_EXIST: no run '5000 Client'", ""),
    ],
)
def test_what_an_error_of_mlflows_client_means(told: str, meant: str) -> None:
    assert meaning(OSError(told)) == meant
