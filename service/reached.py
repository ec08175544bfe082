"""Which values of some sections a space can give together: what is checked, counted or prepared for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.space import Choice, Conditional, Domain, Float, Scalar, points, range_of


def reached(space: Mapping[str, Domain], sections: Sequence[str]) -> list[dict[str, Scalar]]:
    """Every combination of values of these sections, with what they depend on; of continuous ranges both ends.

    Raises ConfigError for too many.
    """
    wanted = with_parents(space, sections)
    return points({name: _finite(domain) for name, domain in space.items() if name in wanted})


def with_parents(space: Mapping[str, Domain], sections: Sequence[str]) -> set[str]:
    """Entries of these sections (or settings, as method.barrier), and all that their conditions name."""
    wanted = {name for name in space if name in sections or name.split(".", 1)[0] in sections}
    for name, domain in reversed(list(space.items())):
        if name in wanted and isinstance(domain, Conditional):
            wanted |= {parent for parent, _ in domain.when}
    return wanted


def _finite(domain: Domain) -> Domain:
    """A continuous range by its ends: what both can keep, all between can."""
    plain = range_of(domain)
    if not isinstance(plain, Float):
        return domain
    ends = Choice(plain.examples())
    return Conditional(ends, domain.when) if isinstance(domain, Conditional) else ends
