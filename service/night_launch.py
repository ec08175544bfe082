"""How a sweep of a night is run: by a process of its own, which may crash without harm, or as a job on a cluster."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from service.arguments import RUN_ERROR
from service.measured import read_measured
from service.spec import SweepSpec
from service.sweeps import is_driven, is_finished, open_sweep
from service.working_copy import located
from trainables.errors import BitfrontError

MEASURE = "service.orchestrate.measure"
STOP_S, KILL_S = 90.0, 10.0
"""A sweep that is asked to end notes where it is, which takes a while; then it is ended by force."""
PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""
SILENCE_S = 600.0
"""A dashboard that does not answer for so long is gone."""
ERROR_LINES = 5
POLL_S = 2.0


class Launch(Protocol):
    """Runs a sweep to its end."""

    def __call__(self, spec: SweepSpec, file: Path, log: Path) -> str:
        """Everything that is printed goes to `log`. What went wrong with the run as a whole; empty for nothing."""
        ...


class Here:
    """The same command as `bitfront run`, in a process group of its own; trials here or on the cluster at `address`."""

    def __init__(self, address: str) -> None:
        self._address = ["--address", address] if address else []
        self._measured_at = [address] if address else []

    def __call__(self, spec: SweepSpec, file: Path, log: Path) -> str:
        """See `Launch`."""
        # Of a night whose process was killed: it was told to end, and may take a while.
        while is_driven(spec):
            time.sleep(POLL_S)
        if is_finished(spec):
            # Raises StorageError where it is another sweep of this name.
            open_sweep(spec, now_ms=0)
        else:
            status = _run(["service.cli", "run", str(file), *settings_of(spec), *self._address], log)
            # Whatever its status: one that is behind with its record has its result.
            if not is_finished(spec):
                return what_it_said(log, status)
        if read_measured(located(spec.storage.path) / spec.name).step_ratio is None:
            _run([MEASURE, spec.storage.path, spec.name, *self._measured_at], log)
        return ""


class Submitted:
    """A Ray job, on the cluster whose dashboard is at `address`; its storage is one that both reach."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self, spec: SweepSpec, file: Path, log: Path) -> str:
        """See `Launch`. A job of this sweep that is on its way is waited for."""
        from service.orchestrate import jobs

        if is_finished(spec):
            return ""
        was_running = self._is_running(spec)
        if was_running:
            self._wait(spec)
        # Of a night that was cut off: whoever ended it has told its job to stop.
        if not was_running or (not is_finished(spec) and self._status(spec) == "STOPPED"):
            then = shlex.join(["python", "-m", MEASURE, spec.storage.path, spec.name, "auto"])
            jobs.submit_sweep(spec, self._address, then=then)
            self._wait(spec)
        log.write_text("".join(jobs.job_logs(spec.name, self._address, follow=False)), encoding="utf-8")
        found = jobs.job_status(spec.name, self._address)
        return "" if is_finished(spec) else f"{found['job']} {found['status'].lower()}: {what_it_said(log, RUN_ERROR)}"

    def _status(self, spec: SweepSpec) -> str:
        from service.orchestrate import jobs

        return str(jobs.job_status(spec.name, self._address)["status"])

    def _wait(self, spec: SweepSpec) -> None:
        """Until its job has ended. Ctrl-C stops the job, and is raised once that has noted where it is."""
        from service.orchestrate import jobs

        try:
            while self._is_running(spec):
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            jobs.stop_job(spec.name, self._address)
            last = time.monotonic() + STOP_S
            while self._is_running(spec) and time.monotonic() < last:
                time.sleep(POLL_S)
            raise

    def _is_running(self, spec: SweepSpec) -> bool:
        """A dashboard that does not answer is asked again for some minutes."""
        from service.orchestrate import jobs

        last = time.monotonic() + SILENCE_S
        while True:
            try:
                return jobs.is_running(spec.name, self._address)
            except (BitfrontError, OSError, RuntimeError):  # all that its client and HTTP raise
                if time.monotonic() > last:
                    raise
            time.sleep(POLL_S)


def settings_of(spec: SweepSpec) -> list[str]:
    """What a night changes of a sweep, for the command line: its name and its storage."""
    path = json.dumps(spec.storage.path, ensure_ascii=False)
    return ["--set", f"name={spec.name}", "--set", f"storage.path={path}"]


def _run(command: Sequence[str], log: Path) -> int:
    """Runs a module of ours to its end; its status. Ctrl-C ends it in order before it is raised."""
    prctl = getattr(ctypes.CDLL(None), "prctl", lambda *_: None)

    def begun() -> None:
        # Of a shell's background jobs, of cron's and nohup's some ignore SIGINT, and what they start would.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Linux then ends the process, should this one be killed; elsewhere it runs on, and is waited for (`Here`).
        prctl(PR_SET_PDEATHSIG, signal.SIGINT)

    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=begun,
        )
        try:
            return process.wait()
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would end it; by force where it does not, or at the next Ctrl-C."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # One that hangs in the system, on a file server that is gone, ends when it comes back.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_S)


def what_it_said(log: Path, status: int) -> str:
    """The first lines of its error; where it has told none, how it ended and its last lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    lines = [line for line in lines if line.strip()]
    at = next((place for place in range(len(lines) - 1, -1, -1) if lines[place].startswith("bitfront: ")), None)
    ended = f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
    if at is not None:
        return "\n".join([*lines[at : at + ERROR_LINES], ended])
    return "\n".join([": ".join([ended, *lines[-1:]]), *lines[-ERROR_LINES:]])
