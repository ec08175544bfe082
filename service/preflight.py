"""What can be known to fail before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

from service.spec import SweepSpec
from service.tracking import check_tracking, resolve_uri
from trainables.data import check_data
from trainables.errors import ConfigError


def check(spec: SweepSpec) -> None:
    """Raises a BitfrontError for missing data, too few CPUs, storage or a tracking server that cannot be used."""
    check_data(spec.data)
    _check_cpus(spec)
    storage = Path(spec.storage.path).absolute()
    _check_storage(storage)
    check_tracking(resolve_uri(spec.tracking.uri, storage))


def _check_cpus(spec: SweepSpec) -> None:
    resources, found = spec.resources, os.cpu_count() or 1
    needed = resources.workers * resources.cpus_per_worker
    if needed > found:
        raise ConfigError(
            f"resources: a trial asks for {needed} CPUs ({resources.workers} workers × {resources.cpus_per_worker}), "
            f"this machine has {found}; ask for fewer."
        )
    # A trial in its own process waits its turn; workers under Ray Train would time out, again and again.
    if resources.launch_resolved == "train" and needed * resources.concurrency > found:
        raise ConfigError(
            f"resources: {resources.concurrency} trials at once ask for {needed * resources.concurrency} CPUs, "
            f"this machine has {found}; set concurrency to {found // needed}."
        )


def _check_storage(storage: Path) -> None:
    place = next(path for path in (storage, *storage.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"storage.path: {storage} cannot be written: {place} is not a writable folder.")
