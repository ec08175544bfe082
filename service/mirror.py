"""The mirror in MLflow: one parent run for each sweep, one child for each trial.

Everything is found again by tags, so that a mirror can be brought up to date at any time, by any process, and be
rebuilt from the sweep's storage if it is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.front import find_front, ranks
from service.mirror_lineage import Lineage
from service.mirror_parent import ParentRun
from service.promoted import MODEL_FOLDER, SOURCES_FILE, model_folder, sources_of
from service.records import POLICY_FILE, SweepRecord, SweepStore, TrialRecord
from service.run_facts import (
    EPOCHS_TAG,
    ERROR_TAG,
    FAILURE_TAG,
    ID_TAG,
    PARENT_TAG,
    RANK_TAG,
    STATE_TAG,
    SWEEP_TAG,
    TRIAL_TAG,
    DatasetFacts,
    card_datasets,
    datasets,
    epoch_points,
    provenance,
    reference_of,
    result_points,
    trial_tags,
)
from service.run_writer import KnownRun, RunWriter
from service.simultaneous import make_once
from trainables.model_files import CARD_FILE, ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable

REFRESH_S = 30.0
"""While a driver runs, what changes with every trial and costs a request for each of many is told no more often: ranks
of the other trials, files of the front, the note."""
TRIAL_FILES = (POLICY_FILE, "bits.png", SOURCES_FILE, f"{MODEL_FOLDER}/{CARD_FILE}")
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
        self.given_up = threading.Event()
        """Set by whoever does not wait any longer: each further request of a sync raises TrackingError."""
        self._clock, self._refresh_at = clock, -float("inf")
        self._runs: _Runs | None = None
        self._ranks: dict[str, int] = {}
        self._ends: dict[str, list[tuple[TrialRecord, float]]] = {}
        """Of final trials, which end no more."""

    def sync(self, *, alive: bool = True, closing: bool = False) -> float | None:
        """Writes what the storage has and MLflow has not; doing it again changes nothing.

        `alive`: whether a driver runs the sweep; without one nothing stays RUNNING. `closing`: this is that driver's
        last sync. Returns in how many seconds another one should follow, because something was left for later; None
        where nothing was. Raises TrackingError where MLflow refuses. What cannot be recorded of one trial does not
        keep the rest back.
        """

        def bring_in_line() -> float | None:
            try:
                return self._sync(alive, closing)
            except Exception:
                # What was written before the error is read back by the next sync.
                self._runs = None
                self._refresh_at = -float("inf")
                raise

        return make_once(bring_in_line, uri=self.uri, what="records")

    def _sync(self, alive: bool, closing: bool) -> float | None:
        sweep, trials = self.store.sweep(), self.store.trials()
        if sweep.ended_ms or closing or not alive:
            # Another process may have recorded the sweep meanwhile; what it left is put right at the latest now.
            self._runs = None
        runs = self._runs = self._runs or self._find(sweep)
        found = find_front(trials, sweep)
        if len(found.done) != len(self._ranks) + len(found.infeasible):
            self._ranks = ranks(found)
        members = {trial.trial_id for trial in found.members}
        now = self._clock()
        refresh = not alive or bool(sweep.ended_ms) or now >= self._refresh_at
        behind, wrong = False, None
        for trial in (trial for trial in trials if trial.started_ms):
            try:
                member = trial.trial_id in members
                behind |= self._sync_trial(runs, sweep, trial, member=member, alive=alive, refresh=refresh)
            except Exception as error:
                wrong = wrong or error
                # Where nothing answers any more the others would only wait for it, one by one.
                runs.writer.check()
        ended = [end for trial in trials for end in self._ends_of(trial)]
        address = f"#/experiments/{runs.writer.experiment_id}/runs/"
        # In the order of the trials, whatever the order in which their runs were found.
        order = [trial.trial_id for trial in trials if trial.trial_id in runs.children]
        links = {trial_id: address + runs.children[trial_id].run_id for trial_id in order}
        if refresh:
            try:
                links |= self._lineage(runs, sweep, trials)
            except Exception as error:
                wrong = wrong or error
                runs.writer.check()
        settled = closing or not alive
        behind |= runs.parent.sync(sweep, found, ended, links=links, alive=alive, refresh=refresh, settled=settled)
        if wrong:
            raise wrong
        if refresh:
            self._refresh_at = self._clock() + REFRESH_S
        return max(0.0, self._refresh_at - now) if behind else None

    def _lineage(self, runs: _Runs, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> dict[str, str]:
        """Leads from what was found to what was finetuned of it, and back; addresses of runs by SWEEP_ID/TRIAL."""
        lineage = Lineage(runs.writer, [runs.parent.run, *runs.children.values()])
        if sweep.kind == "search":
            lineage.update([sweep.sweep_id])
            return {}
        sources = (sources_of(self.store.trial_folder(trial.trial_id)) for trial in trials if trial.started_ms)
        return lineage.update([source.sweep_id for found in sources for source in found])

    def _ends_of(self, trial: TrialRecord) -> list[tuple[TrialRecord, float]]:
        """How the trial has ended each time, with the device-hours since the last: a failed one may be run again."""
        known = self._ends.get(trial.trial_id)
        if known is not None and trial.final:
            return known
        ends, before = [], 0.0
        for record in self.store.failed_before(trial.trial_id) if trial.attempts else []:
            spent = self._spent_until(record)
            ends.append((record, spent - before))
            before = spent
        if trial.final:
            ends.append((trial, self.store.spent_hours(trial.trial_id) - before))
            self._ends[trial.trial_id] = ends
        return ends

    def _spent_until(self, ended: TrialRecord) -> float:
        """Device-hours of the epochs that the trial had reported when it ended so."""
        before = (line for line in self.store.history(ended.trial_id) if line["time_ms"] <= ended.ended_ms)
        return sum(line.get("seconds", 0.0) for line in before) * self.store.sweep().workers / 3600

    def _find(self, sweep: SweepRecord) -> _Runs:
        """The sweep's runs, each once; what another process has made twice is deleted."""
        writer = RunWriter(self.uri, experiment=self.experiment, given_up=self.given_up)
        parents = writer.find(SWEEP_TAG, sweep.sweep_id)
        for run in parents[1:]:
            writer.delete(run)
        parent = ParentRun(writer, self.store, parents[0] if parents else None)
        children: dict[str, KnownRun] = {}
        # By the sweep, not by the parent: who lost its parent to another process may have made a run below it since.
        for child in writer.find(ID_TAG, sweep.sweep_id):
            trial_id = child.tags.get(TRIAL_TAG)
            # Without that tag it is somebody else's, made by hand.
            if trial_id is None:
                continue
            ours = child.tags.get(PARENT_TAG) == parent.run.run_id
            if not ours or children.setdefault(trial_id, child) is not child:
                writer.delete(child)
        return _Runs(writer, parent, children)

    def _new_child(self, runs: _Runs, sweep: SweepRecord, trial: TrialRecord) -> KnownRun:
        ours = {ID_TAG: sweep.sweep_id, TRIAL_TAG: trial.trial_id}
        tags = {**provenance(sweep), PARENT_TAG: runs.parent.run.run_id, **ours}
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
        sources = sources_of(self.store.trial_folder(trial.trial_id)) if sweep.kind == "finetune" else ()
        tags = trial_tags(sweep, trial, state=state, member=member, sources=sources)
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
                points += result_points(trial, device_hours=self.store.spent_hours(trial.trial_id))
                runs.writer.files(run, [self.store.trial_folder(trial.trial_id) / name for name in TRIAL_FILES])
            runs.writer.untag(run, {ERROR_TAG, FAILURE_TAG} - set(tags))
            runs.writer.set_status(run, STATUS[state], end_ms=self._end_ms(trial, state))
        runs.writer.inputs(run, self._datasets(sweep, trial))
        params = {} if run.described else {name: str(value) for name, value in trial.settings.items()}
        # Last: a run without its state is brought to it again by the next sync.
        runs.writer.log(run, params=params, points=points, tags=tags)
        return later

    def _datasets(self, sweep: SweepRecord, trial: TrialRecord) -> list[DatasetFacts]:
        """Those of the trial's reference, or else of its network."""
        found = datasets(sweep, [reference_of(sweep, trial)])
        folder = model_folder(self.store.trial_folder(trial.trial_id))
        if found or sweep.kind == "search" or not (folder / CARD_FILE).exists():
            return found
        return card_datasets(sweep, ModelCard.load(folder))

    def _end_ms(self, trial: TrialRecord, state: str) -> int:
        """When the trial ended, or was last heard of; 0 while it runs."""
        if state == "running":
            return 0
        last: Sequence[Mapping[str, Any]] = [] if trial.final else self.store.history(trial.trial_id)[-1:]
        return trial.ended_ms or (int(last[0]["time_ms"]) if last else trial.started_ms)
