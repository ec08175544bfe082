import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.tracking import connect

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to make its tables takes seconds, to copy it nothing."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def closed_port() -> int:
    """Where nobody listens."""
    return free_port()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Starts `bitfront ui` on a storage folder and gives its address; ends it after the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(storage: Path) -> str:
        port = free_port()
        command = [sys.executable, "-m", "service.cli", "ui", "--storage", str(storage), "--port", str(port)]
        running.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True))
        url = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        return url

    yield start
    for process in running:
        os.killpg(process.pid, 15)
        process.wait(20)
