"""Policies as models in MLflow: a logged model for each, and a version of a registered model, found by its hash.

A version keeps who found its policy: of every such trial its run, its accuracy and its place on the front, in one tag,
from which the description is written anew. So registering again adds nothing, and after the runs were rebuilt from
the storage it leads to the new ones.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import driver
from service.front import find_front
from service.lineage import Lineage
from service.mirror import Tracker
from service.records import POLICY_FILE, SweepStore, TrialRecord
from service.registered_policy import MODELS_PREFIX
from service.registrable import place_of
from service.run_facts import (
    FRONT_TAG,
    PARENT_TAG,
    STATE_TAG,
    SWEEP_TAG,
    TRIAL_TAG,
    datasets,
    provenance,
    reference_of,
    result_points,
)
from service.run_writer import KnownRun, RunWriter
from service.tracking import connect, refusal, without_secrets
from trainables.errors import ConfigError, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

HASH_TAG = "bitfront.policy_hash"
FOUND_TAG = "bitfront.found_by"
"""Of a version: SWEEP_ID/TRIAL of each trial that found its policy, with what `_finding` says of it. JSON."""
VERSIONS_TAG = "mlflow.modelVersions"
"""Of a logged model: the versions that were made of it. A server writes it, the embedded database does not."""
FLAVOUR = "bitfront"
"""The key of the MLmodel file under which `policy` names the policy file."""
MODEL_TYPE = "bitfront-policy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """A version of the registered model, after its policy was registered."""

    model: str
    version: str
    policy_hash: str
    trial: str
    place: str
    """Of the trial's policy in its sweep, in words."""
    on_front: bool
    added: str
    """`version` for a new one, `lineage` where one got another trial or run, empty where all was there."""
    found_by: tuple[str, ...]
    """All trials of the sweep that found this policy."""
    aliases: Mapping[str, str]
    """That it has now because they were asked for: alias and the version that had it before, empty for none."""

    @property
    def uri(self) -> str:
        """As commands take it."""
        return f"{MODELS_PREFIX}{self.model}/{self.version}"


class Registry:
    """One sweep's policies in the MLflow at `uri`, whose runs `experiment` holds."""

    def __init__(self, store: SweepStore, *, uri: str, experiment: str) -> None:
        self.store, self.uri, self.experiment = store, uri, experiment
        self.sweep, self.trials = store.sweep(), store.trials()
        self.found = find_front(self.trials, self.sweep)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        self.client: MlflowClient = connect(uri)

    def register(self, trials: Sequence[TrialRecord], *, model: str, aliases: Sequence[str] = ()) -> list[Registered]:
        """Makes each trial's policy a version of `model`, unless it is one; trials with one policy are one version.

        Raises TrackingError where MLflow refuses; what was made until then is found again.
        """
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        chosen = {trial.policy_hash: trial for trial in reversed(trials)}
        if aliases and len(chosen) > 1:
            raise ConfigError(
                f"--alias {aliases[0]} is for one policy, and {len(chosen)} are chosen; name its trial: --trial "
                f"{trials[0].trial_id}"
            )
        order = list(dict.fromkeys(chosen[trial.policy_hash].trial_id for trial in trials))
        by_id = {trial.trial_id: trial for trial in trials}

        def make() -> list[Registered]:
            runs = self._runs(self._finders(chosen.values()))
            self._ensure_model(model)
            return [self._register(by_id[trial_id], model, aliases, runs) for trial_id in order]

        try:
            try:
                return make()
            except (MlflowException, SQLAlchemyError) as error:
                if not _is_taken(error):
                    raise
                # Another process has made the same in this moment: it is found now.
                return make()
        except (MlflowException, SQLAlchemyError) as error:
            again = "; another process registers the same: run it again" if _is_taken(error) else ""
            raise TrackingError(f"{refusal(self.uri, error)}{again}") from None

    def _finders(self, trials: Iterable[TrialRecord]) -> list[TrialRecord]:
        """All trials of the sweep that found one of these trials' policies."""
        hashes = {trial.policy_hash for trial in trials}
        return [trial for trial in self.found.done if trial.policy_hash in hashes]

    def _runs(self, trials: Sequence[TrialRecord]) -> dict[str, Run]:
        """The trials' runs; the mirror is brought in line where one is missing or unfinished."""
        runs = self._recorded(trials)
        if len(runs) < len(trials):
            if driver.alive(self.store.folder):
                missing = next(trial.trial_id for trial in trials if trial.trial_id not in runs)
                raise TrackingError(
                    f"{self.sweep.name} is running, and its driver has not recorded {missing} at "
                    f"{without_secrets(self.uri)} yet; try again in a moment."
                )
            Tracker(self.store, uri=self.uri, experiment=self.experiment).sync(alive=False)
            runs = self._recorded(trials)
        for trial in trials:
            if trial.trial_id not in runs:
                raise TrackingError(
                    f"{without_secrets(self.uri)} has no run of {self.sweep.name}/{trial.trial_id} even after a "
                    f"sync; is the experiment {self.experiment!r} deleted there?"
                )
        return runs

    def _recorded(self, trials: Sequence[TrialRecord]) -> dict[str, Run]:
        """Those that the mirror keeps: of what was made twice it deletes the others."""
        writer = RunWriter(self.uri, experiment=self.experiment)
        parents = writer.find(SWEEP_TAG, self.sweep.sweep_id)
        children: dict[str, KnownRun] = {}
        for child in writer.find(PARENT_TAG, parents[0].run_id) if parents else []:
            children.setdefault(child.tags.get(TRIAL_TAG, ""), child)
        done = {trial_id: run for trial_id, run in children.items() if run.tags.get(STATE_TAG) == "done"}
        wanted = [trial.trial_id for trial in trials if trial.trial_id in done]
        return {trial_id: self.client.get_run(done[trial_id].run_id) for trial_id in wanted}

    def _ensure_model(self, model: str) -> None:
        if not self.client.search_registered_models(f"name = '{model}'"):
            about = f"Quantization policies, each a version; bitfront policy show {MODELS_PREFIX}{model}/1"
            self.client.create_registered_model(model, description=about)

    def _register(self, trial: TrialRecord, model: str, aliases: Sequence[str], runs: Mapping[str, Run]) -> Registered:
        finders = sorted(self._finders([trial]), key=lambda other: (other.trial_id != trial.trial_id, other.number))
        logged, version = self._existing(model, trial.policy_hash, runs[trial.trial_id])
        added = "" if version else "version"
        if logged is None:
            logged = self._logged_model(trial, runs[trial.trial_id])
        self._ensure_files(logged, trial)
        for finder in finders:
            self._link(runs[finder.trial_id], logged, finder)
        known = Lineage.read(version.tags.get(FOUND_TAG, "") if version else "")
        mine = {f"{self.sweep.sweep_id}/{t.trial_id}": self._finding(t, runs[t.trial_id]) for t in finders}
        lineage = known.with_sweep(self.sweep.sweep_id, mine).fitted(self.store.policy(trial.trial_id))
        if version and {key: one["run"] for key, one in known.found.items()} != {
            key: one["run"] for key, one in lineage.found.items()
        }:
            added = "lineage"
        version = self._written(version, logged, trial, model, lineage)
        return Registered(
            model=model,
            version=str(version.version),
            policy_hash=trial.policy_hash,
            trial=trial.trial_id,
            place=place_of(trial, self.found),
            on_front=trial.trial_id in {member.trial_id for member in self.found.members},
            added=added,
            found_by=tuple(sorted(finder.trial_id for finder in finders)),
            aliases={alias: self._move(model, alias, str(version.version)) for alias in aliases},
        )

    def _existing(self, model: str, policy_hash: str, run: Run) -> tuple[LoggedModel | None, ModelVersion | None]:
        """The policy's version and the logged model behind it; a version whose logged model is deleted is none."""
        mine = f"name = '{model}' and tags.`{HASH_TAG}` = '{policy_hash}'"
        for version in sorted(self.client.search_model_versions(mine), key=lambda one: int(one.version)):
            logged = self._alive(version.source.removeprefix(MODELS_PREFIX))
            if logged is not None:
                return logged, version
        # Of another registered model, or of an attempt that was cut off.
        found = self.client.search_logged_models([run.info.experiment_id], f"tags.`{HASH_TAG}` = '{policy_hash}'")
        return next(iter(found), None), None

    def _alive(self, model_id: str) -> LoggedModel | None:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None

    def _logged_model(self, trial: TrialRecord, run: Run) -> LoggedModel:
        record = self.store.policy(trial.trial_id)
        params = {"network": record.policy.network, "method": record.method}
        return self.client.create_logged_model(
            run.info.experiment_id,
            name=f"policy-{trial.policy_hash[:10]}",
            source_run_id=run.info.run_id,
            tags=self._tags(trial),
            params=params | {name: str(value) for name, value in trial.settings.items()},
            model_type=MODEL_TYPE,
        )

    def _tags(self, trial: TrialRecord) -> dict[str, str]:
        sweep = self.sweep
        ours = {name: value for name, value in provenance(sweep).items() if name.startswith("bitfront.")}
        return {**ours, SWEEP_TAG: sweep.sweep_id, TRIAL_TAG: trial.trial_id, HASH_TAG: trial.policy_hash}

    def _ensure_files(self, logged: LoggedModel, trial: TrialRecord) -> None:
        """Policy file, picture and MLmodel, and that the model is ready: also where an attempt was cut off before."""
        from mlflow.models import Model

        there = {file.path for file in self.client.list_logged_model_artifacts(logged.model_id)}
        if logged.status == "READY" and {POLICY_FILE, "MLmodel"} <= there:
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in (POLICY_FILE, "bits.png"):
                if (self.store.trial_folder(trial.trial_id) / file).exists():
                    shutil.copy(self.store.trial_folder(trial.trial_id) / file, folder)
            description = Model(
                artifact_path=logged.artifact_location, run_id=logged.source_run_id, model_id=logged.model_id
            )
            description.add_flavor(FLAVOUR, policy=POLICY_FILE, policy_hash=trial.policy_hash)
            description.save(str(folder / "MLmodel"))
            self.client.log_model_artifacts(logged.model_id, str(folder))
        if logged.status != "READY":
            self.client.finalize_logged_model(logged.model_id, "READY")

    def _link(self, run: Run, logged: LoggedModel, trial: TrialRecord) -> None:
        """Makes the model an output of the run, with what the trial measured of it and on which data."""
        from mlflow.entities import LoggedModelOutput, Metric

        outputs = run.outputs.model_outputs if run.outputs else []
        if any(output.model_id == logged.model_id for output in outputs):
            return
        sweep = self.sweep
        data = [one for one in datasets(sweep, [reference_of(sweep, trial)]) if one.context == "validation"]
        on_data = (data[0].name, data[0].digest) if data else (None, None)
        metrics = [
            # As the mirror has written them: a point that is there is not written again.
            Metric(name, value, time_ms, step, logged.model_id, *on_data)
            for name, value, time_ms, step in result_points(trial, device_hours=0.0)
        ]
        self.client.log_batch(run.info.run_id, metrics=metrics)
        # Last: a run without it is linked again.
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, 0)])

    def _finding(self, trial: TrialRecord, run: Run) -> dict[str, Any]:
        """What a version keeps of a trial that found its policy."""
        return {
            "run": f"{run.info.experiment_id}/{run.info.run_id}",
            "top1": trial.metrics["top1"],
            "ard": trial.metrics["ard"],
            "place": place_of(trial, self.found),
            "front": trial.trial_id in {member.trial_id for member in self.found.members},
        }

    def _written(
        self,
        version: ModelVersion | None,
        logged: LoggedModel,
        trial: TrialRecord,
        model: str,
        lineage: Lineage,
    ) -> ModelVersion:
        """The version with all that is known of its policy; made where there is none."""
        text, found = lineage.description(self.store.policy(trial.trial_id)), lineage.as_json()
        on_front = str(lineage.on_front).lower()
        if version is None:
            with _global_uri(self.uri):
                version = self.client.create_model_version(
                    model,
                    f"{MODELS_PREFIX}{logged.model_id}",
                    run_id=logged.source_run_id,
                    tags={**self._tags(trial), FRONT_TAG: on_front, FOUND_TAG: found},
                    description=text,
                    model_id=logged.model_id,
                )
        for name, value in ((FRONT_TAG, on_front), (FOUND_TAG, found)):
            if version.tags.get(name) != value:
                self.client.set_model_version_tag(model, str(version.version), name, value)
        if version.description != text:
            self.client.update_model_version(model, str(version.version), text)
        self._mark(logged, model, str(version.version))
        return version

    def _mark(self, logged: LoggedModel, model: str, version: str) -> None:
        """Lets the logged model's page lead to the version."""
        known = json.loads(self.client.get_logged_model(logged.model_id).tags.get(VERSIONS_TAG, "[]"))
        if not any((one["name"], str(one["version"])) == (model, version) for one in known):
            content = json.dumps([*known, {"name": model, "version": version}])
            self.client.set_logged_model_tags(logged.model_id, {VERSIONS_TAG: content})

    def _move(self, model: str, alias: str, version: str) -> str:
        """Gives the version the alias; the version that had it before, empty for none."""
        before = str(self.client.get_registered_model(model).aliases.get(alias, ""))
        if before != version:
            self.client.set_registered_model_alias(model, alias, version)
        return before


def _is_taken(error: Exception) -> bool:
    """Whether what was to be made is there already."""
    told = f"{getattr(error, 'error_code', '')} {error}"
    return any(sign in told for sign in ("RESOURCE_ALREADY_EXISTS", "IntegrityError", "database is locked"))


@contextmanager
def _global_uri(uri: str) -> Iterator[None]:
    """MLflow's own setting for the moment: its database looks the logged model up there, not where the client is."""
    import mlflow

    variable = "MLFLOW_TRACKING_URI"
    before = os.environ.get(variable)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ[variable] = before
