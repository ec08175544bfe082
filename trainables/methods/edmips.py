"""EdMIPS (Cai and Vasconcelos 2020): the same supernet and loop with η = 0, on HWGQ quantisers."""

from __future__ import annotations

from trainables.choices import Choices
from trainables.config import BudgetConfig
from trainables.method_config import EdmipsConfig
from trainables.methods.loop import new_supernet, run
from trainables.reference import Bench
from trainables.report import Report


def search(bench: Bench, config: EdmipsConfig, budget: BudgetConfig, report: Report) -> Choices:
    """What the supernet settles on."""
    return run(bench, new_supernet(bench, config), config, report, budget=budget, generalisation=None)
