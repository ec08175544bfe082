"""Several processes that record the same in MLflow at the same moment, as after a driver was lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from service.tracking import refusal
from trainables.errors import TrackingError

T = TypeVar("T")

PATIENCE_S = 20.0
"""No further attempt is begun after this. Each finds one more thing that another process has made meanwhile."""
SIGNS = (
    "RESOURCE_ALREADY_EXISTS",
    "must be in the 'active' state",  # the run was the second of its kind, and was deleted
    "IntegrityError",  # SQLite, MySQL
    "UniqueViolation",  # PostgreSQL
    "database is locked",
)


def refusals() -> tuple[type[Exception], ...]:
    """What MLflow raises where it refuses."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError


def make_once(make: Callable[[], T], *, uri: str, what: str) -> T:
    """What `make` returns, which finds what there is in MLflow and makes the rest.

    Where another process has made the same meanwhile, or deleted it, it is called again. Raises TrackingError where
    MLflow refuses otherwise, and where others come first for too long: `what` names in a word what they do.
    """
    refused = refusals()
    until, attempts = time.monotonic() + PATIENCE_S, 0
    while True:
        try:
            return make()
        except refused as error:
            if not _is_taken(error):
                raise refusal(uri, error) from None
            if time.monotonic() >= until:
                raise TrackingError(f"{refusal(uri, error)}; another process {what} the same: run it again") from None
        attempts += 1
        time.sleep(random.uniform(0, 0.1 * attempts))


def _is_taken(error: Exception) -> bool:
    """Whether what was to be made is there already, or was taken away by one who had made it first."""
    told = f"{getattr(error, 'error_code', '')} {error}"
    return any(sign in told for sign in SIGNS)
