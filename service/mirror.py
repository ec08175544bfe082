"""The mirror in MLflow: one parent run for each sweep, one child for each trial.

Everything is found again by tags, so that a mirror can be brought up to date at any time, by any process, and be
rebuilt from the sweep's storage if it is lost.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.front import find_front, ranks
from service.mirror_parent import ParentRun
from service.records import POLICY_FILE, SweepRecord, SweepStore, TrialRecord
from service.run_facts import (
    EPOCHS_TAG,
    ERROR_TAG,
    FAILURE_TAG,
    PARENT_TAG,
    RANK_TAG,
    STATE_TAG,
    SWEEP_TAG,
    TRIAL_TAG,
    datasets,
    epoch_points,
    provenance,
    reference_of,
    result_points,
    trial_tags,
)
from service.run_writer import KnownRun, RunWriter
from service.tracking import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("bitfront.mirror")

PAUSE_S = 0.5
REFRESH_S = 30.0
"""While a driver runs, what changes with every trial and costs a request for each of many is told no more often: ranks
of the other trials, files of the front, the note."""
TRIAL_FILES = (POLICY_FILE, "bits.png")
STATUS = {
    "pending": "KILLED",  # it ran before, and waits for the next driver
    "stale": "KILLED",
    "running": "RUNNING",
    "done": "FINISHED",
    "pruned": "FINISHED",
    "diverged": "FINISHED",
    "failed": "FAILED",
}


@dataclass(slots=True)
class _Runs:
    """A sweep's runs, as MLflow has them."""

    writer: RunWriter
    parent: ParentRun
    children: dict[str, KnownRun]


class Tracker:
    """Brings MLflow in line with a sweep's storage. Runs are addressed by id, whatever the environment says."""

    def __init__(self, store: SweepStore, *, uri: str, experiment: str, clock: Callable[[], float] = time.monotonic):
        self.store, self.uri, self.experiment = store, uri, experiment
        self._clock, self._refresh_at = clock, -float("inf")
        self._runs: _Runs | None = None
        self._ranks: dict[str, int] = {}
        self._hours: dict[str, float] = {}
        """Of final trials, which take no more."""

    def sync(self, *, alive: bool = True) -> float | None:
        """Writes what the storage has and MLflow has not; doing it again changes nothing.

        `alive`: whether a driver runs the sweep. Without one nothing stays RUNNING. Returns in how many seconds another
        sync should follow, because something was left for later; None where nothing was.
        """
        try:
            return self._sync(alive)
        except Exception:
            # What was written before the error is read back by the next sync.
            self._runs = None
            self._refresh_at = -float("inf")
            raise

    def _sync(self, alive: bool) -> float | None:
        sweep, trials = self.store.sweep(), self.store.trials()
        runs = self._runs = self._runs or self._find(sweep)
        found = find_front(trials, sweep)
        if len(found.done) != len(self._ranks) + len(found.infeasible):
            self._ranks = ranks(found)
        members = {trial.trial_id for trial in found.members}
        now = self._clock()
        refresh = not alive or bool(sweep.ended_ms) or now >= self._refresh_at
        behind = False
        for trial in trials:
            if trial.started_ms:
                behind |= self._sync_trial(
                    runs, sweep, trial, member=trial.trial_id in members, alive=alive, refresh=refresh
                )
        ended = [(trial, self._spent(trial)) for trial in trials if trial.final]
        links = {trial_id: f"#/experiments/{runs.writer.experiment_id}/runs/{run.run_id}"
                 for trial_id, run in runs.children.items()}  # fmt: skip
        behind |= runs.parent.sync(sweep, found, ended, links=links, alive=alive, refresh=refresh)
        if refresh:
            self._refresh_at = self._clock() + REFRESH_S
        return max(0.0, self._refresh_at - now) if behind else None

    def _spent(self, trial: TrialRecord) -> float:
        if trial.trial_id not in self._hours:
            self._hours[trial.trial_id] = self.store.spent_hours(trial.trial_id)
        return self._hours[trial.trial_id]

    def _find(self, sweep: SweepRecord) -> _Runs:
        """The sweep's runs, each once; what another process has made twice is deleted."""
        writer = RunWriter(self.uri, experiment=self.experiment, artifacts=self.store.folder.parent / "artifacts")
        parents = writer.find(SWEEP_TAG, sweep.sweep_id)
        for run in parents[1:]:
            for child in writer.find(PARENT_TAG, run.run_id):
                if TRIAL_TAG in child.tags:
                    writer.delete(child)
            writer.delete(run)
        parent = ParentRun(writer, self.store, parents[0] if parents else None)
        children: dict[str, KnownRun] = {}
        for child in writer.find(PARENT_TAG, parent.run.run_id) if parents else []:
            # Without the tag it is somebody else's, hung below the sweep by hand.
            trial_id = child.tags.get(TRIAL_TAG)
            if trial_id is not None and children.setdefault(trial_id, child) is not child:
                writer.delete(child)
        return _Runs(writer, parent, children)

    def _new_child(self, runs: _Runs, sweep: SweepRecord, trial: TrialRecord) -> KnownRun:
        tags = {**provenance(sweep), PARENT_TAG: runs.parent.run.run_id, TRIAL_TAG: trial.trial_id}
        return runs.writer.create(name=f"{sweep.name}-{trial.number}", start_ms=trial.started_ms, tags=tags)

    def _sync_trial(
        self, runs: _Runs, sweep: SweepRecord, trial: TrialRecord, *, member: bool, alive: bool, refresh: bool
    ) -> bool:
        """Brings a trial's run up to date; whether its rank has moved and was left for later."""
        run = runs.children.get(trial.trial_id)
        if run is None:
            run = runs.children[trial.trial_id] = self._new_child(runs, sweep, trial)
        state = "stale" if trial.state == "running" and not alive else trial.state
        moved = run.tags.get(STATE_TAG) != state
        tags = trial_tags(sweep, trial, state=state, member=member)
        rank = self._ranks.get(trial.trial_id)
        later = rank is not None and not (moved or refresh) and run.tags.get(RANK_TAG, str(rank)) != str(rank)
        if rank is not None and not later:
            tags[RANK_TAG] = str(rank)
        points = []
        if moved or state == "running":
            history = self.store.history(trial.trial_id)
            points = epoch_points(history, recorded=int(run.tags.get(EPOCHS_TAG, "0")))
            tags[EPOCHS_TAG] = str(len(history))
        if moved:
            if trial.final:
                points += result_points(trial, device_hours=self._spent(trial))
                runs.writer.files(run, [self.store.trial_folder(trial.trial_id) / name for name in TRIAL_FILES])
            runs.writer.untag(run, {ERROR_TAG, FAILURE_TAG} - set(tags))
            runs.writer.set_status(run, STATUS[state], end_ms=self._end_ms(trial, state))
        runs.writer.inputs(run, datasets(sweep, [reference_of(sweep, trial)]))
        params = {} if run.described else {name: str(value) for name, value in trial.settings.items()}
        # Last: a run without its state is brought to it again by the next sync.
        runs.writer.log(run, params=params, points=points, tags=tags)
        return later

    def _end_ms(self, trial: TrialRecord, state: str) -> int:
        """When the trial ended, or was last heard of; 0 while it runs."""
        if state == "running":
            return 0
        last: Sequence[Mapping[str, int]] = [] if trial.final else self.store.history(trial.trial_id)[-1:]
        return trial.ended_ms or (last[0]["time_ms"] if last else trial.started_ms)


class BackgroundMirror:
    """Syncs in a thread of its own, so that a slow or absent server never holds up the sweep."""

    def __init__(self, tracker: Tracker) -> None:
        # Here and not in the thread: two threads that import it at once can see half of it.
        importlib.import_module("mlflow.tracking")
        self._tracker = tracker
        self._wanted, self._closing = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="bitfront-mirror", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Asks for a sync soon; many requests become one."""
        self._wanted.set()

    def close(self) -> Exception | None:
        """A last sync; what went wrong in it, or None."""
        self._closing.set()
        self._wanted.set()
        self._thread.join()
        return self._error

    def _work(self) -> None:
        due_s: float | None = None
        while True:
            self._wanted.wait(due_s)
            # What comes in the meantime is one sync: epochs may be short, and trials many.
            self._closing.wait(PAUSE_S)
            # In this order: `close` sets both, and its wish must not be cleared unread.
            self._wanted.clear()
            closing = self._closing.is_set()
            try:
                due_s = self._tracker.sync()
                self._error = None
            except Exception as error:  # whatever the server does, the sweep goes on and the next sync tries again
                due_s = None
                if self._error is None:
                    log.warning("the tracking record is behind: %s", first_line(error))
                self._error = error
            if closing:
                return
