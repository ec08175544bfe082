"""The command that makes finetunes of a sweep's front."""

from __future__ import annotations

import json
from pathlib import Path

import click

from service.arguments import (
    address_option,
    json_option,
    overrides_option,
    smoke_option,
    storage_option,
    sweep_argument,
)
from service.cli_drive import drive_promotion
from trainables.errors import ConfigError


@click.command()
@sweep_argument
@click.option("--to", "template_file", required=True, type=click.Path(path_type=Path), help="The finetune template.")
@click.option(
    "--rule",
    default="knee",
    show_default=True,
    help="knee, all, 'top 3 by top1', 'within bops_g <= 0.03' or 'hypervolume 3'; of the front.",
)
@click.option("--trial", "trials", multiple=True, metavar="N", help="This trial's policy instead, on the front or not.")
@click.option("--min-top1", default=0.0, help="Only policies with at least this top-1 in their search, percent.")
@click.option("--max-ard", default=0.0, help="Only policies with at most this ARD in their search; 0: any.")
@storage_option
@overrides_option
@smoke_option
@address_option
@click.option("--dry-run", is_flag=True, help="Show what would be launched and what it would cost, and stop.")
@json_option
@click.pass_context
def promote(
    ctx: click.Context,
    name: str,
    template_file: Path,
    rule: str,
    trials: tuple[str, ...],
    min_top1: float,
    max_ard: float,
    storage: Path,
    overrides: tuple[str, ...],
    smoke: bool,
    address: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Finetune policies of a sweep's front by a template, each once, and register the best network.

    Promoting again launches only what is new; what was cut off goes on where it stopped.

    Exit status: 0 when every promoted policy is finetuned, 1 when one is not, 2 when nothing was run, 130 when it was
    interrupted or stopped on request before its end.
    """
    from service.preflight import check_promotion
    from service.promotion_plan import plan_promotion
    from service.promotion_report import as_json as to_json
    from service.promotion_report import as_text
    from service.rules import Gates, parse_rule
    from service.sweeps import find_sweep
    from service.template import load_template

    if as_json and not dry_run:
        raise click.UsageError("--json shows the plan of a --dry-run; what came of it: bitfront front NAME --json")
    template = load_template(template_file, overrides, smoke=smoke, to_launch=True)
    gates = Gates(min_top1=min_top1, max_ard=max_ard)
    sweep = find_sweep(storage.absolute(), name)
    check_promotion(template, sweep.folder.parent, elsewhere=bool(address))
    plan = plan_promotion(template, sweep, parse_rule(rule), gates, trials=trials)
    if as_json:
        click.echo(json.dumps(to_json(plan), indent=2))
    else:
        click.echo(as_text(plan))
    if dry_run:
        return
    from service.promotion import enrol
    from service.records import now_ms

    if not plan.candidates:
        raise ConfigError(f"{name} has nothing to promote: {'; '.join(plan.held) or 'its front is empty'}.")
    store = enrol(template, sweep.folder.parent, plan.candidates, now_ms=now_ms())
    drive_promotion(ctx, store, address, wanted=[one.trial_id for one in plan.candidates])
