"""Which sweeps a front is asked of, in which objectives and within which budget."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.marks import SWEEP_FILE
from service.pareto import METRICS, SEARCHED, Constraint, Objective, check_objectives, parse_constraint
from service.records import SweepStore
from service.sweeps import find_sweep
from service.view import SweepView, read_view
from trainables.errors import ConfigError


def read_views(
    names: Sequence[str], storage: Path, *, objectives: str = "", budgets: Sequence[str] = ()
) -> tuple[SweepView, ...]:
    """The sweeps of these names, or in these folders.

    Args:
        names: of sweeps in the storage, or folders of sweeps anywhere.
        storage: where names are looked up.
        objectives: names of metrics with commas between, instead of each sweep's own objectives.
        budgets: what `parse_budget` reads, besides each sweep's own constraints.

    Raises ConfigError or StorageError for unknown sweeps, metrics that trials lack, and a sweep that is named twice.
    """
    wanted = tuple(name.strip() for name in objectives.split(",")) if objectives else ()
    constraints = [parse_budget(text) for text in budgets]
    stores = [find(name, storage) for name in names]
    promoted = any(store.sweep().kind == "finetune" for store in stores)
    _check_names(wanted, METRICS if promoted else SEARCHED)
    folders = [store.folder.resolve() for store in stores]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise ConfigError(f"{names[place]} is named twice; give each sweep once.")
    metrics = (*wanted, *(constraint.metric for constraint in constraints))
    for store in stores:
        _check_measured(store, metrics)
    return tuple(read_view(s, objectives=wanted, constraints=[str(c) for c in constraints]) for s in stores)


def find(name: str, storage: Path) -> SweepStore:
    """The sweep of a name in the storage, or in a folder. A name comes before a folder that is called the same."""
    folder = Path(name)
    is_folder = (folder / SWEEP_FILE).exists()
    if "/" in name and not is_folder:
        raise ConfigError(f"{name} is not a sweep's folder: it has no sweep.json; give such a folder, or a name.")
    if is_folder and ("/" in name or not (storage / name / SWEEP_FILE).exists()):
        return SweepStore.open(folder.absolute())
    return find_sweep(storage, name)


def parse_budget(text: str) -> Constraint:
    """Reads `bops_g <= 0.05`, or 0.05 for BOPs in G. Raises ConfigError with what would be right."""
    with contextlib.suppress(ValueError):
        text = f"bops_g <= {float(text)!r}"
    try:
        return parse_constraint(text)
    except ConfigError as error:
        raise ConfigError(f"--budget: {str(error).removeprefix('constraints: ')}") from None


def _check_names(objectives: Sequence[str], known: Mapping[str, Objective]) -> None:
    try:
        if objectives:
            check_objectives(objectives, known)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None


def _check_measured(store: SweepStore, metrics: Sequence[str]) -> None:
    for trial in store.trials() if metrics else ():
        lacking = [name for name in metrics if trial.state == "done" and name not in trial.metrics]
        if lacking:
            raise ConfigError(
                f"{store.folder.name}/{trial.number} has no {lacking[0]}: it was measured for another task, or by "
                f"another version of Bitfront; it has {', '.join(sorted(trial.metrics))}."
            )
