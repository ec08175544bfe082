"""Which policies of a sweep can be registered, and under what names. No MLflow."""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.front import Front
from service.records import TrialRecord
from trainables.errors import ConfigError, StorageError, did_you_mean


def choose(
    name: str, trials: Sequence[TrialRecord], found: Front, wanted: Sequence[str], *, whole_front: bool
) -> list[TrialRecord]:
    """The trials whose policies are meant: those named, or of the front all, cheapest first, or the knee.

    `wanted` are ids of trials or their numbers. Raises StorageError for one that is not there or has no policy.
    """
    if not wanted and not found.members:
        raise StorageError(
            f"{name} has no front: no trial is done within the constraints. See `bitfront status "
            f"{name}`; a policy beyond them is registered with --trial."
        )
    if not wanted:
        return list(found.members) if whole_front else [found.knee or found.members[0]]
    known = {trial.trial_id: trial for trial in trials}
    by_number = {str(trial.number): trial.trial_id for trial in trials}
    chosen: dict[str, TrialRecord] = {}
    for one in wanted:
        trial = known.get(by_number.get(one, one))
        if trial is None:
            raise StorageError(f"{name} has no trial {one!r}{did_you_mean(one, known)}.")
        if trial.state != "done":
            raise StorageError(
                f"{name}/{trial.trial_id} is {trial.state} and has no policy to register: only a trial that "
                f"is done has. The front's are registered with: bitfront register {name} --front"
            )
        chosen[trial.trial_id] = trial
    return list(chosen.values())


def place_of(trial: TrialRecord, found: Front) -> str:
    """Where the trial's policy stands in its sweep, in words."""
    members = [member.trial_id for member in found.members]
    if trial.trial_id not in members:
        beyond = any(trial.trial_id == other.trial_id for other in found.infeasible)
        return "beyond the constraints" if beyond else f"not on the front of {len(members)}"
    knee = ", its knee" if found.knee and found.knee.trial_id == trial.trial_id else ""
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
