"""What a nightly report has besides a sweep's results: the environment of its trials, and the ratio of steps there.

Run at the end of a sweep, by itself:  python -m service.orchestrate.measure STORAGE SWEEP [ADDRESS]
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from service.environment import environment
from service.marks import SWEEP
from service.measured import Measured, read_measured, save_measured
from service.method_choice import example_with
from service.records import SweepStore
from service.spec import SweepSpec
from service.sweeps import find_sweep, stored_spec
from service.varied import METHOD
from service.working_copy import located
from trainables.config import TrialConfig

PREFERRED = ("rgmpq", "gmpq", "bpnas", "edmips", "limpq")
"""Methods whose search has steps; of a sweep with several the first of these is timed."""
WAIT_S = 1800.0
"""For a place on the cluster, and for what runs there: a few seconds unless the cluster is full."""


def timed_config(spec: SweepSpec) -> TrialConfig | None:
    """The trial whose steps are timed: the first example of the first of PREFERRED; None where the sweep has none."""
    method = next((name for name in PREFERRED if name in spec.methods), "")
    if not method:
        return None
    settings = example_with(method, spec.space) if METHOD in spec.space else spec.example_settings()
    return spec.trial_config(settings)


def surroundings(*, threads: int, workers: int) -> dict[str, str]:
    """The environment of a trial on the machine that this runs on."""
    from trainables import api

    return environment(device=api.device(), threads=threads, workers=workers)


def timed(config: TrialConfig | None, *, threads: int, workers: int) -> float:
    """The ratio of steps on the machine that this runs on; 0 where no search has steps."""
    from service.orchestrate.worker import use_threads
    from trainables import api

    use_threads(threads)
    return (api.step_ratio(config, threads=threads, workers=workers) if config else None) or 0.0


def measure(storage: str, name: str, address: str) -> None:
    """Writes into the sweep's folder what is not known yet, from here or from a machine that has its trials.

    The environment comes first: it is known also where the timing fails. What was measured stays, and in another
    environment than that of the trials nothing is timed.
    """
    store = find_sweep(located(storage), name)
    spec, known = stored_spec(store), read_measured(store.folder)
    config = timed_config(spec)
    share = {"threads": spec.resources.cpus_per_worker, "workers": spec.resources.workers}
    with _there(spec, address) as there:
        found = Measured(environment=there(partial(surroundings, **share)))
        if known.environment not in ({}, found.environment):
            return
        _keep(store, found)
        _keep(store, replace(found, step_ratio=there(partial(timed, config, **share))))


def _keep(store: SweepStore, found: Measured) -> None:
    save_measured(store.folder, found)
    if store.replica is not None:
        store.replica.push(store.folder.name, SWEEP)


@contextlib.contextmanager
def _there(spec: SweepSpec, address: str) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """What calls a function with the resources of a worker, in this process or on the cluster at `address`."""
    if not address:
        if not spec.resources.gpus_per_worker:
            # As Ray hides them from trials that ask for none.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        yield lambda function: function()
        return
    import ray

    from service.orchestrate.cluster import connected

    resources = spec.resources
    with connected(spec, address):
        task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)(_call)
        yield lambda function: ray.get(task.remote(function), timeout=WAIT_S)


def _call(function: Callable[[], Any]) -> Any:
    return function()


if __name__ == "__main__":
    # Found by its name where a machine of a cluster unpickles it.
    from service.orchestrate.measure import measure as by_name

    by_name(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "")
