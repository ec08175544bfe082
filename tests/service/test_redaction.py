"""No credential leaves the process in a text, whoever raised the error."""

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.redaction import traceback_of, without_credentials
from service.tracking import check_tracking, first_line
from trainables.errors import TrackingError


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("postgresql://mlflow:hunter22@db:5432/x failed", "postgresql://db:5432/x failed"),
        ("headers={'Authorization': 'Bearer abc.def'}, more", "headers={'Authorization': '…'}, more"),
        ("Authorization: Basic dXNlcjpwYXNz\nHost: h", "Authorization: …\nHost: h"),
        ("sent Bearer 0123456789abcdef0123", "sent Bearer …"),
        ("GET /a?X-Amz-Signature=0a1b&x=1", "GET /a?X-Amz-Signature=…&x=1"),
        ("connection failed: host=db password=hunter22 user=x", "connection failed: host=db password=… user=x"),
        ('{"password": "hunter22"}', '{"password": "…"}'),
        ("postgresql://u:p@ss@h/db failed", "postgresql://h/db failed"),
        ("postgresql://u:pa/ss@h/db failed", "postgresql://h/db failed"),
        ("'mysql://u:p@h/db', 'ann@example.org'", "'mysql://h/db', 'ann@example.org'"),
        ("Authorization: Token abcdef", "Authorization: …"),
        ("{'Proxy-Authorization': b'Digest a=\"b\", c', 'x': 1}", "{'Proxy-Authorization': b'…', 'x': 1}"),
        ('{"password": "ab cd", "x": 1}', '{"password": "…", "x": 1}'),
        ('{"token":"it\\"s"}', '{"token":"…"}'),
        ("aws_secret_access_key=wJalr/K7", "aws_secret_access_key=…"),
        ("aws_secret_access_key = wJalr/K7", "aws_secret_access_key = …"),
        ("token=abc", "token=…"),
        ("first\ntoken=abc&x=1", "first\ntoken=…&x=1"),
        ("MYSQL_PWD=abc", "MYSQL_PWD=…"),
        ("DRIVER=x;PWD=abc", "DRIVER=x;PWD=…"),
        ("POST https://hooks.slack.com/services/T0/B0/xyz: 404", "POST https://hooks.slack.com/… 404"),
        (
            "(host='hooks.slack.com') with url: /services/T0/B0/xyz (",
            "(host='hooks.slack.com') with url: /services/… (",
        ),
        # What only talks of them stays as it is.
        ("PWD=/work is the folder", "PWD=/work is the folder"),
        ("http://host:5000/models/a@champion is not there", "http://host:5000/models/a@champion is not there"),
        ("models:/digits@champion, s3://bucket/a@b", "models:/digits@champion, s3://bucket/a@b"),
        ("max_tokens=5, RAY_AUTH_MODE=token or 'disabled'", "max_tokens=5, RAY_AUTH_MODE=token or 'disabled'"),
        ("RAY_AUTH_TOKEN is empty; export it, password or not", "RAY_AUTH_TOKEN is empty; export it, password or not"),
        ("the API /services/ of T/B answers", "the API /services/ of T/B answers"),
        ("basic authentication failed; the token is too old", "basic authentication failed; the token is too old"),
        ("http://host:5000/api failed", "http://host:5000/api failed"),
    ],
)
def test_what_looks_like_a_credential_is_left_out(text: str, left: str) -> None:
    assert without_credentials(text) == left


def test_values_of_secret_variables_are_named_instead_and_other_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0p-s3cret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("BITFRONT_WEBHOOK_URL", "https://hooks.example/T0/B0/xyz")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/run/secrets/ray")
    monkeypatch.setenv("SHORT_TOKEN", "the")
    text = "t0p-s3cret, correct horse, wJalrXUtnFEMI, https://hooks.example/T0/B0/xyz, /run/secrets/ray, the end"
    assert without_credentials(text) == (
        "[RAY_AUTH_TOKEN], [MLFLOW_TRACKING_PASSWORD], [AWS_SECRET_ACCESS_KEY], [BITFRONT_WEBHOOK_URL], "
        "/run/secrets/ray, the end"
    )


def test_the_name_of_an_access_key_stays_and_a_token_in_rays_file_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "auth_token"
    file.write_text("0123456789abcdef\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "bitfront")
    monkeypatch.setenv("MYSQL_PWD", "hunter22")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert without_credentials(f"bitfront: {file}, 0123456789abcdef, hunter22") == (
        f"bitfront: {file}, [RAY_AUTH_TOKEN_PATH], [MYSQL_PWD]"
    )
    # A file that is gone, or no text, is no reason to end.
    file.write_bytes(b"\xff\xfe012345")
    assert without_credentials("fine") == "fine"
    file.unlink()
    assert without_credentials("fine") == "fine"


def test_a_secret_is_not_cut_in_two_before_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789" * 4)
    told = first_line(ValueError("x" * 280 + "0123456789" * 4))
    assert "0123" not in told
    assert len(told) <= 300


def test_a_traceback_names_the_variable_and_not_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2222")
    try:
        raise ValueError("no hunter2222 here")
    except ValueError as error:
        told = traceback_of(error)
    assert told.endswith("ValueError: no [MLFLOW_TRACKING_PASSWORD] here\n")
    assert told.startswith("Traceback")


def test_an_error_that_nobody_foresaw_is_printed_by_the_command_line_without_credentials() -> None:
    program = """
import service.cli, service.cli_records

def fail(*_, **__):
    raise RuntimeError("cannot log in as hunter2222")

service.cli.main.commands["list"].callback = fail
service.cli.main(["list"])
"""
    environment = {**os.environ, "MLFLOW_TRACKING_PASSWORD": "hunter2222"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: cannot log in as [MLFLOW_TRACKING_PASSWORD]\n")
    assert "hunter" not in done.stderr


class _Guarded(http.server.BaseHTTPRequestHandler):
    """Healthy to all, and refuses everybody."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated.")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def guarded() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_mlflow_that_refuses_the_credentials_says_which_were_given_and_not_what_they_are(
    guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2222")
    began = time.monotonic()
    with pytest.raises(
        TrackingError,
        match=r"refuses the credentials \(status 401; it was given MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSW",
    ) as caught:
        check_tracking(guarded)
    assert "hunter" not in str(caught.value)
    assert time.monotonic() - began < 20
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(TrackingError, match="it was given nothing in the environment"):
        check_tracking(guarded)
