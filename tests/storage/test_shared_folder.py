"""A folder that several machines mount: clocks that differ, files that are seen late, systems without links."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from service import driver
from service.preflight import _check_storage
from service.records import SweepRecord, SweepStore
from trainables.errors import ConfigError, StorageError


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_driver_elsewhere_is_judged_by_the_folders_clock_not_by_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    (tmp_path / "driver.lock").write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    ours = time.time
    monkeypatch.setattr(time, "time", lambda: ours() + 3600 * hours)
    assert driver.alive(tmp_path)
    with pytest.raises(StorageError, match="process 7 on elsewhere"), driver.hold(tmp_path):
        pass
    long_ago = ours() - 2 * driver.SILENCE_S
    os.utime(tmp_path / "driver.lock", (long_ago, long_ago))
    assert not driver.alive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["driver.lock"]


def test_looking_for_a_result_changes_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    record = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=1, created_ms=1)
    store = SweepStore.create(tmp_path, record, spec_text="")
    store.plan_trial("t0000", number=0, settings={})
    folder = store.trial_folder("t0000")
    os.utime(folder, (1, 1))
    store.refresh("t0000")
    assert folder.stat().st_mtime > 1
    assert [path.name for path in folder.iterdir()] == ["trial.json"]


@pytest.mark.parametrize(
    ("call", "code", "told"),
    [
        ("os.link", errno.EPERM, "cannot be linked .* first of two writers wins.*: Operation not permitted; give"),
        ("pathlib.Path.touch", errno.EROFS, "cannot be written: Read-only file system"),
        ("pathlib.Path.replace", errno.EACCES, "cannot be moved into place"),
    ],
)
def test_a_folder_that_cannot_hold_records_is_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, told: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(call, refuse)
    with pytest.raises(ConfigError, match=told):
        _check_storage(tmp_path / "sweeps")
    monkeypatch.undo()
    _check_storage(tmp_path / "sweeps")
    assert list(tmp_path.iterdir()) == []
