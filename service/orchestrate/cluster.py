"""A Ray for a sweep: one of its own on this machine, or a cluster that is there.

A Ray of one's own takes seconds to start, and a process on it takes seconds to import what the reference's training
needs. Both happen while the driver reads the sweep's data and counts its networks. The processes of Tune's trials
cannot be had beforehand: an actor with an environment of its own, as Tune gives them, never gets one that has worked.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import AuthenticationError

from service.launched import Launched
from service.preflight import check_resources
from service.tracking import first_line
from trainables.errors import ConfigError

CONNECT_S = 5.0
OOM_RETRIES = "3"
START_S, IMPORT_S, POLL_S = 60.0, 30.0, 0.2
START_TIMED_OUT = "timed out during startup"
"""What Ray says where its processes took too long."""
GIVE_UP_S = "10"
"""A driver whose own Ray has been killed should end, not wait a minute for it to come back."""


NEEDED = ("service.orchestrate.worker", "trainables.reference", "trainables.trial")
"""What the process of a reference imports, and later that of the random policy."""


class _Start:
    """A Ray of our own, started by a thread.

    The thread lives as long as that Ray: the system ends Ray's processes with the thread that has begun them.
    """

    def __init__(self, *, imports: bool) -> None:
        self._ready, self._leaving, self._done = threading.Event(), threading.Event(), threading.Event()
        self._imports = imports
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="bitfront-ray", daemon=True).start()
        # Before Ray's own: it ends no Ray that is half there.
        atexit.register(self._leave)

    def wait(self) -> None:
        """Until Ray is there, and what it was to import. Raises what went wrong."""
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Ray has been shut down."""
        self._done.set()
        atexit.unregister(self._leave)

    def _leave(self) -> None:
        """This process exits: not before Ray is there and can be ended, whatever it imports; Ctrl-C ends no sooner."""
        if not self._ready.is_set():
            signal.signal(signal.SIGINT, lambda *_: None)
        self._leaving.set()
        self._ready.wait(START_S)

    def _run(self) -> None:
        # Ray says that it sets no handler for SIGTERM outside the main thread; drivers have their own.
        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
        try:
            _start("")
            if self._imports:
                self._wait_for_imports()
        except BaseException as error:  # whatever it is, also an exit, it is told to whoever needs this Ray
            self._error = error
        finally:
            self._ready.set()
        self._done.wait()

    def _wait_for_imports(self) -> None:
        imported = ray.remote(num_cpus=0, max_retries=0)(_import_needed).remote()
        last = time.monotonic() + IMPORT_S
        while not self._leaving.is_set() and time.monotonic() < last:
            # In short turns: a Ray that is shut down while this waits could end the process, from its C++.
            if ray.wait([imported], timeout=POLL_S)[0]:
                return


_begun: list[_Start] = []
"""At most one: begun, and not connected to yet."""


def begin(*, imports: bool) -> None:
    """Begins to start a Ray of our own, which `connected` waits for; nothing where this process uses one already.

    Should nobody connect, it ends with this process. With `imports`, one of its processes gets ready to compute.
    """
    if ray.is_initialized() or _begun:
        return
    # Not in the thread: two threads that import a package at once can see half of it, and other libraries share these.
    with contextlib.suppress(ImportError):
        importlib.import_module("ray.dashboard.optional_deps")
    _set_environment("")
    _begun.append(_Start(imports=imports))


_kept: list[contextlib.ExitStack] = []
"""At most one: what a connection that is kept open ends with."""


@contextmanager
def kept() -> Iterator[None]:
    """Whoever is `connected` first within this block stays so until its end; nobody is connected by it."""
    with contextlib.ExitStack() as until_then:
        _kept.append(until_then)
        try:
            yield
        finally:
            _kept.pop()


@contextmanager
def connected(spec: Launched, address: str) -> Iterator[None]:
    """A Ray of our own for the time of a sweep, the cluster at `address`, or the one that this process already uses."""
    _set_environment(address)
    with contextlib.ExitStack() as until_then:
        if _begun or not ray.is_initialized():
            _connect(address, _kept[-1] if _kept else until_then)
        _check(spec)
        yield


def _connect(address: str, until_then: contextlib.ExitStack) -> None:
    if not _begun:
        _start(address)
        until_then.callback(_stop)
        return
    start = _begun.pop()
    start.wait()
    until_then.callback(start.end)
    until_then.callback(_stop)
    if threading.current_thread() is threading.main_thread():
        # As Ray does where it is started in this thread: whoever holds something gives it back.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


def _set_environment(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray itself begins a task again without end where its memory monitor has ended it.
    os.environ.setdefault("RAY_task_oom_retries", OOM_RETRIES)
    if address or ray.is_initialized():
        set_auth_mode()
    elif "RAY_AUTH_MODE" not in os.environ:
        # Ray then asks for a token by itself, says so, and would leave one of its own in the home folder.
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # Workers stay in the driver's folder: a relative data.root is one place for both.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"


def set_auth_mode() -> None:
    """Who has a token uses it, by the package's own first lines; who has none says so, or Ray makes one."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    _token()


def _token() -> str:
    """The environment's token, empty where none is used. Raises ConfigError where Ray itself would end the process."""
    given, path = os.environ.get("RAY_AUTH_TOKEN", ""), os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if os.environ["RAY_AUTH_MODE"] != "token" or given:
        return given
    if not path:
        path = str(Path.home() / ".ray" / "auth_token")
    try:
        given = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"RAY_AUTH_MODE is token, but {path} cannot be read: {first_line(error)}.") from None
    if not given:
        raise ConfigError(f"RAY_AUTH_MODE is token, but {path} is empty; write the cluster's token into it.")
    return given


def _check_token(address: str) -> None:
    """Raises ConfigError where the cluster refuses the token; Ray itself tries half a minute and does not say why."""
    grpc = importlib.import_module("grpc")
    header = (("authorization", f"Bearer {_token()}"),) if os.environ["RAY_AUTH_MODE"] == "token" else ()
    with _channel(address) as channel:
        # Of Ray's control store; an empty message is its whole request.
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", metadata=header, timeout=CONNECT_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise ConfigError(refused_token(address, ValueError(error.details()))) from None


def _channel(address: str) -> Any:
    """To a cluster's control store, encrypted where Ray itself is told to be."""
    grpc = importlib.import_module("grpc")
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address)
    certificate, key, authority = importlib.import_module("ray._common.tls_utils").load_certs_from_env()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate))


def _import_needed() -> None:
    for module in NEEDED:
        importlib.import_module(module)


def _stop() -> None:
    """Ends the connection. A reference that another thread collects meanwhile would end the process, from Ray's C++."""
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def size(address: str) -> tuple[float, float]:
    """CPUs and GPUs of the cluster at `address`."""
    _set_environment(address)
    _start(address)
    try:
        found = ray.cluster_resources()
    finally:
        _stop()
    return found.get("CPU", 0.0), found.get("GPU", 0.0)


def _start(address: str) -> None:
    if not address:
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", GIVE_UP_S)
        # Not a cluster that happens to run on this machine.
        with _on_loopback():
            try:
                _init("local", include_dashboard=False)
            except Exception as error:  # Ray raises no class of its own
                if START_TIMED_OUT not in str(error):
                    raise
                # A busy machine: by now what it had to read is in memory.
                _stop()
                _init("local", include_dashboard=False)
        return
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address is {address}, Ray's client protocol, over which Tune does not run. Give the head's own address "
            "(host:6379) on a machine of the cluster, or send the sweep there with: bitfront submit"
        )
    host, _, port = address.rpartition(":")
    try:
        if host:
            # Ray itself waits for minutes.
            socket.create_connection((host, int(port)), CONNECT_S).close()
            _check_token(address)
        _init(address)
    except ConfigError:
        raise
    except AuthenticationError as error:
        raise ConfigError(refused_token(address, error)) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers there: {first_line(error)}") from None


def refused_token(address: str, error: BaseException) -> str:
    """What a user is told whose token the cluster does not take, or asks for."""
    return (
        f"--address {address}: the cluster refuses the token, or the lack of one ({first_line(error)}). Export "
        "RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH of a file that has it."
    )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started within it listens on 127.0.0.1 alone.

    On Linux Ray takes the machine's own address, even for 127.0.0.1, and listens on all: whoever reaches the machine
    could send it work. On systems on which it forms no clusters it takes loopback; this says that here is one.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _init(address: str, **settings: bool) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False, **settings)


def _check(spec: Launched) -> None:
    """Raises SpecError where the cluster is too small for the trials, or each of its machines for one worker."""
    found = ray.cluster_resources()
    check_resources(spec, cpus=found.get("CPU", 0.0), gpus=found.get("GPU", 0.0))
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind, key in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
        each = getattr(spec.resources, key)
        if not any(machine.get(kind, 0.0) >= each for machine in machines):
            largest = max(machine.get(kind, 0.0) for machine in machines)
            message = f"resources.{key}: {each:g} {kind}s for a worker, but no machine has more than {largest:g}"
            raise spec.refuse(("resources", key), f"{message}; ask for fewer")
