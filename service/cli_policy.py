"""The commands on policies: what they are, what they cost, how they differ, what else they could be."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from service.arguments import DEFAULT_STORAGE, RUN_ERROR, json_option, storage_option
from trainables.config import BudgetConfig
from trainables.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from service.policies import FoundPolicy
    from trainables.bops import CostModel
    from trainables.policy_file import PolicyRecord

PIPE_WIDTH = 160
"""Characters of a line where there is no terminal."""
LIMITS = {
    "bops_g": "BOPs at most, G.",
    "bops_paper_g": "BOPs at most as the paper counts them, G.",
    "compression": "Times fewer BOPs than in full precision, at least.",
    "storage_mb": "Weights at most, MB.",
    "mean_weight_bits": "Bits of a weight at most, on average.",
    "mean_act_bits": "Bits of an activation at most, on average.",
}
"""What the options of a `budget` say."""


@click.group()
def policy() -> None:
    """Show, cost, compare, edit, check and re-solve policies.

    A POLICY is a policy file, or SWEEP/TRIAL in the storage, such as quickstart/t0003.
    """


def _complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from service.policies import policy_names

    with contextlib.suppress(OSError):
        names = policy_names(Path(ctx.params.get("storage") or DEFAULT_STORAGE))
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        if found:
            return found
    return [CompletionItem(incomplete, type="file")]


policy_argument = click.argument("name", metavar="POLICY", shell_complete=_complete)
output_option = click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="The file to write."
)
force_option = click.option("--force", is_flag=True, help="Replace the output file where it exists.")


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--network, --image-size, --num-classes: the network to count instead of that of the policy file."""
    size = click.IntRange(min=1)
    for option in (
        click.option("--num-classes", type=size, help="Count the network with so many classes."),
        click.option("--image-size", type=size, help="Count the network on images of so many pixels a side."),
        click.option("--network", default="", help="Count this network; its layers must have the policy's names."),
    ):
        command = option(command)
    return command


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


def _console() -> Console:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=PIPE_WIDTH)


@policy.command()
@policy_argument
@storage_option
@json_option
@click.option("--png", type=click.Path(path_type=Path), help="Draw the bits into this file as well.")
@force_option
def show(name: str, storage: Path, as_json: bool, png: Path | None, force: bool) -> None:
    """Show a policy: its costs, and of every layer its bits, its work and its share of the BOPs."""
    from dashboards import policies as shown
    from dashboards.bits import draw_bits
    from service.policies import check_output, find_policy

    if png:
        if png.suffix.lower() != ".png":
            raise ConfigError(f"--png {png}: give a name that ends in .png.")
        check_output(png, force=force)
    record = find_policy(name, storage).record
    if png:
        draw_bits(record, png)
    if as_json:
        click.echo(json.dumps(shown.as_json(name, record), indent=2))
        return
    console = _console()
    console.print(shown.header(name, record), soft_wrap=True)
    console.print()
    console.print(shown.heat_map(record, width=min(console.width, PIPE_WIDTH)))
    console.print()
    console.print(shown.layer_table(record))


@policy.command()
@click.argument("names", metavar="POLICY...", nargs=-1, required=True, shell_complete=_complete)
@storage_option
@network_options
@json_option
def cost(
    names: tuple[str, ...],
    storage: Path,
    network: str,
    image_size: int | None,
    num_classes: int | None,
    as_json: bool,
) -> None:
    """Cost policies: BOPs, compression, storage, mean bits; for other images or classes than they were searched on."""
    from dashboards.policies import cost_table
    from service.policies import find_policy
    from trainables.policy_file import all_costs

    found = [find_policy(name, storage) for name in names]
    costs = [all_costs(one.record.policy, _work(one, network, image_size, num_classes)) for one in found]
    if as_json:
        content = [
            {"policy": one.name, "hash": one.record.policy.hash, "network": one.record.policy.network, "costs": c}
            for one, c in zip(found, costs, strict=True)
        ]
        click.echo(json.dumps(content, indent=2))
        return
    _console().print(cost_table([(one.name, c) for one, c in zip(found, costs, strict=True)]))


def _work(found: FoundPolicy, network: str, image_size: int | None, num_classes: int | None) -> CostModel:
    """That of the policy file, or of a network that is built and counted."""
    from service.policies import work_of

    record = found.record
    if not (network or image_size or num_classes):
        return work_of(record)
    image_size, num_classes = image_size or record.image_size, num_classes or record.num_classes
    for option, value in (("--image-size", image_size), ("--num-classes", num_classes)):
        if not value:
            raise ConfigError(f"{found.name} does not say on what its network was counted; give {option}.")
    from trainables import api

    return api.count(network or record.policy.network, image_size=image_size, num_classes=num_classes)


@policy.command()
@click.argument("name", metavar="A", shell_complete=_complete)
@click.argument("other", metavar="B", shell_complete=_complete)
@storage_option
@click.option("--all", "everything", is_flag=True, help="List layers with equal bits as well.")
@json_option
def diff(name: str, other: str, storage: Path, everything: bool, as_json: bool) -> None:
    """Compare two policies: the layers whose bits differ, and both costs."""
    from dashboards import policies as shown
    from service.policies import find_policy

    ours, theirs = (find_policy(one, storage).record for one in (name, other))
    if as_json:
        click.echo(json.dumps(shown.difference_as_json(ours, theirs, (name, other)), indent=2))
        return
    _print_difference(_console(), ours, theirs, (name, other), everything=everything)


def _print_difference(
    console: Console, ours: PolicyRecord, theirs: PolicyRecord, names: tuple[str, str], *, everything: bool = False
) -> None:
    from dashboards import policies as shown

    differing = ours.policy.diff(theirs.policy)
    in_both = set(ours.policy.bits) & set(theirs.policy.bits)
    console.print(shown.cost_difference(ours.costs, theirs.costs, names))
    console.print()
    if ours.policy.network != theirs.policy.network:
        console.print(f"The networks differ: {ours.policy.network} and {theirs.policy.network}.", soft_wrap=True)
    same = len(in_both) - len(in_both & set(differing))
    layers = list(dict.fromkeys([*ours.policy.bits, *theirs.policy.bits])) if everything else list(differing)
    if layers:
        console.print(shown.bits_difference(ours.policy, theirs.policy, names, layers=layers))
    console.print(f"{same} of {len(in_both)} layers have the same bits." if differing else "No layer's bits differ.")


@policy.command("set")
@policy_argument
@click.argument("assignments", metavar="PATTERN=W/A...", nargs=-1, required=True)
@storage_option
@output_option
@force_option
def set_(name: str, assignments: tuple[str, ...], storage: Path, output: Path, force: bool) -> None:
    """Set bits by hand and write the policy as a new file.

    PATTERN=W/A sets the weights and the activations of all layers that the pattern matches: 'layer2.*=4/8', with '-'
    for bits that stay ('layer2.*=4/-'), or one number for both (fc=8). Later patterns win. Layers that read one
    activation keep the same bits for it.
    """
    from service.policies import check_output, edited, find_policy, parse_assignment
    from service.records import write_text

    check_output(output, force=force)
    record = find_policy(name, storage).record
    changed, notes = edited(record, [parse_assignment(text) for text in assignments])
    if changed.policy.hash == record.policy.hash:
        click.echo(f"{name} has these bits already; nothing was written.")
        return
    write_text(output, changed.to_json())
    for note in notes:
        click.echo(note)
    _print_difference(_console(), record, changed, (name, str(output)))
    click.echo(f"{output}: policy {changed.policy.hash[:10]}, made from {record.policy.hash[:10]}")


@policy.command()
@policy_argument
@storage_option
@network_options
@click.pass_context
@budget_options
def validate(
    ctx: click.Context,
    name: str,
    storage: Path,
    network: str,
    image_size: int | None,
    num_classes: int | None,
    budget: BudgetConfig,
) -> None:
    """Check a policy: its hash, bits, layers, ties and costs, and limits such as --bops-g 1.2.

    Exit status 0 when all is well, 1 with the findings when not, 2 when there is nothing to check.
    """
    from service.policies import FoundPolicy, findings, policy_path
    from trainables.policy_file import PolicyRecord

    path = policy_path(name, storage)
    try:
        record = PolicyRecord.load(path)
    except ConfigError as error:
        click.echo(str(error))
        ctx.exit(RUN_ERROR)
    work = _work(FoundPolicy(name=name, path=path, record=record), network, image_size, num_classes)
    same_size = image_size in (None, record.image_size) and num_classes in (None, record.num_classes)
    found = findings(record, work, budget, same_size=same_size)
    for line in found:
        click.echo(f"{name}: {line}")
    if found:
        ctx.exit(RUN_ERROR)
    kept = f", within {', '.join(budget.limits)}" if budget.limits else ""
    click.echo(f"{name}: fine, {len(record.policy.bits)} layers of {record.policy.network}{kept}")


@policy.command()
@click.argument("name", metavar="SWEEP/TRIAL", shell_complete=_complete)
@storage_option
@budget_options
@click.option("--points", type=click.IntRange(2, 1000), help="So many policies, from the fewest BOPs to the most.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the policy to this file.")
@force_option
@json_option
def solve(
    name: str,
    storage: Path,
    budget: BudgetConfig,
    points: int | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Solve a finished search again for another budget: the most probable bits that keep the limits, found exactly.

    Nothing is trained: the storage has what the search of every finished trial ended with. With --points the whole
    trade-off is shown.
    """
    from dashboards import policies as shown
    from service.policies import check_output, find_policy
    from service.records import write_text
    from service.resolve import Search

    if not budget.limits and not points:
        raise click.UsageError("Nothing to solve: give a limit such as --bops-g 0.9, or --points.")
    if output and points:
        raise click.UsageError("--points finds several policies; write one with its --bops-g and --output.")
    if output:
        check_output(output, force=force)
    search = Search.of(find_policy(name, storage))
    solved = search.tradeoff(budget, points) if points else [search.solve(budget)]
    if output:
        write_text(output, solved[0].record.to_json())
    if as_json:
        click.echo(json.dumps([shown.solved_as_json(one.record, one.nats_lost) for one in solved], indent=2))
    elif points:
        _console().print(shown.tradeoff_table([(one.record, one.nats_lost) for one in solved], search.own))
    else:
        title = str(output) if output else "solved"
        _print_difference(_console(), search.own, solved[0].record, (name, title))
        click.echo(f"{title}: policy {solved[0].record.policy.hash[:10]}, {_lost(solved[0].nats_lost)}")


def _lost(nats: float) -> str:
    return f"{nats:.4g} nats less probable than the search's most probable bits" if nats else "the most probable bits"
