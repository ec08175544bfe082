"""A policy or a finetuned network in MLflow's registry, by its address: models:/NAME/VERSION or models:/NAME@ALIAS."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service.records import POLICY_FILE
from service.tracking import connect, first_line, without_secrets
from trainables.errors import TrackingError, did_you_mean
from trainables.policy_file import PolicyRecord

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

MODELS_PREFIX = "models:/"


def registered_policy(name: str, uri: str) -> PolicyRecord:
    """The policy of `models:/NAME/VERSION` or `models:/NAME@ALIAS` in the MLflow at `uri`.

    Raises TrackingError where there is none, and ConfigError for one that cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        fetch_registered(name, uri, [POLICY_FILE], Path(folder))
        text = (Path(folder) / POLICY_FILE).read_text(encoding="utf-8")
    return PolicyRecord.from_json(text, origin=name)


def fetch_registered(name: str, uri: str, files: Sequence[str], folder: Path) -> None:
    """Copies these files of a models:/ address into `folder`. Raises TrackingError where one is not there."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    match = re.fullmatch(r"models:/([^/@:]+)(?:/([0-9]+)|@([A-Za-z0-9_-]+))", name)
    if match is None:
        raise TrackingError(f"{name}: give models:/NAME/VERSION or models:/NAME@ALIAS, such as models:/quickstart/1.")
    place = without_secrets(uri)
    if uri.startswith("sqlite:") and not Path(uri.split("///", 1)[-1]).exists():
        raise TrackingError(
            f"{name}: {place} does not exist; register a policy with `bitfront register`, give its --storage, or set "
            f"MLFLOW_TRACKING_URI to the server that has it."
        )
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = connect(uri)
    try:
        version = _version(client, match, place)
        location = client.get_model_version_download_uri(match[1], str(version.version))
    except MlflowException as error:
        raise TrackingError(f"{name}: {place}: {first_line(error)}") from None
    for file in files:
        try:
            download_artifacts(artifact_uri=f"{location}/{file}", dst_path=str(folder), tracking_uri=uri)
        except (MlflowException, OSError) as error:
            reason = first_line(error)
            raise TrackingError(
                f"{name} has no {file} ({reason}); was it registered by `bitfront register`?"
                if file == POLICY_FILE
                else f"{name} has no {file} ({reason}): it is a policy without a network. Promote the policy, and "
                f"register the promotion's trial."
            ) from None


def _version(client: MlflowClient, match: re.Match[str], place: str) -> ModelVersion:
    """The version that a models:/ address names. Raises TrackingError with what there is."""
    model, number, alias = match[1], match[2], match[3]
    models = {found.name: found for found in client.search_registered_models()}
    if model not in models:
        hint = did_you_mean(model, models) if models else "; none is registered there"
        raise TrackingError(f"{match[0]}: {place} has no registered model {model!r}{hint}.")
    versions = {str(version.version): version for version in client.search_model_versions(f"name = '{model}'")}
    if alias is not None:
        aliases = models[model].aliases
        if alias not in aliases:
            hint = did_you_mean(alias, aliases) if aliases else "; it has none"
            raise TrackingError(f"{match[0]}: {model} has no alias {alias!r}{hint}.")
        number = str(aliases[alias])
    if number not in versions:
        raise TrackingError(f"{match[0]}: {model} has no version {number}{did_you_mean(number, versions)}.")
    return versions[number]
