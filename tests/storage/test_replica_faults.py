"""Between a machine's working copy and the store: drivers taken over, caches that were cleaned, threads that fail."""

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import botocore.exceptions
import pytest

from service import driver, lease
from service.marks import SWEEP
from service.object_store import ObjectStore
from service.orchestrate import limits
from service.orchestrate.carrier import _again_and_again, attempt_begun, reference_carried
from service.orchestrate.drive import _close
from service.records import SweepStore, TrialRecord
from service.replica import Replica
from service.settings import LimitsConfig
from service.sweeps import find_sweep, remove
from service.working_copy import Place
from trainables.errors import StorageError

from .test_replica import begun, done, epoch, keys, seen, silent_driver

Machine = Callable[[str], Replica]


def started(store: SweepStore) -> TrialRecord:
    store.plan_trial("t0000", number=0, settings={})
    return store.start_trial("t0000", now_ms=1)


def test_a_driver_whose_successor_has_ended_changes_nothing_either(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(machine("one"))
    first = silent_driver(store, monkeypatch)
    other = seen(machine("two"))
    with driver.hold(other.folder):
        other.log("mine")
    assert not driver.alive(other.folder)
    store.log("late")
    with pytest.raises(StorageError, match="s was taken over by a driver that has ended"):
        first.__exit__(None, None, None)
    lines = (seen(machine("three")).folder / "log.txt").read_text()
    assert "mine" in lines
    assert "late" not in lines


def test_a_driver_never_reads_its_own_files_from_the_store(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    with driver.hold(store.folder):
        one.store.put("s/log.txt", b"of nobody")
        store.log("mine")
        one.fetch_sweep("s")
        assert "mine" in (store.folder / "log.txt").read_text()
    assert "mine" in (seen(machine("two")).folder / "log.txt").read_text()


def test_a_lease_is_given_back_where_its_holder_fails_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    begun(one)
    monkeypatch.setattr(one.store, "delete", lambda keys: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"), lease.held(one, "s"):
        pass
    assert not lease.alive(machine("two"), "s")


def test_a_checkpoint_that_was_not_pushed_goes_with_its_history(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    started(store)
    for number in (1, 2):
        store.append_epoch("t0000", epoch(number), seconds=1.0, now_ms=number)
    store.checkpoint("t0000").write_bytes(b"epoch 2")
    store.push("t0000", guarded=True)
    for number in (3, 4):
        store.append_epoch("t0000", epoch(number), seconds=1.0, now_ms=number)
    store.checkpoint("t0000").write_bytes(b"epoch 4.")
    other = seen(machine("two"))
    other.start_trial("t0000", now_ms=5)
    machine("one")
    one.fetch_sweep("s")
    with attempt_begun(Place.of(store.folder), "trials/t0000") as again:
        assert [line["epoch"] for line in again.history("t0000")] == [1, 2]
        assert again.checkpoint("t0000").read_bytes() == b"epoch 2"


def test_what_a_cleaner_has_taken_from_a_cache_comes_back_and_stays_in_the_store(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    trial = started(store)
    store.append_epoch("t0000", epoch(1), seconds=1.0, now_ms=1)
    store.finish_trial(done(trial, 70.0))
    one.push_sweep("s")
    before = keys(one)
    for name in ("trials/t0000/result.json", "trials/t0000/history.jsonl", "spec.yaml"):
        (store.folder / name).unlink()
        with driver.hold(store.folder):
            pass
        assert keys(one) == before | {"s/driver.lock"}
        assert (store.folder / name).exists()
    shutil.rmtree(store.folder)
    assert find_sweep(one.root, "s").result("t0000") == done(trial, 70.0)


def test_a_trial_that_is_run_again_has_no_result_in_the_store(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    trial = started(store)
    (store.trial_folder("t0000") / "error.txt").write_text("it failed")
    store.finish_trial(dataclasses.replace(trial, state="failed", ended_ms=2, failure="error"))
    with driver.hold(store.folder):
        store.reopen_trial("t0000")
    other = seen(machine("two"))
    assert other.trial("t0000").state == "pending"
    assert {key.rpartition("/")[2] for key in keys(one) if "t0000" in key} == {
        "trial.json",
        "failed-1.json",
        "error-1.txt",
    }


def test_a_driver_closes_a_sweep_whose_trial_was_begun_again_elsewhere(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    store.plan_trial("t0000", number=0, settings={})
    other = seen(machine("two"))
    other.start_trial("t0000", now_ms=5)
    one.fetch_sweep("s")
    other.start_trial("t0000", now_ms=6)
    _close(store, "stopped on request", running_s=1.0)
    assert store.sweep().end == "stopped on request"
    assert (seen(machine("three")).trial("t0000").state, store.trial("t0000").attempts) == ("pending", 2)


def test_a_references_training_goes_on_from_the_newest_checkpoint(machine: Machine) -> None:
    one = machine("one")
    references = one.root / "references"
    references.mkdir()
    checkpoint = references / ".k.checkpoint.pt"
    checkpoint.write_bytes(b"epoch 1")
    with reference_carried(references, "k"):
        pass
    checkpoint.write_bytes(b"epoch 50")
    with reference_carried(references, "k"):
        assert checkpoint.read_bytes() == b"epoch 50"
    two = machine("two")
    with reference_carried(two.root / "references", "k"):
        newer = two.root / "references" / checkpoint.name
        assert newer.read_bytes() == b"epoch 50"
        newer.write_bytes(b"epoch 60")
    with reference_carried(references, "k"):
        assert checkpoint.read_bytes() == b"epoch 60"


def test_a_heartbeat_outlives_credentials_that_are_late(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine("one")
    begun(one)
    held, real, failed = lease.Lease(one, "s"), ObjectStore.files.fget, []
    held.take()
    before = one.store.etag("s/driver.lock")

    class Late:
        def call_s3(self, *args: object, **kwargs: object) -> object:
            if len(failed) < 3:
                failed.append(1)
                kind = botocore.exceptions.CredentialRetrievalError if len(failed) < 3 else KeyError
                raise kind(provider="a role", error_msg="late") if len(failed) < 3 else kind("whatever")
            return real(one.store).call_s3(*args, **kwargs)

    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(ObjectStore, "files", property(lambda store: Late()))
    ended = threading.Event()
    beat = threading.Thread(target=held.beat_until, args=(ended,), daemon=True)
    beat.start()
    for _ in range(100):
        if held._etag != before:
            break
        time.sleep(0.05)
    assert beat.is_alive()
    assert held._etag != before
    ended.set()
    beat.join(10)


def test_one_who_pushes_goes_on_whatever_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise KeyError("what nobody foresaw")

    with _again_and_again(work, 0.01):
        for _ in range(200):
            if len(calls) > 2:
                break
            time.sleep(0.01)
    assert len(calls) > 2
    assert "what nobody foresaw" in caplog.text


def test_epochs_that_workers_on_other_machines_tell_of_count_against_a_stall(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, failed = machine("one"), []
    store = begun(one)
    trial = started(store)
    other = seen(machine("two"))
    monkeypatch.setattr(limits._Watch, "_fail", lambda watch, now: (failed.append(now), watch._done.set()))
    with limits.watched(store, trial, LimitsConfig(stall="1s")):
        for number in range(1, 8):
            other.append_epoch("t0000", epoch(number), seconds=1.0, now_ms=number)
            other.push("t0000", guarded=True)
            time.sleep(0.3)
        assert failed == []
        for _ in range(60):
            if failed:
                break
            time.sleep(0.1)
        assert failed


def test_a_file_that_only_says_that_somebody_watches_is_not_carried(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    trial = started(store)
    with limits.watched(store, trial, LimitsConfig(stall="60s")):
        store.finish_trial(done(trial, 70.0))
    assert {key for key in keys(one) if "t0000" in key} == {"s/trials/t0000/trial.json", "s/trials/t0000/result.json"}


def test_nothing_is_left_of_a_sweep_that_was_removed(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    one.store.put("s/train/x/.validate_storage_marker", b"")
    remove(store)
    assert keys(one) == set()
    assert one.sweep_names() == []


def test_files_of_its_own_are_pushed_while_nobody_drives(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    store.log("a line")
    one.push("s", SWEEP)
    assert "s/log.txt" in keys(one)
    assert Path(store.folder / "log.txt").exists()
