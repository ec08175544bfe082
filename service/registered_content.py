"""What a trial becomes in the registry: of a search its policy, of a promotion its network. No MLflow."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.promoted import model_folder
from service.records import POLICY_FILE, SweepStore, TrialRecord
from service.run_facts import HASH_TAG
from trainables.errors import StorageError
from trainables.model_files import CARD_FILE, WEIGHTS_FILE, ModelCard

FLAVOUR = "bitfront"
"""The key of the MLmodel file under which `policy` names the policy file."""
PYFUNC = "python_function"
"""MLflow's own key, by which its generic loader finds ours."""
FINETUNE_TAG = "bitfront.finetune"
"""Of a network: PROMOTION_ID/TRIAL of its finetune."""
PICTURE = "bits.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a logged model holds."""

    what: str
    """As people call it: policy or network."""
    name: str
    identity: tuple[str, str]
    """Tag by which it is found again, and its value: it exists once."""
    model_type: str
    params: Mapping[str, str]
    files: tuple[Path, ...]
    """Copied into its root, those that exist; `needed` have to."""
    needed: tuple[str, ...]
    flavours: Mapping[str, Mapping[str, Any]]
    card: ModelCard | None = None
    """Of a network."""


def content_of(store: SweepStore, trial: TrialRecord) -> Content:
    """Raises StorageError for a promotion's trial whose network is not there."""
    return _network(store, trial) if store.sweep().kind == "finetune" else _policy(store, trial)


def _policy(store: SweepStore, trial: TrialRecord) -> Content:
    record, folder = store.policy(trial.trial_id), store.trial_folder(trial.trial_id)
    params = {"network": record.policy.network, "method": record.method}
    return Content(
        what="policy",
        name=f"policy-{trial.policy_hash[:10]}",
        identity=(HASH_TAG, trial.policy_hash),
        model_type="bitfront-policy",
        params=params | {name: str(value) for name, value in trial.settings.items()},
        files=(folder / POLICY_FILE, folder / PICTURE),
        needed=(POLICY_FILE,),
        flavours={FLAVOUR: {"policy": POLICY_FILE, "policy_hash": trial.policy_hash}},
    )


def _network(store: SweepStore, trial: TrialRecord) -> Content:
    folder, needed = model_folder(store.trial_folder(trial.trial_id)), (CARD_FILE, POLICY_FILE, WEIGHTS_FILE)
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise StorageError(
            f"{store.folder.name}/{trial.trial_id} has no {folder.name}/{missing[0]}: its network was removed, and "
            "cannot be registered."
        )
    card = ModelCard.load(folder)
    settings = {f"finetune.{name}": str(value) for name, value in card.config.get("finetune", {}).items()}
    params = {"task": card.task, "network": card.network, "quantizer": card.quantizer, "seed": card.config.get("seed")}
    return Content(
        what="network",
        name=f"network-{trial.policy_hash[:10]}",
        identity=(FINETUNE_TAG, f"{store.sweep().sweep_id}/{trial.trial_id}"),
        model_type="bitfront-network",
        params={name: str(value) for name, value in {**params, **trial.settings, **settings}.items()},
        files=(*(folder / name for name in needed), store.trial_folder(trial.trial_id) / PICTURE),
        needed=needed,
        flavours={
            FLAVOUR: {"policy": POLICY_FILE, "policy_hash": trial.policy_hash, "model": CARD_FILE},
            PYFUNC: {"loader_module": "service.served_model", "python_version": platform.python_version()},
        },
        card=card,
    )
