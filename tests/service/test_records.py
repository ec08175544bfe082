import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from service.records import SweepRecord, SweepStore, TrialRecord
from trainables.errors import StorageError
from trainables.report import EpochReport

SWEEP = SweepRecord(name="s", spec_hash="h", facts={"network": "resnet8"}, total_trials=3, created_ms=1)
DONE = TrialRecord(
    trial_id="t0000", number=0, state="done", settings={"x": 1}, started_ms=5, ended_ms=9, metrics={"top1": 9.0}
)


def epoch(number: int) -> EpochReport:
    return EpochReport(stage="search", epoch=number, epochs=2, metrics={"loss": 0.5})


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    return SweepStore.create(tmp_path, SWEEP, spec_text="name: s\n")


def test_a_name_that_is_taken_gets_a_number_also_when_many_start_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: SweepStore.create(tmp_path, SWEEP, spec_text=""), range(8)))
    assert {s.folder.name for s in stores} == {"s", *(f"s-{i}" for i in range(2, 9))}
    assert all(s.sweep().name == s.folder.name for s in stores)


def test_a_trial_is_running_until_its_result_is_there(store: SweepStore) -> None:
    store.start_trial("t0000", number=0, settings={"x": 1}, now_ms=5)
    assert store.trials() == [replace(DONE, state="running", ended_ms=0, metrics={})]
    assert store.result("t0000") is None
    store.finish_trial(DONE)
    assert store.trials() == [DONE] == [SweepStore.open(store.folder).result("t0000")]


def test_the_first_result_is_kept(store: SweepStore) -> None:
    store.start_trial("t0000", number=0, settings={}, now_ms=5)
    store.append_epoch("t0000", epoch(1), now_ms=6)
    store.finish_trial(DONE)
    store.finish_trial(replace(DONE, state="failed", error="again"))
    store.start_trial("t0000", number=0, settings={}, now_ms=50)
    assert store.result("t0000") == DONE
    assert len(store.history("t0000")) == 1


def test_an_attempt_that_was_cut_off_leaves_no_epochs_behind(store: SweepStore) -> None:
    store.start_trial("t0000", number=0, settings={}, now_ms=5)
    store.append_epoch("t0000", epoch(1), now_ms=6)
    store.start_trial("t0000", number=0, settings={}, now_ms=7)
    store.append_epoch("t0000", epoch(1), now_ms=8)
    assert [line["time_ms"] for line in store.history("t0000")] == [8]


def test_a_line_that_a_crash_cut_off_does_not_count(store: SweepStore) -> None:
    store.start_trial("t0000", number=0, settings={}, now_ms=5)
    store.append_epoch("t0000", epoch(1), now_ms=6)
    with (store.trial_folder("t0000") / "history.jsonl").open("a") as history:
        history.write('{"time_ms": 7, "stage": "sea')
    assert [line["epoch"] for line in store.history("t0000")] == [1]


def test_trials_come_in_the_order_of_their_numbers(store: SweepStore) -> None:
    for number in (10, 2, 7):
        store.start_trial(f"t{number}", number=number, settings={}, now_ms=1)
    assert [trial.number for trial in store.trials()] == [2, 7, 10]


@pytest.mark.parametrize("bad", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_trial_cannot_leave_its_sweeps_folder(store: SweepStore, bad: str) -> None:
    with pytest.raises(StorageError, match="is not a trial's name"):
        store.start_trial(bad, number=0, settings={}, now_ms=1)


def test_numbers_that_json_does_not_know_are_never_written(store: SweepStore) -> None:
    store.start_trial("t0000", number=0, settings={}, now_ms=5)
    with pytest.raises(ValueError, match="JSON compliant"):
        store.finish_trial(replace(DONE, metrics={"top1": float("nan")}))
    assert store.result("t0000") is None


def test_folders_that_are_no_sweeps_and_damaged_files_are_named(tmp_path: Path, store: SweepStore) -> None:
    with pytest.raises(StorageError, match=r"sweep\.json does not exist: .* is not a sweep's storage"):
        SweepStore.open(tmp_path / "nothing")
    (store.folder / "sweep.json").write_text('{"name": ')
    with pytest.raises(StorageError, match=r"sweep\.json cannot be read"):
        store.sweep()
    (store.folder / "sweep.json").write_text(json.dumps({"name": "s", "surprise": 1}))
    with pytest.raises(StorageError, match=r"sweep\.json is damaged, or of another version"):
        store.sweep()


def test_storage_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"storage\.path: .*file/x cannot be written"):
        SweepStore.create(tmp_path / "file" / "x", SWEEP, spec_text="")
