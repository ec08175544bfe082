"""Policies by file or by SWEEP/TRIAL: found, edited by hand, checked against what is known of them. No torch."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from service.records import POLICY_FILE, SweepStore
from service.registered_policy import MODELS_PREFIX, registered_policy
from service.sweeps import find_sweep
from service.tracking import resolve_uri
from trainables import api
from trainables.bops import CostModel
from trainables.config import AT_LEAST, BudgetConfig
from trainables.errors import ConfigError, StorageError, did_you_mean
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord, all_costs

MAX_EDITED_BITS = 16
"""As for layers that a sweep pins."""
SAME = 1e-9
"""Relative difference up to which two costs are one: sums of floats in another order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPolicy:
    """A policy and what it holds."""

    name: str
    """As it was asked for."""
    path: Path | None
    """Its file; None for one in MLflow's registry."""
    record: PolicyRecord


def find_policy(name: str, storage: Path) -> FoundPolicy:
    """The policy that a file, SWEEP/TRIAL in `storage`, or models:/NAME/VERSION names.

    Raises ConfigError, StorageError or TrackingError.
    """
    if name.startswith(MODELS_PREFIX):
        # Programs that know MLflow know this variable; without it the storage has a registry of its own.
        uri = resolve_uri(os.environ.get("MLFLOW_TRACKING_URI", ""), storage)
        return FoundPolicy(name=name, path=None, record=registered_policy(name, uri))
    path = policy_path(name, storage)
    return FoundPolicy(name=name, path=path, record=PolicyRecord.load(path))


def policy_path(name: str, storage: Path) -> Path:
    """Where the policy's file is. A file comes before a trial of the same name."""
    if Path(name).is_file():
        return Path(name)
    if Path(name).is_dir():
        raise ConfigError(f"{name} is a folder; give a policy file in it, or SWEEP/TRIAL such as quickstart/t0003.")
    sweep, slash, trial = name.partition("/")
    if not slash or "/" in trial or not sweep or not trial:
        raise ConfigError(f"{name}: no such file; give a policy file, or SWEEP/TRIAL such as quickstart/t0003.")
    if not (storage / sweep).is_dir() and Path(name).suffix == ".json":
        raise ConfigError(f"{name}: no such file.")
    return _trial_path(find_sweep(storage, sweep), trial)


def _trial_path(store: SweepStore, trial: str) -> Path:
    """By the trial's id, or by its number as tables of the front show it."""
    records = {record.trial_id: record for record in store.trials()}
    by_number = {str(record.number): record.trial_id for record in records.values()}
    trial_id = by_number.get(trial, trial)
    if trial_id not in records:
        raise StorageError(f"{store.folder.name} has no trial {trial!r}{did_you_mean(trial, records)}.")
    path = store.trial_folder(trial_id) / POLICY_FILE
    if not path.exists():
        state = records[trial_id].state
        raise StorageError(
            f"{store.folder.name}/{trial_id} is {state} and has no policy: only a trial that is done has."
        )
    return path


def trial_of(path: Path) -> tuple[SweepStore, str] | None:
    """The sweep and the trial in whose folder a file lies or would lie; None for a file elsewhere."""
    for folder in path.resolve().parents:
        if folder.parent.name == "trials" and (folder / "trial.json").exists():
            return SweepStore(folder.parents[1]), folder.name
    return None


def policy_names(storage: Path) -> list[str]:
    """SWEEP/TRIAL of every policy in the storage."""
    paths = sorted(storage.glob(f"[!.]*/trials/*/{POLICY_FILE}"))
    return [f"{path.parents[2].name}/{path.parent.name}" for path in paths]


def check_output(path: Path, *, force: bool, example: str = POLICY_FILE) -> None:
    """Raises ConfigError for a file that must not be written; `example` is how one in a folder could be called."""
    if trial_of(path):
        raise ConfigError(f"{path}: that folder belongs to a trial, whose files never change; write elsewhere.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file in it, such as {path / example}.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: {path.parent} is not a folder that can be written to; make it, or give another.")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; give another file, or --force to replace it.")


class Assignment(NamedTuple):
    """Bits for the layers that a pattern matches; None leaves a layer's own."""

    text: str
    pattern: str
    weight: int | None
    act: int | None


def parse_assignment(text: str) -> Assignment:
    """PATTERN=W/A, PATTERN=W/-, PATTERN=-/A, or PATTERN=B for both."""
    pattern, _, bits = text.rpartition("=")
    weight, slash, act = bits.partition("/")
    sides = (weight, act if slash else weight)
    if not pattern or any(not re.fullmatch("[0-9]{1,3}|-", side) for side in sides) or sides == ("-", "-"):
        raise ConfigError(
            f"{text!r} sets no bits; give PATTERN=WEIGHT/ACT such as 'layer2.*=4/8', '-' for bits that stay "
            f"('layer2.*=4/-'), or one number for both ('fc=8')."
        )
    for side in sides:
        if side != "-" and not 1 <= int(side) <= MAX_EDITED_BITS:
            raise ConfigError(f"{text!r}: {side} bits; give 1 to {MAX_EDITED_BITS}.")
    return Assignment(text, pattern, *(None if side == "-" else int(side) for side in sides))


def edited(record: PolicyRecord, assignments: Sequence[Assignment]) -> tuple[PolicyRecord, list[str]]:
    """The policy after all assignments, in order, with notes on layers that none of them matched but that changed.

    Layers that read one activation have one width for it, so that setting one's sets its partners'.
    """
    work = work_of(record)
    partners = ties(work)
    bits, followed = dict(record.policy.bits), dict[str, str]()
    for assignment in assignments:
        matched = fnmatch.filter(bits, assignment.pattern)
        if not matched:
            raise ConfigError(f"{assignment.text!r} matches no layer; layers are: {', '.join(bits)}.")
        for name in matched:
            followed.pop(name, None)
            bits[name] = _assigned(bits[name], assignment.weight, assignment.act)
        for name in matched if assignment.act is not None else ():
            for partner in partners.get(name, ()):
                if bits[partner].act != assignment.act:
                    bits[partner] = _assigned(bits[partner], None, assignment.act)
                    followed[partner] = name
    policy = dataclasses.replace(record.policy, bits=bits)
    changes = tuple(assignment.text for assignment in assignments)
    notes = [
        f"{partner} reads the same activation as {name}, which is {bits[partner].act} bits in both now."
        for partner, name in followed.items()
    ]
    return derived(record, policy, changes), notes


def _assigned(bits: LayerBits, weight: int | None, act: int | None) -> LayerBits:
    return LayerBits(weight=bits.weight if weight is None else weight, act=bits.act if act is None else act)


def derived(record: PolicyRecord, policy: BitPolicy, changes: Sequence[str]) -> PolicyRecord:
    """The record of a policy that was made from another one's, with its costs; with the same bits it is that one."""
    same = policy.hash == record.policy.hash
    return PolicyRecord.measured(
        policy,
        work_of(record),
        method=record.method,
        settings=record.settings,
        image_size=record.image_size,
        num_classes=record.num_classes,
        parent=record.parent if same else record.policy.hash,
        changes=record.changes if same else (*record.changes, *changes),
    )


def work_of(record: PolicyRecord) -> CostModel:
    """What the policy's layers do. Raises ConfigError for a file of version 1, which does not say."""
    if record.work is None:
        raise ConfigError(
            f"policy {record.policy.hash[:10]} is in a file of version 1, which does not say what the layers of "
            f"{record.policy.network} do; `cost` and `validate` count them with --image-size and --num-classes."
        )
    return record.work


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkChoice:
    """The network that a policy is counted on; what is empty or 0 is as the policy file says."""

    network: str = ""
    image_size: int = 0
    """Side of its images, pixels."""
    num_classes: int = 0

    def work(self, record: PolicyRecord) -> CostModel:
        """That of the policy file, or of a network that is built and counted. Raises ConfigError where neither says."""
        if not (self.network or self.image_size or self.num_classes):
            return work_of(record)
        image_size, num_classes = self.image_size or record.image_size, self.num_classes or record.num_classes
        for option, value in (("--image-size", image_size), ("--num-classes", num_classes)):
            if not value:
                raise ConfigError(
                    f"the file of policy {record.policy.hash[:10]} does not say on what its network was counted; "
                    f"give {option}."
                )
        return api.count(self.network or record.policy.network, image_size=image_size, num_classes=num_classes)

    def same_size(self, record: PolicyRecord) -> bool:
        """Whether `work` is that of the images and classes of the policy file."""
        return self.image_size in (0, record.image_size) and self.num_classes in (0, record.num_classes)


def ties(work: CostModel) -> dict[str, list[str]]:
    """For each layer the others that read the same activation."""
    readers: dict[str, list[str]] = {}
    for name, layer in work.layers.items():
        readers.setdefault(layer.reads, []).append(name)
    return {name: [other for other in group if other != name] for group in readers.values() for name in group}


def findings(record: PolicyRecord, choice: NetworkChoice, budget: BudgetConfig) -> list[str]:
    """What is wrong with a policy whose file could be read: coverage, ties, written costs, limits. None: all is well.

    The limits are those of its costs in the network of `choice`.
    """
    work = choice.work(record)
    policy = record.policy
    try:
        policy.check_covers(work.layers)
    except ConfigError as error:
        return [str(error)]
    return [
        *(_differences(record.work, work) if record.work and choice.same_size(record) else ()),
        *_untied(policy, work),
        *_miscounted(record, all_costs(policy, record.work or work)),
        *beyond(all_costs(policy, work), budget),
    ]


def _differences(written: CostModel, work: CostModel) -> list[str]:
    """Where the file's work is not that of the network."""
    found = []
    for name, layer in work.layers.items():
        for what in ("kind", "macs", "weights", "inputs", "reads"):
            ours, theirs = getattr(written.layers[name], what), getattr(layer, what)
            if ours != theirs:
                found.append(f"{name}: the file says {what} {ours}, the network has {theirs}.")
    return found


def _untied(policy: BitPolicy, work: CostModel) -> list[str]:
    found, seen = [], set[str]()
    for name, partners in ties(work).items():
        group = [name, *partners]
        if name not in seen and len({policy.bits[one].act for one in group}) > 1:
            widths = ", ".join(f"{one} {policy.bits[one].act}" for one in group)
            found.append(f"layers that read one activation give it different bits: {widths}.")
        seen.update(group)
    return found


def _miscounted(record: PolicyRecord, counted: Mapping[str, float]) -> list[str]:
    """Costs that are wrong in the file, or missing: files of version 1 had fewer."""
    written, found = record.costs, []
    for name, cost in counted.items():
        if name not in written and record.work:
            found.append(f"costs.{name} is missing in the file; the bits cost {cost:.10g}.")
        elif name in written and not math.isclose(written[name], cost, rel_tol=SAME, abs_tol=0.0):
            found.append(f"costs.{name} is {written[name]:.10g} in the file, but the bits cost {cost:.10g}.")
    return found


def beyond(costs: Mapping[str, float], budget: BudgetConfig) -> list[str]:
    """The limits that these costs do not keep."""
    return [
        f"{name} is {costs[name]:.10g}, "
        f"{'less' if name in AT_LEAST else 'more'} than the limit {budget.limits[name]:.10g}."
        for name in budget.broken(costs)
    ]
