"""How the methods of a sweep compare: for each network on its data, within each budget, a row for each method.

The columns are those of the paper's Table 5, means and spreads over seeds; a row's seeds share data and reference with
the same seeds of the others, so differences are taken of pairs. Everything follows from the sweep's records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.records import TrialRecord
from service.run_facts import reference_of
from service.spread import Spread, leaders, paired, spread_of
from service.view import SweepView
from trainables.bops import FULL_BITS
from trainables.config import AT_LEAST
from trainables.errors import ConfigError, did_you_mean

LABELS = {
    "uniform": "Uniform",
    "random": "Random",
    "blackbox": "Black-box (stand-in for HAQ)",
    "hawq": "HAWQ",
    "mpqco": "MPQCO",
    "limpq": "LIMPQ",
    "edmips": "EdMIPS",
    "bpnas": "EdMIPS + barrier (BP-NAS)",
    "gmpq": "GMPQ",
    "rgmpq": "R-GMPQ",
}
"""Methods as the papers call them, in the order of a budget's rows."""
COMPARED_WITH = ("rgmpq", "gmpq")
"""The method of the paired differences where none is named: the first of these that a sweep has."""
METRICS_SHOWN = (
    "top1",
    "bops_g",
    "bops_paper_g",
    "compression",
    "storage_mb",
    "mean_weight_bits",
    "mean_act_bits",
    "ard",
    "ard_normalised",
    "finetune_device_hours",
)
SEARCH_COST, BUDGET_USED = "search_cost_hours", "budget_used"
"""Device-hours of all that finding the policy took; share of the limit that is nearest, percent."""
DIFFERENCES = ("top1", "ard")
"""Metrics whose paired differences are told."""
HANDLING = ("data.root", "data.download", "data.loader_workers")
"""Settings of the data that change no number."""
METHOD, SEED = "method.name", "seed"
Budget = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRow:
    """A method within a budget."""

    method: str
    budget: Budget
    """Limits by the name of the cost; empty without one, and then costs are a range, which no mean stands for."""
    trials: tuple[TrialRecord, ...]
    """All that were planned, by number."""
    measured: Mapping[str, Spread]
    """Over the finished trials: METRICS_SHOWN, SEARCH_COST and BUDGET_USED, as far as they are known."""
    differences: Mapping[str, Spread]
    """This method less the one that is compared with, of the seeds that both have finished: DIFFERENCES."""
    is_best: bool = False
    """Among the highest top-1 of its budget, as `service.spread.leaders` tells."""

    @property
    def done(self) -> tuple[TrialRecord, ...]:
        """The finished trials."""
        return tuple(trial for trial in self.trials if trial.state == "done")

    @property
    def label(self) -> str:
        """The method as the papers call it."""
        return LABELS.get(self.method, self.method)


@dataclass(frozen=True, kw_only=True, slots=True)
class FullPrecision:
    """The network that is quantised; None: not known, as no trial is finished."""

    top1: float | None
    """Percent."""
    bops_g: float | None
    """32·32 for each multiplication, 10^9."""
    storage_mb: float | None
    """Four bytes a weight, 10^6 bytes."""
    float_mb: float | None
    """Biases and normalisation, which no policy quantises, 10^6 bytes."""
    training_hours: float | None
    """Device-hours of its training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A network on its data: rows whose accuracies compare."""

    network: str
    data: str
    others: Mapping[str, Any]
    """Further settings of network and data that the sweep varies."""
    full: FullPrecision
    rows: tuple[MethodRow, ...]
    """By budget, the largest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodTable:
    """All methods of a sweep."""

    view: SweepView
    groups: tuple[Group, ...]
    against: str
    """The method that the differences are taken to; empty: none."""
    besides: tuple[str, ...]
    """Settings, besides the seed, in which the trials of a row differ."""

    @property
    def rows(self) -> list[MethodRow]:
        """Of all groups."""
        return [row for group in self.groups for row in group.rows]

    @property
    def methods(self) -> list[str]:
        """Each once, in the order of LABELS."""
        return sorted({row.method for row in self.rows}, key=_method_place)


def method_table(view: SweepView, *, against: str = "") -> MethodTable:
    """The table of a sweep as it stands.

    Args:
        against: the method that each other one's seeds are paired with; empty: the first of COMPARED_WITH that the
            sweep has. Raises ConfigError for one that it does not have.
    """
    if view.final:
        name = view.sweep.name
        raise ConfigError(f"{name} is a promotion, which has no methods; see its final table: bitfront front {name}")
    varied = {name for trial in view.trials for name in trial.settings}
    places = sorted(name for name in varied - set(HANDLING) if name.startswith(("network.", "data.")))
    where = {trial.trial_id: _Where.of(view, trial, places) for trial in view.trials}
    methods = sorted({one.method for one in where.values()}, key=_method_place)
    chosen = _chosen(against, methods, view.sweep.name)
    groups = []
    for key in dict.fromkeys(one.group for one in where.values()):
        trials = [trial for trial in view.trials if where[trial.trial_id].group == key]
        network, data, *others = key
        named = {name: value for name, value in zip(places, others, strict=True) if not name.endswith(".name")}
        rows = _rows(view, trials, where, chosen)
        groups.append(Group(network=network, data=data, others=named, full=_full_precision(view, trials), rows=rows))
    besides = _besides([row for group in groups for row in group.rows])
    return MethodTable(view=view, groups=tuple(groups), against=chosen, besides=besides)


@dataclass(frozen=True, slots=True)
class _Where:
    """The place of a trial in the table."""

    group: tuple[Any, ...]
    """Network, data, and the varied settings of both."""
    budget: tuple[tuple[str, float], ...]
    method: str
    seed: int

    @classmethod
    def of(cls, view: SweepView, trial: TrialRecord, places: Sequence[str]) -> _Where:
        facts, given = view.sweep.facts, {**view.fixed, **trial.settings}
        group = (
            str(given.get("network.name", facts.get("network", "?"))),
            str(given.get("data.name", facts.get("data", "?"))),
            *(given.get(name) for name in places),
        )
        limits = {name.removeprefix("budget."): value for name, value in given.items() if name.startswith("budget.")}
        budget = tuple(sorted((name, float(limit)) for name, limit in limits.items() if limit))
        return cls(group, budget, str(given.get(METHOD, facts.get("method", "?"))), int(given.get(SEED, 0)))


def _chosen(against: str, methods: Sequence[str], sweep: str) -> str:
    if against and against not in methods:
        known = did_you_mean(against, methods) if methods else "; it has no trials yet"
        raise ConfigError(f"--against: {sweep} has no trial of {against!r}{known}.")
    default = next((name for name in COMPARED_WITH if name in methods), "") if len(methods) > 1 else ""
    return against or default


def _rows(
    view: SweepView, trials: Sequence[TrialRecord], where: Mapping[str, _Where], against: str
) -> tuple[MethodRow, ...]:
    """Of one group."""
    budgets = {where[trial.trial_id].budget for trial in trials}
    rows: list[MethodRow] = []
    for budget in sorted(budgets, key=_budget_place):
        of_method: dict[str, list[TrialRecord]] = {}
        for trial in trials:
            if where[trial.trial_id].budget == budget:
                of_method.setdefault(where[trial.trial_id].method, []).append(trial)
        found = [
            MethodRow(
                method=method,
                budget=dict(budget),
                trials=tuple(of_method[method]),
                measured=_measured(view, of_method[method], dict(budget)),
                differences=_differences(of_method, method, against, where) if budget else {},
            )
            for method in sorted(of_method, key=_method_place)
        ]
        # Without a budget the policies of a row cost what they cost, and the dearest is the most accurate.
        best = leaders([row.measured.get("top1") for row in found]) if budget else frozenset()
        rows += [replace(row, is_best=place in best) for place, row in enumerate(found)]
    return tuple(rows)


def _budget_place(budget: tuple[tuple[str, float], ...]) -> list[Any]:
    """The largest first: of costs the highest limit, of what is to be reached at least the lowest; none before all."""
    if not budget:
        return [0]
    return [1, *((name, limit if name in AT_LEAST else -limit) for name, limit in budget)]


def _method_place(name: str) -> tuple[int, str]:
    return (list(LABELS).index(name) if name in LABELS else len(LABELS), name)


def _measured(view: SweepView, trials: Sequence[TrialRecord], budget: Budget) -> dict[str, Spread]:
    ways: dict[str, Callable[[TrialRecord], float | None]] = {
        **{name: _metric(name) for name in METRICS_SHOWN},
        SEARCH_COST: lambda trial: search_cost(view, trial),
        BUDGET_USED: lambda trial: budget_used(trial.metrics, budget),
    }
    done = [trial for trial in trials if trial.state == "done"]
    found = {name: spread_of([v for v in map(way, done) if v is not None]) for name, way in ways.items()}
    return {name: one for name, one in found.items() if one}


def _metric(name: str) -> Callable[[TrialRecord], float | None]:
    return lambda trial: trial.metrics.get(name)


def search_cost(view: SweepView, trial: TrialRecord) -> float | None:
    """Device-hours of finding the policy; of older records those of the trial's own search; None: not known."""
    own = view.stage_hours.get(trial.trial_id, {}).get("search")
    return trial.metrics.get(SEARCH_COST, trial.metrics.get("search_device_hours", own))


def budget_used(costs: Mapping[str, float], budget: Budget) -> float | None:
    """Percent of the limit that the costs are nearest to; None without a limit."""
    shares = [
        limit / costs[name] if name in AT_LEAST else costs[name] / limit
        for name, limit in budget.items()
        if name in costs
    ]
    return 100 * max(shares) if shares else None


def _differences(
    of_method: Mapping[str, Sequence[TrialRecord]], method: str, against: str, where: Mapping[str, _Where]
) -> dict[str, Spread]:
    if method == against or against not in of_method:
        return {}
    ours, theirs = of_method[method], of_method[against]
    found = {name: paired(_by_seed(ours, name, where), _by_seed(theirs, name, where)) for name in DIFFERENCES}
    return {name: one for name, one in found.items() if one}


def _by_seed(trials: Sequence[TrialRecord], metric: str, where: Mapping[str, _Where]) -> dict[int, float]:
    """Of each seed the mean of its finished trials: they are several where other settings vary too."""
    values: dict[int, list[float]] = {}
    for trial in trials:
        if trial.state == "done" and metric in trial.metrics:
            values.setdefault(where[trial.trial_id].seed, []).append(trial.metrics[metric])
    return {seed: sum(found) / len(found) for seed, found in values.items()}


def _full_precision(view: SweepView, trials: Sequence[TrialRecord]) -> FullPrecision:
    records = [record for trial in trials if (record := view.sweep.references.get(reference_of(view.sweep, trial)))]
    record = records[0] if records else {}
    metrics = next((trial.metrics for trial in trials if trial.state == "done"), {})
    weights = num_weights(metrics)
    return FullPrecision(
        top1=metrics.get("reference_top1", record.get("top1")),
        bops_g=metrics.get("full_bops_g"),
        storage_mb=None if weights is None else weights * FULL_BITS / 8 / 1e6,
        float_mb=metrics.get("float_mb"),
        training_hours=record.get("device_hours"),
    )


def num_weights(costs: Mapping[str, float]) -> int | None:
    """Weights of a network from the costs of any of its policies: both are its bits over a whole number, rounded once,
    so that the nearest whole number is exact up to 10^15 weights."""
    if not costs.get("mean_weight_bits") or "storage_mb" not in costs:
        return None
    return round(costs["storage_mb"] * 8e6 / costs["mean_weight_bits"])


def _besides(rows: Sequence[MethodRow]) -> tuple[str, ...]:
    """What a row is no repetition of."""
    names: dict[str, None] = {}
    for row in rows:
        for name in {name for trial in row.trials for name in trial.settings} - {SEED, METHOD}:
            if len({repr(trial.settings.get(name)) for trial in row.trials}) > 1:
                names[name] = None
    return tuple(sorted(set(names) - set(HANDLING)))
