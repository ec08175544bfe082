"""A sweep of 1 000 trials that compute nothing, 64 at once, while 20 clients ask where it stands.

    python benchmarks/load.py [--trials 1000] [--concurrency 64] [--clients 20] [--pause 1.0]

Everything is real but the science, as in `overhead.py`: Ray Tune with a process for each slot, Optuna's journal, the
sweep's storage, the MLflow mirror on SQLite. No trial goes on before all slots have a process, so that times have no
start of processes in them. A client asks as `bitfront status` does, from nothing, and again after the pause that
`status --watch` makes; beside them a whole command runs every few seconds.

Printed: seconds of wall time and of the driver's processor per trial for each tenth of the sweep, with the driver's
resident memory; what a question takes by the trials that were there; and that every trial has exactly one result and
one run. Processes of trials leave torch out, whose threads nothing here uses: 64 with it take 25 GB.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import ray
from overhead import NoScience
from rich.console import Console

from service.orchestrate import worker
from service.orchestrate.sweep import run_sweep
from service.progress import Progress
from service.records import SweepStore, now_ms
from service.run_facts import PARENT_TAG, SWEEP_TAG, TRIAL_TAG
from service.run_writer import RunWriter
from service.spec import load_spec
from service.standing import standing
from service.sweeps import open_sweep
from service.tracking import resolve_uri
from trainables.api import Report, TrialResult
from trainables.config import TrialConfig

SPEC = """\
name: {name}
network: {{name: resnet8}}
data: {{name: digits, image_size: 8}}
reference: {{epochs: 1}}
method: {{name: gmpq, epochs: {epochs}}}
finetune: {{epochs: 1}}
space: {{method.zeta: {{loguniform: [0.05, 2.0]}}, method.eta: {{uniform: [0.0, 2.0]}}}}
sampler: {{name: {sampler}}}
trials: {trials}
resources: {{concurrency: {concurrency}}}
gallery: {{images: 0, random: false}}
storage: {{path: {storage}}}
"""
SAMPLE_S = 1.0
COMMAND_S = 5.0
THREADS_OF_A_CLIENT_PROCESS = 5
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Gated(NoScience):
    """Metrics from a formula, once all slots have a process."""

    gate: Path
    slots: int

    def run_trial(
        self, config: TrialConfig, report: Report, *, store: Path, checkpoint: Path | None = None
    ) -> TrialResult:
        (self.gate / str(os.getpid())).touch()
        while sum(1 for _ in self.gate.iterdir()) < self.slots:
            time.sleep(0.2)
        return NoScience.run_trial(self, config, report, store=store, checkpoint=checkpoint)


def without_torch() -> None:
    """For the processes of trials that compute nothing."""
    worker.use_threads = lambda threads: None


def start_ray(slots: int) -> None:
    """A Ray of so many slots, whatever the machine has; its processes find these modules, and leave torch out."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    places = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        "local", num_cpus=slots, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env={
            "worker_process_setup_hook": without_torch, "env_vars": {"PYTHONPATH": os.pathsep.join(places)},
        },
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """The driver at one moment."""

    time_ms: int
    cpu_s: float
    """Of its processor so far."""
    rss: int
    """Resident memory, bytes."""


def resources_of(pid: int) -> Sample:
    """As the kernel says."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(now_ms(), (int(stat[11]) + int(stat[12])) / TICKS, pages * PAGE)


@dataclass(slots=True)
class Watch:
    """Samples of this process, taken by a thread, until the block ends."""

    every_s: float = SAMPLE_S
    samples: list[Sample] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._sample, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _sample(self, ended: threading.Event) -> None:
        while True:
            self.samples.append(resources_of(os.getpid()))
            if ended.wait(self.every_s):
                return

    def at(self, time_ms: float) -> Sample:
        """The last one before."""
        return max((one for one in self.samples if one.time_ms <= time_ms), key=lambda one: one.time_ms,
                   default=self.samples[0])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """One question of a client."""

    kind: str
    """`asked` or `command`."""
    final: int
    """Trials that were final."""
    wall_s: float
    cpu_s: float


def ask(folder: Path) -> Answer:
    """As `bitfront status` counts: everything anew."""
    began, cpu = time.perf_counter(), time.thread_time()
    found = standing(SweepStore.open(folder))
    states = found.trials_by_state
    final = sum(count for state, count in states.items() if state not in ("pending", "running", "stale"))
    return Answer("asked", final, time.perf_counter() - began, time.thread_time() - cpu)


def command(folder: Path) -> Answer:
    """The whole command."""
    began, cpu = time.perf_counter(), os.times()
    asked = [sys.executable, "-m", "service.cli", "status", folder.name, "--storage", str(folder.parent), "--json"]
    found = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    final, now = found["trials_by_state"]["done"], os.times()
    used = now.children_user + now.children_system - cpu.children_user - cpu.children_system
    return Answer("command", final, time.perf_counter() - began, used)


def client(folder: Path, threads: int, pause_s: float, commands: bool) -> None:
    """Asks until its input ends, and prints what each question took."""
    ended, printing = threading.Event(), threading.Lock()

    def work(pause: float, question: object) -> None:
        while not ended.wait(pause):
            answer = question(folder)  # type: ignore[operator]
            line = json.dumps([answer.kind, answer.final, answer.wall_s, answer.cpu_s])
            with printing:
                print(line, flush=True)

    workers = [threading.Thread(target=work, args=(pause_s, ask)) for _ in range(threads)]
    if commands:
        workers.append(threading.Thread(target=work, args=(COMMAND_S, command)))
    for one in workers:
        one.start()
    sys.stdin.read()
    ended.set()
    for one in workers:
        one.join()


@contextmanager
def clients(folder: Path, count: int, pause_s: float) -> Iterator[list[Answer]]:
    """Processes of a few clients each; the answers are there once the block has ended."""
    answers: list[Answer] = []
    sizes = [THREADS_OF_A_CLIENT_PROCESS] * (count // THREADS_OF_A_CLIENT_PROCESS)
    sizes += [count % THREADS_OF_A_CLIENT_PROCESS] if count % THREADS_OF_A_CLIENT_PROCESS else []
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--client", str(folder), str(size), str(pause_s), str(int(number == 0))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number, size in enumerate(sizes)
    ]  # fmt: skip
    said: list[str] = []
    readers = [threading.Thread(target=lambda one=one: said.extend(one.stdout), daemon=True) for one in started]
    for reader in readers:
        reader.start()
    try:
        yield answers
    finally:
        for one in started:
            assert one.stdin is not None
            one.stdin.close()
        for one, reader in zip(started, readers, strict=True):
            one.wait()
            reader.join()
        answers += [Answer(*json.loads(line)) for line in said]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A sweep under load."""

    store: SweepStore
    watch: Watch
    answers: list[Answer]
    began_ms: int
    ended_ms: int


def run(folder: Path, options: argparse.Namespace) -> Outcome:
    """A whole sweep."""
    path, gate = folder / "load.yaml", folder / "gate"
    gate.mkdir()
    path.write_text(
        SPEC.format(name="load", epochs=1, trials=options.trials, concurrency=options.concurrency,
                    sampler=options.sampler, storage=folder / "st")
    )  # fmt: skip
    spec = load_spec(path)
    store = open_sweep(spec, now_ms=now_ms())
    quiet = Console(file=(folder / "out.txt").open("w"))
    watch, began_ms = Watch(), now_ms()
    with watch.running(), clients(store.folder, options.clients, options.pause) as answers:
        science = Gated(gate, min(options.concurrency, options.trials))
        outcome = run_sweep(spec, store, lambda store: Progress(quiet, store, epochs_per_trial=2), science=science)
    assert outcome.mirror_error is None, outcome.mirror_error
    return Outcome(outcome.store, watch, answers, began_ms, now_ms())


def print_course(outcome: Outcome) -> None:
    """What a trial took, tenth by tenth of the sweep."""
    records = sorted(outcome.store.trials(), key=lambda record: record.ended_ms)
    tenth = len(records) // 10
    print("| trials | s per trial | driver's CPU s per trial | driver's RSS, MiB |\n|---|---|---|---|")
    rows = []
    for first in range(0, tenth * 10, tenth):
        start_ms = records[first - 1].ended_ms if first else records[0].ended_ms
        end_ms = records[first + tenth - 1].ended_ms
        before, after = outcome.watch.at(start_ms), outcome.watch.at(end_ms)
        count = tenth - (not first)
        wall, cpu = (end_ms - start_ms) / 1000 / count, (after.cpu_s - before.cpu_s) / count
        rows.append((wall, cpu))
        print(f"| {first + 1}–{first + tenth} | {wall:.4f} | {cpu:.4f} | {after.rss / MIB:.0f} |")
    # The first tenth has all slots' first trials at once, the last one slots that stand idle.
    early, late = rows[1], rows[8]
    print(f"\nTenth tenth but one over the second: wall {late[0] / early[0]:.2f}, CPU {late[1] / early[1]:.2f}.")


def print_answers(answers: Sequence[Answer]) -> None:
    """What a question took, by trials that were final."""
    print(
        "\n| question | trials final | questions | median s | p95 | max | median CPU s |\n|---|---|---|---|---|---|---|"
    )
    for kind in ("asked", "command"):
        ends = (0, 50, 150, 400, 600, 900, 1_000_000)
        for low, high in pairwise(ends):
            found = sorted(one.wall_s for one in answers if one.kind == kind and low <= one.final < high)
            if not found:
                continue
            cpu = statistics.median(one.cpu_s for one in answers if one.kind == kind and low <= one.final < high)
            p95 = found[min(len(found) - 1, int(0.95 * len(found)))]
            upper = f"{high - 1}" if high < 1_000_000 else "all"
            print(f"| {kind} | {low}–{upper} | {len(found)} | {statistics.median(found):.3f} | {p95:.3f} | "
                  f"{found[-1]:.3f} | {cpu:.3f} |")  # fmt: skip


def check(store: SweepStore) -> None:
    """Every trial has one result, and one run with all that it has to tell."""
    sweep, trials = store.sweep(), store.trials()
    assert len(trials) == sweep.total_trials
    assert [trial.state for trial in trials] == ["done"] * len(trials)
    assert {trial.attempts for trial in trials} == {1}
    results = sorted(path.parent.name for path in store.folder.glob("trials/*/result.json"))
    assert results == [trial.trial_id for trial in trials]
    writer = RunWriter(resolve_uri("", store.folder.parent), experiment="bitfront")
    (parent,) = writer.find(SWEEP_TAG, sweep.sweep_id)
    runs = Counter(run.tags[TRIAL_TAG] for run in writer.find(PARENT_TAG, parent.run_id))
    assert runs == Counter(results), [name for name, count in runs.items() if count != 1]
    files = sum(len(names) for _, _, names in os.walk(store.folder))
    tune = sum(len(names) for _, _, names in os.walk(store.folder / "tune"))
    print(f"\n{len(results)} trials: {len(results)} results, {sum(runs.values())} runs, none twice, none missing. "
          f"{files} files, {files / len(results):.1f} a trial, {tune} of them Ray Tune's.")  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="at least 100: a tenth has to take time")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between a client's questions")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--storage", type=Path, help="keep the storage here")
    options = parser.parse_args()
    if options.trials < 100:
        parser.error(f"--trials {options.trials}: give at least 100.")
    return options


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        folder, threads, pause, commands = sys.argv[2:6]
        client(Path(folder), int(threads), float(pause), commands == "1")
        return
    options = parsed()
    logging.disable(logging.WARNING)
    start_ray(options.concurrency)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.storage or Path(temporary)
        folder.mkdir(exist_ok=True, parents=True)
        outcome = run(folder, options)
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"{options.trials} trials, {options.concurrency} at once, {options.clients} clients, a question every "
              f"{options.pause:g} s each; {os.cpu_count()} cores, Python {platform.python_version()}, "
              f"Ray {ray.__version__}; load averages {load}; {(outcome.ended_ms - outcome.began_ms) / 1000:.0f} s "
              "with start and end.\n")  # fmt: skip
        print_course(outcome)
        print_answers(outcome.answers)
        check(outcome.store)
    ray.shutdown()


if __name__ == "__main__":
    main()
