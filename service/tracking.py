"""Where MLflow keeps its records: found, checked, opened; and its UI on them.

With `service.run_writer`, which writes runs there, and `service.registry`, the only module that speaks to MLflow.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from service.redaction import without_credentials
from service.tracking_errors import meaning
from trainables.errors import TrackingError, did_you_mean

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
PROBE_TIMEOUT_S = 5.0
UI_ADDRESS = "http://127.0.0.1:5000"
"""Where `bitfront ui` shows a database's records, unless it is told otherwise."""
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""By these variables MLflow's client authenticates itself. They are never written down."""
REDIRECTIONS = ("MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID")
"""Variables that the client obeys without being asked: it would add our metrics to another's model. Those that name a
run, an experiment or a place it needs only where none is given."""


def resolve_uri(uri: str, storage: Path) -> str:
    """The tracking URI; empty means the SQLite database in the storage."""
    return uri or f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def check_tracking(uri: str) -> None:
    """Raises TrackingError within seconds unless `uri` can be written to. Creates nothing."""
    scheme = uri.split(":", 1)[0].split("+", 1)[0]
    if scheme in ("http", "https"):
        _probe_server(uri)
    elif scheme == "sqlite":
        _probe_sqlite(database_path(uri))
    elif scheme not in DATABASES:
        known = ("http", "https", *DATABASES)
        raise TrackingError(f"tracking.uri: {uri!r} has the scheme {scheme!r}{did_you_mean(scheme, known)}.")
    if scheme != "sqlite":
        try:
            connect(uri).search_experiments(max_results=1)
        except Exception as error:  # MLflow passes on whatever its stores and requests raise
            raise _refused(uri, error) from None


def _probe_server(uri: str) -> None:
    try:
        urllib.request.urlopen(without_secrets(uri).rstrip("/") + "/health", timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            raise TrackingError(
                f"tracking.uri: {without_secrets(uri)} answers with status {error.code}; is it an MLflow server?"
            ) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise TrackingError(
            f"tracking.uri: {without_secrets(uri)} cannot be reached ({first_line(error)}). Start the server, correct "
            "the address, or leave tracking.uri out to record in the sweep's storage."
        ) from None


def _refused(uri: str, error: Exception) -> TrackingError:
    """Why the server or database at `uri` cannot be used, and what mends it."""
    place, status = without_secrets(uri), getattr(error, "get_http_status_code", lambda: 0)()
    if uri.startswith("http") and status in (401, 403):
        given = " and ".join(name for name in CREDENTIALS if os.environ.get(name)) or "nothing in the environment"
        return TrackingError(
            f"tracking.uri: {place} refuses the credentials (status {status}; it was given {given}). Export "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, where the sweep runs; of "
            "a submitted one that is on the cluster's machines."
        )
    return TrackingError(f"tracking.uri: {place} does not answer as MLflow: {first_line(error)}")


def _probe_sqlite(path: Path) -> None:
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if path.exists():
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.Error as error:
            raise TrackingError(f"tracking.uri: {path} cannot be used as an SQLite database: {error}.") from None
    elif not place.is_dir() or not os.access(place, os.W_OK):
        raise TrackingError(f"tracking.uri: {path} cannot be created: {place} is not a writable folder.")


def database_path(uri: str) -> Path:
    """The file of an SQLite database."""
    return Path(uri.split("///", 1)[-1])


def refusal(uri: str, error: BaseException) -> TrackingError:
    """What the user is told where MLflow itself refuses."""
    said = meaning(error)
    return TrackingError(f"{without_secrets(uri)} {said}" if said else f"{without_secrets(uri)}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """What an error says first, without credentials."""
    # Shortened last: of a secret that is cut in two nothing would tell that it is one.
    return without_credentials((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def without_secrets(uri: str) -> str:
    """The URI without user and password."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def server_address(uri: str) -> str:
    """Where people see the records: the server's address without credentials, or that of `bitfront ui`."""
    return without_secrets(uri).rstrip("/") if uri.startswith(("http:", "https:")) else UI_ADDRESS


def connect(uri: str) -> MlflowClient:
    """A client of the server or the database, which is made where it is a file that is not there."""
    # MLflow's own defaults block for minutes when a server is away.
    # A run that is asked for twice is there twice; the next sync tries again anyway.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A line with an address for each run that ends.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in REDIRECTIONS:
        os.environ.pop(name, None)
    from mlflow.tracking import MlflowClient

    for name in ("alembic", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints the traceback of what it raises: a full disk is told once, in our words.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if uri.startswith("sqlite:"):
        _create_database(database_path(uri))
    # Or MLFLOW_REGISTRY_URI would send the models elsewhere.
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create_database(path: Path) -> None:
    """Lets MLflow make its tables in a file beside `path` first: killed in the middle of that, it could never go on."""
    if path.exists():
        return
    from mlflow.tracking import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    MlflowClient(tracking_uri=f"sqlite:///{unfinished.absolute()}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):
        os.link(unfinished, path)
    unfinished.unlink()


def serve_ui(storage: Path, uri: str, *, host: str, port: int) -> int:
    """Runs MLflow's server on the database until it ends; its exit status. An empty `uri` is the storage's own."""
    if uri and not uri.startswith("sqlite:"):
        raise TrackingError(
            f"--uri {without_secrets(uri)}: only an SQLite database is opened here; a server has its own pages."
        )
    database = database_path(resolve_uri(uri, storage))
    if not database.exists():
        raise TrackingError(f"{database} does not exist: run a sweep with this storage first, or give --storage.")
    artifacts = (database.resolve().parent / "artifacts").as_uri()
    arguments = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", resolve_uri(uri, storage)]
    arguments += ["--default-artifact-root", artifacts, "--host", host, "--port", str(port), "--workers", "1"]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        return subprocess.call(arguments, env={**os.environ, **settings})
    except KeyboardInterrupt:
        return 0
