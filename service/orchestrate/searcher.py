"""Optuna's samplers behind Ray Tune's searcher: what a study is told is true.

Ray's own searcher tells stopped and failed trials as complete, leaves trials with NaN running for ever, and forgets the
sampler's state on a restore. Here the sweep's storage says which trials there are; the study is brought in line with
it. A sampler is made anew for each trial, seeded by (sampler.seed, the trial's number): what it suggests depends on
these and on the study alone, not on how often the sweep was cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from service.marks import SWEEP_FILE
from service.pareto import METRICS
from service.records import SweepStore, TrialRecord
from service.space import Domain, Scalar, fit, is_active, points, suggest, unit_point
from service.spec import SweepSpec
from trainables.errors import ConfigError, StorageError
from trainables.patience import patiently

LEARNED_ATTR = "learned"
"""Of the study: other sweeps' results are in it."""
TRIAL_ATTR, ORIGIN_ATTR = "trial", "origin"
"""User attributes of the study's trials: the sweep's trial, or another sweep's that it was learned from."""
STATES = {
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "failed": TrialState.FAIL,
}


class StudySearcher(Searcher):  # type: ignore[misc]  # Ray is not typed
    """Hands out the trials that were cut off, then asks the study for new ones; tells it what became of each."""

    def __init__(self, spec: SweepSpec, store: SweepStore) -> None:
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._spec, self._store = spec, store
        self._study = open_study(store)
        self._grid: list[dict[str, Scalar]] = []
        self._running: dict[str, str] = {}
        """Our trial by Tune's id."""
        self._untold: dict[str, tuple[int, int]] = {}
        """Number and key in the study of each trial that the study has not been told of."""
        self._learn_from_others()
        self._catch_up()

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune writes its searcher down; this one is made from the sweep's storage, and knows what ${NAME} stands for.
        return Searcher, ()

    @property
    def remaining(self) -> int:
        """Trials that this searcher will still hand out."""
        return len(self._waiting) + self._spec.trials - self._planned

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial for Tune's `trial_id`: our trial's name, number and settings."""
        if self._waiting:
            record = self._waiting.popleft()
        elif self._planned < self._spec.trials:
            record = self._ask()
        else:
            return Searcher.FINISHED
        self._running[trial_id] = record.trial_id
        return {"trial_id": record.trial_id, "number": record.number, "settings": dict(record.settings)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study what the storage says of the trial; of one that was cut off it says nothing yet."""
        ours = self._running.pop(trial_id, None)
        if ours:
            self._store.refresh(ours)
        record = self._store.result(ours) if ours else None
        if record is not None:
            self._tell(record)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is in its journal, the trials are in the sweep's storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed from its own storage."""

    def _ask(self) -> TrialRecord:
        number = self._planned
        sampler = self._sampler(number)
        self._study.sampler = sampler
        trial = self._study.ask()
        settings = suggest(self._spec.space, trial)
        trial_id = trial_id_of(number)
        trial.set_user_attr(TRIAL_ATTR, trial_id)
        self._untold[trial_id] = trial.number, trial._trial_id
        self._planned += 1
        return self._store.plan_trial(trial_id, number=number, settings=settings)

    def _sampler(self, number: int) -> BaseSampler:
        spec, seed = self._spec, derived_seed(self._spec.sampler.seed, number)
        base = SAMPLERS[spec.sampler.name](seed, spec)
        fixed: Mapping[str, Scalar] = {}
        if number < len(spec.warm_start.points):
            fixed = spec.warm_start.points[number]
        elif spec.sampler.name == "grid":
            self._grid = self._grid or points(spec.space)
            fixed = self._grid[number]
        elif spec.sampler.name == "quasi-random":
            fixed = unit_point(spec.space, sobol_point(len(spec.space), number, seed=spec.sampler.seed))
        return PartialFixedSampler(dict(fixed), base) if fixed else base

    def _tell(self, record: TrialRecord) -> None:
        done = record.state == "done"
        if record.trial_id not in self._untold:
            # It failed, the study knows that, and it was run again.
            if done:
                self._add(record, {TRIAL_ATTR: record.trial_id})
            return
        number, key = self._untold.pop(record.trial_id)
        values = [record.metrics[o.name] for o in self._spec.objectives] if done else None
        for name, value in self._violations(record).items() if done else ():
            # `Trial.set_constraint` does this; a Trial of an existing one would be sampled again.
            self._study._storage.set_trial_system_attr(key, name, value)
        self._study.tell(number, values, state=STATES[record.state])

    def _violations(self, record: TrialRecord) -> dict[str, float]:
        """By the names under which Optuna keeps constraints; above zero is violated."""
        return {f"constraints:{c}": c.violation(record.metrics) for c in self._spec.constraints}

    def _add(self, record: TrialRecord, attributes: dict[str, str]) -> None:
        """A finished trial with values for the study, if its settings lie in the space."""
        settings = fitted(self._spec.space, record.settings)
        if settings is None:
            return
        fixed = FixedTrial(settings)
        suggest(self._spec.space, fixed)
        added = create_trial(
            state=TrialState.COMPLETE,
            params=settings,
            distributions=fixed.distributions,
            values=[record.metrics[o.name] for o in self._spec.objectives],
            user_attrs=attributes,
            system_attrs=self._violations(record),
        )
        self._study.add_trial(added)

    def _learn_from_others(self) -> None:
        """Once: the other sweeps may have gone on since, and a resumed sweep would be another one."""
        if self._study.user_attrs.get(LEARNED_ATTR):
            return
        known = {trial.user_attrs.get(ORIGIN_ATTR) for trial in self._study.trials}
        for name in self._spec.warm_start.sweeps:
            try:
                other = SweepStore.open(self._store.folder.parent / name)
            except StorageError as error:
                raise StorageError(f"warm_start.sweeps: {name!r}: {error}") from None
            for record in other.trials():
                origin = f"{name}/{record.trial_id}"
                if record.state == "done" and origin not in known:
                    self._add(record, {ORIGIN_ATTR: origin})
        self._study.set_user_attr(LEARNED_ATTR, True)

    def _catch_up(self) -> None:
        """Brings the study in line with the storage after a driver was killed, wherever that was."""
        untold: dict[str, FrozenTrial] = {}
        with_values = set()
        for trial in self._study.get_trials(deepcopy=False):
            trial_id = trial.user_attrs.get(TRIAL_ATTR)
            if trial.state == TrialState.COMPLETE:
                with_values.add(trial_id)
            elif trial.state == TrialState.RUNNING and trial_id:
                untold[trial_id] = trial
            elif trial.state == TrialState.RUNNING:
                # Killed in its suggestion. Nobody knows of it; a sampler that went on with it would draw otherwise.
                self._study.tell(trial.number, state=TrialState.FAIL)
        self._untold = {trial_id: (trial.number, trial._trial_id) for trial_id, trial in untold.items()}
        records = {record.trial_id: record for record in self._store.trials()}
        for trial_id, trial in untold.items():
            if trial_id not in records:
                number = int(trial_id.removeprefix("t"))
                records[trial_id] = self._store.plan_trial(trial_id, number=number, settings=trial.params)
        waiting = []
        for record in sorted(records.values(), key=lambda record: record.number):
            if not record.final:
                self._store.interrupt_trial(record.trial_id)
                waiting.append(record)
            elif record.trial_id in self._untold or (record.state == "done" and record.trial_id not in with_values):
                self._tell(record)
        self._waiting = deque(waiting)
        # One more than the highest number, should a trial's folder ever be lost.
        self._planned = max((record.number + 1 for record in records.values()), default=0)


class _Lock(JournalFileSymlinkLock):  # type: ignore[misc]  # Optuna's is not typed here
    """Optuna's, given back also where the storage refuses that: what was written under it is written.

    Optuna would raise, the same lines would be written once more, and wait half a minute for the lock that was left.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._file, self._is_left = Path(f"{path}.lock"), False

    def acquire(self) -> bool:
        """As Optuna does it, once our own from before is gone."""
        if self._is_left:
            self._file.unlink(missing_ok=True)
            self._is_left = False
        return bool(super().acquire())

    def release(self) -> None:
        """Gives it back, now or before it is taken the next time."""
        try:
            self._file.unlink(missing_ok=True)
        except OSError:
            self._is_left = True


class _Journal(JournalFileBackend):  # type: ignore[misc]  # Optuna's is not typed here
    """A journal that waits for its storage, and never has half a line that the next one would run into."""

    def __init__(self, path: str, folder: Path) -> None:
        self._path, self._folder = Path(path), folder
        super().__init__(path, lock_obj=_Lock(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """As Optuna does it; lines that may not all have been kept are taken away again."""
        size = patiently(lambda: self._path.stat().st_size, self._folder, SWEEP_FILE)
        patiently(lambda: self._append(logs, size), self._folder, SWEEP_FILE)

    def _append(self, logs: list[dict[str, Any]], size: int) -> None:
        # What an attempt before has left where not even that could be taken away.
        self._cut(size)
        try:
            super().append_logs(logs)
        except OSError:
            with contextlib.suppress(OSError):
                self._cut(size)
            raise

    def _cut(self, size: int) -> None:
        if self._path.stat().st_size > size:
            os.truncate(self._path, size)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """As Optuna does it, all at once."""
        found = patiently(lambda: list(super(_Journal, self).read_logs(log_number_from)), self._folder, SWEEP_FILE)
        yield from found


def open_study(store: SweepStore) -> optuna.Study:
    """The sweep's study, made where there is none yet. For the sweep's driver alone."""
    journal, sweep = store.folder / "study.journal", store.sweep()
    # A driver that was killed leaves its lock, and perhaps half a line that nobody could read past.
    journal.with_name("study.journal.lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        os.truncate(journal, content.rfind(b"\n") + 1)
    study = optuna.create_study(
        study_name=sweep.name,
        storage=JournalStorage(_Journal(str(journal), store.folder)),
        directions=["maximize" if METRICS[name].direction == "max" else "minimize" for name in sweep.objectives],
        load_if_exists=True,
    )
    if study.metric_names is None:
        study.set_metric_names(list(sweep.objectives))
    return study


def fitted(space: Mapping[str, Domain], settings: Mapping[str, Scalar]) -> dict[str, Scalar] | None:
    """Another sweep's settings as this space has them; None where they are no point of it."""
    if set(settings) != {name for name, domain in space.items() if is_active(domain, settings)}:
        return None
    try:
        return {name: fit(space[name], value) for name, value in settings.items()}
    except ConfigError:
        return None


def trial_id_of(number: int) -> str:
    """Name of a trial in storage and records."""
    return f"t{number:04d}"


def derived_seed(seed: int, number: int) -> int:
    """A seed of 32 bits for trial `number`, as good as independent of those of other trials."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def sobol_point(dimensions: int, number: int, *, seed: int) -> list[float]:
    """Point `number` of a scrambled Sobol sequence in the unit cube."""
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    if number:
        sequence.fast_forward(number)
    with warnings.catch_warnings():
        # One point at a time is no power of two; the sequence as a whole is the same.
        warnings.simplefilter("ignore", UserWarning)
        return [float(x) for x in sequence.random(1)[0]]


def _random(seed: int, spec: SweepSpec) -> BaseSampler:
    return RandomSampler(seed=seed)


def _tpe(seed: int, spec: SweepSpec) -> BaseSampler:
    # Trials that run at once should not be sent to the same place.
    return TPESampler(seed=seed, constant_liar=spec.resources.concurrency > 1)


def _nsga2(seed: int, spec: SweepSpec) -> BaseSampler:
    # Optuna's 50 would make a short sweep one generation of random draws.
    return NSGAIISampler(seed=seed, population_size=max(4, min(50, spec.trials // 4)))


def _gp(seed: int, spec: SweepSpec) -> BaseSampler:
    # It draws entries with a condition at random, and would say so for each of each trial.
    return GPSampler(seed=seed, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[int, SweepSpec], BaseSampler]] = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "random": _random,
    "quasi-random": _random,
    "grid": _random,
}
