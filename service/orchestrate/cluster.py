"""A Ray for a sweep: one of its own on this machine, or a cluster that is there."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from service.launched import Launched
from service.preflight import check_resources
from service.tracking import first_line
from trainables.errors import ConfigError

CONNECT_S = 5.0
GIVE_UP_S = "10"
"""A driver whose own Ray has been killed should end, not wait a minute for it to come back."""


@contextmanager
def connected(spec: Launched, address: str) -> Iterator[None]:
    """A Ray of our own for the time of a sweep, the cluster at `address`, or the one that this process already uses."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Workers stay in the driver's folder: a relative data.root is one place for both.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    if ray.is_initialized():
        _check(spec)
        yield
        return
    _start(address)
    try:
        _check(spec)
        yield
    finally:
        _stop()


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
