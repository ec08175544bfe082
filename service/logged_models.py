"""Logged models in MLflow, on which versions of registered models stand: found by a tag, filled, linked with runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service.records import SweepRecord, TrialRecord
from service.registered_content import FINETUNE_TAG, Content
from service.run_facts import (
    HASH_TAG,
    SWEEP_TAG,
    TRIAL_TAG,
    DatasetFacts,
    card_datasets,
    datasets,
    kind_tags,
    provenance,
    reference_of,
    result_points,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.tracking import MlflowClient


class LoggedModels:
    """Those of one sweep's policies, or of one promotion's networks."""

    def __init__(self, client: MlflowClient, sweep: SweepRecord) -> None:
        self._client, self._sweep = client, sweep

    def find(self, content: Content, experiments: Sequence[str]) -> LoggedModel | None:
        """The one that holds the content; None where there is none."""
        tag, value = content.identity
        found = self._client.search_logged_models(list(experiments), f"tags.`{tag}` = '{value}'")
        # A network has its policy's hash as well.
        return next((one for one in found if content.card or FINETUNE_TAG not in one.tags), None)

    def alive(self, model_id: str) -> LoggedModel | None:
        """The one of this id; None where it is deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None

    def create(self, trial: TrialRecord, content: Content, run: Run) -> LoggedModel:
        """A new one, without files yet."""
        return self._client.create_logged_model(
            run.info.experiment_id,
            name=content.name,
            source_run_id=run.info.run_id,
            tags=self.tags(trial, content),
            params=dict(content.params),
            model_type=content.model_type,
        )

    def tags(self, trial: TrialRecord, content: Content) -> dict[str, str]:
        """Of the logged model, and of its versions."""
        sweep = self._sweep
        ours = {name: value for name, value in provenance(sweep).items() if name.startswith("bitfront.")}
        mine = {SWEEP_TAG: sweep.sweep_id, TRIAL_TAG: trial.trial_id, HASH_TAG: trial.policy_hash}
        return {**ours, **kind_tags(sweep), **mine, content.identity[0]: content.identity[1]}

    def ensure_files(self, logged: LoggedModel, content: Content) -> None:
        """All files and MLmodel, and that the model is ready: also where an attempt was cut off before."""
        from mlflow.models import Model

        there = {file.path for file in self._client.list_logged_model_artifacts(logged.model_id)}
        if logged.status == "READY" and {*content.needed, "MLmodel"} <= there:
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in content.files:
                if file.exists():
                    shutil.copy(file, folder)
            description = Model(
                artifact_path=logged.artifact_location, run_id=logged.source_run_id, model_id=logged.model_id
            )
            for flavour, settings in content.flavours.items():
                description.add_flavor(flavour, **settings)
            description.save(str(folder / "MLmodel"))
            self._client.log_model_artifacts(logged.model_id, str(folder))
        if logged.status != "READY":
            self._client.finalize_logged_model(logged.model_id, "READY")

    def link(self, run: Run, logged: LoggedModel, trial: TrialRecord, content: Content) -> None:
        """Makes the model an output of the run, with what the trial measured of it and on which data."""
        from mlflow.entities import LoggedModelOutput, Metric

        outputs = run.outputs.model_outputs if run.outputs else []
        if any(output.model_id == logged.model_id for output in outputs):
            return
        data = [one for one in self.datasets(trial, content) if one.context == "validation"]
        on_data = (data[0].name, data[0].digest) if data else (None, None)
        metrics = [
            # As the mirror has written them: a point that is there is not written again.
            Metric(name, value, time_ms, step, logged.model_id, *on_data)
            for name, value, time_ms, step in result_points(trial, device_hours=0.0)
        ]
        self._client.log_batch(run.info.run_id, metrics=metrics)
        # Last: a run without it is linked again.
        self._client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, 0)])

    def datasets(self, trial: TrialRecord, content: Content) -> list[DatasetFacts]:
        """What the trial was measured on."""
        found = datasets(self._sweep, [reference_of(self._sweep, trial)])
        return found if found or content.card is None else card_datasets(self._sweep, content.card)
