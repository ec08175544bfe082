"""What a promotion keeps of its policies, beside what every sweep keeps of its trials.

A promotion is a sweep whose trials finetune policies that searches found, each once, by one recipe:

    trials/<p + 12 digits of the policy's hash>/
        policy.json     the policy as its search left it
        sources.json    the trials that found it, and what it was worth there
        model/          the finetuned network (`trainables.model_files`)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.files import write_json
from trainables.errors import StorageError

MODEL_FOLDER = "model"
SOURCES_FILE = "sources.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A trial that found a policy."""

    sweep: str
    """Name of its sweep."""
    sweep_id: str
    storage: str
    """Of the storage in which the sweep is: folder, absolute, or address."""
    trial: str
    metrics: Mapping[str, float]
    """What the trial measured, on the data set of the search."""

    @property
    def name(self) -> str:
        """SWEEP/TRIAL."""
        return f"{self.sweep}/{self.trial}"


_FIELDS = tuple(field.name for field in dataclasses.fields(Source))


def promoted_id(policy_hash: str) -> str:
    """The trial that finetunes the policy of this hash."""
    return f"p{policy_hash[:12]}"


def sources_of(trial_folder: Path) -> tuple[Source, ...]:
    """The trials that found the policy, the first to be promoted first."""
    path = trial_folder / SOURCES_FILE
    try:
        return tuple(Source(**{name: one[name] for name in _FIELDS}) for one in json.loads(path.read_text())["sources"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read ({error}); promote the policy again after removing it.") from None


def save_sources(trial_folder: Path, sources: Sequence[Source]) -> None:
    """Replaces what is noted of the policy's origin."""
    trial_folder.mkdir(parents=True, exist_ok=True)
    write_json(trial_folder / SOURCES_FILE, {"sources": [dataclasses.asdict(source) for source in sources]})


def model_folder(trial_folder: Path) -> Path:
    """Where the finetuned network is."""
    return trial_folder / MODEL_FOLDER
