"""A study's journal on a storage that refuses a moment too early or too late: every line stands there once."""

import errno
import os
import time
from pathlib import Path

import pytest

from service.orchestrate.searcher import open_study
from service.records import SweepRecord, SweepStore
from trainables.patience import WAIT_VARIABLE, patient

SWEEP = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=2, created_ms=1, objectives=("top1",))


class Refusal:
    """Of the system's function `name`, for the next `times` calls on files whose names end like this."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, ending: str = "", *, times: int = 1) -> None:
        self.left, self._real, self._ending = times, getattr(os, name), ending
        monkeypatch.setattr(os, name, self)

    def __call__(self, file: object, *others: object, **named: object) -> object:
        if self.left and str(file).endswith(self._ending):
            self.left -= 1
            raise OSError(errno.EROFS, "Read-only file system", str(file))
        return self._real(file, *others, **named)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepStore:
    monkeypatch.setenv(WAIT_VARIABLE, "5")
    return SweepStore.create(tmp_path, SWEEP, spec_text="name: s\n")


def test_a_lock_that_cannot_be_given_back_doubles_no_line_and_is_not_waited_for(
    store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(store)
    refusals = [Refusal(monkeypatch, name, ".lock") for name in ("rename", "unlink")]
    began = time.monotonic()
    with patient():
        study.ask()
        study.ask()
    assert [trial.number for trial in open_study(store).trials] == [0, 1]
    assert time.monotonic() - began < 5
    assert not all(refusal.left for refusal in refusals)
    assert not list(store.folder.glob("study.journal.*"))


def test_lines_that_could_neither_be_kept_nor_taken_away_are_taken_away_before_they_are_written_again(
    store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(store)
    refusals = [Refusal(monkeypatch, "fsync"), Refusal(monkeypatch, "truncate")]
    with patient():
        study.ask()
    assert [refusal.left for refusal in refusals] == [0, 0]
    assert [trial.number for trial in open_study(store).trials] == [0]
