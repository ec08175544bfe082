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
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from service.launched import Launched
from service.preflight import check_resources
from service.tracking import first_line
from trainables.errors import ConfigError

CONNECT_S = 5.0
START_S, IMPORT_S, POLL_S = 60.0, 30.0, 0.2
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
    _set_environment()
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
    _set_environment()
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


def _set_environment() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Workers stay in the driver's folder: a relative data.root is one place for both.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"


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
        _init(address)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers there: {first_line(error)}") from None


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
