"""The mirror in MLflow: one parent run for each sweep, one child for each trial.

Everything is found again by tags, so that a mirror can be brought up to date at any time, by any process, and be
rebuilt from the sweep's storage if it is lost.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.front import Front, find_front
from service.records import POLICY_FILE, SweepRecord, SweepStore, TrialRecord
from service.tracking import connect, first_line

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

log = logging.getLogger("bitfront.mirror")

SWEEP_TAG, TRIAL_TAG, STATE_TAG, FRONT_TAG = "bitfront.sweep", "bitfront.trial", "bitfront.state", "bitfront.front"
EPOCHS_TAG, ERROR_TAG, FAILURE_TAG = "bitfront.epochs", "bitfront.error", "bitfront.failure"
PARENT_TAG, NOTE_TAG = "mlflow.parentRunId", "mlflow.note.content"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Shows the experiment's runs as trained models; MLflow's UI would take it for an evaluation of language models."""
METRICS_PER_BATCH = 1000
PAUSE_S = 0.5
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
class _Child:
    """What MLflow knows of a trial."""

    run_id: str
    state: str
    epochs: int
    front: str
    failed: bool = False
    """Whether it has tags that say why it failed."""
    described: bool = False
    """Whether it has its parameters."""


class Tracker:
    """Brings MLflow in line with a sweep's storage. Runs are addressed by id, whatever the environment says."""

    def __init__(self, store: SweepStore, *, uri: str, experiment: str) -> None:
        self.store, self.uri, self.experiment = store, uri, experiment
        self._client: MlflowClient | None = None
        self._parent: Run | None = None
        self._children: dict[str, _Child] = {}
        self._published: tuple[object, ...] = ()

    def sync(self, *, alive: bool = True) -> None:
        """Writes what the storage has and MLflow has not; doing it again changes nothing.

        `alive`: whether a driver runs the sweep. Without one nothing stays RUNNING.
        """
        try:
            self._sync(alive)
        except Exception:
            # What was written before the error is read back by the next sync.
            self._parent = None
            raise

    def _sync(self, alive: bool) -> None:
        client = self._client = self._client or connect(self.uri)
        if self._parent is None:
            experiment_id = self._experiment_id(client)
            self._parent = self._find_parent(client, experiment_id)
            self._children = self._find_children(client, experiment_id, self._parent)
            self._published = ()
        sweep, trials = self.store.sweep(), self.store.trials()
        found = find_front(trials, sweep)
        members = {trial.trial_id for trial in found.members}
        for trial in trials:
            if trial.started_ms:
                self._sync_trial(client, self._parent, trial, member=trial.trial_id in members, alive=alive)
        self._sync_parent(client, self._parent, sweep, trials, found, alive=alive)

    def _experiment_id(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        # A server decides for itself where artifacts go; the embedded database has the storage beside it.
        embedded = self.uri.startswith("sqlite:")
        location = (self.store.folder.parent.resolve() / "artifacts").as_uri() if embedded else None
        return str(client.create_experiment(self.experiment, artifact_location=location, tags=EXPERIMENT_TAGS))

    def _find_parent(self, client: MlflowClient, experiment_id: str) -> Run:
        sweep = self.store.sweep()
        found = client.search_runs([experiment_id], f"tags.`{SWEEP_TAG}` = '{sweep.sweep_id}'", max_results=1)
        if found and found[0].data.params:
            return found[0]
        tags = {SWEEP_TAG: sweep.sweep_id, "bitfront.spec_hash": sweep.spec_hash, **sweep.tags}
        if sweep.owner:
            tags["bitfront.owner"] = sweep.owner
        if found:
            run = found[0]
        else:
            run = client.create_run(experiment_id, start_time=sweep.created_ms, tags=tags, run_name=sweep.name)
        client.log_artifact(run.info.run_id, str(self.store.folder / "spec.yaml"))
        # Last: a run without them is described again.
        _log(client, run.info.run_id, params=sweep.facts)
        return run

    def _find_children(self, client: MlflowClient, experiment_id: str, parent: Run) -> dict[str, _Child]:
        found: dict[str, _Child] = {}
        token = None
        while True:
            page = client.search_runs(
                [experiment_id], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'", max_results=1000, page_token=token
            )
            for run in page:
                tags = run.data.tags
                if TRIAL_TAG not in tags:
                    continue  # somebody else's, hung below the sweep by hand
                if tags[TRIAL_TAG] in found:
                    client.delete_run(run.info.run_id)
                    continue
                epochs, front = int(tags.get(EPOCHS_TAG, "0")), tags.get(FRONT_TAG, "")
                found[tags[TRIAL_TAG]] = _Child(
                    run.info.run_id,
                    tags.get(STATE_TAG, ""),
                    epochs,
                    front,
                    failed=ERROR_TAG in tags,
                    described=bool(run.data.params),
                )
            token = page.token
            if not token:
                return found

    def _new_child(self, client: MlflowClient, parent: Run, trial: TrialRecord) -> _Child:
        tags = {PARENT_TAG: parent.info.run_id, TRIAL_TAG: trial.trial_id, STATE_TAG: "running", EPOCHS_TAG: "0"}
        name = f"{self.store.folder.name}-{trial.number}"
        experiment_id = parent.info.experiment_id
        run = client.create_run(experiment_id, start_time=trial.started_ms, tags=tags, run_name=name)
        return _Child(run.info.run_id, "running", 0, "")

    def _sync_trial(self, client: MlflowClient, parent: Run, trial: TrialRecord, *, member: bool, alive: bool) -> None:
        child = self._children.get(trial.trial_id)
        if child is None:
            child = self._children[trial.trial_id] = self._new_child(client, parent, trial)
        if not child.described:
            _log(client, child.run_id, params={name: str(value) for name, value in trial.settings.items()})
            child.described = True
        state = "stale" if trial.state == "running" and not alive else trial.state
        if child.state != state or state == "running":
            self._sync_epochs(client, child, trial)
        if child.state != state:
            self._change_state(client, child, trial, state)
        front = str(member).lower() if trial.state == "done" else child.front
        if child.front != front:
            client.set_tag(child.run_id, FRONT_TAG, front)
            child.front = front

    def _sync_epochs(self, client: MlflowClient, child: _Child, trial: TrialRecord) -> None:
        history = self.store.history(trial.trial_id)
        if len(history) == child.epochs:
            return
        # A batch that was sent before a crash is sent again with the same times: MLflow keeps such points once.
        points = [
            (f"{line['stage']}/{name}", value, line["time_ms"], step)
            for step, line in enumerate(history)
            if step >= child.epochs
            for name, value in line["metrics"].items()
        ]
        _log(client, child.run_id, metrics=points)
        client.set_tag(child.run_id, EPOCHS_TAG, str(len(history)))
        child.epochs = len(history)

    def _change_state(self, client: MlflowClient, child: _Child, trial: TrialRecord, state: str) -> None:
        if child.failed and not trial.error:
            # It is run again.
            for tag in (ERROR_TAG, FAILURE_TAG):
                client.delete_tag(child.run_id, tag)
        child.failed = bool(trial.error)
        if trial.final:
            self._finish(client, child.run_id, trial)
        elif state == "running":
            client.update_run(child.run_id, status="RUNNING")
        else:
            last = self.store.history(trial.trial_id)[-1:]
            client.set_terminated(
                child.run_id, STATUS[state], end_time=last[0]["time_ms"] if last else trial.started_ms
            )
        # Last: a run without its state is brought to it again by the next sync.
        client.set_tag(child.run_id, STATE_TAG, state)
        child.state = state

    def _finish(self, client: MlflowClient, run_id: str, trial: TrialRecord) -> None:
        _log(client, run_id, metrics=[(name, value, trial.ended_ms, 0) for name, value in trial.metrics.items()])
        folder = self.store.trial_folder(trial.trial_id)
        for name in (POLICY_FILE, "bits.png"):
            if (folder / name).exists():
                client.log_artifact(run_id, str(folder / name))
        if trial.policy_hash:
            client.set_tag(run_id, "bitfront.policy_hash", trial.policy_hash)
        if trial.error:
            client.set_tag(run_id, FAILURE_TAG, trial.failure or "none")
            client.set_tag(run_id, ERROR_TAG, trial.error[:5000])
        client.set_terminated(run_id, STATUS[trial.state], end_time=trial.ended_ms)

    def _sync_parent(
        self,
        client: MlflowClient,
        parent: Run,
        sweep: SweepRecord,
        trials: Sequence[TrialRecord],
        found: Front,
        *,
        alive: bool,
    ) -> None:
        run_id = parent.info.run_id
        ended = [trial for trial in trials if trial.final]
        page = self.store.folder / "front.html"
        page_ns = page.stat().st_mtime_ns if sweep.ended_ms and page.exists() else 0
        members = frozenset(trial.trial_id for trial in found.members)
        standing = (len(ended), members, sweep.ended_ms, sweep.end, alive, page_ns)
        if standing == self._published:
            return
        time_ms = max([sweep.created_ms, *(trial.ended_ms for trial in ended)])
        states = [trial.state for trial in ended]
        counts = {f"trials_{state}": states.count(state) for state in ("done", "pruned", "diverged", "failed")}
        best = {} if found.best_top1 is None else {"best_top1": found.best_top1}
        numbers = {**counts, "front_size": len(found.members), **best}
        _log(client, run_id, metrics=[(name, float(value), time_ms, len(ended)) for name, value in numbers.items()])
        # The page is large, and made when the sweep is closed.
        for name in ("front.json", "front.md", *(["front.html"] if page_ns else [])):
            if (self.store.folder / name).exists():
                client.log_artifact(run_id, str(self.store.folder / name))
        note = self.store.folder / "front.md"
        if note.exists():
            client.set_tag(run_id, NOTE_TAG, note.read_text()[:7500])
        if sweep.ended_ms:
            status = {"finished": "FINISHED", "error": "FAILED"}.get(sweep.end.split(":")[0], "KILLED")
            client.set_terminated(run_id, status, end_time=sweep.ended_ms)
        elif not alive:
            client.set_terminated(run_id, "KILLED", end_time=time_ms)
        else:
            client.update_run(run_id, status="RUNNING")
        self._published = standing


def _log(
    client: MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, str] | None = None,
    metrics: Sequence[tuple[str, float, int, int]] = (),
) -> None:
    """Parameters, and metrics as (name, value, time in ms, step), in as few requests as MLflow allows."""
    from mlflow.entities import Metric, Param

    points = [Metric(name, value, time_ms, step) for name, value, time_ms, step in metrics]
    settings = [Param(name, value) for name, value in (params or {}).items()]
    if settings:
        client.log_batch(run_id, params=settings)
    for start in range(0, len(points), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=points[start : start + METRICS_PER_BATCH])


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
        while True:
            self._wanted.wait()
            # What comes in the meantime is one sync: epochs may be short, and trials many.
            self._closing.wait(PAUSE_S)
            # In this order: `close` sets both, and its wish must not be cleared unread.
            self._wanted.clear()
            closing = self._closing.is_set()
            try:
                self._tracker.sync()
                self._error = None
            except Exception as error:  # whatever the server does, the sweep goes on and the next sync tries again
                if self._error is None:
                    log.warning("the tracking record is behind: %s", first_line(error))
                self._error = error
            if closing:
                return
