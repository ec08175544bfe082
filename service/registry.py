"""Policies and networks as models in MLflow: a logged model for each, and a version of a registered model.

A policy is found by its hash, a promotion's network by its finetune. A version keeps who found its policy: of every
such trial its run, its accuracy and its place on the front, in one tag, from which the description is written anew. So
registering again adds nothing, and after the runs were rebuilt from the storage it leads to the new ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from service import driver
from service.front import find_front
from service.lineage import Lineage, network_description
from service.logged_models import LoggedModels
from service.mirror import Tracker
from service.pareto import METRICS, losses
from service.promoted import sources_of
from service.records import SweepStore, TrialRecord
from service.registered_content import FINETUNE_TAG, Content, content_of
from service.registered_policy import MODELS_PREFIX
from service.registrable import check_names, place_of
from service.run_facts import (
    FOUND_TAG,
    FRONT_TAG,
    ID_TAG,
    PARENT_TAG,
    STATE_TAG,
    SWEEP_TAG,
    TAG_LENGTH,
    TRIAL_TAG,
)
from service.run_writer import KnownRun, RunWriter
from service.simultaneous import make_once, refusals
from service.tracking import connect, refusal, without_secrets
from trainables.errors import ConfigError, StorageError, TrackingError, did_you_mean

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

VERSIONS_TAG = "mlflow.modelVersions"
"""Of a logged model: the versions that were made of it. A server writes it, the embedded database does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """A version of the registered model, after its policy or network was registered."""

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
    """All trials of the sweep that found this policy; of a promotion's network SWEEP/TRIAL of those in their sweeps."""
    what: str
    """policy or network."""
    aliases: Mapping[str, str]
    """That it has now because they were asked for: alias and the version that had it before, empty for none."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Aliases that were asked for and stay where they are, as that version is better."""

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
        self.logged = LoggedModels(self.client, self.sweep)

    def register(self, trials: Sequence[TrialRecord], *, model: str, aliases: Sequence[str] = ()) -> list[Registered]:
        """Makes each trial's policy, or network, a version of `model`, unless it is one.

        Trials with one policy are one version.

        Raises TrackingError where MLflow refuses; what was made until then is found again.
        """
        chosen = {trial.policy_hash: trial for trial in reversed(trials)}
        contents = {trial.trial_id: content_of(self.store, trial) for trial in chosen.values()}
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
            return [self._register(by_id[one], contents[one], model, aliases, runs) for one in order]

        return make_once(make, uri=self.uri, what="registers")

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
            if self.sweep.kind == "finetune":
                about = f"Quantised networks, each a version; mlflow.pyfunc.load_model({f'{MODELS_PREFIX}{model}/1'!r})"
            self.client.create_registered_model(model, description=about)

    def _register(
        self, trial: TrialRecord, content: Content, model: str, aliases: Sequence[str], runs: Mapping[str, Run]
    ) -> Registered:
        finders = sorted(self._finders([trial]), key=lambda other: (other.trial_id != trial.trial_id, other.number))
        logged, version = self._existing(model, content, runs[trial.trial_id])
        added = "" if version else "version"
        if logged is None:
            logged = self.logged.create(trial, content, runs[trial.trial_id])
        self.logged.ensure_files(logged, content)
        for finder in finders:
            self.logged.link(runs[finder.trial_id], logged, finder, content)
        known = Lineage.read(version.tags.get(FOUND_TAG, "") if version else "")
        lineage, text = self._origin(trial, content, known, finders, runs)
        if version and _runs_in(known) != _runs_in(lineage):
            added = "lineage"
        found_by = tuple(sorted(finder.trial_id for finder in finders))
        if content.card:
            found_by = tuple(source.name for source in sources_of(self.store.trial_folder(trial.trial_id)))
        tags = {FRONT_TAG: str(lineage.on_front).lower(), FOUND_TAG: lineage.as_json()}
        version = self._written(version, logged, {**self.logged.tags(trial, content), **tags}, model, text)
        return Registered(
            model=model,
            version=str(version.version),
            policy_hash=trial.policy_hash,
            trial=trial.trial_id,
            place=place_of(trial, self.found),
            on_front=trial.trial_id in {member.trial_id for member in self.found.members},
            added=added,
            found_by=found_by,
            what=content.what,
            aliases={alias: self.move(model, alias, str(version.version)) for alias in aliases},
        )

    def _origin(
        self,
        trial: TrialRecord,
        content: Content,
        known: Lineage,
        finders: Sequence[TrialRecord],
        runs: Mapping[str, Run],
    ) -> tuple[Lineage, str]:
        """Who found the policy, as far as a tag has room for them, and the version's description."""
        sweep_id = self.sweep.sweep_id
        if content.card is None:
            mine = {f"{sweep_id}/{finder.trial_id}": self._finding(finder, runs[finder.trial_id]) for finder in finders}
            record = self.store.policy(trial.trial_id)
            lineage = known.with_sweep(sweep_id, mine).fitted(record)
            return lineage, lineage.description(record)
        on_front = trial.trial_id in {member.trial_id for member in self.found.members}
        found = {key: {**finding, "front": on_front} for key, finding in self._sources(trial).items()}
        run = runs[trial.trial_id].info
        what = f"{content.card.network} on {self.sweep.facts.get('data', '')}"
        finetune = (f"{sweep_id}/{trial.trial_id}", f"{run.experiment_id}/{run.run_id}")
        text = network_description(trial.metrics, what, finetune=finetune, found=found)
        lineage = Lineage(found=found)
        for count in range(len(found), 0, -1):
            lineage = Lineage(found=dict(list(found.items())[:count]))
            if len(lineage.as_json()) <= TAG_LENGTH:
                break
        return lineage, text

    def _sources(self, trial: TrialRecord) -> dict[str, dict[str, Any]]:
        """The trials that found the policy of a promotion's trial, with their runs where these are recorded here."""
        writer, found = RunWriter(self.uri, experiment=self.experiment), {}
        for source in sources_of(self.store.trial_folder(trial.trial_id)):
            query = f"tags.`{ID_TAG}` = '{source.sweep_id}' AND tags.`{TRIAL_TAG}` = '{source.trial}'"
            runs = writer.search_everywhere(query)
            where = f"{runs[0].info.experiment_id}/{runs[0].info.run_id}" if runs else ""
            worth = {name: source.metrics[name] for name in ("top1", "ard") if name in source.metrics}
            found[f"{source.sweep_id}/{source.trial}"] = {"run": where, **worth}
        return found

    def _existing(self, model: str, content: Content, run: Run) -> tuple[LoggedModel | None, ModelVersion | None]:
        """The content's version and the logged model behind it; a version whose logged model is deleted is none."""
        tag, value = content.identity
        mine = f"name = '{model}' and tags.`{tag}` = '{value}'"
        for version in sorted(self.client.search_model_versions(mine), key=lambda one: int(one.version)):
            if content.card is None and FINETUNE_TAG in version.tags:
                continue
            logged = self.logged.alive(version.source.removeprefix(MODELS_PREFIX))
            if logged is not None:
                return logged, version
        # Of another registered model, or of an attempt that was cut off.
        return self.logged.find(content, [run.info.experiment_id]), None

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
        tags: Mapping[str, str],
        model: str,
        text: str,
    ) -> ModelVersion:
        """The version with all that is known of it; made where there is none."""
        if version is None:
            with _global_uri(self.uri):
                version = self.client.create_model_version(
                    model,
                    f"{MODELS_PREFIX}{logged.model_id}",
                    run_id=logged.source_run_id,
                    tags=dict(tags),
                    description=text,
                    model_id=logged.model_id,
                )
        for name in (FRONT_TAG, FOUND_TAG):
            if version.tags.get(name) != tags[name]:
                self.client.set_model_version_tag(model, str(version.version), name, tags[name])
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

    def move(self, model: str, alias: str, version: str) -> str:
        """Gives the version the alias; the version that had it before, empty for none."""
        before = str(self.client.get_registered_model(model).aliases.get(alias, ""))
        if before != version:
            self.client.set_registered_model_alias(model, alias, version)
        return before

    def holder_is_better(self, model: str, alias: str, trial: TrialRecord, objective: str) -> str:
        """The version that has the alias and is better on the same data; empty for none."""
        from mlflow.exceptions import MlflowException

        try:
            version = self.client.get_model_version_by_alias(model, alias)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return ""
        logged = self.logged.alive(version.source.removeprefix(MODELS_PREFIX))
        data = [
            one for one in self.logged.datasets(trial, content_of(self.store, trial)) if one.context == "validation"
        ]
        theirs = [
            metric.value
            for metric in (logged.metrics or [] if logged else [])
            if data and (metric.key, metric.dataset_digest) == (objective, data[0].digest)
        ]
        mine = losses(trial.metrics, (METRICS[objective],))
        better = any(losses({objective: value}, (METRICS[objective],)) < mine for value in theirs)
        return str(version.version) if better else ""


def register_best(
    store: SweepStore, uri: str, experiment: str, *, model: str, alias: str, objective: str
) -> Registered:
    """Registers a promotion's best network by a metric, and gives it the alias.

    The alias stays where it is when the version that has it, of another promotion, is better on the same data. Of
    equal networks the cheaper one is registered. Raises ConfigError for a metric that was not measured, StorageError
    where nothing is finetuned within the constraints, TrackingError where MLflow refuses.
    """
    check_names(model, [alias] if alias else [])
    try:
        registry = Registry(store, uri=uri, experiment=experiment)
    except refusals() as error:
        raise refusal(uri, error) from None
    best = best_by(registry.found.kept, objective, name=store.folder.name)
    (found,) = registry.register([best], model=model)
    if not alias:
        return found
    try:
        better = registry.holder_is_better(model, alias, best, objective)
        if better and better != found.version:
            return replace(found, kept={alias: better})
        return replace(found, aliases={alias: registry.move(model, alias, found.version)})
    except refusals() as error:
        raise refusal(uri, error) from None


def best_by(trials: Sequence[TrialRecord], objective: str, *, name: str) -> TrialRecord:
    """The best of these trials by a metric; of equal ones the cheapest, and then the first."""
    if not trials:
        raise StorageError(f"{name} has no finished finetune within its constraints; see `bitfront status {name}`.")
    known = [one for one in METRICS if all(one in trial.metrics for trial in trials)]
    if objective not in known:
        raise ConfigError(
            f"register.objective is {objective!r}, which {name} does not measure{did_you_mean(objective, known)}."
        )

    def order(trial: TrialRecord) -> tuple[float, float, int]:
        return losses(trial.metrics, (METRICS[objective],))[0], trial.metrics["bops_g"], trial.number

    return min(trials, key=order)


def _runs_in(lineage: Lineage) -> dict[str, str]:
    return {key: one["run"] for key, one in lineage.found.items()}


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
