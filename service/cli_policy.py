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

from service.arguments import (
    DEFAULT_STORAGE,
    PIPE_WIDTH,
    RUN_ERROR,
    force_option,
    json_option,
    new_console,
    storage_option,
)
from trainables.config import BudgetConfig
from trainables.errors import ConfigError

if TYPE_CHECKING:
    from service.policies import NetworkChoice

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

    A POLICY is a policy file, SWEEP/TRIAL in the storage, such as quickstart/t0003, or one that was registered:
    models:/NAME/VERSION or models:/NAME@ALIAS, in the storage or where MLFLOW_TRACKING_URI says.
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
    console = new_console()
    console.print(shown.header(name, record), soft_wrap=True)
    console.print()
    console.print(shown.heat_map(record, width=min(console.width, PIPE_WIDTH)))
    console.print()
    console.print(shown.layer_table(record, width=console.width))


@policy.command()
@click.argument("names", metavar="POLICY...", nargs=-1, required=True, shell_complete=_complete)
@storage_option
@network_options
@json_option
def cost(
    names: tuple[str, ...],
    storage: Path,
    choice: NetworkChoice,
    as_json: bool,
) -> None:
    """Cost policies: BOPs, compression, storage, mean bits; for other images or classes than they were searched on."""
    from dashboards.policies import cost_table, fitted
    from service.policies import find_policy
    from trainables.policy_file import all_costs

    found = [find_policy(name, storage) for name in names]
    costs = [all_costs(one.record.policy, choice.work(one.record)) for one in found]
    if as_json:
        content = [
            {"policy": one.name, "hash": one.record.policy.hash, "network": one.record.policy.network, "costs": c}
            for one, c in zip(found, costs, strict=True)
        ]
        click.echo(json.dumps(content, indent=2))
        return
    console = new_console()
    console.print(fitted(cost_table([(one.name, c) for one, c in zip(found, costs, strict=True)]), console.width))


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
    console = new_console()
    console.print(shown.difference(ours, theirs, (name, other), width=console.width, everything=everything))


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
    from dashboards.policies import difference
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
    console = new_console()
    console.print(difference(record, changed, (name, str(output)), width=console.width))
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
    choice: NetworkChoice,
    budget: BudgetConfig,
) -> None:
    """Check a policy: its hash, bits, layers, ties and costs, and limits such as --bops-g 1.2.

    Exit status 0 when all is well, 1 with the findings when not, 2 when there is nothing to check.
    """
    from service.policies import find_policy, findings, policy_path
    from service.registered_policy import MODELS_PREFIX

    if not name.startswith(MODELS_PREFIX):
        policy_path(name, storage)  # a policy that is not there is no finding
    try:
        record = find_policy(name, storage).record
    except ConfigError as error:
        click.echo(str(error))
        ctx.exit(RUN_ERROR)
    found = findings(record, choice, budget)
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
    console = new_console()
    search = Search.of(find_policy(name, storage))
    solved = search.tradeoff(budget, points) if points else [search.solve(budget)]
    if output:
        write_text(output, solved[0].record.to_json())
    if as_json:
        click.echo(json.dumps([shown.solved_as_json(one.record, one.nats_lost) for one in solved], indent=2))
    elif points:
        table = shown.tradeoff_table([(one.record, one.nats_lost) for one in solved], search.own)
        console.print(shown.fitted(table, console.width))
    else:
        title = str(output) if output else "solved"
        console.print(shown.difference(search.own, solved[0].record, (name, title), width=console.width))
        click.echo(f"{title}: policy {solved[0].record.policy.hash[:10]}, {shown.lost(solved[0].nats_lost)}")
