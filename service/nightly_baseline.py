"""What a nightly sweep came to, and the baseline: such an outcome that somebody has accepted, kept beside the sweep.

NAME.baseline.json holds every trial's settings, policy hash and numbers, the box of its hypervolumes, the environment
that it was measured in, and the sweep's YAML, so that a changed sweep is told from a changed result.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.files import write_json
from service.hypervolume import Box
from service.nightly_report import Setting, read_as
from service.pareto import check_objectives, feasible, parse_constraint
from service.records import State, TrialRecord
from service.spec import PROMOTE_FILE, SweepSpec, differences, load_spec
from trainables.errors import BitfrontError, StorageError

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOutcome:
    """A trial as a night left it."""

    trial: str
    state: State
    settings: Mapping[str, Setting]
    policy_hash: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, trial: TrialRecord) -> TrialOutcome:
        """What a baseline keeps of it."""
        return cls(
            trial=trial.trial_id,
            state=trial.state,
            settings=dict(trial.settings),
            policy_hash=trial.policy_hash,
            metrics=dict(trial.metrics),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a sweep came to on one night."""

    night: str
    revision: str = ""
    version: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the machine of its trials; empty: not known."""
    objectives: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    planned: int
    """Trials that it was to have."""
    trials: tuple[TrialOutcome, ...] = ()
    step_ratio: float = 0.0
    """Search step over full-precision step; 0: not measured, or a sweep whose search has no steps."""

    @property
    def done(self) -> tuple[TrialOutcome, ...]:
        """The finished trials."""
        return tuple(trial for trial in self.trials if trial.state == "done")

    def kept(self) -> tuple[TrialOutcome, ...]:
        """Those within the sweep's constraints, of those that have measured all that this and its fronts ask for."""
        constraints = [parse_constraint(text) for text in self.constraints]
        names = {*self.objectives, *(constraint.metric for constraint in constraints)}
        measured = [
            trial for trial in self.done if all(math.isfinite(trial.metrics.get(name, math.nan)) for name in names)
        ]
        return tuple(trial for trial in measured if feasible(trial.metrics, constraints))


@dataclass(frozen=True, kw_only=True, slots=True)
class Corners:
    """The box of hypervolumes, as losses: less is better."""

    ideal: tuple[float, ...]
    corner: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """An accepted outcome."""

    name: str
    accepted_ms: int
    spec: str
    """The sweep's YAML, as it was kept with it."""
    box: Corners | None = None
    """None where no trial was within the constraints."""
    outcome: Outcome
    format: int = FORMAT


def read_baseline(path: Path) -> Baseline | None:
    """The baseline at `path`, None where there is none. Raises StorageError for a file that is none."""
    return read_as(Baseline, path, FORMAT) if path.exists() else None


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Writes it whole or not at all."""
    content = dataclasses.asdict(baseline)
    write_json(path, {"format": content.pop("format"), **content})


def accepted(outcome: Outcome, spec: SweepSpec, *, name: str, before: Baseline | None, now_ms: int) -> Baseline:
    """The outcome as the sweep's next baseline; the box stays as it is while the sweep is the same."""
    is_same = before is not None and not changes(before, spec)
    box = before.box if before and is_same and before.box else box_of(outcome)
    return Baseline(name=name, accepted_ms=now_ms, spec=spec.text, box=box, outcome=outcome)


def box_of(outcome: Outcome) -> Corners | None:
    """The box around what was found; None where nothing was."""
    points = [trial.metrics for trial in outcome.kept()]
    if not points:
        return None
    box = Box.around(points, check_objectives(outcome.objectives))
    return Corners(ideal=box.ideal, corner=box.corner)


def as_box(corners: Corners, objectives: Sequence[str]) -> Box:
    """The box with its objectives."""
    return Box(objectives=check_objectives(objectives), ideal=corners.ideal, corner=corners.corner)


def changes(baseline: Baseline, spec: SweepSpec) -> list[str]:
    """What differs between the baseline's sweep and today's, a line each, in what results depend on.

    Both are read by today's code, so that a setting that was added since, with a default, is no difference.
    """
    with tempfile.TemporaryDirectory(prefix="bitfront-") as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(baseline.spec, encoding="utf-8")
        if spec.promotion:
            (path.parent / PROMOTE_FILE).write_text(spec.promotion.text, encoding="utf-8")
        try:
            old: dict[str, Any] = load_spec(path).identity
        except BitfrontError as error:
            problem = str(error).splitlines()[0].replace(f"{path}:", "line ")
            return [f"the baseline's YAML is none that this version reads ({problem})"]
    return differences(old, spec.identity)


def check_acceptable(outcome: Outcome, name: str) -> None:
    """Raises StorageError for an outcome that can be no baseline."""
    unfinished = [trial for trial in outcome.trials if trial.state not in ("done", "pruned", "diverged")]
    if unfinished or len(outcome.trials) < outcome.planned:
        told = ", ".join(f"{trial.trial} is {trial.state}" for trial in unfinished[:3])
        missing = outcome.planned - len(outcome.trials)
        told = told or f"{missing} of {outcome.planned} trials are missing"
        raise StorageError(f"{name}: night {outcome.night} can be no baseline: {told}; run the night again first.")
    if not outcome.done:
        raise StorageError(f"{name}: night {outcome.night} can be no baseline: no trial is done.")
