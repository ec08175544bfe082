"""EdMIPS (Cai and Vasconcelos 2020): the same supernet and loop with η = 0, on HWGQ quantisers."""

from __future__ import annotations

from trainables.config import EdmipsConfig
from trainables.methods.loop import new_supernet, run
from trainables.policy import BitPolicy
from trainables.reference import Bench
from trainables.report import Report


def search(bench: Bench, config: EdmipsConfig, report: Report) -> BitPolicy:
    """The policy that the supernet settles on."""
    return run(bench, new_supernet(bench, config), config, report, generalisation=None)
