"""How a command ends that waits for a job: as the sweep did, by what Ray's dashboard says of it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner

from service.cli import main
from tests.service.ray_dashboard import Dashboard, served

SWEEP = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"


class _Dashboard(Dashboard):
    """As Ray's answers of one job."""

    job: ClassVar[dict[str, object]] = {}

    def asked(self) -> None:
        self.answer(200, {"logs": "so it went\n"} if self.path.endswith("/logs") else [self.job])


@pytest.fixture
def dashboard() -> Iterator[str]:
    with served(_Dashboard) as address:
        yield address


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
