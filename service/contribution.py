"""Which trials go on: those that add most to the volume that the others cover, within a share of the epochs.

A trial is judged twice: after the first epoch of its search, by what its settings and that epoch foretell of its policy
(`service.forecast`), and after the first epoch of its finetune, when its objectives are measured, by what it has. What
counts is its contribution: the hypervolume that it dominates and that none of the trials that went on does. So of
trials that come to the same thing one goes on, and the ends of the front are kept.

Values are losses: smaller is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.hypervolume import MARGIN, dominated_volume
from service.pareto import MAX_OBJECTIVES, non_dominated
from service.space import Domain, Scalar

Values = tuple[float, ...]
FINETUNE_RATE = 0.5
"""Of the trials that reach the finetune half go on, where the share of the epochs allows no more. One third is as good
where many settings are bad; where most policies are on the front it stops too many that have been searched already."""
COMPARED = 12
"""Trials, the last that came to a rung, with whose contributions one is compared."""
BALANCE = 8
"""Trials within which a rung makes up for having let too many or too few go on."""
ENOUGH = 6
"""Trials with a first finetune epoch, before which nothing is foretold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Of the trials that come to each of the two rungs, how many go on: 0 to 1."""

    search: float
    finetune: float


def rates(share: float, *, search: int, finetune: int) -> Rates:
    """So that trials of `search` and `finetune` epochs take this share of them in the mean.

    With the rates a and b a trial takes 1 + a·search + a·b·(finetune − 1) epochs. b is FINETUNE_RATE, and larger where
    all may be searched to the end. Raises ValueError where the share is used up before a trial is judged for the last
    time, or where there is nothing after that.
    """
    whole = search + finetune
    if finetune < 2:
        raise ValueError(f"after {finetune} epoch of the finetune there is nothing left to save")
    if not share * whole > 1:
        raise ValueError(f"a share of {share:g} of {whole} epochs is used up by the first one; give more")
    if search:
        a = (share * whole - 1) / (search + FINETUNE_RATE * (finetune - 1))
        if a < 1:
            return Rates(search=a, finetune=FINETUNE_RATE)
    return Rates(search=1.0, finetune=min(1.0, (share * whole - search - 1) / (finetune - 1)))


def contribution(value: Values, others: Sequence[Values], corner: Values) -> float:
    """Volume that `value` dominates, within the corner, and that none of the others does."""
    if any(x >= far for x, far in zip(value, corner, strict=True)):
        return 0.0
    clipped = [tuple(map(max, other, value)) for other in others]
    return math.prod(far - x for x, far in zip(value, corner, strict=True)) - dominated_volume(clipped, corner)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Whether a trial goes on, and why not."""

    goes_on: bool
    reason: str = ""


@dataclass(slots=True)
class _Rung:
    """Trials in the order in which they came."""

    trials: list[str] = field(default_factory=list)
    going: set[str] = field(default_factory=set)
    owed: float = 0.0
    """Sum of the rates with which trials have come: so many should have gone on."""

    def decide(self, trial: str, rate: float, values: Sequence[Values] | None) -> Answer:
        """The answer to a trial that has come last; `values` of all trials, None where nothing tells them apart."""
        due = rate + (self.owed - len(self.going)) / BALANCE
        self.owed += rate
        self.trials.append(trial)
        if values is None:
            number = len(self.trials)
            answer = Answer(goes_on=len(self.going) < self.owed, reason="too few are known to compare it with")
        else:
            number, better = self._better(values)
            told = f"{better} of the last {number - 1} trials add more to the front than it would"
            # Its place is better + 1; the half rounds, so that neither rung lets through too many.
            answer = Answer(goes_on=not self.going or better + 0.5 <= due * number, reason=told)
        if answer.goes_on:
            self.going.add(trial)
            return Answer(goes_on=True)
        return answer

    def _better(self, values: Sequence[Values]) -> tuple[int, int]:
        """Trials that are compared, the last one with them, and how many of them add at least as much as the last."""
        scaled, corner = _scaled(values)
        going = [i for i, trial in enumerate(self.trials) if trial in self.going]
        front = [going[i] for i in non_dominated([scaled[i] for i in going])]
        beneath = sorted(set(going) - set(front))
        # What a trial on the front dominates, those on the next front may as well.
        second = [beneath[i] for i in non_dominated([scaled[i] for i in beneath])]
        merits = []
        for place in range(max(0, len(scaled) - 1 - COMPARED), len(scaled)):
            others = [scaled[i] for i in (front + second if place in front else front) if i != place]
            # Where nothing is added, nearer to the ideal is better.
            merits.append((contribution(scaled[place], others, corner), -sum(scaled[place])))
        return len(merits), sum(merit >= merits[-1] for merit in merits[:-1])


def _scaled(values: Sequence[Values]) -> tuple[list[Values], Values]:
    """Every axis from 0 to 1 over the values, and the corner MARGIN beyond the worst."""
    spans = [(min(column), max(column)) for column in zip(*values, strict=True)]
    scaled = [
        tuple((x - low) / (high - low) if high > low else 0.0 for x, (low, high) in zip(value, spans, strict=True))
        for value in values
    ]
    return scaled, (1.0 + MARGIN,) * len(spans)


class ContributionRule:
    """Says of the first epoch of each stage of each trial whether the trial goes on.

    At each of the two rungs a trial goes on if it is among the first rate · n of the last n there, itself included, by
    what they add to those that went on. The rate moves so that what was let through in excess, or too little, is made
    up for. The first one always goes on. The answer is given at once and holds. The answers follow from the reports and
    their order alone: repeating them to a new object makes it equal.
    """

    def __init__(self, *, share: float, space: Mapping[str, Domain]) -> None:
        """`share` of the epochs of all trials that are to be spent; `space` tells what settings mean."""
        self._share, self._space = share, space
        self._early: dict[str, Values] = {}
        self._late: dict[str, Values] = {}
        self._search, self._finetune = _Rung(), _Rung()
        self._answers: dict[tuple[str, str], Answer] = {}

    def report(
        self, trial: str, stage: str, values: Values, *, settings: Mapping[str, Scalar], epochs: tuple[int, int]
    ) -> Answer:
        """The answer to a trial after the first epoch of a stage.

        Other reports of that stage get it again; what was stopped stays stopped.

        `values` are what the epoch tells of the objectives, `epochs` those of the trial's search and finetune. A value
        that is not finite ends the trial; a finetune that tells nothing, or other things than those before, goes on.
        """
        known = self._answers.get((trial, stage))
        if known or not self.standing(trial).goes_on:
            return known or self.standing(trial)
        self._answers[trial, stage] = self._judge(trial, stage, values, settings, epochs)
        return self._answers[trial, stage]

    def standing(self, trial: str) -> Answer:
        """What is known of a trial between its rungs: it goes on unless it was stopped."""
        answers = (self._answers.get((trial, stage)) for stage in ("search", "finetune"))
        return next((answer for answer in answers if answer and not answer.goes_on), Answer(goes_on=True))

    def _judge(
        self, trial: str, stage: str, values: Values, settings: Mapping[str, Scalar], epochs: tuple[int, int]
    ) -> Answer:
        if not all(map(math.isfinite, values)):
            return Answer(goes_on=False, reason="a value is not finite")
        aimed = rates(self._share, search=epochs[0], finetune=epochs[1])
        if stage == "search":
            return self._judge_search(trial, values, settings, aimed)
        if not 0 < len(values) <= MAX_OBJECTIVES or any(len(v) != len(values) for v in self._late.values()):
            return Answer(goes_on=True)
        self._late[trial] = values
        return self._finetune.decide(
            trial, aimed.finetune, [self._late[name] for name in (*self._finetune.trials, trial)]
        )

    def _judge_search(self, trial: str, values: Values, settings: Mapping[str, Scalar], aimed: Rates) -> Answer:
        from service.forecast import coordinates, foretell

        # Risks and BOPs are positive and lie orders of magnitude apart.
        known = tuple(math.log(x) if x > 0 else x for x in values)
        self._early[trial] = (*coordinates(self._space, settings), *known)
        names = [*self._search.trials, trial]
        late = {place: self._late[name] for place, name in enumerate(names) if name in self._late}
        comparable = len({len(self._early[name]) for name in names}) == 1
        foretold = foretell([self._early[name] for name in names], late) if len(late) >= ENOUGH and comparable else None
        return self._search.decide(trial, aimed.search, foretold)
