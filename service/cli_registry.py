"""The command that makes a sweep's policies models of MLflow's registry."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from service.arguments import json_option, storage_option, sweep_argument

if TYPE_CHECKING:
    from service.registry import Registered


@click.command()
@sweep_argument
@storage_option
@click.option(
    "--trial", "trials", multiple=True, metavar="N", help="This trial's policy or network, on the front or not; again."
)
@click.option("--knee", "which", flag_value="knee", default="knee", help="The front's knee.  [default]")
@click.option("--front", "which", flag_value="front", help="The whole front, cheapest first.")
@click.option("--name", "model", default="", help="The registered model.  [default: the sweep's name]")
@click.option(
    "--alias", "aliases", multiple=True, metavar="NAME", help="Such as champion: moves to the version; again."
)
@click.option("--uri", default="", help="Another MLflow server or database than the sweep's tracking.uri.")
@json_option
def register(
    name: str,
    storage: Path,
    trials: tuple[str, ...],
    which: Literal["knee", "front"],
    model: str,
    aliases: tuple[str, ...],
    uri: str,
    as_json: bool,
) -> None:
    """Register policies of a sweep, or networks of a promotion, as versions of a model in MLflow's registry.

    A policy is one version, however often it is registered and however many trials found it; a network is one by its
    finetune, and MLflow loads it by itself. The commands of `policy` then take models:/NAME/VERSION and
    models:/NAME@ALIAS.
    """
    from service.registrable import check_names, choose
    from service.registry import Registry
    from service.sweeps import find_sweep, stored_tracking
    from service.tracking import check_tracking, resolve_uri

    if trials and which == "front":
        raise click.UsageError("--trial names policies, and --front takes all of the front; give one of them.")
    store = find_sweep(storage.absolute(), name)
    check_names(model or name, aliases)
    tracking = stored_tracking(store)
    place = resolve_uri(uri or tracking.uri, store.folder.parent)
    check_tracking(place)
    registry = Registry(store, uri=place, experiment=tracking.experiment)
    chosen = choose(name, registry.trials, registry.found, trials, whole_front=which == "front")
    found = registry.register(chosen, model=model or name, aliases=aliases)
    if as_json:
        click.echo(json.dumps([{"uri": one.uri, **dataclasses.asdict(one)} for one in found], indent=2))
        return
    for one in found:
        for line in _lines(name, one):
            click.echo(line)


def _lines(sweep: str, one: Registered) -> list[str]:
    policy = f"{sweep}/{one.trial}'s {one.what} {one.policy_hash[:10]}"
    match one.added:
        case "version":
            lines = [f"{one.uri}: {policy}, {one.place}"]
        case "lineage":
            lines = [f"{one.uri}: has {policy} already; what it says of who found it is new"]
        case _:
            lines = [f"{one.uri}: has {policy} already; nothing was added"]
    others = [trial for trial in one.found_by if trial != one.trial]
    if one.added and one.what == "network":
        lines.append(f"{one.uri}: its policy was found by {', '.join(one.found_by)}")
    elif one.added and others:
        lines.append(f"{one.uri}: {', '.join(others)} found these bits, too")
    if not one.on_front:
        lines.append(f"{one.uri}: {one.trial} is {one.place}; it is registered because it was named")
    for alias, before in one.aliases.items():
        moved = "stays" if before == one.version else f"moves from version {before}" if before else "is new"
        lines.append(f"models:/{one.model}@{alias}: version {one.version} ({moved})")
    return lines
