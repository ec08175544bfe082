"""Arguments of the commands on policies: a network to count them on, limits, and what indicators are solved for."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainables.bops import FULL_BITS
from trainables.config import BudgetConfig
from trainables.errors import ConfigError

if TYPE_CHECKING:
    from service.policies import NetworkChoice
    from service.resolve import IndicatorRequest, Macs

LIMITS = {
    "bops_g": "BOPs at most, G.",
    "bops_paper_g": "BOPs at most as the paper counts them, G.",
    "compression": "Times fewer BOPs than in full precision, at least.",
    "storage_mb": "Weights at most, MB.",
    "mean_weight_bits": "Bits of a weight at most, on average.",
    "mean_act_bits": "Bits of an activation at most, on average.",
}
"""What the options of a `budget` say."""
_INDICATOR_NAMES = ("bits", "act_bits", "stem_bits", "head_bits", "pin", "alpha", "macs")


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--network, --image-size, --num-classes; the command gets them as one `NetworkChoice`."""

    @functools.wraps(command)
    def with_choice(
        *context: click.Context, network: str, image_size: int | None, num_classes: int | None, **arguments: Any
    ) -> Any:
        from service.policies import NetworkChoice

        choice = NetworkChoice(network=network, image_size=image_size or 0, num_classes=num_classes or 0)
        return command(*context, choice=choice, **arguments)

    decorated: Callable[..., Any] = with_choice
    size = click.IntRange(min=1)
    for option in (
        click.option("--num-classes", type=size, help="Count the network with so many classes."),
        click.option("--image-size", type=size, help="Count the network on images of so many pixels a side."),
        click.option("--network", default="", help="Count this network; its layers must have the policy's names."),
    ):
        decorated = option(decorated)
    return decorated


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each limit of a `budget`; the command gets them as one `BudgetConfig`."""
    names = [field.name for field in dataclasses.fields(BudgetConfig)]

    @functools.wraps(command)
    def with_budget(*context: click.Context, **arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in names}
        limits = {name: limit for name, limit in given.items() if limit is not None}
        for name, limit in limits.items():
            if not 0 < limit < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} is {limit:g}; give a positive, finite number.")
        return command(*context, budget=BudgetConfig(**limits), **arguments)

    decorated: Callable[..., Any] = with_budget
    for name in reversed(names):
        option = f"--{name.replace('_', '-')}"
        decorated = click.option(option, type=float, help=LIMITS[name])(decorated)
    return decorated


def _widths(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Whole numbers between commas; none given: ()."""
    parts = text.split(",") if text else []
    if not all(re.fullmatch("[0-9]{1,2}", part.strip()) for part in parts):
        raise ConfigError(f"{parameter.opts[0]} is {text!r}; give whole numbers between commas, such as 2,3,4,5,6.")
    return tuple(int(part) for part in parts)


def _pins(ctx: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    """PATTERN=BITS, in order."""
    found = {}
    for text in texts:
        pattern, _, bits = text.rpartition("=")
        if not pattern or not re.fullmatch("[0-9]{1,2}", bits):
            raise ConfigError(f"--pin {text!r} pins nothing; give PATTERN=BITS, such as 'layer1.*=8'.")
        found[pattern] = int(bits)
    return found


def indicator_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--indicators and what goes with it; the command gets them as one `IndicatorRequest`, or None."""

    @functools.wraps(command)
    def with_request(*context: click.Context, indicators: Path | None, choice: NetworkChoice, **arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in _INDICATOR_NAMES}
        request = _request(indicators, choice, **given)
        return command(*context, request=request, **arguments)

    decorated: Callable[..., Any] = network_options(with_request)
    for option in (
        click.option("--macs", type=click.Choice(["exact", "limpq"]), help="How limits count; exact unless given."),
        click.option("--alpha", type=float, help="Weight of the weights' indicators beside the activations'; 2."),
        click.option(
            "--pin",
            metavar="PATTERN=BITS",
            multiple=True,
            callback=_pins,
            help="Bits of layers that are not chosen, such as 'layer1.*=8'; they need no indicators. Repeatable.",
        ),
        click.option("--head-bits", type=int, help="Of the classifier, weights and activations; 8."),
        click.option("--stem-bits", type=int, help="Of the first layer, weights and activations; 8."),
        click.option("--act-bits", callback=_widths, help="Widths of activations, such as 4,6,8; those of --bits."),
        click.option("--bits", callback=_widths, help="Widths of weights, such as 2,3,4,5,6."),
        click.option(
            "--indicators",
            type=click.Path(path_type=Path),
            help="LIMPQ's indicators as JSON, in place of a trial; of --network, on 224 pixels and 1000 classes.",
        ),
    ):
        decorated = option(decorated)
    return decorated


def _request(
    path: Path | None,
    choice: NetworkChoice,
    *,
    bits: tuple[int, ...],
    act_bits: tuple[int, ...],
    stem_bits: int | None,
    head_bits: int | None,
    pin: dict[str, int],
    alpha: float | None,
    macs: Macs | None,
) -> IndicatorRequest | None:
    if path is None:
        if any((choice != type(choice)(), bits, act_bits, stem_bits, head_bits, pin, alpha, macs)):
            raise click.UsageError(
                "--network, --bits, --macs and their like go with --indicators; a trial has its own."
            )
        return None
    if not choice.network or not bits:
        raise click.UsageError("--indicators needs the network and the widths: --network resnet50 --bits 2,3,4,5,6.")
    if alpha is not None and not 0 < alpha < math.inf:
        raise ConfigError(f"--alpha is {alpha:g}; give a positive, finite number.")
    from service.resolve import IndicatorRequest
    from trainables.config import NetworkConfig
    from trainables.method_config import WidthsConfig

    return IndicatorRequest(
        path=path,
        network=NetworkConfig(
            name=choice.network,
            stem_bits=8 if stem_bits is None else stem_bits,
            head_bits=8 if head_bits is None else head_bits,
            pinned=pin,
        ),
        image_size=choice.image_size or 224,
        num_classes=choice.num_classes or 1000,
        widths=WidthsConfig(weight_bits=bits, act_bits=act_bits or bits),
        alpha=2.0 if alpha is None else alpha,
        macs=macs or "exact",
    )


def with_weight_compression(budget: BudgetConfig, ratio: float | None) -> BudgetConfig:
    """`budget`, and weights of 32 bits over the ratio at most: the same as storage, whatever the network."""
    if ratio is None:
        return budget
    if not 0 < ratio < math.inf:
        raise ConfigError(f"--weight-compression is {ratio:g}; give a positive, finite number.")
    most = min(FULL_BITS / ratio, budget.mean_weight_bits or math.inf)
    return dataclasses.replace(budget, mean_weight_bits=most)
