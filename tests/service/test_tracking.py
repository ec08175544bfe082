"""Where MLflow keeps its records: what is refused, what is reached."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.tracking import check_tracking, connect, first_line, resolve_uri, server_address
from trainables.errors import TrackingError


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:{port}", r"http://127\.0\.0\.1:\d+ cannot be reached"),
        ("http://me:secret@127.0.0.1:{port}", r"http://127\.0\.0\.1:\d+ cannot be reached"),
        ("htp://x", r"has the scheme 'htp'; did you mean 'http'\?"),
        ("sqlite:////dev/null/mlflow.db", "cannot be created: /dev/null is not a writable folder"),
    ],
)
def test_a_tracking_place_that_cannot_work_is_one_clear_error_within_seconds(
    uri: str, message: str, closed_port: int
) -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match=message) as caught:
        check_tracking(uri.format(port=closed_port))
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_a_file_that_is_no_database_is_refused_and_a_missing_one_is_not_created(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, and long enough to have a header of one hundred bytes" * 3)
    with pytest.raises(TrackingError, match=r"text\.db cannot be used as an SQLite database"):
        check_tracking(f"sqlite:///{tmp_path / 'text.db'}")
    check_tracking(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}")
    assert [p.name for p in tmp_path.iterdir()] == ["text.db"]


def test_credentials_of_an_address_are_in_no_message() -> None:
    error = OSError("HTTPConnectionPool: http://me:secret@host:5000/api failed\nand more")
    assert first_line(error) == "HTTPConnectionPool: http://host:5000/api failed"


def test_people_see_a_servers_records_there_and_a_databases_in_the_ui() -> None:
    assert server_address("https://me:secret@host:443/mlflow/") == "https://host:443/mlflow"
    assert server_address("sqlite:////tmp/mlflow.db") == "http://127.0.0.1:5000"


def test_an_address_with_credentials_reaches_the_server(tmp_path: Path, serve: Callable[[Path], str]) -> None:
    connect(resolve_uri("", tmp_path)).search_experiments(max_results=1)
    check_tracking(serve(tmp_path).replace("http://", "http://me:secret@"))
