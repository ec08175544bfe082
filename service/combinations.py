"""The combinations of network, data, method and budget that a sweep's trials can have.

Each is checked, counted, prepared. One where the space varies none of them.
A sampler that draws can reach all; a grid reaches those of its first points.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from service.reached import reached, with_parents
from service.space import MAX_POINTS, Choice, Domain, Float, Int, Scalar, example, points, range_of
from service.spec import SweepSpec
from service.varied import METHOD, SUBJECTS
from trainables.api import Survey
from trainables.config import TrialConfig
from trainables.errors import ConfigError
from trainables.method_config import method_name

_STARTS = tuple(f"{place}." for place in SUBJECTS)
MAX_REFERENCES = 200
"""Of a sweep: each is trained before the first trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """A network with a data set and a method, as some of a sweep's trials have them."""

    config: TrialConfig
    """With all other settings in the middle of the space: what the hours of a trial are estimated for."""
    share: float
    """Of the sweep's trials, as far as that is known before: of a grid its points, otherwise equal shares."""
    settings: Mapping[str, Scalar]
    """What the space gives network, data and method, and what that depends on."""

    @property
    def label(self) -> str:
        """As people read it: resnet8 on digits; with what else the space gives it, its method first."""
        method = f"{self.settings[METHOD]}: " if METHOD in self.settings else ""
        shown = [name for name in self.settings if name.startswith(_STARTS) and not name.endswith((".name", ".root"))]
        rest = [f"{name} {self.settings[name]}" for name in shown]
        which = f" ({', '.join(rest)})" if rest else ""
        return f"{method}{self.config.network.name} on {self.config.data.name}{which}"


def subject(config: TrialConfig) -> str:
    """What tells a combination from others: all that is said of its network and its data, and its method."""
    return repr((config.network, config.data, method_name(config.method)))


Surveyed = Sequence[tuple[Combination, Survey]]
"""Every combination that a sweep can reach, with what is counted of it."""


def combinations(spec: SweepSpec) -> list[Combination]:
    """In the order of the space, its last entry changing fastest; at least one. Raises SpecError for too many."""
    found: dict[str, Combination] = {}
    given = _reached(spec, (*SUBJECTS, METHOD))
    trials = sum(number for _, number in given)
    for settings, number in given:
        config = _typical(spec, settings)
        one = found.setdefault(subject(config), Combination(config=config, share=0.0, settings=settings))
        found[subject(config)] = dataclasses.replace(one, share=one.share + number / trials)
    num_references = len({one.config.reference_key for one in found.values()})
    if num_references > MAX_REFERENCES:
        raise spec.refuse(
            ("space",),
            f"space: {num_references} full-precision references, for so many networks on data sets; each is trained "
            f"before the first trial; give at most {MAX_REFERENCES}",
        )
    return list(found.values())


def references(spec: SweepSpec) -> dict[str, TrialConfig]:
    """A trial's settings for each full-precision reference that the sweep can need, by the references' keys."""
    found: dict[str, TrialConfig] = {}
    for one in combinations(spec):
        found.setdefault(one.config.reference_key, one.config)
    return found


def budgets(spec: SweepSpec) -> list[tuple[TrialConfig, Mapping[str, Scalar]]]:
    """A trial's settings, and what the space gives them, for each budget on each combination; of ranges both ends."""
    return [(_typical(spec, settings), settings) for settings, _ in _reached(spec, (*SUBJECTS, METHOD, "budget"))]


def typical_config(spec: SweepSpec) -> TrialConfig:
    """The settings in the middle of the space."""
    return _typical(spec, {name: _middle(domain) for name, domain in spec.space.items()})


def _reached(spec: SweepSpec, sections: Sequence[str]) -> list[tuple[dict[str, Scalar], int]]:
    """Settings of these sections, with those that they depend on, and how many points of a grid have them.

    Where only what they depend on differs, the first stand for all.
    """
    wanted = with_parents(spec.space, sections)
    try:
        found = points(spec.space)[: spec.trials] if spec.sampler.name == "grid" else reached(spec.space, sections)
    except ConfigError as error:
        name, message = str(error).split(": ", 1)
        if spec.sampler.name != "grid":
            named = [name for name in sections if name != METHOD or METHOD in spec.space]
            what = f"{', '.join(named[:-1])} and {named[-1]}"
            message = f"with it there are more than {MAX_POINTS} combinations of {what}; give fewer values"
        raise spec.refuse(("space", name), f"space.{name}: {message}") from None
    first: dict[tuple[tuple[str, Scalar], ...], dict[str, Scalar]] = {}
    count: Counter[tuple[tuple[str, Scalar], ...]] = Counter()
    for point in found:
        own = tuple((n, value) for n, value in point.items() if n in sections or n.split(".", 1)[0] in sections)
        first.setdefault(own, {name: value for name, value in point.items() if name in wanted})
        count[own] += 1
    return [(settings, count[own]) for own, settings in first.items()]


def _typical(spec: SweepSpec, chosen: Mapping[str, Scalar]) -> TrialConfig:
    """A trial with these settings, all others in the middle."""
    middles = {name: _middle(domain) for name, domain in spec.space.items()}
    try:
        return spec.trial_config(example(spec.space, {**middles, **chosen}))
    except ConfigError:
        # The middles of two settings may not go together; the examples do.
        return spec.trial_config(example(spec.space, chosen))


def _middle(domain: Domain) -> Scalar:
    match range_of(domain):
        case Int() as found:
            return (found.low + found.high) // 2
        case Float() as found:
            return math.sqrt(found.low * found.high) if found.log else (found.low + found.high) / 2
        case Choice() as found:
            numbers = [v for v in found.values if isinstance(v, int | float) and not isinstance(v, bool)]
            return statistics.median_low(numbers) if len(numbers) == len(found.values) else found.values[0]
        case _ as unknown:
            assert_never(unknown)
