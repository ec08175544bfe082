"""A server on loopback that answers as Ray's dashboard does."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Says Ray's version; what else it is asked, a subclass answers."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/version"):
            version = {"version": "4", "ray_version": ray.__version__, "ray_commit": "x", "session_name": "x"}
            self.answer(200, version)
        else:
            self.asked()

    def asked(self) -> None:
        raise NotImplementedError

    def answer(self, status: int, content: object) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(dashboard: type[Dashboard]) -> Iterator[str]:
    """The address of such a server, while it answers."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
