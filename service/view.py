"""All of a sweep that tables and pages show, read from its storage once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from service.final_table import FinalTable, final_table
from service.front import Front, find_front
from service.records import SweepRecord, SweepStore, TrialRecord
from service.space import Domain, parse_domain
from service.yaml_source import read_yaml
from trainables.errors import ConfigError, SpecError
from trainables.policy_file import PolicyRecord

FIXED = ("network", "data", "budget", "method", "finetune")
"""Sections whose settings a space can vary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepView:
    """A sweep at one moment."""

    folder: Path
    """Where it is stored."""
    sweep: SweepRecord
    trials: tuple[TrialRecord, ...]
    """All that were planned, by number."""
    found: Front
    policies: Mapping[str, PolicyRecord]
    """Of the front's members, by trial; without those that cannot be read."""
    hours: Mapping[str, float]
    """Device-hours of each trial's epochs so far, those of attempts that were cut off included; the references' not."""
    stage_hours: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The same by trial and stage, search and finetune."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """By member of the front, why its policy file cannot be read: it is damaged, or of another version."""
    space: Mapping[str, Domain] = field(default_factory=dict)
    """What the trials vary, as far as the sweep's file can still be read."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """What its file fixes for all trials, by names such as 'budget.bops_g' and 'seed'; as far as it can be read."""
    final: FinalTable | None = None
    """Of a promotion."""


def read_view(store: SweepStore, *, objectives: Sequence[str] = (), constraints: Sequence[str] = ()) -> SweepView:
    """The sweep in `store` as it stands; with other objectives, or within more constraints, where these are given."""
    sweep, trials = store.sweep(), store.trials()
    sweep = replace(
        sweep,
        objectives=tuple(objectives) or sweep.objectives,
        constraints=tuple(dict.fromkeys((*sweep.constraints, *constraints))),
    )
    found = find_front(trials, sweep)
    members = [trial.trial_id for trial in found.members]
    policies, unreadable = _policies(store, members)
    stages = {trial.trial_id: store.stage_hours(trial.trial_id) for trial in trials}
    return SweepView(
        folder=store.folder,
        sweep=sweep,
        trials=tuple(trials),
        found=found,
        policies=policies,
        unreadable=unreadable,
        hours={trial_id: sum(hours.values()) for trial_id, hours in stages.items()},
        stage_hours=stages,
        space=_space(store.folder / "spec.yaml"),
        fixed=_fixed(store.folder / "spec.yaml"),
        final=final_table(store) if sweep.kind == "finetune" else None,
    )


def _space(path: Path) -> dict[str, Domain]:
    """The ranges alone: a file of another version of Bitfront may not be one of today's sweeps any more."""
    space = {}
    with suppress(SpecError):
        for name, value in read_yaml(path).mapping(("space",)).items():
            with suppress(ConfigError):
                space[name] = parse_domain(value)
    return space


def _fixed(path: Path) -> dict[str, Any]:
    """The values alone, as `_space` has the ranges."""
    found: dict[str, Any] = {}
    with suppress(SpecError):
        content = read_yaml(path)
        for place in FIXED:
            found |= {f"{place}.{name}": value for name, value in content.mapping((place,)).items()}
        if "seed" in content.content:
            found["seed"] = content.content["seed"]
    return found


def _policies(store: SweepStore, members: Sequence[str]) -> tuple[dict[str, PolicyRecord], dict[str, str]]:
    """The members' policies; and of those whose file cannot be read, what is wrong with it."""
    policies, unreadable = {}, {}
    for trial_id in members:
        try:
            policies[trial_id] = store.policy(trial_id)
        except ConfigError as error:
            unreadable[trial_id] = str(error)
        except OSError as error:
            unreadable[trial_id] = f"{error.filename}: {error.strerror}."
    return policies, unreadable
