"""Writing on a file system that is full: whole or not at all, and nothing beside."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.records import SweepRecord, SweepStore
from trainables.errors import StorageUnavailableError
from trainables.folders import replaced
from trainables.patience import WAIT_VARIABLE, patient
from trainables.report import EpochReport
from trainables.tensor_files import read_tensors, replace_tensors

from .conftest import Volume

SWEEP = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=1, created_ms=1)


def epoch(number: int, *, terms: int = 2) -> EpochReport:
    return EpochReport(stage="search", epoch=number, epochs=9, metrics={f"term{n}": 0.5 for n in range(terms)})


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_whose_disk_is_full_has_no_half_line_and_no_half_file(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, "0.3")
    store = SweepStore.create(volume.path, SWEEP, spec_text="name: s\n")
    store.plan_trial("t0000", number=0, settings={"x": 1})
    begun = store.start_trial("t0000", now_ms=1)
    for number in (1, 2, 3):
        store.append_epoch("t0000", epoch(number), seconds=1.0, now_ms=2)
    store.log("all is well")
    before = files(store.folder)
    volume.fill()
    writes: list[Callable[[], object]] = [
        lambda: store.append_epoch("t0000", epoch(4, terms=500), seconds=1.0, now_ms=3),
        lambda: store.log("x" * 9000),
        lambda: store.finish_trial(replace(begun, state="done", ended_ms=9)),
        lambda: store.save_sweep(SWEEP),
        lambda: store.start_trial("t0000", now_ms=4),
    ]
    for write in writes:
        with pytest.raises(OSError, match="No space left"):
            write()
        with (
            patient(),
            pytest.raises(StorageUnavailableError, match="/s: there is no space left; make room there, and"),
        ):
            write()
    assert files(store.folder) == before
    volume.free()
    with patient():
        for write in writes[:2]:
            write()
    assert [line["epoch"] for line in store.history("t0000")] == [1, 2, 3, 4]


def test_a_checkpoint_or_a_network_that_does_not_fit_leaves_the_one_that_is_there(volume: Volume) -> None:
    newest, old = volume.path / "checkpoint.pt", volume.path / "checkpoint-1.pt"
    for value in (1.0, 2.0):
        replace_tensors({"weights": torch.full((1000,), value)}, newest, old=old)
    with replaced(volume.path / "model") as folder:
        (folder / "model.pt").write_text("of before")
    volume.fill(leave=100_000)
    before = files(volume.path)
    with pytest.raises(OSError, match="No space left"):
        replace_tensors({"weights": torch.zeros(100_000)}, newest, old=old)
    with pytest.raises(OSError, match="No space left"), replaced(volume.path / "model") as folder:
        (folder / "model.pt").write_bytes(bytes(400_000))
    assert files(volume.path) == before
    assert [float(read_tensors(path)["weights"][0]) for path in (newest, old)] == [2.0, 1.0]
