"""Rules by which policies of a front are promoted, and gates before them, as people write them.

knee                    the member nearest to the ideal point
all                     every member
top 3 by top1           the best three by a metric
within bops_g <= 0.03   every member within a budget
hypervolume 3           the three members that together dominate most

"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from service.pareto import SEARCHED, Constraint, parse_constraint
from trainables.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule, read."""

    kind: Literal["knee", "all", "top", "within", "hypervolume"]
    count: int = 0
    metric: str = ""
    budget: Constraint | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """What a policy must have reached in its search; 0: no gate."""

    min_top1: float = 0.0
    """Percent, on the data set of the search."""
    max_ard: float = 0.0
    """Ranks."""

    def reason(self, metrics: Mapping[str, float]) -> str:
        """Why a policy that measured so does not pass; empty where it does."""
        top1, ard = metrics["top1"], metrics["ard"]
        if top1 < self.min_top1:
            return f"top-1 {top1:.2f} % is below {self.min_top1:g} %"
        return f"ARD {ard:.3f} is above {self.max_ard:g}" if self.max_ard and ard > self.max_ard else ""


def parse_rule(text: str) -> Rule:
    """Reads a rule. Raises ConfigError with what would be right."""
    words = text.split()
    if text.strip() in ("knee", "all"):
        return Rule(kind="knee" if words[0] == "knee" else "all")
    top = re.fullmatch(r"top\s+([1-9][0-9]{0,5})\s+by\s+(\w+)", text.strip())
    if top:
        if top[2] not in SEARCHED:
            raise ConfigError(f"rule: unknown metric {top[2]!r}{did_you_mean(top[2], SEARCHED)}")
        return Rule(kind="top", count=int(top[1]), metric=top[2])
    if words[:1] == ["within"]:
        try:
            return Rule(kind="within", budget=parse_constraint(text.strip().removeprefix("within"), SEARCHED))
        except ConfigError as error:
            raise ConfigError(f"rule: {str(error).removeprefix('constraints: ')}") from None
    subset = re.fullmatch(r"hypervolume\s+([1-9][0-9]{0,5})", text.strip())
    if subset:
        return Rule(kind="hypervolume", count=int(subset[1]))
    raise ConfigError(
        f"rule: found {text!r}; expected knee, all, 'top 3 by top1', 'within bops_g <= 0.03' or 'hypervolume 3'"
    )
