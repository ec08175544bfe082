"""A cluster that encrypts: its answer to a token is asked for by TLS, too."""

import subprocess
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from service.orchestrate.cluster import size
from trainables.errors import ConfigError

OPENSSL = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
    "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
)


class _Refuses(grpc.GenericRpcHandler):
    """As Ray's control store does with a token that is not its own."""

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
            token = dict(context.invocation_metadata()).get("authorization")
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"not with {token == 'Bearer 0123456789'}")
            return b""

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of such a store, and the environment of whoever is to reach it."""
    subprocess.run(OPENSSL.split(), cwd=tmp_path, check=True, capture_output=True)
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((_Refuses(),))
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    for name, file in (("SERVER_CERT", certificate), ("SERVER_KEY", key), ("CA_CERT", certificate)):
        monkeypatch.setenv(f"RAY_TLS_{name}", str(file))
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789")
    yield f"127.0.0.1:{port}"
    server.stop(0)


def test_a_token_that_an_encrypted_cluster_refuses_is_told_at_once(encrypted: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^--address {encrypted}: the cluster refuses the token, or the lack of one \(not with True\)",
    ):
        size(encrypted)
