"""How long bits within a budget take: the knapsack solver, HiGHS on the same program, greedy upgrades.

    python benchmarks/allocation.py [DRAWS]

Scores are drawn as LSQ's steps fall, by about 0.6 a bit with 5 % of noise; costs are ResNet18's and ResNet50's at 224
pixels. Limits lie at 20, 40 and 60 % of the way from the smallest widths to the best. Printed: medians over all draws
and limits of this process's CPU time, the solvers taking turns; the ratio of HiGHS to the knapsack; how many draws the
knapsack left to HiGHS; the largest difference of the two scores; and the most that greedy upgrades lose. Give
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from trainables import api
from trainables.allocate import ceilings
from trainables.bops import CostModel
from trainables.choices import Choices, Scores
from trainables.config import BudgetConfig
from trainables.greedy import allocate_greedily
from trainables.integer_program import IntegerProgram
from trainables.knapsack.exact import solve
from trainables.knapsack.problem import tabulate
from trainables.policy import BitPolicy

T = TypeVar("T")

SHARES = (0.2, 0.4, 0.6)
NARROW, MIDDLE, WIDE = (2, 3, 4), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 7, 8)
HEADS = (
    "network",
    "layers",
    "widths",
    "limits",
    "knapsack ms",
    "HiGHS ms",
    "ratio",
    "left",
    "differ",
    "greedy ms",
    "loses",
)


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    costs: CostModel
    widths: tuple[int, ...]
    limits: tuple[str, ...]
    shared: bool = True
    """Whether layers that read one activation share its bits; else each layer has its own pair, as LIMPQ has it."""


def cases(resnet18: CostModel, resnet50: CostModel) -> Iterator[Case]:
    """Sizes, limits, candidates, layers."""
    one, two, three = ("bops_g",), ("bops_g", "storage_mb"), ("bops_g", "storage_mb", "mean_act_bits")
    yield Case("resnet18", resnet18, MIDDLE, one)
    yield Case("resnet18", resnet18, MIDDLE, two)
    yield Case("resnet50, a pair each", resnet50, MIDDLE, one, shared=False)
    yield Case("resnet50, a pair each", resnet50, MIDDLE, two, shared=False)
    for widths in (NARROW, MIDDLE, WIDE):
        for limits in (one, two):
            yield Case("resnet50", resnet50, widths, limits)
    yield Case("resnet50", resnet50, MIDDLE, three)
    for times in (2, 4):
        for limits in (one, two):
            yield Case(f"resnet50, {times} times", _repeated(resnet50, times), MIDDLE, limits)


def _repeated(costs: CostModel, times: int) -> CostModel:
    """The same layers again, under other names."""
    work = {}
    for copy in range(times):
        for name, layer in costs.work.items():
            work[f"{name}.{copy}"] = replace(layer, reads=f"{layer.reads}.{copy}", stream=f"{layer.stream}.{copy}")
    return CostModel(work, 0)


def drawn(case: Case, seed: int) -> Choices:
    """Scores of all widths."""
    rng = random.Random(seed)
    names = list(case.costs.layers)
    group_of = {name: case.costs.work[name].reads if case.shared else name for name in names[1:-1]}

    def scores() -> Scores:
        first, factor = math.exp(rng.gauss(-3, 1)), rng.uniform(0.45, 0.75)
        values = (first * factor**width * math.exp(rng.gauss(0, 0.05)) for width in case.widths)
        return Scores(case.widths, tuple(-value for value in values))

    return Choices(
        network="net",
        layers=tuple(names),
        weights={name: scores() for name in group_of},
        acts={group: scores() for group in dict.fromkeys(group_of.values())},
        group_of=group_of,
        pinned={names[0]: 8, names[-1]: 8},
    )


def budget_of(case: Case, choices: Choices, share: float) -> BudgetConfig:
    """Limits at `share` of the way."""
    low, high = case.costs.of(choices.smallest), case.costs.of(choices.best)
    return BudgetConfig(**{name: low[name] + share * (high[name] - low[name]) for name in case.limits})


def by_knapsack(choices: Choices, costs: CostModel, budget: BudgetConfig) -> BitPolicy | None:
    """None where it leaves the problem to HiGHS."""
    table = tabulate(choices, costs, ceilings(choices, costs, budget))
    found = table and solve(table.problem)
    return table.policy(choices, *found) if table and found else None


def by_highs(choices: Choices, costs: CostModel, budget: BudgetConfig) -> BitPolicy:
    """Always one."""
    return IntegerProgram(choices, costs, ceilings(choices, costs, budget)).solve()


def timed(run: Callable[..., T], *problem: object) -> tuple[T, float]:
    """What it returns, and the milliseconds of CPU time."""
    began = time.process_time()
    found = run(*problem)
    return found, 1e3 * (time.process_time() - began)


def row(case: Case, draws: int) -> tuple[str, ...]:
    """Of the table."""
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    left, differ, loses = 0, 0.0, 0.0
    for seed in range(draws):
        choices = drawn(case, seed)
        for share in SHARES:
            problem = choices, case.costs, budget_of(case, choices, share)
            ours, our_ms = timed(by_knapsack, *problem)
            theirs, their_ms = timed(by_highs, *problem)
            greedy, greedy_ms = timed(allocate_greedily, *problem)
            for found, ms in zip(times, (our_ms, their_ms, greedy_ms), strict=True):
                found.append(ms)
            best = choices.score(theirs)
            loses = max(loses, choices.score(greedy) / best - 1)
            if ours is None:
                left += 1
            else:
                differ = max(differ, abs(choices.score(ours) / best - 1))
    ours_ms, highs_ms, greedily_ms = (statistics.median(found) for found in times)
    layers, count = str(len(choices.weights)), f"{len(case.widths)}×{len(case.widths)}"
    return (
        *(case.name, layers, count, str(len(case.limits))),
        *(f"{ours_ms:.1f}", f"{highs_ms:.0f}", f"{highs_ms / ours_ms:.0f}"),
        *(f"{left} of {draws * len(SHARES)}", f"{differ:.0e}", f"{greedily_ms:.0f}", f"{100 * loses:.2f} %"),
    )


def main() -> None:
    """Prints the table as it is computed."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    networks = [api.count(name, image_size=224, num_classes=1000) for name in ("resnet18", "resnet50")]
    print("|", " | ".join(HEADS), "|")
    print("|", " | ".join("---" for _ in HEADS), "|")
    for case in cases(*networks):
        print("|", " | ".join(row(case, draws)), "|", flush=True)


if __name__ == "__main__":
    main()
