"""Which policies of a sweep can be registered, and under what names. No MLflow."""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.records import TrialRecord
from service.view import SweepView
from trainables.errors import ConfigError, StorageError, did_you_mean


def choose(view: SweepView, names: Sequence[str], *, whole_front: bool) -> list[TrialRecord]:
    """The trials whose policies are meant: those named, or of the front all, cheapest first, or the knee.

    A name is a trial's id or its number. Raises StorageError for a trial that is not there or has no policy.
    """
    found = view.found
    if not names and not found.members:
        raise StorageError(
            f"{view.sweep.name} has no front: no trial is done within the constraints. See `bitfront status "
            f"{view.sweep.name}`; a policy beyond them is registered with --trial."
        )
    if not names:
        return list(found.members) if whole_front else [found.knee or found.members[0]]
    known = {trial.trial_id: trial for trial in view.trials}
    by_number = {str(trial.number): trial.trial_id for trial in view.trials}
    chosen = []
    for name in names:
        trial = known.get(by_number.get(name, name))
        if trial is None:
            raise StorageError(f"{view.sweep.name} has no trial {name!r}{did_you_mean(name, known)}.")
        if trial.state != "done":
            raise StorageError(
                f"{view.sweep.name}/{trial.trial_id} is {trial.state} and has no policy to register: only a trial that "
                f"is done has. The front's are registered with: bitfront register {view.sweep.name} --front"
            )
        chosen.append(trial)
    return chosen


def place_of(trial: TrialRecord, view: SweepView) -> str:
    """Where the trial's policy stands in its sweep, in words."""
    members = [member.trial_id for member in view.found.members]
    if trial.trial_id not in members:
        beyond = any(trial.trial_id == other.trial_id for other in view.found.infeasible)
        return "beyond the constraints" if beyond else f"not on the front of {len(members)}"
    knee = ", its knee" if view.found.knee and view.found.knee.trial_id == trial.trial_id else ""
    return f"place {members.index(trial.trial_id) + 1} of {len(members)} on the front by cost{knee}"


def check_names(model: str, aliases: Sequence[str]) -> None:
    """Raises ConfigError for names that MLflow, or a models:/ address, could not hold."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]*", model):
        raise ConfigError(f"--name {model!r}: give letters, digits, spaces, '_', '.' and '-', a letter or digit first.")
    for alias in aliases:
        reserved = alias.lower() == "latest" or re.fullmatch(r"[vV]?[0-9]+", alias)
        if reserved or not re.fullmatch(r"[A-Za-z0-9_-]+", alias):
            raise ConfigError(
                f"--alias {alias!r}: give letters, digits, '_' and '-'; not 'latest', a number or a version such as v1."
            )
