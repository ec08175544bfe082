"""Messages to people, to a real server on this machine that answers as it is told."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from service import notify as notify_module
from service.notify import VARIABLE, escaped, message, notify

SECRET = "T012/B345/very-secret"


class Webhook:
    """A server that gives its answers one after the other, then 200; and keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.got: list[tuple[str, Any]] = []
        self.delay_s = 0.0
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.got.append((self.path, json.loads(body)))
                time.sleep(webhook.delay_s)
                status, headers = webhook.answers.pop(0) if webhook.answers else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def do_GET(self) -> None:
                webhook.got.append((self.path, None))
                self.send_error(405)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/{SECRET}"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    found = Webhook()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv(VARIABLE, found.url)
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def test_a_message_arrives_as_slack_wants_it(webhook: Webhook) -> None:
    facts = {"top-1 <now>": "61.2 & falling", "trial": "t0003"}
    assert notify("Night <1> & 2: drifted", facts=facts, link="http://mlflow/#/runs/1?a=1&b=<x|y>")
    (path, body) = webhook.got[0]
    assert path == f"/services/{SECRET}"
    assert body == {
        "text": "Night &lt;1&gt; &amp; 2: drifted",
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": "Night &lt;1&gt; &amp; 2: drifted"}},
            {"type": "section", "fields": [
                {"type": "mrkdwn", "text": "*top-1 &lt;now&gt;*\n61.2 &amp; falling"},
                {"type": "mrkdwn", "text": "*trial*\nt0003"},
            ]},
            {"type": "section", "text": {
                "type": "mrkdwn", "text": "<http://mlflow/#/runs/1?a=1&amp;b=&lt;x%7Cy&gt;|More of it>"}},
        ],
    }  # fmt: skip


def test_whatever_is_told_keeps_slacks_limits() -> None:
    long = message("&" * 9000, {f"{'<' * 300}{n}": ">" * 3000 for n in range(500)}, "http://x/" + "y" * 9000)
    assert len(long["blocks"]) <= 50
    assert len(long["text"]) <= 3000
    assert len(long["blocks"][0]["text"]["text"]) <= 3000
    for block in long["blocks"][1:]:
        assert 1 <= len(block["fields"]) <= 10
        assert all(len(field["text"]) <= 2000 for field in block["fields"])
    assert [block for block in message("a", {}, "javascript:alert(1)")["blocks"] if "fields" in block] == []
    assert len(message("a", {}, "javascript:alert(1)")["blocks"]) == 1


def test_a_text_that_is_cut_is_cut_between_signs() -> None:
    assert escaped("a&b", 7) == "a&amp;b"
    assert escaped("a&b", 6) == "a…"
    assert escaped("&&&", 11) == "&amp;&amp;…"
    assert escaped("\ud800", 9) == "?"


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(webhook: Webhook, status: int) -> None:
    waited: list[float] = []
    webhook.answers = [(status, {}), (status, {})]
    assert notify("a", facts={}, sleep=waited.append)
    assert (len(webhook.got), waited) == (3, [1.0, 2.0])
    webhook.answers = [(status, {"Retry-After": value}) for value in ("7", "99999", "never")]
    assert not notify("a", facts={}, sleep=waited.append)
    assert waited[2:] == [7.0, 30.0]


def test_retry_after_may_be_a_date(webhook: Webhook) -> None:
    waited: list[float] = []
    webhook.answers = [(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), (429, {"Retry-After": "nan"})]
    assert notify("a", facts={}, sleep=waited.append)
    assert waited == [1.0, 2.0]


@pytest.mark.parametrize("status", [302, 400, 403, 404, 410])
def test_what_another_try_would_not_change_is_tried_once(
    webhook: Webhook, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    webhook.answers = [(status, {"Location": webhook.url})]
    assert not notify("a", facts={}, sleep=lambda _: pytest.fail("no pause"))
    assert len(webhook.got) == 1
    assert f"it answered {status}" in caplog.text
    assert SECRET not in caplog.text


def test_a_server_that_does_not_answer_is_given_up(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notify_module, "TIMEOUT_S", 0.05)
    webhook.delay_s = 0.15
    assert not notify("a", facts={}, sleep=lambda _: None)
    assert "TimeoutError" in caplog.text
    assert SECRET not in caplog.text


def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    "address",
    [
        f"http://127.0.0.1:{{port}}/{SECRET}", f"http://[{SECRET}/", f"http:///{SECRET}", f"file:///etc/{SECRET}",
        f"ftp://x/{SECRET}", SECRET, f"http://127.0.0.1:{{port}}/{SECRET} a\nb", f"http://é{'x' * 99}.{SECRET}",
        f"http://127.0.0.1:port/{SECRET}", f"http://\udcff/{SECRET}",
    ],
)  # fmt: skip
def test_no_address_makes_it_raise_or_is_printed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    address: str,
) -> None:
    monkeypatch.setenv(VARIABLE, address.replace("{port}", str(unused_port())))
    with caplog.at_level(logging.DEBUG):
        assert not notify("a", facts={}, sleep=lambda _: None)
    told = capfd.readouterr()
    assert "secret" not in caplog.text + told.out + told.err
    assert VARIABLE in caplog.text


def test_without_an_address_nobody_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for value in ("", " "):
        monkeypatch.setenv(VARIABLE, value)
        assert not notify("a", facts={})
    monkeypatch.delenv(VARIABLE)
    assert not notify("a", facts={})
    assert caplog.text == ""
