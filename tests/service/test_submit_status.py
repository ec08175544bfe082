"""How a command ends that waits for a job: as the sweep did, by what Ray's dashboard says of it."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import ray
from click.testing import CliRunner

from service.cli import main

SWEEP = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"


class _Dashboard(http.server.BaseHTTPRequestHandler):
    """As Ray's answers of one job."""

    job: ClassVar[dict[str, object]] = {}
    version: ClassVar[dict[str, str]] = {
        "version": "4", "ray_version": ray.__version__, "ray_commit": "x", "session_name": "x"
    }  # fmt: skip

    def do_GET(self) -> None:
        answer: object = [self.job]
        if self.path.startswith("/api/version"):
            answer = self.version
        elif self.path.endswith("/logs"):
            answer = {"logs": "so it went\n"}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [("SUCCEEDED", 0, 0), ("FAILED", 4, 4), ("FAILED", 130, 130), ("FAILED", 1, 1), ("FAILED", 2, 1),
     ("FAILED", None, 1), ("STOPPED", None, 130)],
)  # fmt: skip
def test_whoever_waits_for_a_job_ends_as_the_sweep_did(
    dashboard: str, monkeypatch: pytest.MonkeyPatch, status: str, code: int | None, told: int
) -> None:
    job = {"type": "SUBMISSION", "submission_id": "bitfront-quickstart-1", "status": status, "driver_exit_code": code}
    monkeypatch.setattr(_Dashboard, "job", {**job, "entrypoint": "x"})
    monkeypatch.setattr("service.orchestrate.jobs.is_running", lambda *_: True)
    done = CliRunner().invoke(main, ["submit", str(SWEEP), "--address", dashboard, "--wait"], catch_exceptions=False)
    assert done.exit_code == told
    assert "so it went" in done.stdout


@pytest.mark.parametrize("command", ["run", "resume", "extend", "rerun-failed", "submit"])
def test_the_help_of_what_runs_a_sweep_tells_of_every_status(command: str) -> None:
    told = re.sub(r"\s+", " ", CliRunner().invoke(main, [command, "--help"]).stdout)
    assert "Exit status" in told
    assert "4 when it" in told or "as that of `run`" in told
