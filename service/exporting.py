"""Finetuned networks by name: a folder, PROMOTION/TRIAL in the storage, or one in MLflow's registry. No torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.policies import find_policy
from service.promoted import model_folder
from service.records import SweepStore
from service.registered_policy import MODELS_PREFIX, fetch_registered
from service.sweeps import find_sweep
from service.tracking import resolve_uri
from trainables.errors import ConfigError, StorageError, TrackingError, did_you_mean
from trainables.model_files import CARD_FILE, POLICY_FILE, WEIGHTS_FILE
from trainables.policy_file import PolicyRecord


@contextmanager
def network_at(name: str, storage: Path) -> Iterator[Path]:
    """The folder of the finetuned network that `name` names; one that was fetched goes at the end.

    Raises ConfigError, StorageError or TrackingError.
    """
    if name.startswith(MODELS_PREFIX):
        with tempfile.TemporaryDirectory() as fetched:
            uri = resolve_uri(os.environ.get("MLFLOW_TRACKING_URI", ""), storage)
            fetch_registered(name, uri, (POLICY_FILE, CARD_FILE, WEIGHTS_FILE), Path(fetched))
            yield Path(fetched)
        return
    yield _stored(name, storage)


def _stored(name: str, storage: Path) -> Path:
    folder = Path(name)
    if (folder / CARD_FILE).is_file():
        return folder
    if (model_folder(folder) / CARD_FILE).is_file():
        return model_folder(folder)
    if folder.is_dir():
        raise StorageError(f"{name} holds no finetuned network: it has no {CARD_FILE}.")
    if folder.is_file():
        raise ConfigError(
            f"{name} is a file, not a finetuned network; give its folder. A policy becomes a network with "
            "`bitfront promote`; until then `--format csv` tells its layers."
        )
    sweep, slash, trial = name.partition("/")
    if not slash or "/" in trial or not sweep or not trial:
        raise ConfigError(
            f"{name}: no such folder; give the folder of a finetuned network, PROMOTION/TRIAL such as "
            "quickstart-full/p0a1b2c3d4e5, or models:/NAME/VERSION."
        )
    store = find_sweep(storage, sweep)
    return _of_trial(store, _trial_id(store, trial))


def _trial_id(store: SweepStore, trial: str) -> str:
    """By the trial's id, its number, or the first digits of the policy's hash."""
    records = {record.trial_id: record for record in store.trials()}
    if trial in records:
        return trial
    by_number = [record.trial_id for record in records.values() if str(record.number) == trial]
    if by_number:
        return by_number[0]
    digits = trial.lower()
    by_hash = [one for one in records if len(digits) >= 4 and one.startswith((digits, f"p{digits[:12]}"))]
    if len(by_hash) == 1:
        return by_hash[0]
    if by_hash:
        raise StorageError(f"{store.folder.name}/{trial} may be any of {', '.join(sorted(by_hash))}; give more digits.")
    raise StorageError(f"{store.folder.name} has no trial {trial!r}{did_you_mean(trial, records)}.")


def _of_trial(store: SweepStore, trial_id: str) -> Path:
    folder = model_folder(store.trial_folder(trial_id))
    if (folder / CARD_FILE).is_file():
        return folder
    name = f"{store.folder.name}/{trial_id}"
    if store.sweep().kind == "search":
        raise StorageError(
            f"{name} is the trial of a search, which keeps its policy and no network; finetune it with "
            f"`bitfront promote {store.folder.name}`, then give PROMOTION/TRIAL."
        )
    state = next(record.state for record in store.trials() if record.trial_id == trial_id)
    raise StorageError(f"{name} is {state} and has no network: only a finetune that is done has.")


@contextmanager
def network_or_policy(name: str, storage: Path) -> Iterator[Path | PolicyRecord]:
    """The folder of a finetuned network, or, where `name` names none, the policy that it names."""
    try:
        with network_at(name, storage) as folder:
            yield folder
            return
    except (ConfigError, StorageError, TrackingError) as error:
        found = _policy(name, storage, error)
    yield found


def _policy(name: str, storage: Path, no_network: Exception) -> PolicyRecord:
    try:
        return find_policy(name, storage).record
    except (ConfigError, StorageError) as error:
        # Where a folder or a trial is meant, what was said of the network is nearer to it.
        raise (error if Path(name).is_file() else no_network) from None
