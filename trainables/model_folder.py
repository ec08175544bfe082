"""A finetuned network's folder is written whole, or not at all; `finetuned_model` builds the network again."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from torch import nn

from trainables.errors import DivergedError, StorageError
from trainables.folders import replaced
from trainables.model_files import CARD_FILE, POLICY_FILE, WEIGHTS_FILE, ModelCard
from trainables.patience import unavailable
from trainables.policy_file import PolicyRecord
from trainables.tensor_files import DamagedError, read_tensors, save_tensors


def save_model(net: nn.Module, card: ModelCard, record: PolicyRecord, folder: Path) -> None:
    """Writes `net`, deployed by `record` on a network that does its `work`; takes the place of what is in `folder`."""
    broken = [name for name, value in card.metrics.items() if not math.isfinite(value)]
    if broken:
        raise DivergedError(f"{', '.join(broken)} is no finite number; try smaller learning rates.")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    try:
        with replaced(folder) as unfinished:
            save_tensors(weights, unfinished / WEIGHTS_FILE)
            (unfinished / POLICY_FILE).write_text(record.to_json())
            content = json.dumps(dataclasses.asdict(card), indent=2, allow_nan=False)
            (unfinished / CARD_FILE).write_text(content + "\n")
    except OSError as error:
        otherwise = StorageError(f"{folder}: the network cannot be written ({error}); make room, and run again.")
        raise unavailable(error, folder.parent) or otherwise from None


def load_weights(net: nn.Module, folder: Path) -> None:
    """Gives `net` the weights of the folder. Raises StorageError where they are missing, damaged or another network's.

    Nothing but tensors is read.
    """
    path = folder / WEIGHTS_FILE
    try:
        weights = read_tensors(path)
    except FileNotFoundError:
        raise StorageError(f"{folder} has no {WEIGHTS_FILE}; finetune the policy again.") from None
    except (OSError, DamagedError) as error:
        raise StorageError(f"{path} cannot be read ({error}); copy it again, or finetune the policy again.") from None
    try:
        net.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        found = " ".join(str(error).split())[:300]
        raise StorageError(
            f"{path}: the weights are not those of the network that {CARD_FILE} and {POLICY_FILE} describe ({found}); "
            "the files are of different networks, or the network's code has changed: finetune the policy again."
        ) from None
