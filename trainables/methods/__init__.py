"""Search methods. `gmpq`, R-GMPQ too, and `edmips` share the loop and differ in the generalisation risk they give it.

A method is a module with `search(bench, config, budget, report) -> Choices` and an entry here; a report only where its
search has epochs.
"""

from __future__ import annotations

from typing import assert_never

from trainables.choices import Choices
from trainables.config import TrialConfig
from trainables.method_config import (
    BlackboxConfig,
    EdmipsConfig,
    GmpqConfig,
    HawqConfig,
    LimpqConfig,
    MpqcoConfig,
    RandomConfig,
    UniformConfig,
)
from trainables.methods import blackbox, drawn, edmips, gmpq, hawq, limpq, mpqco, uniform
from trainables.reference import Bench
from trainables.report import Report


def search(bench: Bench, trial: TrialConfig, report: Report) -> Choices:
    """Runs the method that the trial's settings name."""
    match trial.method:
        case GmpqConfig() as config:
            return gmpq.search(bench, config, trial.budget, report)
        case EdmipsConfig() as config:
            return edmips.search(bench, config, trial.budget, report)
        case UniformConfig() as config:
            return uniform.search(bench, config, trial.budget)
        case RandomConfig() as config:
            return drawn.search(bench, config, trial.budget)
        case LimpqConfig() as config:
            return limpq.search(bench, config, trial.budget, report)
        case MpqcoConfig() as config:
            return mpqco.search(bench, config, trial.budget)
        case HawqConfig() as config:
            return hawq.search(bench, config, trial.budget)
        case BlackboxConfig() as config:
            return blackbox.search(bench, config, trial.budget, report)
        case _ as unknown:
            assert_never(unknown)
