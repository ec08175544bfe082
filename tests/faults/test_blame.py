"""What a trial met that went wrong: its storage is to blame, and the sweep ends, or the trial alone has failed."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from service.orchestrate.worker import settle_failure
from service.records import SweepRecord, SweepStore
from trainables.errors import StorageUnavailableError

SWEEP = SweepRecord(name="s", spec_hash="h", facts={}, total_trials=1, created_ms=1)


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    store = SweepStore.create(tmp_path / "st", SWEEP, spec_text="name: s\n")
    store.plan_trial("t0000", number=0, settings={})
    return store


def met(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    "error",
    [
        met(errno.EIO, "/data/img/17.jpg"),
        met(errno.EIO),
        met(errno.EROFS, "/data/index.json"),
        met(errno.ETIMEDOUT),
        met(errno.ENETUNREACH),
        met(errno.ENXIO, "/dev/fast0"),
    ],
    ids=str,
)
def test_what_is_broken_elsewhere_fails_the_trial_and_not_the_sweep(store: SweepStore, error: OSError) -> None:
    record = settle_failure(store, store.start_trial("t0000", now_ms=1), error)
    assert (record.state, record.failure, record.error) == ("failed", "error", f"{type(error).__name__}: {error}")
    assert not list(store.folder.glob(".*"))


def test_a_file_of_the_storage_that_cannot_be_read_ends_the_sweep(store: SweepStore) -> None:
    error = met(errno.EIO, str(store.references / "r.pt"))
    with pytest.raises(StorageUnavailableError, match=r"it does not answer .*bring it back, and resume"):
        settle_failure(store, store.start_trial("t0000", now_ms=1), error)


def test_an_error_that_names_no_file_ends_the_sweep_where_the_storage_takes_none(
    store: SweepStore, tmp_path: Path
) -> None:
    begun = store.start_trial("t0000", now_ms=1)
    shutil.move(store.folder, tmp_path / "away")
    with pytest.raises(StorageUnavailableError, match="it does not answer"):
        settle_failure(store, begun, met(errno.EIO))


@pytest.mark.parametrize("names", [(), ("/tmp/x",)])
def test_no_space_left_ends_the_sweep_wherever_it_is(store: SweepStore, names: tuple[str, ...]) -> None:
    begun = store.start_trial("t0000", now_ms=1)
    with pytest.raises(StorageUnavailableError, match=f"{names[0] if names else store.folder}: there is no space left"):
        settle_failure(store, begun, met(errno.ENOSPC, *names))
    assert not store.trial("t0000").final
