"""The commands on results: the front of a sweep or of several together, how sweeps compare, how methods do."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.arguments import (
    DEFAULT_STORAGE,
    PIPE_WIDTH,
    force_option,
    json_option,
    new_console,
    storage_option,
    sweep_argument,
    sweep_names,
)
from service.object_store import is_url
from service.working_copy import Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.comparison import Comparison
    from service.view import SweepView

sweeps_argument = click.argument("names", metavar="SWEEP...", nargs=-1, required=True, shell_complete=sweep_names)
page_option = click.option("--page", type=click.Path(path_type=Path), help="Write a page for the browser as well.")
budget_option = click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="LIMIT",
    help="Only policies within it, as in 'bops_g <= 0.05' (or 0.05 for that), 'top1 >= 90'; again for more.",
)
objectives_option = click.option(
    "--objectives", default="", metavar="A,B,C", help="Other objectives than the sweep's, such as top1,storage_mb."
)


@click.command()
@sweeps_argument
@storage_option
@objectives_option
@budget_option
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="A line for each member, with all metrics and settings.")
@page_option
@force_option
def front(
    names: tuple[str, ...],
    storage: Path,
    objectives: str,
    budgets: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
    page: Path | None,
    force: bool,
) -> None:
    """Show the Pareto front of a sweep, or of several together.

    SWEEP is a name in the storage, or a sweep's folder. The sweep may be running, stopped or empty.
    """
    from dashboards import front as shown

    if as_json and as_csv:
        raise click.UsageError("Give --json or --csv, not both.")
    _check_page(page, force=force)
    views, found = _found(names, storage, objectives, budgets, page)
    if as_json:
        click.echo(json.dumps(shown.joint_as_json(views, found), indent=2))
    elif as_csv:
        click.echo(shown.as_csv(found), nl=False)
    else:
        console = new_console()
        console.print(shown.as_report(views, found, width=console.width))
        _tell(views, found, page)


@click.command()
@sweep_argument
@storage_option
@click.option(
    "--against",
    default="",
    metavar="METHOD",
    help="The method whose seeds the others' are paired with; else rgmpq or gmpq, where the sweep has one.",
)
@click.option("--markdown", "as_markdown", is_flag=True, help="For documents: the best in bold.")
@click.option("--csv", "as_csv", is_flag=True, help="A line for each row, with spreads and ends of all quantities.")
@json_option
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write to this file instead.")
@force_option
def table(
    name: str,
    storage: Path,
    against: str,
    as_markdown: bool,
    as_csv: bool,
    as_json: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Compare the methods of a sweep: within each budget top-1, costs and search cost of each, over seeds.

    SWEEP is a name in the storage, or a sweep's folder. The sweep may be running or stopped, and have one method alone.
    """
    from dashboards import method_table as shown
    from service.files import write_text
    from service.method_table import method_table
    from service.policies import check_output
    from service.selection import read_views

    if as_markdown + as_csv + as_json > 1:
        raise click.UsageError("Give one of --markdown, --csv and --json.")
    if output:
        check_output(output, force=force, example="methods.md")
    found = method_table(*read_views([name], storage.absolute()), against=against)
    if as_markdown:
        text = shown.as_markdown(found)
    elif as_csv:
        text = shown.as_csv(found)
    elif as_json:
        text = json.dumps(shown.as_json(found), indent=2) + "\n"
    else:
        text = shown.as_text(found, width=PIPE_WIDTH) if output else ""
    if output:
        write_text(output, text)
        click.echo(f"Written:  {output}")
    elif text:
        click.echo(text, nl=False)
    else:
        console = new_console()
        console.print(shown.as_report(found, width=console.width))


@click.command()
@sweeps_argument
@storage_option
@objectives_option
@budget_option
@json_option
@page_option
@force_option
def compare(
    names: tuple[str, ...],
    storage: Path,
    objectives: str,
    budgets: tuple[str, ...],
    as_json: bool,
    page: Path | None,
    force: bool,
) -> None:
    """Compare sweeps on common axes: how much each front dominates, who is ahead at which BOPs, how far apart they are.

    SWEEP is a name in the storage, or a sweep's folder; give two or more.
    """
    from dashboards import comparison as shown

    if len(names) < 2:
        raise click.UsageError(f"Only {names[0]} is named; give two sweeps or more, or see: bitfront front {names[0]}")
    _check_page(page, force=force)
    views, found = _found(names, storage, objectives, budgets, page)
    if as_json:
        click.echo(json.dumps(shown.as_json(views, found), indent=2))
    else:
        console = new_console()
        console.print(shown.as_report(views, found, width=console.width))
        _tell(views, found, page)


def _found(
    names: Sequence[str], storage: Path, objectives: str, budgets: Sequence[str], page: Path | None
) -> tuple[Sequence[SweepView], Comparison]:
    """The sweeps on common axes; with their page, where one is wanted."""
    from service.comparison import compare as compare_views
    from service.selection import read_views

    views = read_views(names, storage.absolute(), objectives=objectives, budgets=budgets)
    found = compare_views(views)
    if page:
        _write_page(page, views, found.labels)
    return views, found


def _check_page(page: Path | None, *, force: bool) -> None:
    from service.policies import check_output

    if page:
        check_output(page, force=force, example="front.html")


def _write_page(page: Path, views: Sequence[SweepView], labels: Sequence[str]) -> None:
    from dashboards.page import compare_page, linked_as, sweep_page
    from service.files import write_text

    if len(views) > 1:
        write_text(page, compare_page(views, labels=labels))
    else:
        write_text(page, linked_as(sweep_page(views[0]), views[0].folder / "front.html"))


def _tell(views: Sequence[SweepView], found: Comparison, page: Path | None) -> None:
    """What to do next."""
    if found.knee:
        place, trial = found.knee
        folder = views[place].folder
        elsewhere = folder.parent.resolve() != Path(DEFAULT_STORAGE).resolve()
        storage = str(Place.of(folder.parent))
        hint = f" --storage {storage if is_url(storage) else _short(folder.parent)}" if elsewhere else ""
        click.echo(f"Show a policy:  bitfront policy show {folder.name}/{trial.number}{hint}")
    if page:
        click.echo(f"Page:  {page}")


def _short(path: Path) -> str:
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
