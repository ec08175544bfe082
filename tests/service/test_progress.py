from rich.console import Console

from service.progress import Progress, describe
from service.records import TrialRecord

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
    trial_id="t0001", number=1, state="failed", settings={}, started_ms=1, ended_ms=2, error="Boom: first\nsecond"
)


def watched(*, terminal: bool) -> str:
    console = Console(force_terminal=terminal, width=100, record=True, legacy_windows=False)
    with Progress(console, sweep="s", trials=4, epochs_per_trial=2) as progress:
        progress.note("reference: 99 %")
        for trial in (DONE, FAILED):
            progress.started(trial.trial_id)
        progress.epoch("t0000", {"stage": "search", "epoch": 1, "epochs": 2})
        progress.finished(DONE)
        progress.finished(FAILED)
        progress.started("t0002")
        progress.epoch("t0002", {"stage": "search", "epoch": 1, "epochs": 2})
    return console.export_text(clear=False)


def test_a_pipe_gets_a_line_for_each_finished_trial() -> None:
    lines = watched(terminal=False).splitlines()
    assert lines[0] == "reference: 99 %"
    assert lines[1].startswith("1/4 done, 1 running, 0:0")
    assert lines[1].endswith("left | t0000 top-1 97.50 %, 0.02 G BOPs (×100 smaller), ARD 1.500")
    assert lines[2].startswith("1/4 done, 0 running, 1 failed, 0:0")
    assert lines[2].endswith("t0001 failed: Boom: first")
    assert len(lines) == 3


def test_a_terminal_gets_counts_running_trials_and_the_front_so_far() -> None:
    text = watched(terminal=True)
    assert "s: 1/4 done, 1 running, 1 failed" in text
    assert "t0002 search 1/2" in text
    assert "front so far (1)" in text


def test_a_trial_without_a_message_is_described_all_the_same() -> None:
    lost = TrialRecord(trial_id="t9", number=9, state="failed", settings={}, started_ms=1, ended_ms=2)
    assert describe(lost) == "t9 failed: no message"
