"""What a promotion came to: for each policy who found it, what it was worth there, what it is worth now, and its hours.

Device-hours, so that nothing is hidden: those of the trial that found a policy are its own search and finetune, of all
attempts; a search has to run as a whole to find any of its policies, so the whole sweep's hours stand beside them; and
those of the promotion's finetune. References are nobody's, as sweeps share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.correlation import Correlation, rank_correlation
from service.front import accuracy_of, find_front
from service.pareto import METRICS, Objective
from service.promoted import Source, sources_of
from service.records import SweepRecord, SweepStore, TrialRecord
from service.working_copy import located
from trainables.errors import ConfigError, StorageError

SEARCH_ACCURACY = METRICS["top1"]
"""What searches measure on their own data set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A sweep that found policies of the promotion, as far as its storage can still be read."""

    name: str
    sweep_id: str
    data: str = ""
    device_hours: float | None = None
    """Of all its trials, with a policy or without; None: its storage is gone."""
    trial_hours: Mapping[str, float] | None = None
    """Of each trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalRow:
    """One promoted policy."""

    trial: TrialRecord
    """Of the promotion."""
    policy_hash: str
    sources: tuple[Source, ...]
    """All trials that found it, the one that it was promoted from first."""
    metrics: Mapping[str, float]
    """What was measured on the target; before that the costs that its search told."""
    found_hours: float | None
    """Device-hours of the trial that it was promoted from, search and finetune; None: not known."""
    search_hours: float | None
    """Device-hours of the whole sweep of that trial; None: its storage is gone."""
    finetune_hours: float
    """Device-hours of the promotion's finetune so far, those of attempts that were cut off included."""
    on_front: bool
    """Of the promotion."""
    is_knee: bool

    @property
    def searched(self) -> float | None:
        """Top-1 on the data set of the search, percent, of the trial that it was promoted from."""
        return self.sources[0].metrics.get(SEARCH_ACCURACY.name) if self.sources else None

    @property
    def share(self) -> float | None:
        """Of the sweep's hours those of the trial."""
        if self.found_hours is None or not self.search_hours:
            return None
        return self.found_hours / self.search_hours


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalTable:
    """All policies of a promotion."""

    sweep: SweepRecord
    accuracy: Objective
    """Of the target."""
    rows: tuple[FinalRow, ...]
    """Cheapest first; those that are not finetuned last, in the order of their promotion."""
    searches: tuple[Search, ...]
    """In the order of their policies' promotion."""
    correlation: Correlation | None
    """Of the accuracy on the data set of the search with that on the target; None: too few policies."""

    @property
    def finetune_hours(self) -> float:
        """Device-hours of all finetunes."""
        return sum(row.finetune_hours for row in self.rows)

    @property
    def search_hours(self) -> float | None:
        """Device-hours of all the searches, each once; None where one's storage is gone."""
        known = [search.device_hours for search in self.searches if search.device_hours is not None]
        return sum(known) if len(known) == len(self.searches) else None

    @property
    def found_hours(self) -> float | None:
        """Device-hours of the trials that the policies were promoted from; None where one is not known."""
        known = [row.found_hours for row in self.rows if row.found_hours is not None]
        return sum(known) if len(known) == len(self.rows) else None

    def pairs(self) -> list[tuple[FinalRow, float, float]]:
        """Finetuned policies with both accuracies: on the data set of the search, and on the target."""
        return _pairs(self.rows, self.accuracy)


def final_table(store: SweepStore) -> FinalTable:
    """The table of the promotion in `store`, as it stands."""
    sweep, trials = store.sweep(), store.trials()
    found = find_front(trials, sweep)
    sources = {trial.trial_id: sources_of(store.trial_folder(trial.trial_id)) for trial in trials}
    searches: dict[str, Search] = {}
    for source in (one for trial in trials for one in sources[trial.trial_id]):
        if source.sweep_id not in searches:
            searches[source.sweep_id] = _search(source, store.folder.parent)
    members = {member.trial_id for member in found.members}
    rows = [
        _row(
            store,
            trial,
            sources[trial.trial_id],
            searches,
            on_front=trial.trial_id in members,
            is_knee=found.knee is not None and trial.trial_id == found.knee.trial_id,
        )
        for trial in trials
    ]
    rows.sort(key=_order)
    accuracy = accuracy_of(sweep)
    pairs = _pairs(rows, accuracy)
    return FinalTable(
        sweep=sweep,
        accuracy=accuracy,
        rows=tuple(rows),
        searches=tuple(searches.values()),
        correlation=rank_correlation([x for _, x, _ in pairs], [y for _, _, y in pairs]),
    )


def _pairs(rows: Sequence[FinalRow], accuracy: Objective) -> list[tuple[FinalRow, float, float]]:
    return [
        (row, row.searched, row.metrics[accuracy.name])
        for row in rows
        if row.trial.state == "done" and row.searched is not None and accuracy.name in row.metrics
    ]


def _order(row: FinalRow) -> tuple[bool, float, int]:
    done = row.trial.state == "done"
    return not done, row.metrics.get("bops_g", 0.0) if done else 0.0, row.trial.number


def _search(source: Source, storage: Path) -> Search:
    """What `storage`, or else the one where it was promoted, says of the source's sweep.

    Another sweep that was given its name since is not it.
    """
    for place in (storage, located(source.storage)):
        store = SweepStore(place / source.sweep)
        try:
            sweep = store.sweep()
            if sweep.sweep_id != source.sweep_id:
                continue
            hours = {trial.trial_id: store.spent_hours(trial.trial_id) for trial in store.trials()}
        except (StorageError, OSError):
            continue
        return Search(
            name=source.sweep,
            sweep_id=source.sweep_id,
            data=str(sweep.facts.get("data", "")),
            device_hours=sum(hours.values()),
            trial_hours=hours,
        )
    return Search(name=source.sweep, sweep_id=source.sweep_id)


def _row(
    store: SweepStore,
    trial: TrialRecord,
    sources: tuple[Source, ...],
    searches: Mapping[str, Search],
    *,
    on_front: bool,
    is_knee: bool,
) -> FinalRow:
    search = searches[sources[0].sweep_id] if sources else None
    found_hours = search.trial_hours.get(sources[0].trial) if search and search.trial_hours else None
    if found_hours is None and sources:
        # Of the attempt that ended, where nothing else is left of it.
        found_hours = sources[0].metrics.get("device_hours")
    policy_hash, costs = (trial.policy_hash, trial.metrics) if trial.metrics else _planned(store, trial)
    return FinalRow(
        trial=trial,
        policy_hash=policy_hash,
        sources=sources,
        metrics=costs,
        found_hours=found_hours,
        search_hours=search.device_hours if search else None,
        finetune_hours=store.spent_hours(trial.trial_id),
        on_front=on_front,
        is_knee=is_knee,
    )


def _planned(store: SweepStore, trial: TrialRecord) -> tuple[str, Mapping[str, float]]:
    """Hash and costs of a policy that is not finetuned yet.

    What a whole detector will cost is not known: its policy is the backbone's.
    """
    try:
        record = store.policy(trial.trial_id)
    except (ConfigError, OSError):
        return str(trial.settings.get("policy", "")), {}
    costs = {name: value for name, value in record.costs.items() if name in METRICS}
    return record.policy.hash, {} if store.sweep().facts.get("task") == "detection" else costs
