"""A driver that begins, or is asked to end, while its storage cannot be used."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service import driver
from service.orchestrate.drive import _stopped_by_sigterm, drive
from service.records import SweepRecord, SweepStore
from service.settings import TrackingConfig
from trainables.errors import StorageUnavailableError
from trainables.patience import WAIT_VARIABLE, patient

from .conftest import Volume

SWEEP = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=1, created_ms=1)


def test_a_driver_that_is_to_end_while_its_storage_is_gone_waits_no_longer_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, "60")
    store = SweepStore.create(tmp_path, SWEEP, spec_text="name: s\n")
    with driver.hold(store.folder):
        shutil.move(store.folder, tmp_path / "away")
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        with (
            patient(),
            _stopped_by_sigterm(store),
            pytest.raises(StorageUnavailableError, match="it is gone; bring it back"),
        ):
            store.save_sweep(SWEEP)
        assert time.monotonic() - began < 10
        assert driver.stop_requested(store.folder)
        shutil.move(tmp_path / "away", store.folder)
    assert driver.stop_requested(store.folder)
    with driver.hold(store.folder):
        assert not driver.stop_requested(store.folder)


def test_a_driver_told_to_end_says_so_to_others_where_the_storage_takes_it(tmp_path: Path) -> None:
    with driver.hold(tmp_path):
        driver.end_here(tmp_path)
        assert (tmp_path / "stop").exists()


def nothing(*_: object) -> Any:
    raise AssertionError("nothing is to be driven")


def test_a_driver_that_begins_on_a_full_disk_waits_for_room(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, "0.3")
    store = SweepStore.create(volume.path, SWEEP, spec_text="name: s\n")
    with driver.hold(store.folder):
        pass
    volume.fill()
    with pytest.raises(StorageUnavailableError, match="no space left; make room there, and resume"):
        drive(nothing, store, nothing, nothing, address="")  # type: ignore[arg-type]
    monkeypatch.setenv(WAIT_VARIABLE, "60")
    threading.Timer(0.5, volume.free).start()
    with patient(), driver.hold(store.folder):
        assert f'"pid": {os.getpid()}}}' in (store.folder / "driver.lock").read_text()


def test_what_ray_tune_makes_where_the_storage_is_gone_is_not_taken_for_it_and_is_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, "0")
    store = SweepStore.create(tmp_path / "st", SWEEP, spec_text="name: s\n")
    launched = SimpleNamespace(tracking=TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))

    def lose() -> None:
        store.folder.rename(tmp_path / "away")
        (store.folder / "tune" / "t0000").mkdir(parents=True)
        (store.folder / "tune" / "t0000" / "result.json").touch()
        store.log("what goes on")
        store.sweep()

    with pytest.raises(StorageUnavailableError, match=r"st/s: it is gone; bring it back, and resume"):
        drive(launched, store, nothing, lose, address="")  # type: ignore[arg-type]
    (tmp_path / "away").rename(store.folder)
    assert store.sweep().name == "s"
