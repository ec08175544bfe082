"""A Ray that begins to start before it is needed: in a process of its own, as a command does it, and by which one."""

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from service import driver
from service.cli import main
from service.cli_drive import drive_sweep
from service.orchestrate import cluster
from service.records import SweepStore
from service.spec import PROMOTE_FILE, SweepSpec, load_spec
from service.sweeps import open_sweep
from trainables.errors import BitfrontError, ConfigError

from .conftest import ROOT

SPEC = """\
name: s
network: {name: resnet8}
data: {name: digits, image_size: 8}
reference: {epochs: 1}
method: {name: gmpq, eta: 1.0, epochs: 1}
finetune: {epochs: 1}
space: {method.zeta: {loguniform: [0.05, 2.0]}}
trials: 1
"""
PROMOTING = """\
name: target
data: {name: digits, image_size: 12}
reference: {epochs: 1}
finetune: {epochs: 1, quantizer: lsq}
"""
COMMAND = """
import os, signal, sys, threading, time
from pathlib import Path
import ray
from service.orchestrate import cluster
from service.spec import load_spec

def has_worked():
    import sys
    return "trainables.trial" in sys.modules

spec = load_spec(Path("s.yaml"))
with cluster.kept():
    pass
cluster.begin(imports=True)
cluster.begin(imports=True)
with cluster.kept():
    with cluster.connected(spec, ""):
        print("ready:", ray.get(ray.remote(num_cpus=1)(has_worked).remote()))
        print("threads:", [thread.name for thread in threading.enumerate()].count("bitfront-ray"))
        stopped = signal.getsignal(signal.SIGTERM)
        try:
            stopped(signal.SIGTERM, None)
        except SystemExit as end:
            print("status:", end.code)
    with cluster.connected(spec, ""):
        print("kept:", ray.get(ray.remote(num_cpus=1)(has_worked).remote()))
print("ended:", not ray.is_initialized())

cluster._import_needed = lambda: __import__("time").sleep(60)
cluster.begin(imports=True)
for delay in (0.2, 0.6, 1.0):
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
print("refused:", time.time(), flush=True)
raise SystemExit(2)
"""
"""A sweep with its promotion on one Ray, and in the same process a run that is refused while another Ray starts."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What became of a process."""

    status: int
    lines: list[str]
    errors: str
    left: list[str]
    """Processes of its Ray that are still there."""
    leaving_s: float
    """From its refusal to its end."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """COMMAND in a process of its own; the folder of its Ray is short, for the names of sockets."""
    folder, session = tmp_path_factory.mktemp("early"), f"/tmp/bitfront-{os.getpid()}"
    (folder / "s.yaml").write_text(SPEC)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": session}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    *lines, last = done.stdout.splitlines() or [""]
    leaving_s = time.time() - float(last.partition("refused: ")[2] or "nan")
    yield Ended(
        status=done.returncode, lines=lines, errors=done.stderr, left=processes_of(session), leaving_s=leaving_s
    )
    shutil.rmtree(session)


def processes_of(session: str) -> list[str]:
    """Command lines that name the folder of a Ray session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if session in command:
            found.append(command)
    return found


def test_a_ray_begun_early_has_a_process_ready_is_kept_for_a_promotion_and_ended(ended: Ended) -> None:
    assert ended.lines == ["ready: True", "threads: 1", "status: 15", "kept: True", "ended: True"], ended.errors


def test_a_refused_run_leaves_quietly_once_its_ray_is_there_whatever_that_imports_and_ctrl_c_or_not(
    ended: Ended,
) -> None:
    assert (ended.status, ended.errors, ended.left) == (2, "", [])
    assert ended.leaving_s < cluster.IMPORT_S - 5


def test_a_start_that_exits_is_told_to_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def exits(address: str) -> None:
        raise SystemExit(f"no Ray at {address!r}")

    monkeypatch.setattr(cluster, "_start", exits)
    start = cluster._Start(imports=False)
    waiting = threading.Thread(target=start._ready.wait, daemon=True)
    waiting.start()
    waiting.join(5)
    assert not waiting.is_alive()
    with pytest.raises(SystemExit, match="no Ray at ''"):
        start.wait()
    start.end()


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepSpec:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SPEC)
    return load_spec(tmp_path / "s.yaml")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What commands do of Ray's start and the count of networks, which is refused."""
    found: list[str] = []

    def count(spec: SweepSpec) -> bool:
        found.append("count")
        raise ConfigError("counted enough")

    monkeypatch.setattr(cluster, "begin", lambda *, imports: found.append(f"begin, imports {imports}"))
    monkeypatch.setattr("service.preflight.needs_survey", count)
    return found


def steps_of(command: str, steps: list[str]) -> list[str]:
    steps.clear()
    told = CliRunner().invoke(main, command.split())
    assert told.exit_code == 2, told.output
    return list(steps)


def test_ray_begins_to_start_before_networks_are_counted_where_work_is_left_that_nobody_does(
    spec: SweepSpec, steps: list[str]
) -> None:
    both, counted = ["begin, imports True", "count"], ["count"]
    assert steps_of("run s.yaml", steps) == both
    assert steps_of("run s.yaml --address 127.0.0.1:1", steps) == counted
    store = open_sweep(spec, now_ms=1)
    assert steps_of("resume s", steps) == steps_of("rerun-failed s", steps) == both
    with driver.hold(store.folder):
        assert steps_of("run s.yaml", steps) == steps_of("extend s --trials +1", steps) == counted
    store.save_sweep(dataclasses.replace(store.sweep(), end="finished", ended_ms=2))
    assert steps_of("run s.yaml", steps) == steps_of("resume s", steps) == counted
    assert steps_of("rerun-failed s", steps) == counted
    assert steps_of("extend s --trials +1", steps) == both
    assert steps_of("extend s --trials 0", steps) == []
    store.plan_trial("t0000", number=0, settings={"method.zeta": 0.3})
    store.finish_trial(dataclasses.replace(store.start_trial("t0000", now_ms=2), state="failed", ended_ms=3))
    assert steps_of("rerun-failed s", steps) == both


def test_a_sweep_that_promotes_holds_its_storage_before_it_looks_for_ray_and_notes_that_there_is_none(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("t.yaml").write_text(PROMOTING)
    Path("s.yaml").write_text(SPEC + "promote: {to: t.yaml, rule: all}\n")
    store = open_sweep(load_spec(Path("s.yaml")), now_ms=1)
    assert (store.folder / PROMOTE_FILE).exists()
    # The tests of this session share a Ray.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("service.mirror.Tracker.sync", lambda *_, **__: None)

    def is_refused(match: str) -> None:
        with click.Context(main) as context, pytest.raises(BitfrontError, match=match):
            drive_sweep(context, store, load_spec(Path("s.yaml")), "127.0.0.1:1")

    with driver.hold(store.folder):
        is_refused("is run by process")
    assert store.sweep().end == ""
    is_refused("no Ray cluster answers there")
    assert "error: --address 127.0.0.1:1: no Ray cluster" in SweepStore(store.folder).sweep().end
    assert "closed: error: --address 127.0.0.1:1" in (store.folder / "log.txt").read_text()
