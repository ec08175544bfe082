"""A finetuned network on disk: what it is, apart from its weights; no torch.

    model.json    this card
    policy.json   its policy, with the work of the network that it was deployed on
    model.pt      its state dict, loadable with weights alone

`trainables.finetuned_model` writes and loads the network itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainables.errors import StorageError
from trainables.finetune_config import DeployedQuantizer

CARD_FILE, WEIGHTS_FILE, POLICY_FILE = "model.json", "model.pt", "policy.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What is needed to build the network again, and to use it."""

    task: Literal["classification", "detection"]
    network: str
    """A classifier of `trainables.models`, a user's `module:function`, or a detector."""
    num_classes: int
    """Without a detector's background."""
    image_size: int
    """Side of a classifier's images, pixels; 0 for a detector, which has its own sizes."""
    quantizer: DeployedQuantizer
    mean: tuple[float, ...]
    """Of each channel, subtracted from pixels of 0 to 1 before the network sees them."""
    std: tuple[float, ...]
    """By which they are divided then."""
    class_names: tuple[str, ...] = ()
    """By label; none where the data set does not know them."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What it was measured to be worth."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The settings of its finetune, as `dataclasses.asdict` has them."""
    data_fingerprint: str = ""
    """Of the data set that it was finetuned and measured on."""

    @classmethod
    def load(cls, folder: Path) -> ModelCard:
        """The card of the network in `folder`. Raises StorageError where there is none that can be read."""
        path = folder / CARD_FILE
        try:
            content = json.loads(path.read_text())
            tuples = {name: tuple(content[name]) for name in ("mean", "std", "class_names")}
            return cls(**{**content, **tuples})
        except FileNotFoundError:
            raise StorageError(f"{folder} holds no finetuned network: it has no {CARD_FILE}.") from None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise StorageError(f"{path} cannot be read ({error}); finetune the policy again.") from None
