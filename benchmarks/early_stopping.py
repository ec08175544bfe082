"""What early stopping costs and saves: recorded sweeps replayed, as if some of their trials had been stopped.

Each sweep in tests/golden/ was run without early stopping, so that it is known what every stopped trial would have
found. Its trials are replayed, some at once: in their order with epochs of equal length, and in shuffled orders with
some trials slower than others. Shares of the whole sweep are printed: of its epochs that were spent, and of the
hypervolume that is dominated by the trials that finished; the latter also for stopping as many trials at the same
epochs at random, and for a sweep of fewer trials, none stopped, that spends as many epochs.

Run: python benchmarks/early_stopping.py [--orders 20] [--no-ard]
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from heapq import heapify, heappop, heappush
from itertools import islice
from pathlib import Path
from statistics import mean

from service.halving import Halving, rung_values
from service.hypervolume import hypervolume
from service.pareto import OBJECTIVES, Point, losses

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
SWEEPS = ("recorded_sweep.json", "recorded_tuning.json")
MARGIN = 0.1
"""The hypervolume's reference lies this share of its span beyond the worst of each objective over the whole sweep."""
SETTINGS = ((3, 3), (4, 3), (2, 3), (3, 2), (3, 1), (2, 1))
"""Reduction and min_epochs."""
GoesOn = Callable[[int, int], bool]
"""(place of the trial, finished epochs) -> whether it goes on."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial that was run to its end."""

    epochs: Sequence[tuple[str, Mapping[str, float]]]
    """Stage and metrics of each."""
    final: Point


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
        trials.append(Trial(epochs, trial["final"]))
    return trials


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
    """Early stopping, as a sweep does it."""
    halving = Halving(reduction=reduction, min_epochs=min_epochs, epochs=max(len(trial.epochs) for trial in trials))

    def goes_on(place: int, epoch: int) -> bool:
        stage, metrics = trials[place].epochs[epoch - 1]
        return halving.report(str(place), epoch, rung_values(stage, metrics, OBJECTIVES), stage=stage)

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


def compare(trials: Sequence[Trial], *, reduction: int, min_epochs: int, at_once: int, orders: int) -> Row:
    """Halving in the recorded order and in `orders` shuffled ones, against chance and against fewer trials.

    In the shuffled orders trials are up to four times as fast as others.
    """
    scale, places = Scale(trials), list(range(len(trials)))
    columns: list[tuple[float, float, float, float]] = []
    for seed in range(orders + 1):
        draw = random.Random(seed)
        order = draw.sample(places, len(places)) if seed else places
        times = [2 ** draw.uniform(-1, 1) if seed else 1.0 for _ in places]
        shuffled = [trials[i] for i in order]
        halving = by_halving(shuffled, reduction=reduction, min_epochs=min_epochs)
        found = replay(shuffled, halving, at_once=at_once, epoch_times=times)
        chance = replay(shuffled, by_chance(found, seed=seed), at_once=at_once)
        fewer = draw.sample(places, max(1, round(scale.epochs(found) * len(trials))))
        volumes = (scale.volume(found.finished, order), scale.volume(chance.finished, order))
        columns.append((scale.epochs(found), *volumes, scale.volume(fewer, places)))
    means = [mean(column) for column in zip(*columns, strict=True)]
    return Row(*columns[0][:2], *means)


def main() -> None:
    """Prints a table for each recorded sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=20, help="shuffled orders, besides the recorded one")
    parser.add_argument("--no-ard", action="store_true", help="as if finetune epochs did not report ARD")
    args = parser.parse_args()
    for name in SWEEPS:
        trials = load(GOLDEN / name, ard=not args.no_ard)
        print(f"\n{name}: {len(trials)} trials of {len(trials[0].epochs)} epochs; shares of the whole sweep in %")
        print(
            "| reduction | min_epochs | at once | epochs | volume | mean: epochs | volume | by chance | fewer trials |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for reduction, min_epochs in SETTINGS:
            for at_once in (1, 2, 4, 8):
                row = compare(trials, reduction=reduction, min_epochs=min_epochs, at_once=at_once, orders=args.orders)
                cells = " | ".join(f"{100 * share:.0f}" for share in astuple(row))
                print(f"| {reduction} | {min_epochs} | {at_once} | {cells} |")


if __name__ == "__main__":
    main()
