"""The commands on policies: what they are, what they cost, how they differ, what else they could be."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

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
from service.policy_arguments import budget_options, indicator_options, network_options, with_weight_compression
from trainables.config import BudgetConfig
from trainables.errors import ConfigError

if TYPE_CHECKING:
    from service.policies import NetworkChoice
    from service.resolve import IndicatorRequest, Search, Solved


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
    from service.files import write_text
    from service.policies import check_output, edited, find_policy, parse_assignment

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


def _searched(name: str | None, storage: Path, request: IndicatorRequest | None, budget: BudgetConfig) -> Search:
    from service.policies import find_policy
    from service.resolve import Search

    if request:
        if name:
            raise click.UsageError(f"{name} and --indicators: give one of them.")
        return Search.of_indicators(request, budget)
    if not name:
        raise click.UsageError("Nothing to solve: give SWEEP/TRIAL, such as quickstart/t0003, or --indicators.")
    return Search.of(find_policy(name, storage))


@policy.command()
@click.argument("name", metavar="[SWEEP/TRIAL]", required=False, shell_complete=_complete)
@storage_option
@indicator_options
@budget_options
@click.option(
    "--weight-compression", type=float, help="Times smaller weights than in 32 bits, at least; stem and head included."
)
@click.option("--points", type=click.IntRange(2, 1000), help="So many policies, from the fewest BOPs to the most.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the policy to this file.")
@force_option
@json_option
def solve(
    name: str | None,
    storage: Path,
    request: IndicatorRequest | None,
    budget: BudgetConfig,
    weight_compression: float | None,
    points: int | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Solve a search for a budget: the bits of the best score that keep the limits, found exactly.

    Nothing is trained. The storage has what the search of every finished trial ended with; --indicators takes learned
    importance indicators from a file instead, and needs no sweep. With --points the whole trade-off is shown.
    """
    from service.files import write_text
    from service.policies import check_output

    budget = with_weight_compression(budget, weight_compression)
    if not budget.limits and not points:
        raise click.UsageError("Nothing to solve: give a limit such as --bops-g 0.9, or --points.")
    if output and points:
        raise click.UsageError("--points finds several policies; write one with its --bops-g and --output.")
    if output:
        check_output(output, force=force)
    search = _searched(name, storage, request, budget)
    for note in search.notes:
        click.echo(note, err=as_json)
    solved = search.tradeoff(budget, points) if points else [search.solve(budget)]
    if output:
        write_text(output, solved[0].record.to_json())
    _show_solved(search, solved, output, points=bool(points), as_json=as_json)


def _show_solved(search: Search, solved: list[Solved], output: Path | None, *, points: bool, as_json: bool) -> None:
    from dashboards import policies as shown

    console = new_console()
    apart = search.own.settings.get("macs") == "limpq"
    if as_json:
        content = [shown.solved_as_json(one.record, one.score_lost, one.counted if apart else None) for one in solved]
        click.echo(json.dumps(content, indent=2))
        return
    counted = " to ".join(dict.fromkeys(f"{one.counted['bops_g']:.4g}" for one in (solved[0], solved[-1])))
    told = f"Counted as LIMPQ does, sizes not rounded down: {counted} G BOPs."
    if points:
        pairs = [(one.record, one.score_lost) for one in solved]
        console.print(shown.fitted(shown.tradeoff_table(pairs, search.own), console.width))
        if apart:
            click.echo(told)
        return
    first = solved[0]
    title = str(output) if output else "solved"
    console.print(shown.difference(search.own, first.record, (search.name, title), width=console.width))
    if apart:
        click.echo(told)
    lost = shown.lost(first.record.method, first.score_lost)
    click.echo(f"{title}: policy {first.record.policy.hash[:10]}, {lost}")
