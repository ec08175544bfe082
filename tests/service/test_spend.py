"""What device-hours went to, from the histories that trials write."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from service.records import State, SweepRecord, SweepStore, TrialRecord
from service.spend import spend
from service.standing import spent_hours
from service.view import read_view
from trainables.report import EpochReport, Stage

SWEEP = SweepRecord(
    name="s",
    spec_hash="h",
    facts={},
    total_trials=6,
    created_ms=1,
    workers=2,
    references={"a": {"top1": 99.0, "device_hours": 0.25}, "b": {"top1": 98.0, "device_hours": 0.5}},
)
METRICS = {"top1": 90.0, "bops_g": 1.0, "ard": 1.0}
HOUR = 1_800.0
"""Seconds of two devices that make a device-hour."""


def add(store: SweepStore, number: int, state: State, *, search: float, finetune: float = 0.0) -> None:
    """A trial that spent these device-hours and ended so."""
    name = f"t{number:04}"
    store.plan_trial(name, number=number, settings={})
    if state == "pending":
        return
    begun = store.start_trial(name, now_ms=10)
    spent: list[tuple[Stage, float]] = [("search", search), ("finetune", finetune)]
    for stage, hours in spent:
        if hours:
            epoch = EpochReport(stage=stage, epoch=1, epochs=1, metrics={})
            store.append_epoch(name, epoch, seconds=hours * HOUR, now_ms=20)
    if state == "running":
        return
    metrics = METRICS if state == "done" else {}
    store.finish_trial(
        TrialRecord(
            trial_id=name,
            number=number,
            state=state,
            settings={},
            attempts=begun.attempts,
            ended_ms=30,
            metrics=metrics,
        )
    )


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    return SweepStore.create(tmp_path, SWEEP, spec_text="name: s\n")


def test_every_hour_is_counted_once_by_stage_and_by_state(store: SweepStore) -> None:
    add(store, 0, "done", search=2.0, finetune=1.0)
    add(store, 1, "pruned", search=1.0)
    add(store, 2, "done", search=2.0, finetune=0.5)
    add(store, 3, "failed", search=0.5, finetune=0.25)
    add(store, 4, "running", search=0.75)
    add(store, 5, "pending", search=0.0)
    found = spend(read_view(store))
    assert [(one.trial_id, one.search, one.finetune, one.cut_off) for one in found.trials] == [
        ("t0000", 2.0, 1.0, 0.0),
        ("t0001", 1.0, 0.0, 1.0),
        ("t0002", 2.0, 0.5, 0.0),
        ("t0003", 0.5, 0.25, 0.75),
        ("t0004", 0.75, 0.0, 0.0),
    ]
    assert (found.cut_off, found.total) == (1.75, 8.0)
    assert found.references == 0.75
    assert found.per_front_point == 4.0
    assert found.by_state == {"done": 5.5 / 8, "pruned": 1 / 8, "failed": 0.75 / 8, "running": 0.75 / 8}
    assert list(found.by_state)[:2] == ["done", "pruned"]


def test_the_hours_of_attempts_that_were_cut_off_stay(store: SweepStore) -> None:
    add(store, 0, "running", search=1.0)
    store.interrupt_trial("t0000")
    found = spend(read_view(store))
    assert (found.total, found.by_state) == (1.0, {"pending": 1.0})
    assert found.total == store.spent_hours("t0000")


def test_histories_without_times_leave_the_hours_to_the_results(store: SweepStore) -> None:
    add(store, 0, "running", search=1.0)
    history = store.trial_folder("t0000") / "history.jsonl"
    (line,) = (json.loads(text) for text in history.read_text().splitlines())
    lines = [line, {**line, "stage": "finetune"}]
    measured = {"search_device_hours": 3.0, "finetune_device_hours": 0.5}
    ended = replace(store.trial("t0000"), state="done", attempts=0, metrics={**METRICS, **measured})
    store.finish_trial(ended)
    # The search's time is known here from its history; as earlier versions wrote it, from nothing but the result.
    for told, search in ((True, 1.0), (False, 3.0)):
        kept = [line if told and line["stage"] == "search" else {**line, "seconds": None} for line in lines]
        texts = [json.dumps({name: value for name, value in line.items() if value is not None}) for line in kept]
        history.write_text("\n".join(texts) + "\n")
        (one,) = spend(read_view(store)).trials
        assert (one.search, one.finetune) == (search, 0.5)
        assert store.spent_hours("t0000") == spent_hours(store) == read_view(store).hours["t0000"] == search + 0.5


def test_a_sweep_that_has_not_begun_has_spent_nothing(store: SweepStore) -> None:
    found = spend(read_view(store))
    assert (found.trials, found.total, found.per_front_point, found.by_state) == ((), 0.0, None, {})
