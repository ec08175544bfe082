"""Which trials go on: those that add most to the volume that the others cover, within a share of the epochs.

A trial is judged twice: after the first epoch of its search, by what its settings and that epoch foretell of its policy
(`service.forecast`; by its task risk, while nothing can be foretold), and after the first epoch of its finetune, when
its objectives are measured, by what it has. What counts is its contribution: the hypervolume that it dominates and that
none of the trials that go on does. So of trials that come to the same thing one goes on, and the ends of the front are
kept. A trial that violates a constraint adds nothing; of such ones less violation is better.

Values are losses: smaller is better.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.hypervolume import MARGIN, dominated_volume
from service.pareto import MAX_OBJECTIVES, Constraint, non_dominated
from service.space import Domain, Scalar

Values = tuple[float, ...]
FINETUNE_RATE = 0.5
"""Of the trials that reach the finetune half go on, where the share of the epochs allows no more. One third is as good
where many settings are bad; where most policies are on the front it stops too many that have been searched already."""
COMPARED = 12
"""Trials, the last that came to a rung, with whose contributions one is compared."""
MANY, PIVOTS = 24, 6
"""Of more points than these, some are tried against all others before their volume is summed."""
BALANCE = 8
"""Trials within which a rung makes up for having let too many or too few go on."""
ENOUGH = 6
"""Trials with a first finetune epoch, before which nothing is foretold, and task risks are compared."""


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
    clipped = _clipped(value, others, corner)
    if value in clipped:
        return 0.0
    return math.prod(far - x for x, far in zip(value, corner, strict=True)) - dominated_volume(clipped, corner)


def _clipped(value: Values, others: Sequence[Values], corner: Values) -> list[Values]:
    """Of the others what lies within the box of `value`; of many without most of those that one of them dominates."""
    if len(others) <= MANY:
        return [tuple(map(max, other, value)) for other in others]
    import numpy as np

    left = np.maximum(np.array(others), value)
    left = left[np.argsort(-np.prod(np.array(corner) - left, axis=1))]
    kept: list[Values] = []
    while len(left) and len(kept) < PIVOTS:
        kept.append(tuple(left[0].tolist()))
        left = left[~np.all(left >= left[0], axis=1)]
    return kept + [tuple(row) for row in left.tolist()]


def excesses(metrics: Mapping[str, float], constraints: Sequence[Constraint]) -> Values:
    """How far each constraint whose metric is known is exceeded, in units of its bound; kept ones are 0 or less."""
    known = [constraint for constraint in constraints if constraint.metric in metrics]
    return tuple(constraint.violation(metrics) / (abs(constraint.bound) or 1.0) for constraint in known)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Whether a trial goes on, and why not."""

    goes_on: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where the last of some trials stands among them."""

    others: int
    """That it is compared with."""
    better: int
    """Of them, those that are as good or better."""
    told: str
    """What these do."""


@dataclass(slots=True)
class _Rung:
    """Trials in the order in which they came."""

    trials: list[str] = field(default_factory=list)
    going: set[str] = field(default_factory=set)
    """Those that went on, but for what has come to nothing since: what the others are to add to."""
    owed: float = 0.0
    """Sum of the rates with which trials have come: so many should have gone on."""
    passed: float = 0.0
    """So many have; of those that came to nothing the part that they took."""

    def decide(self, trial: str, rate: float, place: _Place | None, noted: Answer | None) -> Answer:
        """The answer to a trial that has come last, by its place, or the one that was `noted` of it."""
        due = rate + (self.owed - self.passed) / BALANCE
        self.owed += rate
        self.trials.append(trial)
        if noted is not None:
            answer = noted
        elif place is None:
            answer = Answer(goes_on=self.passed < self.owed, reason="nothing is known to compare it by")
        else:
            # Its place is better + 1; the half rounds, so that neither rung lets through too many.
            goes_on = not place.others or place.better + 0.5 <= due * (place.others + 1)
            answer = Answer(goes_on=goes_on, reason=f"{place.better} of the last {place.others} trials {place.told}")
        if not answer.goes_on:
            return answer
        self.going.add(trial)
        self.passed += 1
        return Answer(goes_on=True)

    def leave(self, trial: str, *, took: float) -> None:
        """A trial that went on has come to nothing; it `took` this part of what one that goes on takes."""
        if trial in self.going:
            self.going.remove(trial)
            self.passed -= 1 - took

    def place(self, values: Sequence[Values], beyond: Sequence[float]) -> _Place:
        """Of a trial that comes last, by what it adds to those that go on.

        Args:
            values: of all trials, with it.
            beyond: by how much each violates the constraints, 0 for none.
        """
        scaled, corner = _scaled(values)
        going = [i for i, trial in enumerate(self.trials) if trial in self.going and not beyond[i]]
        front = [going[i] for i in non_dominated([scaled[i] for i in going])]
        beneath = sorted(set(going) - set(front))
        # What a trial on the front dominates, those on the next front may as well.
        second = [beneath[i] for i in non_dominated([scaled[i] for i in beneath])]
        merits = []
        for place in range(max(0, len(scaled) - 1 - COMPARED), len(scaled)):
            others = [scaled[i] for i in (front + second if place in front else front) if i != place]
            adds = 0.0 if beyond[place] else contribution(scaled[place], others, corner)
            # Where nothing is added, nearer to the ideal is better.
            merits.append((-beyond[place], adds, -sum(scaled[place])))
        return _placed(merits, "add at least as much to the front as it would")


def _placed(merits: Sequence[tuple[float, ...]], told: str) -> _Place:
    *others, last = merits
    return _Place(others=len(others), better=sum(merit >= last for merit in others), told=told)


def _scaled(values: Sequence[Values]) -> tuple[list[Values], Values]:
    """Every axis from 0 to 1 over the values, and the corner MARGIN beyond the worst."""
    spans = [(min(column), max(column)) for column in zip(*values, strict=True)]
    scaled = [
        tuple((x - low) / (high - low) if high > low else 0.0 for x, (low, high) in zip(value, spans, strict=True))
        for value in values
    ]
    return scaled, (1.0 + MARGIN,) * len(spans)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What is known of a trial."""

    early: Values = ()
    """Settings and first epoch of the search, as the forecast takes them."""
    risk: float | None = None
    late: Values = ()
    """Losses after the first epoch of the finetune."""
    excess: Values = ()
    """Then, of each constraint."""


class ContributionRule:
    """Says of the first epoch of each stage of each trial whether the trial goes on.

    At each of the two rungs a trial goes on if it is among the first rate · n of the last n there, itself included, by
    what they add to those that go on. The rate moves so that what was let through in excess, or too little, is made up
    for. The first one always goes on. The answer is given at once and holds. The answers follow from the reports, the
    ends that `ended` was told, and their order alone: repeating them to a new object makes it equal.
    """

    def __init__(self, *, share: float, space: Mapping[str, Domain]) -> None:
        """`share` of the epochs of all trials that are to be spent; `space` tells what settings mean."""
        self._share, self._space = share, space
        self._known: dict[str, _Known] = {}
        self._search, self._finetune = _Rung(), _Rung()
        self._answers: dict[tuple[str, str], Answer] = {}

    def report(
        self,
        trial: str,
        stage: str,
        values: Values,
        *,
        settings: Mapping[str, Scalar],
        epochs: tuple[int, int],
        risk: float | None = None,
        excess: Values = (),
        noted: Answer | None = None,
    ) -> Answer:
        """The answer to a trial after the first epoch of a stage.

        Other reports of that stage get it again; what was stopped stays stopped. A value that is not finite ends the
        trial; a finetune that tells nothing, or other things than those before, goes on.

        Args:
            values: what the epoch tells of the objectives.
            epochs: of the trial's search and finetune.
            risk: task risk, where the epoch is of a search that tells it.
            excess: `excesses` of a finetune's epoch.
            noted: what was answered when this report first came; decided again without.
        """
        given = self._answers.get((trial, stage))
        if given or not self.standing(trial).goes_on:
            return given or self.standing(trial)
        if not all(map(math.isfinite, (*values, *excess))):
            answer = Answer(goes_on=False, reason="a value is not finite")
        elif stage == "search":
            from service.forecast import early_values

            early = early_values(self._space, settings, values)
            self._known[trial] = _Known(early=early, risk=risk)
            answer = self._judge_search(trial, rates(self._share, search=epochs[0], finetune=epochs[1]), noted)
        else:
            aimed = rates(self._share, search=epochs[0], finetune=epochs[1])
            answer = self._judge_finetune(trial, values, excess, aimed, noted)
        self._answers[trial, stage] = answer
        if not answer.goes_on:
            self._search.leave(trial, took=1.0)
        return answer

    def ended(self, trial: str, *, after: int, epochs: tuple[int, int]) -> None:
        """A trial that went on has diverged or failed `after` so many epochs: what it leaves is for others."""
        search, finetune = epochs
        if trial in self._finetune.trials:
            self._finetune.leave(trial, took=(after - search - 1) / (finetune - 1))
            self._search.leave(trial, took=1.0)
        else:
            self._search.leave(trial, took=(after - 1) / (search + FINETUNE_RATE * (finetune - 1)))

    def standing(self, trial: str) -> Answer:
        """What is known of a trial between its rungs: it goes on unless it was stopped."""
        answers = (self._answers.get((trial, stage)) for stage in ("search", "finetune"))
        return next((answer for answer in answers if answer and not answer.goes_on), Answer(goes_on=True))

    def _judge_finetune(self, trial: str, values: Values, excess: Values, aimed: Rates, noted: Answer | None) -> Answer:
        shapes = {(len(one.late), len(one.excess)) for one in self._known.values() if one.late}
        if not 0 < len(values) <= MAX_OBJECTIVES or shapes - {(len(values), len(excess))}:
            return Answer(goes_on=True)
        self._known[trial] = dataclasses.replace(self._known.get(trial, _Known()), late=values, excess=excess)
        found = [self._known[name] for name in (*self._finetune.trials, trial)]
        beyond = [_violation(one.excess) for one in found]
        place = self._finetune.place([one.late for one in found], beyond)
        return self._finetune.decide(trial, aimed.finetune, place, noted)

    def _judge_search(self, trial: str, aimed: Rates, noted: Answer | None) -> Answer:
        from service.forecast import foretell

        found = [self._known[name] for name in (*self._search.trials, trial)]
        late = {i: (*one.late, *one.excess) for i, one in enumerate(found) if one.late}
        place: _Place | None = None
        if len(late) >= ENOUGH and len({len(one.early) for one in found}) == 1:
            size = next(len(one.late) for one in found if one.late)
            foretold = foretell([one.early for one in found], late)
            place = self._search.place([row[:size] for row in foretold], [_violation(row[size:]) for row in foretold])
        elif all(one.risk is not None for one in found):
            risks = [(-one.risk,) for one in found[-1 - COMPARED :] if one.risk is not None]
            place = _placed(risks, "had a task risk as low or lower")
        return self._search.decide(trial, aimed.search, place, noted)


def _violation(excess: Values) -> float:
    return sum(max(0.0, x) for x in excess)
