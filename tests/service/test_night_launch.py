"""How a night's sweeps are run: what is finished is not run again, what runs is waited for, what is killed ends all."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from service import driver, night_launch
from service.measured import Measured, read_measured, save_measured
from service.night_launch import Here, Submitted, settings_of
from service.records import SweepStore
from service.spec import SweepSpec, load_spec
from service.sweeps import open_sweep
from tests.service.outcomes import SPEC
from tests.service.ray_dashboard import Dashboard, served
from trainables.errors import ConfigError, StorageError


def sweep_of(folder: Path, text: str = SPEC) -> SweepSpec:
    """A sweep of this storage."""
    folder.mkdir(exist_ok=True)
    (folder / "sweep.yaml").write_text(text)
    return load_spec(folder / "sweep.yaml", [f"storage.path={folder}/s"])


def finished(spec: SweepSpec) -> SweepStore:
    """It as its driver left it."""
    store = open_sweep(spec, now_ms=1)
    store.save_sweep(replace(store.sweep(), end="finished"))
    return store


def test_a_finished_sweep_is_not_run_nor_measured_again(tmp_path: Path) -> None:
    spec = sweep_of(tmp_path)
    known = Measured(environment={"machine": "another"}, step_ratio=2.0)
    save_measured(finished(spec).folder, known)
    assert Here("")(spec, tmp_path / "sweep.yaml", tmp_path / "log") == ""
    assert not (tmp_path / "log").exists()
    assert read_measured(tmp_path / "s" / spec.name) == known


def test_another_sweep_of_the_same_name_is_not_taken_for_this_one(tmp_path: Path) -> None:
    finished(sweep_of(tmp_path))
    other = sweep_of(tmp_path, SPEC.replace("zeta: 0.1", "zeta: 0.2"))
    with pytest.raises(StorageError, match="holds another sweep of this name"):
        Here("")(other, tmp_path / "sweep.yaml", tmp_path / "log")


def test_a_sweep_that_a_killed_night_left_running_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(night_launch, "POLL_S", 0.01)
    spec = sweep_of(tmp_path)
    store = open_sweep(spec, now_ms=1)
    held, waiting = threading.Event(), threading.Event()

    def drive() -> None:
        with driver.hold(store.folder):
            held.set()
            waiting.wait(0.3)
            save_measured(finished(spec).folder, Measured(step_ratio=0.0))

    other = threading.Thread(target=drive)
    other.start()
    held.wait()
    assert Here("")(spec, tmp_path / "sweep.yaml", tmp_path / "log") == ""
    other.join()
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("interrupts", [signal.SIG_DFL, signal.SIG_IGN], ids=["heeds", "ignores"])
def test_what_was_launched_ends_with_the_night_that_is_killed(tmp_path: Path, interrupts: signal.Handlers) -> None:
    """Also where SIGINT is ignored, as it is by what a script's shell runs in the background."""
    code = "from pathlib import Path; from service.night_launch import _run; _run(['http.server', '0'], Path('log'))"
    night = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
    )
    children = Path(f"/proc/{night.pid}/task/{night.pid}/children")
    last = time.monotonic() + 60
    while not (tmp_path / "log").exists() or not children.read_text().split():
        assert time.monotonic() < last
        time.sleep(0.02)
    (child,) = map(int, children.read_text().split())
    while "\0-m\0" not in Path(f"/proc/{child}/cmdline").read_text():  # until then it is a copy of the night
        assert time.monotonic() < last
        time.sleep(0.02)
    night.kill()
    night.wait()
    while _runs(child):
        assert time.monotonic() < last, os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _runs(process: int) -> bool:
    """Whether it is there and no zombie."""
    with contextlib.suppress(OSError):
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    return False


def test_a_storage_with_quotes_and_backslashes_is_given_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "a \\ \"b\" 'c'"
    spec = load_spec(_file(tmp_path), ["storage.path=" + json.dumps(str(odd))])
    again = load_spec(_file(tmp_path), settings_of(spec)[1::2])
    assert again.storage.path == str(odd)


def _file(folder: Path) -> Path:
    (folder / "sweep.yaml").write_text(SPEC)
    return folder / "sweep.yaml"


def test_what_was_measured_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    assert read_measured(tmp_path) == Measured()
    save_measured(tmp_path, Measured(environment={"machine": "a"}))
    assert read_measured(tmp_path) == Measured(environment={"machine": "a"})
    (tmp_path / "measured.json").write_text("{")
    assert read_measured(tmp_path) == Measured()


class _Dashboard(Dashboard):
    """As Ray's answers of one job: errors first, then that it runs, until it is told to stop and a while after that."""

    errors: ClassVar[int] = 0
    looks_after_stop: ClassVar[int] = 0
    stopped: ClassVar[bool] = False

    def asked(self) -> None:
        cls = type(self)
        if cls.errors:
            cls.errors -= 1
            self.answer(500, "the head is busy")
        else:
            ended = cls.stopped and not cls.looks_after_stop
            cls.looks_after_stop -= cls.stopped and not ended
            job = {"type": "SUBMISSION", "submission_id": "bitfront-night-1", "entrypoint": "x"}
            self.answer(200, [{**job, "status": "STOPPED" if ended else "RUNNING"}])

    def do_POST(self) -> None:
        type(self).stopped = True
        self.answer(200, {"stopped": True})


@pytest.fixture
def dashboard() -> Iterator[str]:
    with served(_Dashboard) as address:
        yield address


def test_a_dashboard_that_errs_for_a_while_decides_nothing_and_a_night_that_is_stopped_sees_its_job_end(
    dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(sweep_of(tmp_path), name="night")
    monkeypatch.setattr(_Dashboard, "errors", 3)
    monkeypatch.setattr(_Dashboard, "looks_after_stop", 2)
    looks = 0

    def pause(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(night_launch.time, "sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        Submitted(dashboard)(spec, tmp_path / "sweep.yaml", tmp_path / "log")
    assert (_Dashboard.errors, _Dashboard.stopped, _Dashboard.looks_after_stop) == (0, True, 0)


def test_a_dashboard_that_is_gone_is_told_after_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_launch, "SILENCE_S", 0.0)
    with pytest.raises(ConfigError, match="no Ray dashboard answers there"):
        Submitted("http://127.0.0.1:9")(sweep_of(tmp_path), tmp_path / "sweep.yaml", tmp_path / "log")
