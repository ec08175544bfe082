"""Why the numbers of trials may not mean the same: other data, images, networks, objectives or constraints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.pareto import Objective
from service.records import TrialRecord
from service.run_facts import reference_of
from service.view import SweepView


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """What a trial was measured on, as far as it is known."""

    network: str
    data: str
    """Name of the data set."""
    fingerprint: str
    """SHA-256 of the data; empty where the trial's reference is not known."""
    image_size: int
    """Side of the images, pixels; 0: not known."""
    pixels: int
    """Over which ARD is counted; 0: not known."""

    @classmethod
    def of(cls, view: SweepView, trial: TrialRecord) -> Circumstances:
        """From the trial's own settings, else from its reference's record or its policy, else from the sweep's."""
        sweep, policy = view.sweep, view.policies.get(trial.trial_id)
        record = sweep.references.get(reference_of(sweep, trial), {})
        about, own = record.get("data", {}), trial.settings
        network = record.get("network") or (policy.policy.network if policy else sweep.facts.get("network", ""))
        size = about.get("image_size") or (policy.image_size if policy else 0)
        return cls(
            network=str(own.get("network.name", network)),
            data=str(own.get("data.name") or about.get("name") or sweep.facts.get("data", "")),
            fingerprint=str(record.get("data_fingerprint", "")),
            image_size=int(own.get("data.image_size", size)),
            pixels=round(trial.metrics.get("attribution_pixels", 0)),
        )


def warnings_of(
    views: Sequence[SweepView], *, labels: Sequence[str], objectives: Sequence[Objective]
) -> tuple[str, ...]:
    """A line for each reason why numbers may not mean the same, in all sweeps or within one; it says what they have.

    What counts are the done trials within the constraints. `labels` name the sweeps, `objectives` are those compared.
    """
    return (
        *_of_trials(
            [[Circumstances.of(view, trial) for trial in view.found.kept] for view in views], labels, objectives
        ),
        *_of_sweeps(views, labels, objectives),
    )


def _of_trials(
    sweeps: Sequence[Sequence[Circumstances]], labels: Sequence[str], objectives: Sequence[Objective]
) -> list[str]:
    every, names, found = [one for trials in sweeps for one in trials], {o.name for o in objectives}, []
    if _data_differ(every):
        data = [_listed(f"{one.data or '?'} {one.fingerprint[:8]}".rstrip() for one in trials) for trials in sweeps]
        found.append(f"The data differ, so top-1 and ARD do not say which policy is better ({_told(data, labels)}).")
    if len({one.image_size for one in every} - {0}) > 1:
        sides = [sorted({one.image_size for one in trials} - {0}) for trials in sweeps]
        sizes = [_listed(f"{side}×{side} pixels" for side in of_sweep) for of_sweep in sides]
        found.append(f"The images differ in size, and BOPs with them ({_told(sizes, labels)}).")
    if names & {"ard", "ard_normalised"} and len({one.network for one in every}) > 1:
        networks = [_listed(one.network for one in trials) for trials in sweeps]
        found.append(
            f"ARD is counted in ranks of each network's own map, and the networks differ ({_told(networks, labels)})."
        )
    if "ard" in names and len({one.pixels for one in every} - {0}) > 1:
        pixels = [_listed(map(str, sorted({one.pixels for one in trials} - {0}))) for trials in sweeps]
        found.append(
            f"ARD grows with the pixels that are ranked, and their numbers differ ({_told(pixels, labels)}); "
            "ard_normalised is over that of a random map of as many."
        )
    return found


def _data_differ(trials: Iterable[Circumstances]) -> bool:
    """Whether there are two fingerprints, or a data set of which no fingerprint is known beside another one."""
    known = {one.fingerprint: one.data for one in trials if one.fingerprint}
    unknown = {one.data for one in trials if not one.fingerprint}
    return len(known) + len(unknown - set(known.values())) > 1


def _of_sweeps(views: Sequence[SweepView], labels: Sequence[str], objectives: Sequence[Objective]) -> list[str]:
    found = []
    theirs = [_listed(o.name for o in view.found.objectives) for view in views]
    if len(set(theirs)) > 1:
        common = _listed(o.name for o in objectives)
        found.append(f"The sweeps have different objectives; compared are {common} ({_told(theirs, labels)}).")
    recipes = [_recipe(view) for view in views]
    if len(set(recipes)) > 1:
        found.append(
            f"The policies were finetuned by different recipes, and accuracies show it ({_told(recipes, labels)})."
        )
    bounds = [" and ".join(view.sweep.constraints) for view in views]
    if len(set(bounds)) > 1:
        told = _told(bounds, labels)
        found.append(f"The sweeps have different constraints, and only policies within them count ({told}).")
    return found


def _recipe(view: SweepView) -> str:
    """How the policies were finetuned; that of searches is among their trials' settings, and not looked at here."""
    promoted = view.sweep.kind == "finetune"
    return f"promotion, recipe {view.sweep.facts.get('recipe', '?')}" if promoted else "as their search has it"


def _listed(texts: Iterable[str]) -> str:
    """Each once, in their order."""
    return ", ".join(dict.fromkeys(texts))


def _told(what: Sequence[str], labels: Sequence[str]) -> str:
    return "; ".join(f"{label}: {text or 'none'}" for label, text in zip(labels, what, strict=True))
