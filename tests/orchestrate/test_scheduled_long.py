"""Scheduled sweeps for real: the command, its launches, and signals to either."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.records import SweepStore
from service.schedule import ScheduleConfig
from service.schedule_ledger import Ledger, Noted

from .conftest import Bitfront, kill, wait_for
from .test_jobs import head  # noqa: F401

SPEC = """\
name: s
network: {{name: resnet8}}
data: {{name: digits, image_size: 8, fraction: 0.3}}
reference: {{epochs: 2, batch_size: 64}}
method: {{name: gmpq, epochs: {epochs}, batch_size: 64, eta: 1.0}}
finetune: {{epochs: 1, batch_size: 64}}
space: {{method.zeta: {{loguniform: [0.05, 2.0]}}}}
sampler: {{name: random, seed: 3}}
gallery: {{random: false}}
trials: 2
schedule: {{cron: {cron}}}
storage: {{path: elsewhere}}
"""

pytestmark = pytest.mark.long


def due_sweep(folder: Path, *, epochs: int) -> tuple[Ledger, SweepStore]:
    """A sweep that has been due for two minutes, and whose schedule counts since an hour ago."""
    now = datetime.now(UTC)
    due = now.replace(second=0, microsecond=0) - timedelta(minutes=2)
    (folder / "sweeps").mkdir()
    cron = f"{due.minute} {due.hour} * * *"
    (folder / "sweeps" / "s.yaml").write_text(SPEC.format(epochs=epochs, cron=cron))
    ledger = Ledger.of(folder / "st", "s")
    ledger.since(ScheduleConfig(cron=cron), now, now - timedelta(hours=1))
    return ledger, SweepStore(folder / "st" / f"s-{due:%Y%m%dt%H%M%Sz}")


def only(ledger: Ledger) -> Noted:
    (noted,) = Ledger(ledger.folder).launches()
    return noted


def epochs_told(store: SweepStore, trial: str) -> int:
    return len(store.history(trial)) if (store.folder / "trials" / trial).exists() else 0


def test_a_scheduled_sweep_goes_on_after_sigterm_and_after_kill_9_and_is_one_launch(bitfront: Bitfront) -> None:
    ledger, store = due_sweep(bitfront.folder, epochs=60)
    command = ("scheduler", "sweeps", "--storage", "st")
    first = bitfront.start(*command)
    wait_for(lambda: epochs_told(store, "t0000") >= 2, seconds=400)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 0, output
    assert f"stopping {store.folder.name}; the next start goes on" in output
    assert (only(ledger).ended, only(ledger).lost) == (None, 0)
    assert store.sweep().end == "stopped on request"
    told = store.history("t0000")

    # The next start goes on, and is killed; what it had launched is not.
    second = bitfront.start(*command)
    wait_for(lambda: epochs_told(store, "t0001") >= 2, seconds=400)
    kill(second.pid)
    second.communicate(timeout=20)
    assert ledger.is_locked()
    assert bitfront(*command, "--once") == ""
    wait_for(lambda: not ledger.is_locked(), seconds=400)
    output = bitfront(*command, "--once")
    assert f"{store.folder.name}: ended well" in output
    assert only(ledger).status == 0

    store = SweepStore(store.folder)
    assert [(trial.state, trial.attempts) for trial in store.trials()] == [("done", 2), ("done", 1)]
    assert store.history("t0000")[: len(told)] == told
    assert bitfront(*command, "--once") == ""
    shown = bitfront(*command, "--dry-run")
    assert "ended well" in shown
    assert [path.name for path in (bitfront.folder / "st").glob("s*-*")] == [store.folder.name]
    assert not (bitfront.folder / "elsewhere").exists()


def test_what_cannot_run_fails_once_and_is_told(bitfront: Bitfront) -> None:
    ledger, store = due_sweep(bitfront.folder, epochs=3)
    path = bitfront.folder / "sweeps" / "s.yaml"
    path.write_text(path.read_text().replace("name: digits", "name: cifar10, root: nowhere"))
    output = bitfront("scheduler", "sweeps", "--storage", "st", "--once", status=1)
    assert f"{store.folder.name}: failed: it ended with status 2: bitfront: " in output
    assert "nowhere" in output
    assert only(ledger).status == 2
    assert bitfront("scheduler", "sweeps", "--storage", "st", "--once") == ""


def test_a_job_outlives_the_scheduler_that_waits_for_it(bitfront: Bitfront, head: str) -> None:  # noqa: F811
    ledger, store = due_sweep(bitfront.folder, epochs=60)
    command = ("scheduler", "sweeps", "--storage", str(bitfront.folder / "st"), "--submit", head)
    first = bitfront.start(*command)
    wait_for(lambda: epochs_told(store, "t0000") >= 2, seconds=400)
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 0
    assert only(ledger).ended is None
    output = bitfront(*command, "--once")
    assert f"{store.folder.name}: ended well" in output
    printed = ledger.log_file(only(ledger).due).read_text()
    assert f"Submitted as bitfront-{store.folder.name}-1." in printed
    assert f"{store.folder.name} runs there already." in printed
    assert "Pareto front of 2 policies" in printed
    assert [(trial.state, trial.attempts) for trial in SweepStore(store.folder).trials()] == [("done", 1), ("done", 1)]
