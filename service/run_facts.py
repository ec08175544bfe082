"""What the runs in MLflow say of a sweep and its trials, as plain values: tags, metrics with steps, data sets.

All of it follows from the sweep's storage alone, so that a lost record is rebuilt as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.files import printable
from service.front import accuracy_of
from service.pareto import check_objectives, feasible, losses, parse_constraint
from service.promoted import Source
from service.records import STATES, State, SweepRecord, TrialRecord
from trainables.model_files import ModelCard

SWEEP_TAG, TRIAL_TAG = "bitfront.sweep", "bitfront.trial"
NAME_TAG, ID_TAG = "bitfront.sweep_name", "bitfront.sweep_id"
"""Of a trial's run: its sweep's name, which may be used again, and SWEEP_TAG's value, by which the parent is found."""
STATE_TAG, FRONT_TAG, RANK_TAG = "bitfront.state", "bitfront.front", "bitfront.rank"
ERROR_TAG, FAILURE_TAG = "bitfront.error", "bitfront.failure"
HASH_TAG = "bitfront.policy_hash"
KIND_TAG, ACCURACY_TAG = "bitfront.kind", "bitfront.accuracy"
"""Of a promotion's runs: `finetune`, and the metric that tells how good a network is on the target."""
FOUND_TAG = "bitfront.found_by"
"""Of a promotion's trial: SWEEP_ID/TRIAL of the trials that found its policy, the one that was promoted first."""
FINETUNED_TAG = "bitfront.finetuned"
"""Of a search's trial: by PROMOTION_ID/TRIAL of the finetunes of its policy the accuracy on the target; JSON."""
EPOCHS_TAG, ENDED_TAG = "bitfront.epochs", "bitfront.ended"
"""How much of a trial's history, and of a sweep's course, is recorded."""
PARENT_TAG, NOTE_TAG = "mlflow.parentRunId", "mlflow.note.content"
DIGEST_LENGTH = 12
"""Characters of a data set's fingerprint: MLflow takes 36, and has room for fewer in its table of runs."""
ERROR_LENGTH = 5000
TAG_LENGTH = 5000
"""Characters of a tag: what MLflow's tables on PostgreSQL and MySQL take."""

MetricPoint = tuple[str, float, int, int]
"""Name, value, Unix time in ms, step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFacts:
    """A data set that a run has used, in MLflow's terms."""

    name: str
    digest: str
    source_type: str
    source: str
    """JSON: the folder, or the name under which Bitfront knows the set."""
    context: str


def provenance(sweep: SweepRecord) -> dict[str, str]:
    """Tags of every run of the sweep: whose it is, and which spec and code it comes from, as far as known."""
    found = {
        "bitfront.spec_hash": sweep.spec_hash,
        "bitfront.owner": sweep.owner,
        "bitfront.revision": sweep.revision,
        "bitfront.version": sweep.version,
        "mlflow.source.git.commit": sweep.revision.removesuffix("-dirty"),
        "mlflow.source.name": "bitfront",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": sweep.owner,
    }
    return {name: value for name, value in found.items() if value}


def sweep_tags(sweep: SweepRecord) -> dict[str, str]:
    """Tags of a sweep's run. Its author's own come first: they do not hide what the record stands on."""
    fingerprints = {str(one.get("data_fingerprint", "")) for one in sweep.references.values()} - {""}
    data = {"bitfront.data_fingerprint": ", ".join(sorted(fingerprints))} if fingerprints else {}
    return {**sweep.tags, **provenance(sweep), **data, **kind_tags(sweep), SWEEP_TAG: sweep.sweep_id}


def kind_tags(sweep: SweepRecord) -> dict[str, str]:
    """What tells a promotion's runs from a search's."""
    return {KIND_TAG: sweep.kind, ACCURACY_TAG: accuracy_of(sweep).name} if sweep.kind == "finetune" else {}


def found_by(sources: Sequence[Source]) -> str:
    """`FOUND_TAG`'s value: as many trials as it has room for."""
    keys: list[str] = []
    for source in sources:
        keys.append(f"{source.sweep_id}/{source.trial}")
        if len(", ".join(keys)) > TAG_LENGTH:
            return ", ".join(keys[:-1])
    return ", ".join(keys)


def finders_in(text: str) -> list[str]:
    """SWEEP_ID/TRIAL of each trial that `found_by` has named."""
    return [key for key in text.split(", ") if key]


def fitting(text: str) -> str:
    """An object in JSON with as many of its first entries as a tag has room for."""
    entries: dict[str, Any] = json.loads(text)
    while len(json.dumps(entries)) > TAG_LENGTH:
        entries.popitem()
    return json.dumps(entries)


def trial_tags(
    sweep: SweepRecord, trial: TrialRecord, *, state: str, member: bool, sources: Sequence[Source] = ()
) -> dict[str, str]:
    """Tags of a trial's run, without those that say how it stands among others.

    `state`: as people see it. A trial that is not done, or beyond a constraint, is never a `member` of the front.
    `sources`: of a promotion's trial.
    """
    reference = reference_of(sweep, trial)
    found = {
        **provenance(sweep),
        **kind_tags(sweep),
        FOUND_TAG: found_by(sources),
        NAME_TAG: sweep.name,
        ID_TAG: sweep.sweep_id,
        TRIAL_TAG: trial.trial_id,
        STATE_TAG: state,
        FRONT_TAG: str(member).lower(),
        HASH_TAG: trial.policy_hash,
        "bitfront.reference": reference,
        "bitfront.data_fingerprint": str(sweep.references.get(reference, {}).get("data_fingerprint", "")),
        ERROR_TAG: printable(trial.error)[:ERROR_LENGTH],
        FAILURE_TAG: (trial.failure or "none") if trial.error else "",
    }
    return {name: value for name, value in found.items() if value}


def reference_of(sweep: SweepRecord, trial: TrialRecord) -> str:
    """Key of the trial's reference; of an older record the only one that the sweep has, else ""."""
    return trial.reference or (next(iter(sweep.references)) if len(sweep.references) == 1 else "")


def datasets(sweep: SweepRecord, references: Iterable[str]) -> list[DatasetFacts]:
    """The data sets of these references, each for training and for validation.

    One fingerprint covers both; MLflow keeps one data set of a name and a digest, so the names differ.
    """
    found: dict[tuple[str, str], DatasetFacts] = {}
    for key in references:
        record = sweep.references.get(key, {})
        digest = str(record.get("data_fingerprint", ""))[:DIGEST_LENGTH]
        about = record.get("data", {})
        # Records of earlier versions do not name the data.
        data = str(about.get("name", "") or sweep.facts.get("data", ""))
        if not digest or not data:
            continue
        root = str(about.get("root", ""))
        known_as = {"tags": {"mlflow.source.name": data, "mlflow.source.type": "LOCAL"}}
        source = {"uri": Path(root).expanduser().absolute().as_uri()} if root else known_as
        for context, part in (("training", "train"), ("validation", "validation")):
            found[f"{data}-{part}", digest] = DatasetFacts(
                name=f"{data}-{part}",
                digest=digest,
                source_type="local" if root else "code",
                source=json.dumps(source),
                context=context,
            )
    return list(found.values())


def card_datasets(sweep: SweepRecord, card: ModelCard) -> list[DatasetFacts]:
    """The data sets of a finetune that has no reference, by what its network says of them."""
    about = {"key": {"data_fingerprint": card.data_fingerprint, "data": {**card.config.get("data", {}), "name": ""}}}
    return datasets(replace(sweep, references=about), ["key"])


def epoch_points(history: Sequence[Mapping[str, Any]], *, recorded: int) -> list[MetricPoint]:
    """Metrics of the epochs after the first `recorded` ones; the step counts the epochs of all stages from 0."""
    return [
        (f"{line['stage']}/{name}", value, line["time_ms"], step)
        for step, line in enumerate(history)
        if step >= recorded
        for name, value in line["metrics"].items()
    ]


def result_points(trial: TrialRecord, *, device_hours: float) -> list[MetricPoint]:
    """What was measured of the policy; of a trial that ended early the device-hours that it took.

    A failed one has none: it may be run again, and MLflow forgets no metric.
    """
    spent = {"device_hours": device_hours} if trial.state in ("pruned", "diverged") else {}
    return [(name, value, trial.ended_ms, 0) for name, value in {**spent, **trial.metrics}.items()]


class Course:
    """How a sweep stood after each end of a trial, one after the other.

    A failed trial that is run again ends twice: until it does it counts as failed, and then as what has come of it. So
    the ends only grow in number, and all of them are found in the storage again.
    """

    def __init__(self, sweep: SweepRecord) -> None:
        self._objectives = check_objectives(sweep.objectives)
        self._constraints = [parse_constraint(text) for text in sweep.constraints]
        self._accuracy = accuracy_of(sweep).name
        self._states: dict[str, State] = {}
        self._front: list[tuple[float, ...]] = []
        self._best: dict[str, float] = {}
        self._hours = 0.0
        self.ended = 0

    def add(self, trial: TrialRecord, *, device_hours: float) -> list[MetricPoint]:
        """The metrics of the sweep's run after this end, the step their number; hours are those since its last one."""
        self.ended += 1
        self._hours += device_hours
        self._states[trial.trial_id] = trial.state
        if trial.state == "done" and feasible(trial.metrics, self._constraints):
            reached = trial.metrics[self._accuracy]
            self._best[f"best_{self._accuracy}"] = max(self._best.get(f"best_{self._accuracy}", reached), reached)
            self._place(losses(trial.metrics, self._objectives))
        states = list(self._states.values())
        counts = {f"trials_{state}": states.count(state) for state in STATES if state not in ("pending", "running")}
        numbers = {**counts, "front_size": len(self._front), **self._best, "device_hours": self._hours}
        return [(name, float(value), trial.ended_ms, self.ended) for name, value in numbers.items()]

    def _place(self, point: tuple[float, ...]) -> None:
        def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
            return a != b and all(x <= y for x, y in zip(a, b, strict=True))

        if not any(dominates(other, point) for other in self._front):
            self._front = [other for other in self._front if not dominates(point, other)] + [point]
