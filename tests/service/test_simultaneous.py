"""What several processes make in MLflow at once is there once, and who comes second goes on."""

import sqlite3

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import IntegrityError

from service import simultaneous
from service.simultaneous import make_once
from trainables.errors import TrackingError

URI = "sqlite:////s/mlflow.db"


class Attempts:
    """Fails with these errors, one after the other, the last again and again."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.count = errors, 0

    def __call__(self) -> int:
        self.count += 1
        if self.count > len(self.errors) > 1:
            return self.count
        raise self.errors[min(self.count, len(self.errors)) - 1]


def test_what_another_made_or_deleted_first_is_looked_for_again() -> None:
    attempts = Attempts(
        MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name"),
        MlflowException("(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint"),
        MlflowException("The run 5f must be in the 'active' state. Current state is deleted."),
        IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE constraint failed")),
    )
    assert make_once(attempts, uri=URI, what="records") == 5


def test_what_no_other_process_has_done_is_told_at_once() -> None:
    attempts = Attempts(MlflowException("no such column: runs.name"))
    with pytest.raises(TrackingError, match=r"^sqlite:////s/mlflow.db: no such column: runs.name$"):
        make_once(attempts, uri=URI, what="records")
    assert attempts.count == 1


def test_an_error_that_is_not_mlflows_passes() -> None:
    with pytest.raises(KeyError):
        make_once(Attempts(KeyError("state")), uri=URI, what="records")


def test_others_who_always_come_first_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simultaneous, "PATIENCE_S", 0.2)
    attempts = Attempts(MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed"))
    with pytest.raises(TrackingError, match="another process registers the same: run it again"):
        make_once(attempts, uri=URI, what="registers")
    assert attempts.count > 1
