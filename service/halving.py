"""Which trials go on: asynchronous successive halving on the non-dominated rank. Plain numbers, no framework.

At a rung, a fixed number of epochs, a trial goes on if it is among the best of those that were there before it: ASHA in
its stopping variant (Li et al. 2020, arXiv:1810.05934). With several objectives "best" is the non-dominated rank, and
within a rank what spreads the chosen over it: MOASHA (Schmucker et al. 2021, arXiv:2106.12639). DEVIATION: what is not
matched by anything at a rung goes on, however many these are. A sweep is asked for its front; where that is half of the
trials, one trial in `reduction` cannot hold it (benchmarks/README.md has both rules on recorded sweeps).

Values are losses: smaller is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from service.pareto import Objective, non_dominated

Losses = tuple[float, ...]

COSTS = frozenset({"bops_g", "bops_paper_g", "compression", "storage_mb", "storage_mib"})
"""Objectives that the bits alone decide. While a trial runs, its policy's BOPs stand for all of them."""


def rung_values(stage: str, metrics: Mapping[str, float], objectives: Sequence[Objective]) -> Losses:
    """What an epoch of `stage` tells of the objectives, as losses; () where it tells nothing.

    A metric that the epoch reports stands for itself. While searching, top-1 is foretold by the supernet's task risk,
    and a cost by the BOPs of the policy that the bit logits now favour. An objective of which the epoch knows nothing
    (ARD, where it is measured at the end) is left out: `generalisation_risk` cannot stand for it, as trials that differ
    in capacity or top_k measure it in different units.
    """
    found: dict[str, float] = {}
    for objective in objectives:
        if objective.name in metrics:
            value = metrics[objective.name]
            found[objective.name] = -value if objective.direction == "max" else value
        elif objective.name == "top1" and stage == "search" and "task_risk" in metrics:
            found["task_risk"] = metrics["task_risk"]
        elif objective.name in COSTS:
            found |= {name: metrics[name] for name in ("policy_bops_g", "bops_g") if name in metrics}
    return tuple(found.values())


def _fronts(values: Sequence[Losses]) -> Iterator[list[int]]:
    left = list(range(len(values)))
    while left:
        first = [left[i] for i in non_dominated([values[i] for i in left])]
        yield first
        gone = set(first)
        left = [place for place in left if place not in gone]


def spread_order(values: Sequence[Losses]) -> list[int]:
    """Places of the points of one rank, so that every beginning of the list covers the rank: farthest points first.

    Each objective is scaled to 0..1 over the rank. First comes the best of each objective in turn, then always the
    point whose nearest neighbour among those before it is farthest away: an epsilon-net, as MOASHA takes it, but with
    the extremes ahead, as nothing else holds a front's ends. Of equals the first in `values`; duplicates come last.
    """
    if not values:
        return []
    spans = [(min(column), max(column)) for column in zip(*values, strict=True)]
    scaled = [
        tuple((x - low) / (high - low) if high > low else 0.0 for x, (low, high) in zip(value, spans, strict=True))
        for value in values
    ]
    # Ends of the front that share the best value of one objective: the one that loses least elsewhere.
    extremes = [min((v[axis], sum(v), i) for i, v in enumerate(scaled))[2] for axis in range(len(spans))]
    chosen = list(dict.fromkeys(extremes))
    left = [i for i in range(len(scaled)) if i not in chosen]
    gaps = {i: min(math.dist(scaled[i], scaled[j]) for j in chosen) for i in left}
    while gaps:
        farthest = max(gaps, key=gaps.__getitem__)
        del gaps[farthest]
        chosen.append(farthest)
        for i in gaps:
            gaps[i] = min(gaps[i], math.dist(scaled[i], scaled[farthest]))
    return chosen


def best(values: Sequence[Losses], count: int) -> set[int]:
    """Places of the best `count` points: whole ranks while there is room, then the next one's beginning."""
    chosen: set[int] = set()
    for rank in _fronts(values):
        room = count - len(chosen)
        if len(rank) < room:
            chosen.update(rank)
            continue
        spread = spread_order([values[i] for i in rank])
        return chosen | {rank[i] for i in spread[:room]}
    return chosen


class Halving:
    """Says of each epoch of each trial whether the trial goes on.

    Rungs are at min_epochs · reduction^k epochs, below those of a whole trial. A trial that is the n-th to reach a rung
    goes on if nothing there is as good in every objective, or if it is among the best ⌈n / reduction⌉. With one
    objective the second says it all, and this is ASHA. The answer is given at once and holds; later and better trials
    do not recall it. Rounding up costs one trial a rung at most and lets two of the first four go on, not one.

    The answers follow from the reports and their order alone: repeating them to a new object makes it equal.
    """

    def __init__(self, *, reduction: int, min_epochs: int, epochs: int) -> None:
        """`epochs` of a whole trial, search and finetune together; where trials differ, of the longest."""
        if reduction < 2 or min_epochs < 1:
            raise ValueError(f"reduction is {reduction}, min_epochs {min_epochs}; they start at 2 and 1.")
        self.reduction = reduction
        self.rungs: list[int] = []
        while min_epochs < epochs:
            self.rungs.append(min_epochs)
            min_epochs *= reduction
        self._records: dict[tuple[int, str, int], list[Losses]] = {}
        self._answers: dict[str, dict[int, bool]] = {}

    def report(self, trial: str, epoch: int, values: Losses, *, stage: str = "", noted: bool | None = None) -> bool:
        """Whether `trial` goes on after its `epoch`, counted from 1 through search and finetune.

        The first report of a trial at a rung counts; others get its answer again, and what was stopped stays stopped.
        Compared are trials that were in the same `stage` there and told as much. A value that is not finite ends the
        trial; where there are no values, all go on. What was `noted` when this report first came is not decided again.
        """
        answers = self._answers.setdefault(trial, {})
        stopped = not all(answers.values())
        if values and epoch in self.rungs and epoch not in answers and not stopped:
            records = self._records.setdefault((epoch, stage, len(values)), [])
            records.append(values)
            answers[epoch] = self._goes_on(records) if noted is None else noted
        return all(goes_on for rung, goes_on in answers.items() if rung <= epoch)

    def _goes_on(self, records: Sequence[Losses]) -> bool:
        """The rule for the last one; what is not finite counts as arrived, behind all others."""
        last = records[-1]
        if not all(map(math.isfinite, last)):
            return False
        before = [values for values in records[:-1] if all(map(math.isfinite, values))]
        if not any(all(x <= y for x, y in zip(other, last, strict=True)) for other in before):
            return True
        return len(before) in best([*before, last], math.ceil(len(records) / self.reduction))
