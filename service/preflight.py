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
    needed, found = spec.resources.workers * spec.resources.cpus_per_worker, os.cpu_count() or 1
    if needed > found:
        raise ConfigError(
            f"resources: a trial asks for {needed} CPUs ({spec.resources.workers} workers × "
            f"{spec.resources.cpus_per_worker}), this machine has {found}; ask for fewer."
        )


def _check_storage(storage: Path) -> None:
    place = next(path for path in (storage, *storage.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"storage.path: {storage} cannot be written: {place} is not a writable folder.")
