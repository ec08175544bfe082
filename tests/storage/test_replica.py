"""Working copies of one storage on two machines, by way of a real S3-compatible server."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from service import driver, lease
from service.marks import RANDOM, SWEEP
from service.object_store import patience
from service.orchestrate.carrier import attempt_begun, group_carried, trial_group
from service.preflight import _check_storage
from service.records import NameTakenError, SweepRecord, SweepStore, TrialRecord
from service.reference_replica import fetch_reference, push_reference
from service.replica import ReplacedError, Replica
from service.sweeps import clean, find_sweep, list_sweeps, refresh, remove
from service.working_copy import Place, located
from trainables.errors import StorageError
from trainables.report import EpochReport

from .conftest import Proxy

Machine = Callable[[str], Replica]


def begun(replica: Replica, name: str = "s", **changes: object) -> SweepStore:
    """A sweep, begun on a machine."""
    record = SweepRecord(name=name, spec_hash="h", facts={}, total_trials=2, created_ms=1)
    return SweepStore.create(replica.root, dataclasses.replace(record, **changes), spec_text="name: s\n")


def seen(replica: Replica, name: str = "s") -> SweepStore:
    """The sweep as a machine sees it that looks now."""
    replica.fetch_sweep(name)
    return SweepStore(replica.root / name)


def silent_driver(store: SweepStore, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """A driver at work that tells no sign of life any more, and that others need not wait for."""
    monkeypatch.setattr(lease, "BEAT_S", 1000.0)
    held = driver.hold(store.folder)
    held.__enter__()
    monkeypatch.setattr(lease, "SILENCE_S", -5.0)
    monkeypatch.setattr(lease, "WATCH_S", 0.01)
    return held


def epoch(number: int) -> EpochReport:
    return EpochReport(stage="search", epoch=number, epochs=9, metrics={"loss": 1.0 / number})


def keys(replica: Replica) -> set[str]:
    return set(replica.store.entries(""))


def done(trial: TrialRecord, top1: float) -> TrialRecord:
    return dataclasses.replace(trial, state="done", ended_ms=9, metrics={"top1": top1}, policy_hash="p")


def test_the_objects_are_the_folder_and_what_belongs_to_one_machine_stays_there(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    store.plan_trial("t0000", number=0, settings={"a": 1})
    trial = store.start_trial("t0000", now_ms=5)
    (store.folder / "driver.lock").write_text("x")
    store.checkpoint("t0000").write_bytes(b"state")
    store.push("t0000")
    assert "s/trials/t0000/checkpoint.pt" in keys(one)
    before = store.checkpoint("t0000").with_name("checkpoint-1.pt")
    store.finish_trial(done(trial, 70.0))
    before.write_bytes(b"state before")
    one.push_sweep("s")
    here = {p.relative_to(one.root).as_posix() for p in store.folder.rglob("*") if p.is_file()}
    own = {"s/driver.lock", "s/trials/t0000/checkpoint-1.pt"}
    assert own <= here
    of_trial = {"s/trials/t0000/trial.json", "s/trials/t0000/result.json"}
    assert keys(one) == here - own == {"s/spec.yaml", "s/sweep.json"} | of_trial
    for key in keys(one):
        found = one.store.get(key)
        assert found is not None
        assert found.content == (one.root / key).read_bytes()


def test_another_machine_sees_what_was_pushed_and_reads_again_only_what_changed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(machine("one"))
    store.plan_trial("t0000", number=0, settings={"a": 1})
    other = machine("two")
    assert seen(other).trials() == store.trials()
    read: list[str] = []
    get_files = other.store.get_files
    monkeypatch.setattr(other.store, "get_files", lambda pairs: (read.extend(k for k, _ in pairs), get_files(pairs))[1])
    store.start_trial("t0000", now_ms=5)
    assert seen(other).trial("t0000").state == "running"
    seen(other)
    assert read == ["s/trials/t0000/trial.json"]


def test_of_two_results_the_first_one_stays_everywhere(machine: Machine) -> None:
    store = begun(machine("one"))
    trial = (store.plan_trial("t0000", number=0, settings={}), store.start_trial("t0000", now_ms=5))[1]
    other = seen(machine("two"))
    assert store.finish_trial(done(trial, 70.0)).metrics == {"top1": 70.0}
    assert other.finish_trial(done(trial, 60.0)).metrics == {"top1": 70.0}
    assert SweepStore(other.folder).result("t0000") == store.result("t0000")


def test_an_attempt_that_another_machine_has_followed_writes_no_more(machine: Machine) -> None:
    store = begun(machine("one"))
    store.plan_trial("t0000", number=0, settings={})
    old = store.start_trial("t0000", now_ms=5)
    other = seen(machine("two"))
    other.start_trial("t0000", now_ms=6)
    store.append_epoch("t0000", epoch(1), seconds=1.0, now_ms=7)
    with pytest.raises(ReplacedError, match="s/trials/t0000 was gone on with elsewhere"):
        store.finish_trial(done(old, 70.0))
    assert store.trial("t0000").attempts == 2
    assert store.history("t0000") == []
    assert not any(key.endswith(("result.json", "history.jsonl")) for key in keys(other.replica or machine("two")))


def test_a_trial_goes_on_elsewhere_from_its_last_pushed_epoch(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    store.plan_trial("t0000", number=0, settings={})
    with attempt_begun(Place.of(store.folder), trial_group("t0000")) as here:
        here.start_trial("t0000", now_ms=5)
        for number in (1, 2):
            here.append_epoch("t0000", epoch(number), seconds=1.0, now_ms=number)
            here.checkpoint("t0000").write_bytes(b"after %d" % number)
            here.push("t0000", guarded=True)
        here.append_epoch("t0000", epoch(3), seconds=1.0, now_ms=3)
    two = machine("two")
    with attempt_begun(Place.of(store.folder), trial_group("t0000")) as there:
        assert there.folder.is_relative_to(two.root)
        assert [line["epoch"] for line in there.history("t0000")] == [1, 2]
        assert there.checkpoint("t0000").read_bytes() == b"after 2"
        there.start_trial("t0000", now_ms=8)
        there.checkpoint("t0000").unlink()
        there.push("t0000")
    one = machine("one")
    with attempt_begun(Place.of(store.folder), trial_group("t0000")) as back:
        assert [line["epoch"] for line in back.history("t0000")] == [1, 2]
        assert not back.checkpoint("t0000").exists()
        assert back.trial("t0000").attempts == 2


def test_a_push_that_is_cut_off_anywhere_leaves_a_history_with_all_epochs_of_the_checkpoint(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    store = begun(one)
    store.plan_trial("t0000", number=0, settings={})
    store.start_trial("t0000", now_ms=5)
    put, cuts = one.store.put, 0
    for number in range(1, 7):
        store.append_epoch("t0000", epoch(number), seconds=1.0, now_ms=number)
        store.checkpoint("t0000").write_bytes(b"%d" % number)
        left = number % 3

        def cut(key: str, content: bytes, *, replaces: str | None = None) -> str:
            nonlocal left, cuts
            if left == 0:
                cuts += 1
                raise KeyboardInterrupt
            left -= 1
            return put(key, content, replaces=replaces)

        monkeypatch.setattr(one.store, "put", cut)
        with contextlib.suppress(KeyboardInterrupt):
            one.push("s", "trials/t0000")
        monkeypatch.undo()
        lines = one.store.get("s/trials/t0000/history.jsonl")
        kept = one.store.get("s/trials/t0000/checkpoint.pt")
        assert (lines.content.count(b"\n") if lines else 0) >= (int(kept.content) if kept else 0)
    assert cuts == 4


def test_what_a_killed_process_pushed_without_noting_it_is_no_change_by_others(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    store.plan_trial("t0000", number=0, settings={})
    store.append_epoch("t0000", epoch(1), seconds=1.0, now_ms=1)
    one.store.put_file("s/trials/t0000/history.jsonl", store.trial_folder("t0000") / "history.jsonl")
    store.checkpoint("t0000").write_bytes(b"not pushed")
    one.begin("s")
    assert store.checkpoint("t0000").read_bytes() == b"not pushed"
    assert "s/trials/t0000/checkpoint.pt" in keys(one)


def test_while_the_store_is_away_nothing_waits_and_afterwards_all_is_there(
    machine: Machine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.orchestrate.carrier.PUSH_S", 0.05)
    one = machine("one")
    store = begun(one)
    store.plan_trial("t0000", number=0, settings={})
    trial = store.start_trial("t0000", now_ms=5)
    with group_carried(store, trial_group("t0000")):
        proxy.down()
        for number in range(1, 5):
            store.append_epoch("t0000", epoch(number), seconds=1.0, now_ms=number)
    threading.Timer(0.5, proxy.up).start()
    with patience(20):
        store.finish_trial(done(trial, 70.0))
    there = seen(machine("two"))
    assert len(there.history("t0000")) == 4
    assert there.result("t0000") == store.result("t0000")


def test_a_second_driver_is_refused_and_named_and_a_request_to_stop_reaches_the_first(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    store = begun(machine("one"))
    with driver.hold(store.folder):
        other = seen(machine("two"))
        assert driver.alive(other.folder)
        with pytest.raises(StorageError, match=r"s is run by process \d+ on .* already"), driver.hold(other.folder):
            pass
        driver.request_stop(other.folder)
        for _ in range(100):
            if driver.stop_requested(store.folder):
                break
            threading.Event().wait(0.05)
        assert driver.stop_requested(store.folder)
    assert not driver.alive(other.folder)
    with driver.hold(other.folder):
        assert not driver.stop_requested(other.folder)


def test_a_silent_driver_is_followed_and_learns_of_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    store = begun(machine("one"))
    first = silent_driver(store, monkeypatch)
    other = seen(machine("two"))
    with driver.hold(other.folder):
        other.log("mine")
        with pytest.raises(StorageError, match="s was taken over by process"):
            first.__exit__(None, None, None)


def test_a_driver_that_was_taken_over_changes_nothing_even_before_it_knows(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(machine("one"))
    first = silent_driver(store, monkeypatch)
    two = machine("two")
    other = seen(two)
    with driver.hold(other.folder):
        other.log("mine")
        two.push("s", SWEEP)
        store.log("late")
        with pytest.raises(ReplacedError, match="s is driven from elsewhere by now"):
            store.plan_trial("t0000", number=0, settings={})
        with pytest.raises(StorageError, match="s was taken over by process"):
            first.__exit__(None, None, None)
    lines = (seen(machine("three")).folder / "log.txt").read_text()
    assert "mine" in lines
    assert "late" not in lines
    assert seen(two).trials() == []


def test_a_driver_that_beats_while_it_is_watched_is_not_followed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(machine("one"))
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "SILENCE_S", -5.0)
    monkeypatch.setattr(lease, "WATCH_S", 0.5)
    with driver.hold(store.folder):
        other = seen(machine("two"))
        with pytest.raises(StorageError, match="already"), driver.hold(other.folder):
            pass


def test_a_driver_killed_on_this_machine_is_gone_at_once(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    killed = lease.Lease(one, "s")
    killed.take()
    assert not driver.alive(store.folder)
    with driver.hold(store.folder):
        pass


def test_what_a_driver_has_changed_is_there_when_it_lets_go(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    with driver.hold(store.folder):
        store.log("a line")
        store.plan_trial("t0000", number=0, settings={})
        (store.folder / "random").mkdir()
        (store.folder / "random" / "policy.json").write_text("{}")
        (store.folder / "tune").mkdir()
        (store.folder / "tune" / "x").write_text("scratch")
    two = machine("two")
    other = seen(two)
    assert "a line" in (other.folder / "log.txt").read_text()
    assert (other.folder / "random" / "policy.json").exists()
    assert not (other.folder / "tune").exists()
    two.fetch("s", RANDOM)
    two.fetch("s", SWEEP)


def test_a_name_is_one_sweep_whoever_begins_it(machine: Machine) -> None:
    store = begun(machine("one"))
    two = machine("two")
    with pytest.raises(NameTakenError, match="has a sweep 's' already"):
        begun(two, created_ms=2)
    assert seen(two).sweep() == store.sweep()
    assert not list(two.root.glob(".s.*"))


def test_a_sweep_that_is_removed_is_gone_everywhere_and_its_name_is_free(machine: Machine) -> None:
    store = begun(machine("one"))
    store.plan_trial("t0000", number=0, settings={})
    two = machine("two")
    assert [one.folder.name for one in list_sweeps(two.root)] == ["s"]
    remove(store)
    assert keys(two) == set()
    assert list_sweeps(two.root) == []
    assert not (two.root / "s").exists()
    with pytest.raises(StorageError, match=r"s3://.* holds no sweep"):
        find_sweep(two.root, "s")
    two.store.put("s/trials/t0000/trial.json", b"what a removal that was cut off has left")
    assert begun(two).trials() == []
    assert keys(two) == {"s/spec.yaml", "s/sweep.json"}


def test_cleaning_frees_the_store(machine: Machine) -> None:
    one = machine("one")
    store = begun(one)
    store.plan_trial("t0000", number=0, settings={})
    trial = store.start_trial("t0000", now_ms=1)
    store.checkpoint("t0000").write_bytes(b"x" * 1000)
    store.finish_trial(dataclasses.replace(trial, state="failed", ended_ms=2, failure="error"))
    one.store.put("s/train/notes", b"x" * 10)
    assert "s/trials/t0000/checkpoint.pt" in keys(one)
    assert clean(store) >= 1010
    assert keys(one) == {
        f"s/{f}"
        for f in ("spec.yaml", "sweep.json", "driver.lock", "trials/t0000/trial.json", "trials/t0000/result.json")
    }


def reference(replica: Replica, content: bytes) -> Path:
    folder = replica.root / "references" / "key"
    (folder / "maps" / "d").mkdir(parents=True)
    (folder / "samples").mkdir()
    for name in ("model.pt", "record.json", "maps/d/maps.npy", "maps/d/record.json", "maps/d.lock", "samples/x.npz"):
        (folder / name).write_bytes(content + name.encode())
    return folder


def test_a_reference_is_carried_whole_and_the_first_one_stays(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    first, second = reference(one, b"1"), reference(two, b"2")
    push_reference(one, first)
    assert "references/key/maps/d.lock" not in keys(one)
    push_reference(two, second)
    assert (second / "model.pt").read_bytes() == b"1model.pt"
    three = machine("three")
    folder = three.root / "references" / "key"
    fetch_reference(three, folder, maps=False)
    assert sorted(p.name for p in folder.iterdir()) == ["model.pt", "record.json", "samples"]
    fetch_reference(three, folder, maps=True)
    assert (folder / "maps" / "d" / "maps.npy").read_bytes() == b"1maps/d/maps.npy"


def test_a_reference_whose_record_is_not_there_yet_is_none(machine: Machine) -> None:
    one = machine("one")
    one.store.put("references/key/model.pt", b"1")
    folder = one.root / "references" / "key"
    fetch_reference(one, folder, maps=True)
    assert not folder.exists()


def test_several_processes_of_one_machine_fetch_a_reference_at_once(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    push_reference(one, reference(one, b"1"))
    folder, wrong = two.root / "references" / "key", []

    def fetch() -> None:
        fetch_reference(two, folder, maps=True)
        if (folder / "model.pt").read_bytes() != b"1model.pt":
            wrong.append(1)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_store_is_checked_before_anything_is_run(
    machine: Machine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    _check_storage(one.root)
    assert keys(one) == set()
    put = one.store.put
    monkeypatch.setattr(one.store, "put", lambda key, content, *, replaces=None: put(key, content))
    with pytest.raises(StorageError, match="ignores If-None-Match or If-Match"):
        _check_storage(one.root)
    missing = located("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match="'no-such-bucket' does not exist"):
        _check_storage(missing)


def test_a_folder_is_named_to_other_machines_by_its_address(machine: Machine, url: str, tmp_path: Path) -> None:
    one = machine("one")
    assert str(Place.of(one.root)) == url
    place = Place.of(one.root / "s" / "trials")
    assert (place.storage, place.below, str(place)) == (url, "s/trials", f"{url}/s/trials")
    two = machine("two")
    assert place.here == two.root / "s" / "trials"
    assert Place.of(tmp_path / "plain").here == tmp_path / "plain"
    refresh(tmp_path, "s")
