"""Writes runs to MLflow, by id and in as few requests as it allows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from service.run_facts import DatasetFacts, MetricPoint
from service.tracking import connect, database_path, refusal, without_secrets
from trainables.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.store.entities import PagedList
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Shows the experiment's runs as trained models; MLflow's UI would take it for an evaluation of language models."""
ENTITIES_PER_BATCH, SETTINGS_PER_BATCH = 1000, 100
"""MLflow's limits of a request: of everything in it, and of parameters and of tags."""
PAGE = 1000


@dataclass(slots=True)
class KnownRun:
    """A run, as far as it is known to stand in MLflow."""

    run_id: str
    artifact_uri: str
    status: str
    end_ms: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    described: bool = False
    """Whether it has its parameters."""
    datasets: set[tuple[str, str]] = field(default_factory=set)
    """Name and digest."""


class RunWriter:
    """One experiment of an MLflow server or database. Runs are addressed by id, whatever the environment says."""

    def __init__(self, uri: str, *, experiment: str, given_up: threading.Event | None = None) -> None:
        """Makes nothing: the experiment appears with its first run. Raises TrackingError where it is deleted.

        Once somebody has `given_up` each further request raises TrackingError.
        """
        self.uri, self._experiment = uri, experiment
        self._connected, self._given_up = connect(uri), given_up or threading.Event()
        self.experiment_id = self._look()
        """Empty while there is none."""

    @property
    def _client(self) -> MlflowClient:
        self._check_wanted()
        return self._connected

    def _check_wanted(self) -> None:
        if self._given_up.is_set():
            raise TrackingError(f"{without_secrets(self.uri)} is too slow: the rest was left out")

    def _look(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            place, number = without_secrets(self.uri), found.experiment_id
            raise TrackingError(
                f"{place}: the experiment {self._experiment!r} is deleted there. Restore it with `MLFLOW_TRACKING_URI="
                f"{place} mlflow experiments restore --experiment-id {number}`, or name another tracking.experiment "
                "in the sweep's spec.yaml."
            )
        return "" if found is None else str(found.experiment_id)

    def _create(self) -> str:
        from mlflow.exceptions import MlflowException

        # Beside the database, which can be written to. A server decides for itself.
        folder = database_path(self.uri).parent / "artifacts" if self.uri.startswith("sqlite:") else None
        location = folder.resolve().as_uri() if folder else None
        try:
            return str(
                self._client.create_experiment(self._experiment, artifact_location=location, tags=EXPERIMENT_TAGS)
            )
        except MlflowException:
            # Another process may have made it in this moment.
            found = self._look()
            if not found:
                raise
            return found

    def check(self) -> None:
        """Raises what MLflow does where it does not answer."""
        self._look()

    def find(self, tag: str, value: str) -> list[KnownRun]:
        """The runs with this tag, in an order that all processes see alike: described ones first, then by id."""
        if not self.experiment_id:
            return []

        def search(token: str | None) -> PagedList[Run]:
            query = f"tags.`{tag}` = '{value}'"
            return self._client.search_runs([self.experiment_id], query, max_results=PAGE, page_token=token)

        return sorted(map(known_run, self._pages(search)), key=lambda run: (not run.described, run.run_id))

    def search_everywhere(self, query: str) -> list[Run]:
        """The runs of all experiments that meet a query, in the order of `find`, whoever has written them."""
        active: list[Experiment] = self._pages(self._experiments)
        experiments = [one.experiment_id for one in active]
        if not experiments:
            return []

        def search(token: str | None) -> PagedList[Run]:
            return self._client.search_runs(experiments, query, max_results=PAGE, page_token=token)

        return sorted(self._pages(search), key=lambda run: (not run.data.params, run.info.run_id))

    def _experiments(self, token: str | None) -> PagedList[Experiment]:
        return self._client.search_experiments(max_results=PAGE, page_token=token)

    @staticmethod
    def _pages(page_of: Callable[[str | None], PagedList[T]]) -> list[T]:
        found: list[T] = []
        token = None
        while True:
            page = page_of(token)
            found += page
            token = page.token
            if not token:
                return found

    def create(self, *, name: str, start_ms: int, tags: Mapping[str, str]) -> KnownRun:
        """A new run, which is RUNNING."""
        self.experiment_id = self.experiment_id or self._create()
        return known_run(
            self._client.create_run(self.experiment_id, start_time=start_ms, tags=dict(tags), run_name=name)
        )

    def delete(self, run: KnownRun) -> None:
        """Takes the run away, as the UI does: MLflow keeps it among the deleted ones."""
        self._client.delete_run(run.run_id)

    def log(
        self,
        run: KnownRun,
        *,
        params: Mapping[str, str] | None = None,
        points: Sequence[MetricPoint] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Parameters, metrics, and of the tags those that differ. The tags are the last: they say what is recorded."""
        from mlflow.entities import Metric, Param, RunTag

        changed = [(name, value) for name, value in (tags or {}).items() if run.tags.get(name) != value]
        settings = [Param(name, value) for name, value in (params or {}).items()]
        metrics = [Metric(name, value, time_ms, step) for name, value, time_ms, step in points]
        last_tags = [RunTag(name, value) for name, value in changed]
        for params_part, metrics_part, tags_part in _batches(settings, metrics, last_tags):
            # Synchronous, also where MLFLOW_ENABLE_ASYNC_LOGGING says otherwise: an error is told to who asked.
            self._client.log_batch(
                run.run_id, metrics=metrics_part, params=params_part, tags=tags_part, synchronous=True
            )
        run.described = run.described or bool(settings)
        run.tags.update(changed)

    def untag(self, run: KnownRun, tags: Iterable[str]) -> None:
        """Removes those of the tags that the run has."""
        for tag in [tag for tag in tags if tag in run.tags]:
            self._client.delete_tag(run.run_id, tag)
            del run.tags[tag]

    def files(self, run: KnownRun, paths: Iterable[Path]) -> None:
        """Copies those of the files that exist to the run's artifacts; asks the server nothing where these lie.

        Raises TrackingError where they cannot be stored, whatever the store raises.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        existing = [path for path in paths if path.exists()]
        if existing:
            place = get_artifact_repository(run.artifact_uri, tracking_uri=self.uri)
            for path in existing:
                self._check_wanted()
                try:
                    place.log_artifact(str(path))
                except Exception as error:
                    raise refusal(self.uri, error) from None

    def inputs(self, run: KnownRun, datasets: Sequence[DatasetFacts]) -> None:
        """Notes the data sets that the run does not have yet."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        missing = [one for one in datasets if (one.name, one.digest) not in run.datasets]
        if missing:
            self._client.log_inputs(
                run.run_id,
                datasets=[
                    DatasetInput(
                        Dataset(one.name, one.digest, one.source_type, one.source),
                        tags=[InputTag("mlflow.data.context", one.context)],
                    )
                    for one in missing
                ],
            )
            run.datasets |= {(one.name, one.digest) for one in missing}

    def set_status(self, run: KnownRun, status: str, *, end_ms: int = 0) -> None:
        """Sets the status; of a run that is not RUNNING also when it ended."""
        if (run.status, run.end_ms) == (status, end_ms):
            return
        if end_ms:
            self._client.set_terminated(run.run_id, status, end_time=end_ms)
        elif run.status != status:
            self._client.update_run(run.run_id, status=status)
        run.status, run.end_ms = status, end_ms


def known_run(run: Run) -> KnownRun:
    """What MLflow says of a run."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return KnownRun(
        run_id=run.info.run_id,
        artifact_uri=run.info.artifact_uri,
        status=run.info.status,
        end_ms=run.info.end_time or 0,
        tags=dict(run.data.tags),
        described=bool(run.data.params),
        datasets={(one.dataset.name, one.dataset.digest) for one in inputs},
    )


def _batches(params: list[Any], metrics: list[Any], tags: list[Any]) -> list[tuple[list[Any], list[Any], list[Any]]]:
    """Parts that MLflow takes in one request each, in order: the last has tags, and whatever else fits beside them."""
    parts = []
    while params or metrics or tags:
        some_params = params[:SETTINGS_PER_BATCH]
        params = params[SETTINGS_PER_BATCH:]
        room = ENTITIES_PER_BATCH - len(some_params)
        # Tags only once all else is sent or fits beside them.
        some_tags = tags[:SETTINGS_PER_BATCH] if not params and len(metrics) + min(len(tags), 100) <= room else []
        tags = tags[len(some_tags) :]
        some_metrics = metrics[: room - len(some_tags)]
        metrics = metrics[len(some_metrics) :]
        parts.append((some_params, some_metrics, some_tags))
    return parts
