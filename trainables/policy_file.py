"""A policy file: the policy, where it came from, what it costs, and the network's work, to cost it again in no time.

Version 2 holds the work of the network's layers; version 1, which is still read, did not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.bops import CostModel
from trainables.errors import ConfigError, did_you_mean
from trainables.policy import BitPolicy, policy_of

MAX_BYTES, MAX_DEPTH = 2**26, 32
"""Of files that come from outside; ours have kilobytes, and four levels."""
FORMAT_VERSION = 2
_V1_KEYS: dict[str, type] = {
    "bitfront_policy": int, "hash": str, "network": str, "method": str, "settings": dict, "costs": dict, "layers": dict,
}  # fmt: skip
_V2_KEYS: dict[str, type] = {
    **_V1_KEYS, "image_size": int, "num_classes": int, "parent": str, "changes": list, "work": dict,
}  # fmt: skip
_KINDS = {int: "a whole number", str: "text", dict: "an object", list: "a list"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRecord:
    """A policy with where it came from and what it costs: the content of a policy file."""

    policy: BitPolicy
    method: str
    """The method whose search chose the bits, or most of them."""
    settings: Mapping[str, Any]
    """The method's settings."""
    costs: Mapping[str, float]
    """See `CostModel.of`; and full_bops_g (10^9), float_mb (10^6 bytes)."""
    work: CostModel | None = None
    """What the layers do in the network as it was searched; None in files of version 1."""
    image_size: int = 0
    """Side of the images that `work` was counted on, pixels; 0: not known."""
    num_classes: int = 0
    """Classes of the network that `work` was counted on; 0: not known."""
    parent: str = ""
    """Hash of the policy that this one was made from; empty for one as its search ended."""
    changes: tuple[str, ...] = ()
    """What was done to the search's policy since, in order."""

    @classmethod
    def measured(
        cls,
        policy: BitPolicy,
        work: CostModel,
        *,
        method: str,
        settings: Mapping[str, Any],
        image_size: int,
        num_classes: int,
        parent: str = "",
        changes: tuple[str, ...] = (),
    ) -> PolicyRecord:
        """A record with the costs of `policy`. Raises ConfigError when it names other layers than `work`."""
        return cls(
            policy=policy,
            method=method,
            settings=settings,
            costs=all_costs(policy, work),
            work=work,
            image_size=image_size,
            num_classes=num_classes,
            parent=parent,
            changes=changes,
        )

    def to_json(self) -> str:
        """Policy file as text; `from_json` reads it back."""
        policy = self.policy
        content: dict[str, Any] = {
            "bitfront_policy": FORMAT_VERSION if self.work else 1,
            "hash": policy.hash,
            "network": policy.network,
            "method": self.method,
            "settings": dict(self.settings),
            "costs": dict(self.costs),
            "layers": policy.layers,
        }
        if self.work:
            content |= {
                "image_size": self.image_size,
                "num_classes": self.num_classes,
                "parent": self.parent,
                "changes": list(self.changes),
                "work": self.work.to_content(),
            }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> PolicyRecord:
        """Reads a policy file; `origin` is named in errors. A hash that does not match is an error."""
        content = read_object(text, origin=origin)
        version = content.get("bitfront_policy")
        if isinstance(version, bool) or version not in (1, FORMAT_VERSION):
            raise ConfigError(f"{origin}: not a policy file: expected 'bitfront_policy': 1 or 2, found {version!r}.")
        _check_keys(content, _V1_KEYS if version == 1 else _V2_KEYS, origin)
        for name, value in content["costs"].items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{origin}: costs.{name} is {value!r}; expected a number.")
        policy = policy_of(content["network"], content["layers"], origin)
        if content["hash"] != policy.hash:
            raise ConfigError(
                f"{origin}: the hash in the file ({content['hash'][:12]}…) is not that of its bits "
                f"({policy.hash[:12]}…): the file was edited by hand or damaged."
            )
        return cls(
            policy=policy,
            method=content["method"],
            settings=content["settings"],
            costs=content["costs"],
            work=_work_of(content["work"], policy, origin) if version == FORMAT_VERSION else None,
            image_size=content.get("image_size", 0),
            num_classes=content.get("num_classes", 0),
            parent=content.get("parent", ""),
            changes=tuple(content.get("changes", ())),
        )

    @classmethod
    def load(cls, path: Path) -> PolicyRecord:
        """Reads the policy file at `path`."""
        return cls.from_json(read_text(path), origin=str(path))


def all_costs(policy: BitPolicy, work: CostModel) -> dict[str, float]:
    """The costs of `CostModel.of`, and full_bops_g (10^9) and float_mb (10^6 bytes)."""
    return work.of(policy) | {"full_bops_g": work.full_bops_g, "float_mb": work.storage(policy).float_mb}


def _work_of(content: object, policy: BitPolicy, origin: str) -> CostModel:
    try:
        work = CostModel.from_content(content)
        policy.check_covers(work.layers)
    except ConfigError as error:
        raise ConfigError(f"{origin}: work: {error}") from None
    if not (work.macs and work.weights and work.inputs):
        raise ConfigError(f"{origin}: work: no layer multiplies anything; no policy of such a network has costs.")
    return work


def _check_keys(content: Mapping[str, Any], kinds: Mapping[str, type], origin: str) -> None:
    for key in kinds:
        if key not in content:
            raise ConfigError(f"{origin}: the policy file lacks {key!r}.")
    for key, value in content.items():
        if key not in kinds:
            raise ConfigError(f"{origin}: unknown key {key!r}{did_you_mean(key, kinds)}.")
        if isinstance(value, bool) or not isinstance(value, kinds[key]):
            raise ConfigError(f"{origin}: {key} is {str(value)[:40]!r}; expected {_KINDS[kinds[key]]}.")
    if any(not isinstance(change, str) for change in content.get("changes", ())):
        raise ConfigError(f"{origin}: changes is {content['changes']!r}; expected a list of texts.")


def read_text(path: Path) -> str:
    """The file's text. Raises ConfigError for one that is missing, not text, or larger than any of ours."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES >> 20} MiB; give the file that Bitfront has written.")
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file.") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None


def read_object(text: str, *, origin: str) -> dict[str, Any]:
    """The JSON object that `text` holds. Raises ConfigError for all else, keys that stand twice and NaN."""
    try:
        content = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{origin}:{error.lineno}:{error.colno}: not JSON: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: not JSON that can be read: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{origin}: expected a JSON object, found {str(content)[:40]!r}.")
    try:
        leaves = list(_leaves(content))
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    for place, value in leaves:
        if isinstance(value, _Twice):
            raise ConfigError(f"{origin}: {place} stands twice; keep one.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{origin}: {place} is {value}; expected a finite number.")
    return content


class _Twice:
    """In place of the value of a key that stands twice: where that is, is known once all is read."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        content[key] = _Twice() if key in content else value
    return content


def _leaves(content: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """All values that hold no others, each with its place, such as settings.act_bits.1.

    Raises ConfigError, without the file's name, where they lie deeper than in any file of ours.
    """
    if depth > MAX_DEPTH:
        raise ConfigError(f"{place[:60]}… is nested too deeply; at most {MAX_DEPTH} levels are read.")
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else None
    if inner is None:
        yield place, content
        return
    for key, value in inner:
        yield from _leaves(value, f"{place}.{key}" if place else str(key), depth + 1)
