"""The settings of a finetune as its network's card has them, made settings again; no torch."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from trainables.config import BenchConfig
from trainables.detector_config import DetectorConfig
from trainables.errors import StorageError
from trainables.model_files import ModelCard

_OF_TRIALS = ("method", "budget")
"""What a trial's settings have besides: no measure of the finished network depends on it."""
C = TypeVar("C")


def config_of(card: ModelCard) -> BenchConfig | DetectorConfig:
    """What the network was finetuned and measured with. Raises StorageError where the card does not say."""
    if not card.config:
        raise StorageError(f"the card of this {card.network} does not say what it was finetuned with; finetune again.")
    content = {key: value for key, value in card.config.items() if key not in _OF_TRIALS}
    try:
        return _revived(DetectorConfig, content) if card.task == "detection" else _revived(BenchConfig, content)
    except (TypeError, ValueError, KeyError) as error:
        raise StorageError(
            f"the settings in the card of this {card.network} are those of another version of Bitfront ({error}); "
            "finetune the policy again."
        ) from None


def _revived(kind: type[C], content: Mapping[str, Any]) -> C:
    hints = get_type_hints(kind)
    return kind(**{key: _value(hints[key], value) for key, value in content.items()})


def _value(hint: Any, value: Any) -> Any:
    """`value`, as JSON has it, of the type that a field says: settings within settings, tuples instead of lists."""
    if get_origin(hint) is types.UnionType:
        inner = [one for one in get_args(hint) if dataclasses.is_dataclass(one)]
        hint = inner[0] if inner and isinstance(value, Mapping) else hint
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _revived(hint, value)
    return tuple(value) if isinstance(value, list) else value
