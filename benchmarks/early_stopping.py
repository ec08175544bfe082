"""What early stopping costs and saves: recorded sweeps replayed, as if some of their trials had been stopped.

Each sweep in tests/golden/ was run without early stopping, so that it is known what every stopped trial would have
found. Its trials are replayed, some at once: in their order with epochs of equal length, and in shuffled orders with
some trials slower than others. Shares of the whole sweep are printed: of its epochs that were spent, and of the
hypervolume that is dominated by the trials that finished; the latter also for stopping as many trials at the same
epochs at random, and for a sweep of fewer trials, none stopped, that spends as many epochs.

Then what a choice of whole trials after one epoch of each can keep: the best in hindsight, which no rule can beat that
looks at every trial's first epoch; the best by the rule's own regression, had it learnt from all other trials' ends;
any. And what stopping by hypervolume keeps of small sweeps, drawn from the trials.

Run: python benchmarks/early_stopping.py [--orders 20] [--no-ard] [--halves]
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import islice
from pathlib import Path
from statistics import mean

from service.contribution import ContributionRule
from service.forecast import early_values, foretell
from service.halving import Halving, rung_values
from service.hypervolume import Box, hypervolume
from service.pareto import OBJECTIVES, Point, losses
from service.space import Domain, Scalar, parse_domain

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
SWEEPS = ("recorded_tuning.json", "recorded_sweep.json", "recorded_wide.json")
MARGIN = 0.1
"""The hypervolume's reference lies this share of its span beyond the worst of each objective over the whole sweep."""
HALVING = ((3, 3), (3, 2), (3, 1), (2, 1))
"""Reduction and min_epochs."""
SHARES = (0.25, 0.35, 0.5)
SMALL = (12, 16, 24)
"""Trials of small sweeps that are drawn from a recorded one."""
GoesOn = Callable[[int, int], bool]
"""(place of the trial, finished epochs) -> whether it goes on."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial that was run to its end."""

    epochs: Sequence[tuple[str, Mapping[str, float]]]
    """Stage and metrics of each."""
    final: Point
    settings: Mapping[str, Scalar] = field(default_factory=dict)

    def length(self, stage: str) -> int:
        """Epochs of a stage."""
        return sum(name == stage for name, _ in self.epochs)


Rule = Callable[[Sequence[Trial]], GoesOn]
"""What a rule that knows nothing yet does with trials that come in this order."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What would have been."""

    finished: list[int]
    """Places of the trials that nothing stopped."""
    reached: Counter[int]
    """Trials that ran an epoch, by epoch."""
    stopped: Counter[int]
    """Trials that were stopped after it."""

    @property
    def epochs(self) -> int:
        """Epochs of all trials together."""
        return self.reached.total()


def load(path: Path, *, ard: bool) -> list[Trial]:
    """The trials of a recorded sweep. Without `ard`, its epochs do not tell the ARD of the policy."""
    content = json.loads(path.read_text())
    trials = []
    for trial in content["trials"]:
        epochs = [
            (stage, {name: x for name, x in zip(columns, row, strict=True) if ard or name != "ard"})
            for stage, columns in content["columns"].items()
            for row in trial[stage]
        ]
        trials.append(Trial(epochs, trial["final"], trial["settings"]))
    return trials


def space_of(path: Path) -> dict[str, Domain]:
    """What the trials of a recorded sweep vary."""
    spec = json.loads(path.read_text())["made"]["spec"]
    return {name: parse_domain(entry) for name, entry in spec["space"].items()}


def replay(
    trials: Sequence[Trial], goes_on: GoesOn, *, at_once: int, epoch_times: Sequence[float] | None = None
) -> Replay:
    """Runs the trials in their order, `at_once` of them; a free place is taken at once by the next.

    `epoch_times` says how long an epoch of each trial takes; without, all take the same, and then trials reach every
    rung in the order in which they began, however many run at once.
    """
    times = epoch_times or [1.0] * len(trials)
    result = Replay([], Counter(), Counter())
    coming = iter(range(len(trials)))
    # When each of the running trials ends its next epoch, and which epoch that is.
    running = [(times[place], place, 1) for place in islice(coming, at_once)]
    heapify(running)
    while running:
        now, place, epoch = heappop(running)
        result.reached[epoch] += 1
        if epoch < len(trials[place].epochs):
            if goes_on(place, epoch):
                heappush(running, (now + times[place], place, epoch + 1))
                continue
            result.stopped[epoch] += 1
        else:
            result.finished.append(place)
        for following in islice(coming, 1):
            heappush(running, (now + times[following], following, 1))
    return result


def by_halving(trials: Sequence[Trial], *, reduction: int, min_epochs: int) -> GoesOn:
    """Successive halving, as a sweep does it."""
    halving = Halving(reduction=reduction, min_epochs=min_epochs, epochs=max(len(trial.epochs) for trial in trials))

    def goes_on(place: int, epoch: int) -> bool:
        stage, metrics = trials[place].epochs[epoch - 1]
        return halving.report(str(place), epoch, rung_values(stage, metrics, OBJECTIVES), stage=stage)

    return goes_on


def by_contribution(trials: Sequence[Trial], *, share: float, space: Mapping[str, Domain]) -> GoesOn:
    """Stopping by hypervolume, as a sweep does it."""
    rule = ContributionRule(share=share, space=space)

    def goes_on(place: int, epoch: int) -> bool:
        trial = trials[place]
        stage, metrics = trial.epochs[epoch - 1]
        if epoch > 1 and trial.epochs[epoch - 2][0] == stage:
            return True
        values, epochs = rung_values(stage, metrics, OBJECTIVES), (trial.length("search"), trial.length("finetune"))
        risk = metrics["task_risk"] if stage == "search" else None
        return rule.report(str(place), stage, values, settings=trial.settings, epochs=epochs, risk=risk).goes_on

    return goes_on


def by_chance(like: Replay, *, seed: int) -> GoesOn:
    """Stops after each epoch the share of trials that `like` stopped there, whichever they are."""
    draw = random.Random(seed)
    return lambda place, epoch: draw.random() >= like.stopped[epoch] / like.reached[epoch]


def worst(points: Sequence[Point]) -> Point:
    """The hypervolume's reference: MARGIN beyond the worst of each objective."""
    found = {}
    for axis, column in zip(OBJECTIVES, zip(*map(losses, points), strict=True), strict=True):
        loss = max(column) + MARGIN * (max(column) - min(column))
        found[axis.name] = -loss if axis.direction == "max" else loss
    return found


class Scale:
    """Shares of a whole sweep."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.finals = [trial.final for trial in trials]
        self.total_epochs = sum(len(trial.epochs) for trial in trials)
        self.reference = worst(self.finals)
        self.whole = hypervolume(self.finals, self.reference)

    def epochs(self, result: Replay) -> float:
        """Share of the epochs that were spent."""
        return result.epochs / self.total_epochs

    def volume(self, finished: Sequence[int], order: Sequence[int]) -> float:
        """Share of the hypervolume that is dominated by the trials at these places of `order`."""
        return hypervolume([self.finals[order[place]] for place in finished], self.reference) / self.whole


@dataclass(frozen=True, slots=True)
class Row:
    """Shares of the whole sweep; the last four are means over the orders."""

    recorded_epochs: float
    recorded_volume: float
    epochs: float
    volume: float
    volume_by_chance: float
    volume_of_fewer: float


def compare(trials: Sequence[Trial], rule: Rule, *, at_once: int, orders: int) -> Row:
    """A rule in the recorded order and in `orders` shuffled ones, against chance and against fewer trials.

    In the shuffled orders trials are up to four times as fast as others.
    """
    scale, places = Scale(trials), list(range(len(trials)))
    columns: list[tuple[float, float, float, float]] = []
    for seed in range(orders + 1):
        draw = random.Random(seed)
        order = draw.sample(places, len(places)) if seed else places
        times = [2 ** draw.uniform(-1, 1) if seed else 1.0 for _ in places]
        shuffled = [trials[i] for i in order]
        found = replay(shuffled, rule(shuffled), at_once=at_once, epoch_times=times)
        chance = replay(shuffled, by_chance(found, seed=seed), at_once=at_once)
        fewer = draw.sample(places, max(1, round(scale.epochs(found) * len(trials))))
        volumes = (scale.volume(found.finished, order), scale.volume(chance.finished, order))
        columns.append((scale.epochs(found), *volumes, scale.volume(fewer, places)))
    means = [mean(column) for column in zip(*columns, strict=True)]
    return Row(*columns[0][:2], *means)


def greedy(points: Sequence[Point], count: int) -> list[int]:
    """Places of points, one after the other that which adds most to the hypervolume of those before it."""
    box, chosen = Box.around(points), list[int]()
    for _ in range(count):
        left = [place for place in range(len(points)) if place not in chosen]
        chosen.append(max(left, key=lambda i: (box.share([points[j] for j in (*chosen, i)]), -i)))
    return chosen


def foretold_by_others(trials: Sequence[Trial], space: Mapping[str, Domain]) -> list[Point]:
    """What the settings and the first epoch of each trial foretell, learnt from all others that were run to the end."""
    early = [early_values(space, trial.settings, rung_values(*trial.epochs[0], OBJECTIVES)) for trial in trials]
    points = []
    for place in range(len(trials)):
        late = {i: losses(trial.final, OBJECTIVES) for i, trial in enumerate(trials) if i != place}
        found = foretell(early, late)[place]
        points.append({o.name: -x if o.direction == "max" else x for o, x in zip(OBJECTIVES, found, strict=True)})
    return points


def limits(trials: Sequence[Trial], space: Mapping[str, Domain], *, share: float) -> tuple[int, float, float, float]:
    """Whole trials that a share of the epochs pays for after one epoch of each of the others, and the volume that is
    kept: by the best choice in hindsight, by the best forecast, and by any (mean of 200)."""
    scale, epochs = Scale(trials), len(trials[0].epochs)
    count = int(len(trials) * (share * epochs - 1) / (epochs - 1))
    places, draw = list(range(len(trials))), random.Random(0)
    hindsight = scale.volume(greedy(scale.finals, count), places)
    forecast = scale.volume(greedy(foretold_by_others(trials, space), count), places)
    return count, hindsight, forecast, mean(scale.volume(draw.sample(places, count), places) for _ in range(200))


def small(trials: Sequence[Trial], rule: Rule, *, count: int, draws: int) -> tuple[float, float, float]:
    """Of sweeps of `count` trials, drawn from these, 2 or 4 at once: means of epochs and volume as shares of the drawn
    sweep, and of the volume that fewer whole trials keep."""
    rows = []
    for seed in range(draws):
        draw = random.Random(seed)
        drawn = draw.sample(trials, count)
        scale, times = Scale(drawn), [2 ** draw.uniform(-1, 1) for _ in drawn]
        found = replay(drawn, rule(drawn), at_once=2 + 2 * (seed % 2), epoch_times=times)
        fewer = [draw.sample(range(count), max(1, round(scale.epochs(found) * count))) for _ in range(4)]
        volume = scale.volume(found.finished, range(count))
        rows.append((scale.epochs(found), volume, mean(scale.volume(places, range(count)) for places in fewer)))
    epochs, volume, of_fewer = (mean(column) for column in zip(*rows, strict=True))
    return epochs, volume, of_fewer


def print_sweep(name: str, trials: Sequence[Trial], space: Mapping[str, Domain], *, orders: int) -> None:
    """Its table, and what the choice of trials is worth."""
    print(f"\n{name}: {len(trials)} trials of {len(trials[0].epochs)} epochs; shares of the whole sweep in %")
    print("| rule | at once | epochs | volume | mean: epochs | volume | by chance | fewer trials |")
    print("|---|---|---|---|---|---|---|---|")
    rules: dict[str, Rule] = {
        f"successive-halving {reduction}, {first}": partial(by_halving, reduction=reduction, min_epochs=first)
        for reduction, first in HALVING
    }
    rules |= {f"hypervolume {share}": partial(by_contribution, share=share, space=space) for share in SHARES}
    for label, rule in rules.items():
        for at_once in (1, 4, 8):
            row = compare(trials, rule, at_once=at_once, orders=orders)
            print(f"| {label} | {at_once} |", " | ".join(f"{100 * x:.1f}" for x in astuple(row)), "|", flush=True)
    rule = partial(by_contribution, share=0.35, space=space)
    for count in (count for count in SMALL if count < len(trials)):
        shares = ", ".join(f"{100 * x:.1f}" for x in small(trials, rule, count=count, draws=6 * orders))
        print(f"hypervolume 0.35, {count} of its trials: epochs, volume, fewer trials: {shares}", flush=True)
    for share in SHARES:
        count, *found = limits(trials, space, share=share)
        told = ", ".join(f"{100 * x:.1f}" for x in found)
        print(f"{share:g} of the epochs, {count} whole trials: in hindsight, by forecast, any: {told}")


def main() -> None:
    """Prints a table for each recorded sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=20, help="shuffled orders, besides the recorded one")
    parser.add_argument("--no-ard", action="store_true", help="as if finetune epochs did not report ARD")
    parser.add_argument("--halves", action="store_true", help="each half of the trials as a sweep of its own")
    args = parser.parse_args()
    for name in SWEEPS:
        trials, space = load(GOLDEN / name, ard=not args.no_ard), space_of(GOLDEN / name)
        middle = len(trials) // 2
        for part in (trials[:middle], trials[middle:]) if args.halves else (trials,):
            print_sweep(name, part, space, orders=args.orders)


if __name__ == "__main__":
    main()
