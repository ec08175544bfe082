import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests of the session, on loopback, with two CPUs whatever the machine has."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


class Bitfront:
    """The command in processes of its own, in one folder; nothing of them outlives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begins a command in a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", *arguments],
            cwd=self.folder, env=self.environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def __call__(self, *arguments: str, status: int = 0, timeout: float = 240) -> str:
        """Runs a command to its end; its output."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == status, output
        return output

    def close(self) -> None:
        """Kills what is left."""
        for process in self.started:
            for pid in [*descendants(process.pid), process.pid]:
                kill(pid)
            process.wait(20)
            if process.stdout:
                process.stdout.close()


@pytest.fixture
def bitfront(tmp_path: Path) -> Iterator[Bitfront]:
    command = Bitfront(tmp_path)
    yield command
    command.close()


def kill(pid: int) -> bool:
    """SIGKILL; whether there was such a process."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, below = [], {pid}
    while below:
        below = {child for child, parent in parents.items() if parent in below}
        found += sorted(below)
    return found


def named(pids: list[int], name: str) -> list[int]:
    """Those processes whose command line has `name` in it."""
    found = []
    for pid in pids:
        try:
            command = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if name in command:
            found.append(pid)
    return found


def wait_for(condition: Callable[[], object], *, seconds: float = 120) -> None:
    """Until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)
