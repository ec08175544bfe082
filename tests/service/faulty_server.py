"""An HTTP proxy in front of a real server that does what real ones do on bad days."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["well", "hangs", "resets", "forgets"] | int
"""`resets`: closes the connection before anything is done; `forgets`: afterwards, so that the answer is lost. A number:
answers with that status, after `delay_s`."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is what is wanted here."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class FaultyServer:
    """Passes requests on, or does what its `mode` says; may be changed at any time."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.mode: Mode = "well"
        self.delay_s = 0.0
        """Before each request is passed on."""
        self.artifacts_only = False
        """Whether only what is stored as an artifact fails."""
        self.asked: list[float] = []
        """When each request came, on the monotonic clock."""
        self._ended = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __getattr__(self, name: str) -> Callable[[], None]:
                # do_GET, do_POST, do_PUT …
                if not name.startswith("do_"):
                    raise AttributeError(name)
                return lambda: proxy.handle(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(time.monotonic())
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        errs = not self.artifacts_only or "/mlflow-artifacts/" in request.path
        mode = self.mode if errs else "well"
        if mode == "hangs":
            while self.mode == "hangs" and not self._ended.wait(0.1):
                pass
            return self._reset(request)
        if mode == "resets":
            return self._reset(request)
        if isinstance(mode, int):
            return self._answer(request, mode, b'{"message": "it is a bad day"}', "application/json")
        time.sleep(self.delay_s)
        status, content, kind = self._passed_on(request, body)
        if mode == "forgets":
            return self._reset(request)
        return self._answer(request, status, content, kind)

    def _passed_on(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection(str(self.target.hostname), self.target.port, timeout=60)
        with contextlib.closing(connection):
            headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host",)}
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers.get("Content-Type", "application/json")

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, status: int, content: bytes, kind: str) -> None:
        with contextlib.suppress(OSError):
            request.send_response(status)
            request.send_header("Content-Type", kind)
            request.send_header("Content-Length", str(len(content)))
            if status in (429, 503):
                request.send_header("Retry-After", "60")
            request.end_headers()
            request.wfile.write(content)

    @staticmethod
    def _reset(request: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()
        request.close_connection = True


@contextmanager
def faulty(target: str) -> Iterator[FaultyServer]:
    """In front of the server at `target`."""
    server = FaultyServer(target)
    try:
        yield server
    finally:
        server.close()
