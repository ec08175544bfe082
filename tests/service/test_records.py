import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from service.records import SweepRecord, SweepStore, TrialRecord
from trainables.choices import Choices, Scores
from trainables.errors import StorageError
from trainables.report import EpochReport

SWEEP = SweepRecord(name="s", spec_hash="h", facts={"network": "resnet8"}, total_trials=3, created_ms=1)
DONE = TrialRecord(
    trial_id="t0000", number=0, state="done", settings={"x": 1}, started_ms=5, ended_ms=9, metrics={"top1": 9.0}
)


def begin(store: SweepStore, trial_id: str = "t0000", *, number: int = 0, now_ms: int = 5) -> TrialRecord:
    store.plan_trial(trial_id, number=number, settings={"x": 1})
    return store.start_trial(trial_id, now_ms=now_ms)


def epoch(number: int) -> EpochReport:
    return EpochReport(stage="search", epoch=number, epochs=2, metrics={"loss": 0.5})


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    return SweepStore.create(tmp_path, SWEEP, spec_text="name: s\n")


def test_the_reference_of_a_sweep_stored_earlier_is_one_of_its_references(store: SweepStore) -> None:
    """Extended, it may need more of them: full precision is then said of all."""
    path, (first, second) = store.folder / "sweep.json", ({"key": "a", "top1": 80.0}, {"key": "b", "top1": 90.0})
    content = json.loads(path.read_text())
    del content["references"]
    path.write_text(json.dumps({**content, "reference": first}))
    assert store.sweep().references == {"a": first}
    assert store.sweep().full_precision == "80.00 % top-1"
    path.write_text(json.dumps({**content, "reference": first, "references": {"a": first, "b": second}}))
    assert store.sweep().full_precision == "80.00 to 90.00 % top-1, 2 references"
    store.save_sweep(store.sweep())
    assert "reference" not in json.loads(path.read_text())
    path.write_text(json.dumps({**content, "reference": {}}))
    assert (store.sweep().references, store.sweep().full_precision) == ({}, "")


def test_what_a_policy_was_chosen_from_reads_back(store: SweepStore) -> None:
    begin(store)
    choices = Choices(
        network="resnet8",
        layers=("conv1", "a"),
        weights={"a": Scores((2, 3), (-0.1, -2.3))},
        acts={"a": Scores((4, 2), (-0.7, -0.7))},
        group_of={"a": "a"},
        pinned={"conv1": 8},
    )
    store.save_choices("t0000", choices)
    assert store.choices("t0000") == choices


def test_a_name_is_taken_once_also_when_many_start_at_once(tmp_path: Path) -> None:
    def create(_: int) -> SweepStore | StorageError:
        try:
            return SweepStore.create(tmp_path, SWEEP, spec_text="name: s\n")
        except StorageError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(create, range(8)))
    assert [type(one) for one in found].count(SweepStore) == 1
    assert {str(one) for one in found if isinstance(one, StorageError)} == {f"{tmp_path / 's'} exists already."}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert SweepStore.open(tmp_path / "s").sweep() == SWEEP


def test_a_trial_is_pending_then_running_until_its_result_is_there(store: SweepStore) -> None:
    assert store.plan_trial("t0000", number=0, settings={"x": 1}).state == "pending"
    begun = store.start_trial("t0000", now_ms=5)
    assert (begun.state, begun.attempts, begun.started_ms) == ("running", 1, 5)
    assert store.trials() == [begun]
    assert store.result("t0000") is None
    store.finish_trial(DONE)
    assert store.trials() == [DONE] == [SweepStore.open(store.folder).result("t0000")]


def test_the_first_result_is_kept(store: SweepStore) -> None:
    begin(store)
    store.append_epoch("t0000", epoch(1), seconds=1.0, now_ms=6)
    assert store.finish_trial(DONE) == DONE
    assert store.finish_trial(replace(DONE, state="failed", error="again")) == DONE
    assert SweepStore(store.folder).result("t0000") == DONE
    assert len(store.history("t0000")) == 1


def test_of_many_that_finish_a_trial_at_once_one_is_kept_whole(store: SweepStore) -> None:
    begin(store)
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda i: SweepStore(store.folder).finish_trial(replace(DONE, ended_ms=i)), range(8)))
    assert len({record.ended_ms for record in kept}) == 1
    assert sorted(path.name for path in store.trial_folder("t0000").iterdir()) == ["result.json", "trial.json"]


def test_a_trial_that_was_cut_off_goes_on_and_tells_of_no_epoch_twice(store: SweepStore) -> None:
    begin(store)
    store.append_epoch("t0000", epoch(1), seconds=1.0, now_ms=6)
    store.checkpoint("t0000").write_bytes(b"weights")
    store.interrupt_trial("t0000")
    assert store.trial("t0000").state == "pending"
    again = store.start_trial("t0000", now_ms=70)
    assert (again.attempts, again.started_ms) == (2, 5)
    store.append_epoch("t0000", epoch(1), seconds=9.0, now_ms=71)
    store.append_epoch("t0000", epoch(2), seconds=9.0, now_ms=72)
    assert [(line["epoch"], line["time_ms"], line["seconds"]) for line in store.history("t0000")] == [
        (1, 6, 1.0),
        (2, 72, 9.0),
    ]
    assert store.checkpoint("t0000").exists()
    store.finish_trial(DONE)
    assert not store.checkpoint("t0000").exists()


def test_a_line_that_a_crash_cut_off_does_not_count_and_is_told_again(store: SweepStore) -> None:
    begin(store)
    store.append_epoch("t0000", epoch(1), seconds=1.0, now_ms=6)
    with (store.trial_folder("t0000") / "history.jsonl").open("a") as history:
        history.write('{"time_ms": 7, "stage": "sea')
    assert [line["epoch"] for line in store.history("t0000")] == [1]
    store.append_epoch("t0000", epoch(2), seconds=1.0, now_ms=8)
    assert [line["epoch"] for line in store.history("t0000")] == [1, 2]


def test_a_failed_trial_can_be_run_again_and_its_failure_is_kept_beside(store: SweepStore) -> None:
    begun = begin(store)
    (store.trial_folder("t0000") / "error.txt").write_text("Traceback")
    store.checkpoint("t0000").write_bytes(b"weights")
    store.finish_trial(replace(begun, state="failed", ended_ms=9, failure="lost worker", error="gone"))
    store.reopen_trial("t0000")
    assert [(trial.state, trial.failure) for trial in store.trials()] == [("pending", "")]
    assert store.start_trial("t0000", now_ms=20).attempts == 2
    store.finish_trial(DONE)
    with pytest.raises(StorageError, match="t0000 is done; only a failed trial is run again"):
        store.reopen_trial("t0000")
    kept = sorted(path.name for path in store.trial_folder("t0000").iterdir())
    assert kept == ["error-1.txt", "failed-1.json", "result.json", "trial.json"]


def test_trials_come_in_the_order_of_their_numbers(store: SweepStore) -> None:
    for number in (10, 2, 7):
        begin(store, f"t{number}", number=number)
    assert [trial.number for trial in store.trials()] == [2, 7, 10]


@pytest.mark.parametrize("bad", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_trial_cannot_leave_its_sweeps_folder(store: SweepStore, bad: str) -> None:
    with pytest.raises(StorageError, match="is not a trial's name"):
        store.plan_trial(bad, number=0, settings={})


def test_numbers_that_json_does_not_know_are_never_written(store: SweepStore) -> None:
    begin(store)
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


def test_a_trial_knows_its_reference_from_its_first_attempt_on_however_it_ends(store: SweepStore) -> None:
    store.plan_trial("t0000", number=0, settings={})
    assert store.start_trial("t0000", now_ms=5, reference="r8").reference == "r8"
    store.interrupt_trial("t0000")
    assert SweepStore(store.folder).trial("t0000").reference == "r8"
    again = store.start_trial("t0000", now_ms=6)
    assert store.finish_trial(replace(again, state="pruned", ended_ms=7)).reference == "r8"


def test_what_a_trial_had_failed_with_is_known_after_it_is_run_again(store: SweepStore) -> None:
    store.plan_trial("t0000", number=0, settings={})
    for attempt in (1, 2):
        begun = store.start_trial("t0000", now_ms=attempt)
        store.finish_trial(replace(begun, state="failed", ended_ms=10 * attempt, error=f"error {attempt}"))
        store.reopen_trial("t0000")
    found = [(record.ended_ms, record.error) for record in store.failed_before("t0000")]
    assert found == [(10, "error 1"), (20, "error 2")]
    # A rerun that was cut off between its two files: the failure still stands, and counts once.
    folder = store.trial_folder("t0000")
    (folder / "result.json").write_text((folder / "failed-2.json").read_text())
    assert [record.ended_ms for record in SweepStore(store.folder).failed_before("t0000")] == [10]


def test_lines_that_tell_of_no_epoch_are_no_history(store: SweepStore) -> None:
    store.plan_trial("t0000", number=0, settings={})
    (store.trial_folder("t0000") / "history.jsonl").write_text('{"time_ms": 1, "seconds": 2.0}\n{"a": 3}\n{"b')
    assert store.history("t0000") == []
    assert store.spent_hours("t0000") == 0


def test_a_clock_that_is_set_back_leaves_times_in_order_and_loses_no_hours(store: SweepStore) -> None:
    noon, hour = 1_760_000_000_000, 3_600_000
    begun = begin(store, now_ms=noon)
    for number, now_ms in enumerate((noon + 1000, noon - hour, noon + 5 * hour, noon + 10), start=1):
        store.append_epoch("t0000", epoch(number), seconds=36.0, now_ms=now_ms)
    times = [line["time_ms"] for line in store.history("t0000")]
    assert times == [noon + 1000, noon + 1000, noon + 5 * hour, noon + 5 * hour]
    ended = store.finish_trial(replace(begun, state="done", ended_ms=noon - 2 * hour))
    assert ended.ended_ms == noon + 5 * hour
    assert store.spent_hours("t0000") == pytest.approx(0.04)
