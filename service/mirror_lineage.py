"""Who found what was finetuned, and what was finetuned of what was found: both ways between the runs in MLflow.

Every run of a promotion's trial names the trials that found its policy (`FOUND_TAG`). From these tags alone, and from
what the runs have measured, follow the tags, notes and links of both sides; so whoever syncs last completes them, and
what was lost is made again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from service.note_blocks import Heading, block, block_of, with_block
from service.pareto import METRICS
from service.run_facts import (
    ACCURACY_TAG,
    FINETUNED_TAG,
    FOUND_TAG,
    ID_TAG,
    NAME_TAG,
    NOTE_TAG,
    STATE_TAG,
    SWEEP_TAG,
    TRIAL_TAG,
    finders_in,
    fitting,
)
from service.run_writer import KnownRun, RunWriter, known_run

if TYPE_CHECKING:
    from mlflow.entities import Run

Runs = dict[str, "Run"]
"""By SWEEP_ID/TRIAL."""


class Lineage:
    """Brings the runs of searches and promotions in line with each other."""

    def __init__(self, writer: RunWriter, own: Iterable[KnownRun]) -> None:
        """`own`: runs that the caller knows, and goes on writing to."""
        self._writer, self._own = writer, {run.run_id: run for run in own}

    def update(self, searches: Iterable[str]) -> dict[str, str]:
        """Tags and notes of these searches' runs, by sweep id, and of all promotions of theirs.

        Returns the addresses of the runs that found a policy, within MLflow's pages, by SWEEP_ID/TRIAL.
        """
        wanted = list(dict.fromkeys(searches))
        promotions = self._promotions(wanted)
        finetunes = {key: run for sweep_id in promotions for key, run in self._trials(sweep_id).items()}
        named = [finder for run in finetunes.values() for finder in finders_of(run)]
        finders: Runs = {}
        for sweep_id in dict.fromkeys([finder.rpartition("/")[0] for finder in named]):
            finders |= self._trials(sweep_id)
        for sweep_id in wanted:
            self._tell_finders(sweep_id, finders, finetunes)
            self._tell_search(sweep_id, promotions, finetunes)
        for run in finetunes.values():
            lines = [_found_line(finder, finders.get(finder)) for finder in finders_of(run)]
            self._write(run, note=("Found by", lines))
        for sweep_id, run in promotions.items():
            self._tell_promotion(sweep_id, run, finetunes)
        return {finder: _address(finders[finder]) for finder in named if finder in finders}

    def _promotions(self, searches: Sequence[str]) -> Runs:
        """Runs of the promotions with policies of these searches, by sweep id."""
        named: dict[str, None] = {}
        for search in searches:
            # The name of a sweep may hold the pattern's own signs.
            for run in self._writer.search_everywhere(f"tags.`{FOUND_TAG}` LIKE '%{search}/%'"):
                if search in {finder.rpartition("/")[0] for finder in finders_of(run)}:
                    named[run.data.tags.get(ID_TAG, "")] = None
        found = {sweep_id: self._parent(sweep_id) for sweep_id in sorted(named)}
        return {sweep_id: run for sweep_id, run in found.items() if run}

    def _parent(self, sweep_id: str) -> Run | None:
        return next(iter(self._writer.search_everywhere(f"tags.`{SWEEP_TAG}` = '{sweep_id}'")), None)

    def _trials(self, sweep_id: str) -> Runs:
        """Runs of a sweep's trials; the mirror keeps the first where one was made twice."""
        found: Runs = {}
        for run in self._writer.search_everywhere(f"tags.`{ID_TAG}` = '{sweep_id}'"):
            if TRIAL_TAG in run.data.tags:
                found.setdefault(f"{sweep_id}/{run.data.tags[TRIAL_TAG]}", run)
        return dict(sorted(found.items()))

    def _tell_finders(self, sweep_id: str, finders: Runs, finetunes: Runs) -> None:
        """The runs of a search's trials: which finetunes their policies have had."""
        theirs: dict[str, list[str]] = {}
        for key, run in finetunes.items():
            for finder in finders_of(run):
                theirs.setdefault(finder, []).append(key)
        mine = finders if any(key.startswith(f"{sweep_id}/") for key in finders) else self._with_tag(sweep_id)
        for finder, run in mine.items():
            if finder.rpartition("/")[0] != sweep_id or not (finder in theirs or _tells(run.data.tags)):
                continue
            keys = theirs.get(finder, [])
            done = {key: worth for key in keys if (worth := _worth(finetunes[key])) is not None}
            lines = [_finetuned_line(finetunes[key]) for key in keys]
            self._write(run, note=("Finetuned by", lines), finetuned=json.dumps(done) if done else "")

    def _with_tag(self, sweep_id: str) -> Runs:
        """Runs of a search, where some tell of finetunes which are no more."""
        own = [run for run in self._own.values() if TRIAL_TAG in run.tags and _tells(run.tags)]
        return self._trials(sweep_id) if own else {}

    def _tell_search(self, sweep_id: str, promotions: Runs, finetunes: Runs) -> None:
        """A search's own run: which promotions have taken how many of its policies."""
        counts = Counter(
            run.data.tags[ID_TAG]
            for run in finetunes.values()
            if sweep_id in {finder.rpartition("/")[0] for finder in finders_of(run)}
        )
        stale = any(one.tags.get(SWEEP_TAG) == sweep_id and _tells(one.tags) for one in self._own.values())
        run = self._parent(sweep_id) if counts or stale else None
        if run is not None:
            lines = [f"{_link(promotions[p], _name(p))}: {_policies(count)}" for p, count in sorted(counts.items())]
            self._write(run, note=("Promoted by", lines))

    def _tell_promotion(self, sweep_id: str, run: Run, finetunes: Runs) -> None:
        """A promotion's own run: which searches have found how many of its policies."""
        mine = [one for key, one in finetunes.items() if key.rpartition("/")[0] == sweep_id]
        counts = Counter(search for one in mine for search in {f.rpartition("/")[0] for f in finders_of(one)})
        parents = {search: self._parent(search) for search in sorted(counts)}
        lines = [f"{_link(parents[search], _name(search))}: {_policies(counts[search])}" for search in sorted(counts)]
        self._write(run, note=("Searched by", lines))

    def _write(self, run: Run, *, note: tuple[Heading, Sequence[str]], finetuned: str | None = None) -> None:
        """Writes what differs; what stands at the server counts, whatever was known of it."""
        known, stands = self._own.get(run.info.run_id) or known_run(run), dict(run.data.tags)
        for name in (NOTE_TAG, FINETUNED_TAG):
            known.tags.pop(name, None)
            if name in stands:
                known.tags[name] = stands[name]
        text = with_block(stands.get(NOTE_TAG, ""), block(*note))
        tags = {NOTE_TAG: text} if text or NOTE_TAG in stands else {}
        if finetuned:
            tags[FINETUNED_TAG] = fitting(finetuned)
        elif finetuned is not None:
            self._writer.untag(known, [FINETUNED_TAG])
        self._writer.log(known, tags=tags)


def finders_of(run: Run) -> list[str]:
    """SWEEP_ID/TRIAL of each trial that found the policy of a promotion's run."""
    return finders_in(run.data.tags.get(FOUND_TAG, ""))


def _tells(tags: Mapping[str, str]) -> bool:
    """Whether a run says something of other runs."""
    return FINETUNED_TAG in tags or bool(block_of(tags.get(NOTE_TAG, "")))


def _worth(run: Run) -> dict[str, float] | None:
    """Accuracy of a finished finetune on its target, by metric; None of one that is not finished."""
    accuracy = run.data.tags.get(ACCURACY_TAG, "")
    if run.data.tags.get(STATE_TAG) != "done" or accuracy not in METRICS or accuracy not in run.data.metrics:
        return None
    return {accuracy: run.data.metrics[accuracy]}


def _told(worth: Mapping[str, float]) -> str:
    return ", ".join(METRICS[name].told(value) for name, value in worth.items())


def _finetuned_line(run: Run) -> str:
    worth = _worth(run)
    what = f"{_told(worth)} on the target" if worth else run.data.tags.get(STATE_TAG, "")
    return f"{_link(run, _trial_name(run))}: {what}"


def _found_line(finder: str, run: Run | None) -> str:
    sweep_id, _, trial = finder.rpartition("/")
    name = f"{_name(sweep_id)}/{trial}"
    if run is None:
        return f"{name}, which is not recorded here"
    worth = {"top1": run.data.metrics["top1"]} if "top1" in run.data.metrics else {}
    return f"{_link(run, name)}: {_told(worth)} in the search" if worth else _link(run, name)


def _trial_name(run: Run) -> str:
    return f"{run.data.tags.get(NAME_TAG, '')}/{run.data.tags.get(TRIAL_TAG, '')}"


def _name(sweep_id: str) -> str:
    return sweep_id.rpartition("@")[0]


def _policies(count: int) -> str:
    return f"{count} {'policy' if count == 1 else 'policies'}"


def _address(run: Run) -> str:
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def _link(run: Run | None, text: str) -> str:
    return f"[{text}]({_address(run)})" if run else text
