"""What recording in MLflow costs: batched, as the mirror writes, next to a request for every value.

    python benchmarks/recording.py [TRIALS] [TRIALS OVER A SERVER]

Replays finished trials from a sweep's storage: 14 epochs of 9 metrics, 17 results, 4 settings, a policy and a picture
each. Both ways record trials of the same storage, taking turns, into SQLite (blocks of a hundred trials) and over a
local `mlflow server` (blocks of ten); printed are medians per trial, wall and CPU time, the server's included, and the
ratios. Then what one sync costs when nothing, or one trial, is new, and how many requests it takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from dashboards.bits import draw_bits
from dashboards.front import as_json, as_markdown
from service.files import write_json, write_text
from service.front import find_front
from service.mirror import Tracker
from service.records import SweepRecord, SweepStore, TrialRecord
from service.run_facts import trial_tags
from service.tracking import connect
from trainables.api import EpochReport
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord

EPOCHS = 14
REFERENCE = {"key": "r", "top1": 99.0, "device_hours": 0.1, "data_fingerprint": "0" * 64, "data": {"name": "digits"}}


class Replay:
    """A sweep whose trials finish when they are told to."""

    def __init__(self, folder: Path, *, trials: int) -> None:
        sweep = SweepRecord(
            name="recording", spec_hash="0" * 64, facts={"network": "resnet8", "data": "digits"}, total_trials=trials,
            created_ms=1_000, owner="bench", references={"r": REFERENCE}, revision="0" * 40,
        )  # fmt: skip
        self.store = SweepStore.create(folder, sweep, spec_text="name: recording\n")
        self._draw = random.Random(0)
        bits = {f"layer{i}": LayerBits(2 + i % 3, 4) for i in range(8)}
        self._policy = PolicyRecord(
            policy=BitPolicy(network="resnet8", bits=bits), method="gmpq", settings={}, costs={"bops_g": 0.02}
        )
        self._picture = folder / "bits.png"
        draw_bits(self._policy, self._picture)

    def finish(self, number: int) -> TrialRecord:
        """Adds a finished trial: top-1 rises with BOPs, as on a front with noise around it."""
        trial_id, draw = f"t{number:04d}", self._draw
        settings = {f"method.s{i}": draw.random() for i in range(4)}
        self.store.plan_trial(trial_id, number=number, settings=settings)
        begun = self.store.start_trial(trial_id, now_ms=2_000 + 1_000 * number)
        lines = {f"m{i}": draw.random() for i in range(9)}
        for epoch in range(1, EPOCHS + 1):
            report = EpochReport(stage="search", epoch=epoch, epochs=EPOCHS, metrics=lines)
            self.store.append_epoch(trial_id, report, seconds=1.0, now_ms=begun.started_ms + 10 * epoch)
        bops = math.exp(draw.uniform(-4, -2))
        metrics = {f"r{i}": draw.random() for i in range(10)} | {
            "bops_g": bops, "top1": 99 + math.log(bops) - draw.expovariate(1), "ard": 1 + draw.expovariate(1),
            "compression": 100.0, "storage_mb": 0.02, "ard_normalised": 0.4, "device_hours": 0.1,
        }  # fmt: skip
        self.store.save_policy(trial_id, self._policy)
        shutil.copy(self._picture, self.store.trial_folder(trial_id))
        record = dataclasses.replace(
            begun, state="done", ended_ms=begun.started_ms + 500, metrics=metrics, reference="r",
            policy_hash=self._policy.policy.hash,
        )  # fmt: skip
        return self.store.finish_trial(record)

    def publish(self) -> None:
        """The front's files, as the driver writes them after each trial."""
        sweep = self.store.sweep()
        found = find_front(self.store.trials(), sweep)
        write_json(self.store.folder / "front.json", as_json(sweep, found))
        write_text(self.store.folder / "front.md", as_markdown(sweep, found))


def log_each_value(client: MlflowClient, experiment: str, replay: Replay, trial: TrialRecord) -> None:
    """The same run, a request for each value, as a script that calls log_metric does."""
    store = replay.store
    run_id = client.create_run(
        experiment, start_time=trial.started_ms, run_name=f"recording-{trial.number}"
    ).info.run_id
    for name, value in trial.settings.items():
        client.log_param(run_id, name, value)
    for step, line in enumerate(store.history(trial.trial_id)):
        for name, value in line["metrics"].items():
            client.log_metric(run_id, f"{line['stage']}/{name}", value, timestamp=line["time_ms"], step=step)
    for name, value in trial.metrics.items():
        client.log_metric(run_id, name, value, timestamp=trial.ended_ms, step=0)
    for name, value in trial_tags(store.sweep(), trial, state=trial.state, member=False).items():
        client.set_tag(run_id, name, value)
    for name in ("policy.json", "bits.png"):
        client.log_artifact(run_id, str(store.trial_folder(trial.trial_id) / name))
    client.set_terminated(run_id, "FINISHED", end_time=trial.ended_ms)


@dataclasses.dataclass(slots=True)
class Spent:
    """Time of one way of recording, ms per trial: medians over what was timed."""

    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    @contextmanager
    def timed(self, trials: int, session: int) -> Iterator[None]:
        """Adds what happens within, of so many trials; CPU time of this process and of the server's `session`."""
        began, busy = time.perf_counter(), time.process_time() + cpu_s(session)
        yield
        self.wall.append(1000 * (time.perf_counter() - began) / trials)
        self.cpu.append(1000 * (time.process_time() + cpu_s(session) - busy) / trials)

    def __str__(self) -> str:
        return f"{statistics.median(self.wall):.0f} | {statistics.median(self.cpu):.0f}"


def cpu_s(session: int) -> float:
    """CPU time of all processes of a session; 0 is none."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat") if session else ():
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            # Fields 6, 14 and 15 of proc(5); the first two are before the bracket.
            ticks += int(fields[11]) + int(fields[12]) if int(fields[3]) == session else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def compare(
    folder: Path, uri: str, *, trials: int, block: int, each: int, session: int = 0
) -> tuple[Spent, Spent, Tracker, Replay]:
    """Batched and value by value; of each block `each` trials are also recorded value by value."""
    replay = Replay(folder, trials=trials)
    tracker = Tracker(replay.store, uri=uri, experiment="batched")
    tracker.sync()
    client = connect(uri)
    location = (folder / "values").as_uri() if uri.startswith("sqlite:") else None
    experiment = client.create_experiment("values", artifact_location=location)
    batched, values = Spent(), Spent()
    for start in range(0, trials, block):
        some = [replay.finish(number) for number in range(start, min(start + block, trials))]
        replay.publish()
        with batched.timed(len(some), session):
            tracker.sync()
        for trial in some[:each]:
            with values.timed(1, session):
                log_each_value(client, experiment, replay, trial)
    return batched, values, tracker, replay


def row(record: str, trials: int, batched: Spent, values: Spent) -> None:
    """A row of the table: ms of both ways and the ratios."""
    wall = statistics.median(values.wall) / statistics.median(batched.wall)
    cpu = statistics.median(values.cpu) / statistics.median(batched.cpu)
    print(f"| {record} | {trials} | {batched} | {values} | {wall:.1f} | {cpu:.1f} |", flush=True)


@contextmanager
def counted(client: Any) -> Iterator[list[str]]:
    """The names of the calls of MLflow's client that change or read anything, as they come."""
    calls: list[str] = []
    names = (
        "create_run",
        "log_batch",
        "log_inputs",
        "set_tag",
        "set_terminated",
        "update_run",
        "search_runs",
        "get_run",
    )
    kept = {name: getattr(type(client), name) for name in names}

    def counting(name: str) -> Any:
        def call(self: Any, *args: Any, **given: Any) -> Any:
            calls.append(name)
            return kept[name](self, *args, **given)

        return call

    for name in names:
        setattr(type(client), name, counting(name))
    try:
        yield calls
    finally:
        for name, method in kept.items():
            setattr(type(client), name, method)


def sync_costs(tracker: Tracker, replay: Replay, *, alive: bool = True) -> None:
    """Rows: what single syncs cost beside the trials that are recorded already."""

    def told(what: str, one: Tracker) -> None:
        with counted(connect(one.uri)) as calls:
            began = time.perf_counter()
            one.sync(alive=alive)
            seconds = time.perf_counter() - began
        print(f"| {what} | {1000 * seconds:.0f} | {len(calls)} |", flush=True)

    number = len(replay.store.trials())
    tracker._refresh_at = -math.inf
    told("ranks and note that are behind by a hundred trials", tracker)
    told("nothing new, the same process", tracker)
    spent = []
    for extra in range(5):
        replay.finish(number + extra)
        replay.publish()
        with counted(connect(tracker.uri)) as calls:
            began = time.perf_counter()
            tracker.sync()
            spent.append((time.perf_counter() - began, len(calls)))
    seconds, requests = sorted(spent)[len(spent) // 2]
    print(f"| one new trial, median of {len(spent)} | {1000 * seconds:.0f} | {requests} |")
    tracker._refresh_at = -math.inf
    told("ranks and note that are behind by these", tracker)
    told("nothing new, another process", Tracker(replay.store, uri=tracker.uri, experiment="batched"))


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """A real `mlflow server` on this machine that keeps artifacts itself: its address and its session."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "a"),
    ]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("w") as log:
        command = [sys.executable, "-m", "mlflow", "server", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    logging.disable(logging.WARNING)
    given = [int(argument) for argument in sys.argv[1:]]
    trials, remote = [*given, *(1000, 100)[len(given) :]]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        print("| record | trials | batched, ms | CPU ms | each value, ms | CPU ms | ratio | ratio of CPU |")
        print("|---|---|---|---|---|---|---|---|")
        uri = f"sqlite:///{root / 'mlflow.db'}"
        *both, tracker, replay = compare(root / "here", uri, trials=trials, block=100, each=3)
        row("SQLite", trials, *both)
        with server(root) as (address, session):
            *both, _, _ = compare(root / "there", address, trials=remote, block=10, each=1, session=session)
        row("server", remote, *both)
        print(f"\n| one sync at {trials} trials, SQLite | ms | requests |\n|---|---|---|")
        sync_costs(tracker, replay)


if __name__ == "__main__":
    main()
