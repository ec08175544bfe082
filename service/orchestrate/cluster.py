"""A Ray for a sweep: one of its own on this machine, or a cluster that is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from service.spec import SweepSpec
from trainables.errors import ConfigError

GIVE_UP_S = "10"
"""A driver whose own Ray has been killed should end, not wait a minute for it to come back."""


@contextmanager
def connected(spec: SweepSpec, address: str) -> Iterator[None]:
    """A Ray of our own for the time of a sweep, the cluster at `address`, or the one that this process already uses."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if ray.is_initialized():
        _check(spec)
        yield
        return
    _start(address)
    try:
        _check(spec)
        yield
    finally:
        ray.shutdown()


def size(address: str) -> tuple[float, float]:
    """CPUs and GPUs of the cluster at `address`."""
    _start(address)
    try:
        found = ray.cluster_resources()
    finally:
        ray.shutdown()
    return found.get("CPU", 0.0), found.get("GPU", 0.0)


def _start(address: str) -> None:
    if not address:
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", GIVE_UP_S)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        return
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address is {address}, Ray's client protocol, over which Tune does not run. Give the head's own address "
            "(host:6379) on a machine of the cluster, or send the sweep there with: bitfront submit"
        )
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, ValueError) as error:
        line = (str(error).strip().splitlines() or ["no answer"])[0]
        raise ConfigError(f"--address {address}: no Ray cluster answers there: {line}") from None


def _check(spec: SweepSpec) -> None:
    """Raises ConfigError where the cluster as a whole is too small for one trial."""
    resources, found = spec.resources, ray.cluster_resources()
    for kind, each in (("CPU", resources.cpus_per_worker), ("GPU", resources.gpus_per_worker)):
        needed = each * resources.workers
        if needed > found.get(kind, 0):
            raise ConfigError(
                f"resources: a trial asks for {needed:g} {kind}s ({resources.workers} workers × {each:g}), the cluster "
                f"has {found.get(kind, 0):g}; ask for fewer."
            )
