"""What methods without a supernet begin with: the widths that a network's layers may have, none worth more.

And what those that settle on one policy end with.
"""

from __future__ import annotations

from dataclasses import replace

from trainables.choices import Choices, Scores
from trainables.method_config import WidthsConfig
from trainables.offer import widths_on_offer
from trainables.policy import BitPolicy
from trainables.reference import Bench


def offered(bench: Bench, config: WidthsConfig) -> Choices:
    """All widths with a score of 0; a single one where a pinned layer fixes a group's activation.

    A method gives scores to what it returns: `dataclasses.replace(offered(…), weights=…, acts=…)`.
    """
    return widths_on_offer(bench.config.network.name, bench.costs, bench.roles, config)


def only(choices: Choices, *, weight_bits: int, act_bits: int) -> Choices:
    """The same with one width for all weights, and one for all activations that have more to choose from."""
    weights = {name: Scores((weight_bits,), (0.0,)) for name in choices.weights}
    return with_act_width(replace(choices, weights=weights), act_bits)


def with_act_width(choices: Choices, width: int) -> Choices:
    """The same with one width for all activations that have more than one to choose from."""
    one = Scores((width,), (0.0,))
    return replace(choices, acts={g: s if len(s.widths) == 1 else one for g, s in choices.acts.items()})


def fixed(choices: Choices, policy: BitPolicy) -> Choices:
    """The same with `policy`, which is one of these choices, as the only one."""
    member = {group: name for name, group in choices.group_of.items()}
    return replace(
        choices,
        weights={name: Scores((policy.bits[name].weight,), (0.0,)) for name in choices.weights},
        acts={group: Scores((policy.bits[member[group]].act,), (0.0,)) for group in choices.acts},
    )
