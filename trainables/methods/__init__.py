"""Search methods. `gmpq`, R-GMPQ too, and `edmips` share the loop and differ in the generalisation risk they give it.

A method is a module with `search(bench, config, report) -> Choices` and an entry here.
"""

from __future__ import annotations

from typing import assert_never

from trainables.choices import Choices
from trainables.config import EdmipsConfig, GmpqConfig
from trainables.methods import edmips, gmpq
from trainables.reference import Bench
from trainables.report import Report


def search(bench: Bench, report: Report) -> Choices:
    """Runs the method that the trial's settings name."""
    match bench.config.method:
        case GmpqConfig() as config:
            return gmpq.search(bench, config, report)
        case EdmipsConfig() as config:
            return edmips.search(bench, config, report)
        case _ as unknown:
            assert_never(unknown)
