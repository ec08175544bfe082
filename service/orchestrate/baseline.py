"""A finished sweep's random policy: drawn at the knee's cost, finetuned on Ray as a trial is, kept beside the trials.

Whatever goes wrong here is a line in the sweep's log: the sweep itself has ended well before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable

import ray

from service import driver
from service.baseline import Baseline, baseline_folder, policy_of
from service.files import write_text
from service.front import find_front
from service.marks import RANDOM
from service.orchestrate.failures import unwrapped
from service.orchestrate.reference import StoppedError, awaited, silent, task_options
from service.orchestrate.worker import FinetuneJob, Science, finetune_policy_at
from service.progress import Progress
from service.records import SweepStore, TrialRecord
from service.redaction import traceback_of, without_credentials
from service.settings import parse_duration
from service.spec import SweepSpec
from service.standing import clock
from service.working_copy import Place
from trainables import api
from trainables.errors import BitfrontError, ConfigError, StorageError
from trainables.policy_file import PolicyRecord, all_costs


def baseline_is_due(spec: SweepSpec, store: SweepStore) -> bool:
    """Whether the sweep wants a random policy, and has time left for it."""
    limit = parse_duration(spec.limits.wall_time)
    return baseline_is_wanted(spec, store) and not (limit and store.sweep().running_s >= limit)


def baseline_is_wanted(spec: SweepSpec, store: SweepStore) -> bool:
    """Whether the sweep wants a random policy that it does not have, or has of another knee."""
    knee = find_front(store.trials(), store.sweep()).knee
    if knee is None or not (spec.gallery.random and spec.gallery.images):
        return False
    kept = Baseline.find(store.folder)
    return kept is None or not kept.is_of(knee.trial_id, knee.policy_hash, spec.seed)


def make_baseline(
    spec: SweepSpec,
    store: SweepStore,
    progress: Progress,
    science: Science,
    *,
    seconds: float,
    meanwhile: Callable[[], object],
) -> None:
    """Draws and finetunes the random policy of the knee, in at most so many seconds. Raises nothing.

    `meanwhile` is called once while a worker finetunes; not at all where none comes to it. Ctrl-C
    ends this alone, as a request to stop does: the sweep is finished.
    """
    more = f"no time left within limits.wall_time; `bitfront extend {store.folder.name} --wall-time …` makes it"
    if seconds <= 0:
        progress.note(f"random policy: {more}")
        return
    knee = find_front(store.trials(), store.sweep()).knee
    assert knee is not None  # it is not due without one
    again = f"`bitfront resume {store.folder.name}` makes it"
    wanted = Baseline(knee=knee.trial_id, knee_policy=knee.policy_hash, seed=spec.seed)
    progress.note(f"random policy of {knee.trial_id}'s cost: finetuning, to compare attribution with …")
    try:
        told = _described(_made(spec, store, knee, wanted, science, seconds=seconds, meanwhile=meanwhile))
    except (StoppedError, KeyboardInterrupt):
        # After Ctrl-C nothing else is begun either.
        driver.end_here(store.folder)
        told = f"stopped on request; {again}"
    except TimeoutError:
        of_trial = parse_duration(spec.limits.trial_time)
        told = f"ran longer than limits.trial_time; {again}" if of_trial and of_trial < seconds else more
    except Exception as error:
        told = _reason(store, wanted, unwrapped(error), again)
    progress.note(f"random policy: {told}")


def _reason(store: SweepStore, wanted: Baseline, error: BaseException, again: str) -> str:
    """What the user is told; what another attempt would not mend is the record, the traceback of all else is kept."""
    with contextlib.suppress(OSError, BitfrontError):
        if isinstance(error, ConfigError):
            dataclasses.replace(wanted, error=str(error)).save(store.folder)
            return f"none: {error}"
        if not isinstance(error, BitfrontError):
            write_text(store.folder / "random-error.txt", traceback_of(error))
    lines = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {without_credentials(lines[-1])[:300]}; {again}"


def _described(found: Baseline) -> str:
    if found.error:
        return found.error
    metrics, seconds = found.metrics, 3600 * found.metrics["device_hours"]
    return (
        f"top-1 {metrics['top1']:.2f} %, {metrics['bops_g']:.4g} G BOPs, ARD {metrics['ard']:.3f}; finetuned in "
        f"{clock(seconds)} of device time"
    )


def _made(
    spec: SweepSpec,
    store: SweepStore,
    knee: TrialRecord,
    wanted: Baseline,
    science: Science,
    *,
    seconds: float,
    meanwhile: Callable[[], object],
) -> Baseline:
    policy = _drawn(spec, store, knee)
    job = FinetuneJob(
        baseline=dataclasses.replace(wanted, policy_hash=policy.policy.hash),
        policy=policy,
        config=spec.trial_config(knee.settings),
        sweep_folder=store.folder,
        threads=spec.resources.cpus_per_worker,
        science=science,
    )
    if spec.resources.launch_resolved == "train":
        from service.orchestrate.train import finetune_policy_on_workers

        task = ray.remote(**task_options(spec))(finetune_policy_on_workers)
        made = task.remote(job, spec, sweep=Place.of(store.folder))
    else:
        task = ray.remote(**task_options(spec))(finetune_policy_at)
        made = task.remote(Place.of(store.folder), job, tell=silent)
    limit_s = min(seconds, parse_duration(spec.limits.trial_time) or seconds)
    awaited(made, store, seconds=limit_s, meanwhile=meanwhile)
    _carry(store)
    found = Baseline.find(store.folder)
    if found is None:
        raise RuntimeError("the workers ended without a record")
    return found


def _carry(store: SweepStore) -> None:
    """What is known here of the policy is in the storage, and the other way round."""
    if store.replica is not None:
        store.replica.fetch(store.folder.name, RANDOM)
        store.replica.push(store.folder.name, RANDOM)


def _drawn(spec: SweepSpec, store: SweepStore, knee: TrialRecord) -> PolicyRecord:
    """The policy, with its file written; what was begun of it before is left there, all of another one removed."""
    of_knee = store.policy(knee.trial_id)
    if of_knee.work is None:
        raise ConfigError(f"{knee.trial_id}'s policy file does not say what its layers do.")
    bops_g = of_knee.costs["bops_g"]
    try:
        choices = store.choices(knee.trial_id)
    except StorageError as error:
        # Another attempt would not find them either.
        raise ConfigError(str(error)) from None
    (policy,) = api.random_policies(choices, of_knee.work, bops_g=bops_g, count=1, seed=spec.seed)
    record = dataclasses.replace(
        of_knee,
        policy=policy,
        method="random",
        settings={"bops_g": bops_g, "seed": spec.seed, "knee": knee.trial_id, "knee_policy": knee.policy_hash},
        costs=all_costs(policy, of_knee.work),
    )
    folder, path = baseline_folder(store.folder), policy_of(store.folder)
    if not path.exists() or path.read_text() != record.to_json():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_text(path, record.to_json())
    _carry(store)
    return record
