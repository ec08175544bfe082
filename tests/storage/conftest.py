import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.object_store import ObjectStore, file_system
from service.replica import Replica, replica_of
from service.working_copy import located

REGION = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "a-secret-key", "AWS_DEFAULT_REGION": "us-east-1"}


class Proxy:
    """In front of the server: passes everything on, or is as a network that has failed."""

    def __init__(self, port: int) -> None:
        self.is_down, self._target = False, port
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def down(self) -> None:
        """Every connection breaks, and no other is answered."""
        self.is_down = True
        for connection in self._connections:
            self._shut(connection)
        self._connections.clear()

    def up(self) -> None:
        self.is_down = False

    def close(self) -> None:
        self.down()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_down:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._connections += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        self._shut(source)
        self._shut(sink)

    @staticmethod
    def _shut(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """A real S3-compatible server on loopback; its port."""
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
            break
        except OSError:
            time.sleep(0.05)
    yield port
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="session")
def only_proxy(server: int) -> Iterator[Proxy]:
    made = Proxy(server)
    yield made
    made.close()


@pytest.fixture
def proxy(only_proxy: Proxy) -> Iterator[Proxy]:
    yield only_proxy
    only_proxy.up()


@pytest.fixture
def url(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage in a bucket of its own; the environment says where."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**REGION, "AWS_ENDPOINT_URL": proxy.url}.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    file_system().mkdir(bucket)
    return f"s3://{bucket}/some/sweeps"


@pytest.fixture
def store(url: str) -> ObjectStore:
    return ObjectStore(url)


@pytest.fixture
def machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Replica]:
    """The storage as a machine of this name has it, in a working copy of its own."""

    def on(name: str) -> Replica:
        monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / name))
        found = replica_of(located(url))
        assert found is not None
        return found

    return on
