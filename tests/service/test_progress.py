from pathlib import Path

from rich.console import Console

from service.progress import Progress, describe
from service.records import SweepRecord, SweepStore, TrialRecord

SWEEP = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=4, created_ms=1)

METRICS = {"top1": 97.5, "bops_g": 0.02, "ard": 1.5, "compression": 100.0, "storage_mb": 0.1}
DONE = TrialRecord(
    trial_id="t0000",
    number=0,
    state="done",
    settings={},
    started_ms=1,
    ended_ms=2,
    metrics=METRICS,
    policy_hash="a" * 64,
)
FAILED = TrialRecord(
    trial_id="t0001", number=1, state="failed", settings={}, started_ms=1, ended_ms=2,
    error="Boom: [/pytorch/third_party/gloo] first\nsecond",
)  # fmt: skip


def watched(folder: Path, *, terminal: bool) -> str:
    store = SweepStore.create(folder, SWEEP, spec_text="")
    console = Console(force_terminal=terminal, width=100, record=True, legacy_windows=False)
    with Progress(console, store, epochs_per_trial=2) as progress:
        progress.note("reference: 99 %")
        for trial in (DONE, FAILED):
            progress.started(trial.trial_id)
        progress.epoch("t0000", {"stage": "search", "epoch": 1, "epochs": 2})
        progress.finished(DONE)
        progress.finished(FAILED)
        progress.started("t0002")
        progress.epoch("t0002", {"stage": "search", "epoch": 1, "epochs": 2})
    return console.export_text(clear=False)


def test_a_pipe_gets_a_line_for_each_finished_trial_and_so_does_the_log(tmp_path: Path) -> None:
    lines = watched(tmp_path, terminal=False).splitlines()
    assert lines[0] == "reference: 99 %"
    assert lines[1].startswith("1/4 done, 1 running, 0:0")
    assert lines[1].endswith("left | t0000 top-1 97.50 %, 0.02 G BOPs (×100 smaller), ARD 1.500")
    assert lines[2].startswith("1/4 done, 0 running, 1 failed, 0:0")
    # Brackets are no markup.
    assert lines[2].endswith("t0001 failed: Boom: [/pytorch/third_party/gloo] first")
    assert len(lines) == 3
    logged = (tmp_path / "s" / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in logged] == lines


def test_a_terminal_gets_counts_running_trials_and_the_front_so_far(tmp_path: Path) -> None:
    text = watched(tmp_path, terminal=True)
    assert "s: 1/4 done, 1 running, 1 failed" in text
    assert "t0002 search 1/2" in text
    assert "front so far (1)" in text


def test_a_trial_without_a_message_is_described_all_the_same() -> None:
    lost = TrialRecord(trial_id="t9", number=9, state="failed", settings={}, started_ms=1, ended_ms=2)
    assert describe(lost) == "t9 failed: no message"


def test_a_resumed_sweep_counts_what_was_done_before(tmp_path: Path) -> None:
    store = SweepStore.create(tmp_path, SWEEP, spec_text="")
    store.plan_trial("t0000", number=0, settings={})
    store.finish_trial(DONE)
    console = Console(width=100, record=True)
    with Progress(console, store, epochs_per_trial=2) as progress:
        progress.finished(FAILED)
    assert console.export_text().startswith("1/4 done, 0 running, 1 failed, 0:0")
