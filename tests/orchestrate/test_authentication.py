"""Tokens reach Ray from the environment, and a Ray of one's own is for nobody else."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.tune.execution import class_cache

from service.orchestrate.sweep import keep_credentials

from .conftest import ROOT, Bitfront

OWN_RAY = """
import os, ray
import psutil  # Ray brings it
from service.orchestrate import cluster

cluster.begin(imports=False)
cluster._begun[-1].wait()
print("token", os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]))
me = psutil.Process()
for one in (me, *me.children(recursive=True)):
    assert os.environ["RAY_AUTH_TOKEN"] not in " ".join(one.cmdline())
    for port in one.net_connections(kind="tcp"):
        if port.status == psutil.CONN_LISTEN:
            print("listens", port.laddr.ip, one.name())
ray.shutdown()
"""


class _Dashboard(http.server.BaseHTTPRequestHandler):
    """Notes what it is given as authorization, and refuses it."""

    def do_GET(self) -> None:
        self.server.seen.append(self.headers.get("Authorization"))  # type: ignore[attr-defined]
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"Forbidden: Invalid authentication token")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Dashboard) as server:
        server.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def without_ray(**changes: str) -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if not key.startswith("RAY_")}, **changes}


def test_a_token_in_a_file_is_sent_without_more_being_said_and_its_refusal_says_what_to_export(
    bitfront: Bitfront, dashboard: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("t0p-s3cret-of-a-cluster\n")
    bitfront.environment = without_ray(PYTHONPATH=str(ROOT), RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    output = bitfront("status", "s", "--address", f"http://127.0.0.1:{dashboard.server_port}", status=2)
    assert set(dashboard.seen) == {"Bearer t0p-s3cret-of-a-cluster"}  # type: ignore[attr-defined]
    assert "the cluster refuses the token, or the lack of one" in output
    assert "Export RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN" in output
    assert "t0p-s3cret" not in output
    assert "Traceback" not in output


def test_tune_passes_no_credentials_into_environments_that_ray_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(class_cache.ENV_VARS_TO_PROPAGATE))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "t0p-s3cret")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")

    def environment() -> dict[str, str]:
        actor = class_cache._ActorClassCache().get(type("Trainable", (), {}))
        found: dict[str, str] = actor._default_options["runtime_env"]["env_vars"]
        return found

    assert environment()["AWS_SECRET_ACCESS_KEY"] == "t0p-s3cret"
    keep_credentials()
    assert environment().keys() >= {"RAY_CHDIR_TO_TRIAL_DIR"}
    assert not any(name.startswith("AWS_") for name in environment())


@pytest.mark.long
def test_a_ray_of_ones_own_listens_on_loopback_alone_and_asks_for_a_random_token(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWN_RAY], env=without_ray(PYTHONPATH=str(ROOT), HOME=str(tmp_path)),
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "token token 64" in done.stdout
    listening = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")]
    assert len(listening) >= 5
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert "Token authentication" not in done.stdout + done.stderr
    # Ray would leave a token there.
    assert not list((tmp_path / ".ray").glob("*"))
