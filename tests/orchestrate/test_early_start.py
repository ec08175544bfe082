"""A Ray that begins to start before it is needed; in processes of their own, as a command does it once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
BEGIN = "from service.orchestrate.cluster import begin; begin(imports=True); begin(imports=True)\n"
CONNECT = """
import signal, sys, threading
from pathlib import Path
import ray
from service.orchestrate.cluster import connected
from service.spec import load_spec

def has_worked():
    import sys
    return "trainables.trial" in sys.modules

with connected(load_spec(Path("s.yaml")), ""):
    print("ready:", ray.get(ray.remote(num_cpus=1)(has_worked).remote()))
    print("threads:", [thread.name for thread in threading.enumerate()].count("bitfront-ray"))
    stopped = signal.getsignal(signal.SIGTERM)
    try:
        stopped(signal.SIGTERM, None)
    except SystemExit as end:
        print("status:", end.code)
print("ended:", not ray.is_initialized())
with connected(load_spec(Path("s.yaml")), ""):
    print("another:", ray.get(ray.remote(num_cpus=1)(lambda: 1).remote()))
"""


@pytest.fixture
def session() -> Iterator[str]:
    """Where Ray keeps its files, and what its processes are known by; short, for the names of sockets."""
    folder = f"/tmp/bitfront-{os.getpid()}"
    yield folder
    shutil.rmtree(folder)


def run(folder: Path, code: str, session: str) -> subprocess.CompletedProcess[str]:
    (folder / "s.yaml").write_text(SPEC)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": session}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


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


def test_a_ray_begun_early_has_a_process_ready_and_is_ended_and_followed_by_another(
    tmp_path: Path, session: str
) -> None:
    told = run(tmp_path, BEGIN + CONNECT, session)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == ["ready: True", "threads: 1", "status: 15", "ended: True", "another: 1"]
    assert "main thread" not in told.stderr
    assert processes_of(session) == []


def test_a_ray_that_nobody_connects_to_ends_with_its_process(tmp_path: Path, session: str) -> None:
    told = run(tmp_path, BEGIN + "print('refused')\nraise SystemExit(2)\n", session)
    assert (told.returncode, told.stdout, told.stderr) == (2, "refused\n", "")
    assert processes_of(session) == []
