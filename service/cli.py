"""The command `bitfront`. No logic: reads arguments, calls, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.arguments import (
    INTERRUPT_STATUS,
    RUN_ERROR,
    USAGE_ERROR,
    Commands,
    address_option,
    json_option,
    overrides_option,
    smoke_option,
    storage_option,
    sweep_argument,
)
from service.cli_fronts import compare, front
from service.cli_policy import policy
from service.cli_records import clean, list_, logs, status, stop, sync, ui
from service.cli_registry import register

if TYPE_CHECKING:
    from service.combinations import Surveyed
    from service.orchestrate.sweep import SweepOutcome
    from service.records import SweepStore
    from service.spec import SweepSpec


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bitfront")
def main() -> None:
    """Sweeps for mixed-precision quantization policies, with a Pareto front to browse."""


spec_argument = click.argument("spec_file", type=click.Path(path_type=Path), metavar="SWEEP.YAML")


@main.command()
@spec_argument
@overrides_option
@smoke_option
@address_option
@click.pass_context
def run(ctx: click.Context, spec_file: Path, overrides: tuple[str, ...], smoke: bool, address: str) -> None:
    """Run a sweep, here or on a Ray cluster, and print its front.

    A sweep of this name that was begun with the same YAML goes on where it stopped.

    Exit status: 0 when at least one trial is done, 1 when none is or the reference could not be made, 2 when nothing
    was run because the sweep's YAML, its data, its tracking server or the resources do not allow it, 130 when it was
    interrupted or stopped on request before its end.
    """
    from service.spec import load_spec

    spec = load_spec(spec_file, overrides, smoke=smoke)
    _preflight(spec, address)
    from service.orchestrate.worker import now_ms
    from service.sweeps import open_sweep, with_extensions

    store = open_sweep(spec, now_ms=now_ms())
    _drive(ctx, store, with_extensions(spec, store.folder.parent, store.sweep()), address)


def _preflight(spec: SweepSpec, address: str) -> None:
    """Everything that can be known to fail. The size of a cluster is checked once it is connected."""
    from service.preflight import check, needs_survey

    check(spec, cpus=float("inf") if address else None, gpus=float("inf") if address else None)
    if needs_survey(spec):
        _survey(spec)


def _survey(spec: SweepSpec) -> Surveyed:
    from service.preflight import check_survey, survey_all

    found = survey_all(spec)
    check_survey(spec, found)
    return found


@main.command()
@sweep_argument
@storage_option
@address_option
@click.pass_context
def resume(ctx: click.Context, name: str, storage: Path, address: str) -> None:
    """Go on with a sweep that was stopped, killed or extended.

    Finished trials stay as they are; those that were cut off continue after their last epoch.
    """
    from service.sweeps import find_sweep, stored_spec

    store = find_sweep(storage.absolute(), name)
    spec = stored_spec(store)
    _preflight(spec, address)
    _drive(ctx, store, spec, address)


@main.command()
@sweep_argument
@storage_option
@address_option
@click.option("--trials", default="", help="How many more (+20), or how many in all (60).")
@click.option("--wall-time", default="", help="Another limits.wall_time, over all runs of the sweep, such as 2d.")
@click.option("--device-hours", type=float, help="Another limits.device_hours, over all trials.")
@click.pass_context
def extend(
    ctx: click.Context,
    name: str,
    storage: Path,
    address: str,
    trials: str,
    wall_time: str,
    device_hours: float | None,
) -> None:
    """Give a sweep more trials or larger limits, and go on with it."""
    from service import sweeps

    if not trials and not wall_time and device_hours is None:
        raise click.UsageError("Nothing to extend: give --trials, --wall-time or --device-hours.")
    store = sweeps.find_sweep(storage.absolute(), name)
    _preflight(sweeps.stored_spec(store), address)
    sweeps.extend(store, trials=trials, wall_time=wall_time, device_hours=device_hours)
    _drive(ctx, store, sweeps.stored_spec(store), address)


@main.command("rerun-failed")
@sweep_argument
@storage_option
@address_option
@click.pass_context
def rerun_failed(ctx: click.Context, name: str, storage: Path, address: str) -> None:
    """Run the failed trials of a sweep again, and what else is left of it."""
    from service import sweeps

    store = sweeps.find_sweep(storage.absolute(), name)
    spec = sweeps.stored_spec(store)
    _preflight(spec, address)
    failed = sweeps.rerun_failed(store)
    click.echo(f"Running again: {', '.join(failed) or 'none has failed'}")
    _drive(ctx, store, spec, address)


def _drive(ctx: click.Context, store: SweepStore, spec: SweepSpec, address: str) -> None:
    from rich.console import Console

    from service.orchestrate.limits import STOPPED as STOPPED_ON_REQUEST
    from service.orchestrate.scheduler import longest_trial
    from service.orchestrate.sweep import INTERRUPTED, run_sweep
    from service.progress import Progress

    # Errors quote what libraries say, in brackets too.
    console = Console(markup=False)
    ctx.find_root().obj = "running"
    outcome = run_sweep(
        spec, store, lambda store: Progress(console, store, epochs_per_trial=longest_trial(spec)), address=address
    )
    _print_outcome(outcome, spec, console)
    if outcome.end in (INTERRUPTED, STOPPED_ON_REQUEST):
        ctx.exit(INTERRUPT_STATUS)
    ctx.exit(0 if outcome.found.done else RUN_ERROR)


def _print_outcome(outcome: SweepOutcome, spec: SweepSpec, console: Any) -> None:
    from dashboards.front import as_table
    from service.orchestrate.sweep import FINISHED
    from service.progress import describe
    from service.standing import next_command
    from service.tracking import first_line, without_secrets

    sweep, found, uri = outcome.store.sweep(), outcome.found, spec.tracking.uri
    for trial in outcome.store.trials():
        if trial.state in ("diverged", "failed"):
            console.print(describe(trial), highlight=False, soft_wrap=True)
    reference = f", full precision {sweep.full_precision}" if sweep.full_precision else ""
    console.print()
    if found.members:
        console.print(as_table(found, f"{sweep.name}: Pareto front of {len(found.done)} policies{reference}"))
    else:
        console.print(f"{sweep.name}: no trial is done within the constraints, so there is no front.")
    if outcome.mirror_error is not None:
        line = first_line(outcome.mirror_error)
        hint = f"when it is back: {_own_command()} sync {sweep.name}{_storage_hint(outcome.store)}"
        console.print(f"The tracking record is behind ({line}); {hint}", highlight=False, soft_wrap=True)
    if outcome.end != FINISHED:
        command = f"{_own_command()} {next_command(sweep)}{_storage_hint(outcome.store)}"
        console.print(f"Ended early: {outcome.end}. Go on with:  {command}", highlight=False, soft_wrap=True)
    console.print(f"Stored in {outcome.store.folder}", highlight=False, soft_wrap=True)
    if uri and not uri.startswith("sqlite:"):
        console.print(f"Recorded in MLflow at {without_secrets(uri)}", highlight=False, soft_wrap=True)
    else:
        command = f"{_own_command()} ui" + (f" --uri {uri}" if uri else _storage_hint(outcome.store))
        console.print(f"Open in the MLflow UI:  {command}", highlight=False, soft_wrap=True)


def _storage_hint(store: SweepStore) -> str:
    storage = store.folder.parent
    here = Path.cwd()
    return f" --storage {storage.relative_to(here) if storage.is_relative_to(here) else storage}"


def _own_command() -> str:
    """This command as it was called, so that it can be called again by copying."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "bitfront" else "bitfront"


@main.command()
@click.argument("spec_files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SWEEP.YAML...")
@overrides_option
@smoke_option
@click.pass_context
def check(ctx: click.Context, spec_files: tuple[Path, ...], overrides: tuple[str, ...], smoke: bool) -> None:
    """Check sweeps without running them: YAML, data, machine, storage, tracking, budgets against the network."""
    from service.spec import load_spec
    from trainables.errors import BitfrontError

    broken = False
    for spec_file in spec_files:
        try:
            spec = load_spec(spec_file, overrides, smoke=smoke)
            _preflight(spec, "")
        except BitfrontError as error:
            broken = True
            click.echo(str(error), err=True)
        else:
            networks = ", ".join(spec.names("network"))
            click.echo(f"{spec_file}: fine, {spec.trials} trials of {spec.method_name} on {networks}")
    ctx.exit(USAGE_ERROR if broken else 0)


@main.command()
@spec_argument
@overrides_option
@smoke_option
@address_option
@json_option
@click.pass_context
def plan(
    ctx: click.Context, spec_file: Path, overrides: tuple[str, ...], smoke: bool, address: str, as_json: bool
) -> None:
    """Show what a sweep will take, before it runs: space, reachable costs, hours, money.

    Exit status 2 when a limit leaves nothing to run.
    """
    from service import plan_report
    from service.estimate import estimates_of
    from service.plan import make_plan
    from service.preflight import check as check_machine
    from service.settings import next_launches
    from service.spec import load_spec

    spec = load_spec(spec_file, overrides, smoke=smoke)
    cpus, gpus = _size(address)
    check_machine(spec, cpus=cpus, gpus=gpus)
    estimates, known_from = estimates_of(spec, _survey(spec))
    made = make_plan(
        spec,
        estimates,
        cpus=cpus,
        gpus=gpus,
        hours_from=known_from,
        launches=next_launches(spec.schedule, datetime.now(UTC), 3),
    )
    click.echo(json.dumps(plan_report.as_json(made), indent=2) if as_json else plan_report.as_text(made))
    ctx.exit(USAGE_ERROR if made.problems else 0)


def _size(address: str) -> tuple[float, float]:
    """CPUs and GPUs of this machine, or of the cluster."""
    if not address:
        import os

        from trainables import api

        return float(os.cpu_count() or 1), float(api.count_gpus())
    from service.orchestrate.cluster import size

    return size(address)


@main.command()
def schema() -> None:
    """Print the JSON Schema of a sweep's YAML, for editors."""
    from service.schema import schema as make_schema

    click.echo(json.dumps(make_schema(), indent=2))


@main.command()
@spec_argument
@overrides_option
@smoke_option
@click.option("--address", required=True, help="The cluster's dashboard, such as http://head:8265.")
def submit(spec_file: Path, overrides: tuple[str, ...], smoke: bool, address: str) -> None:
    """Send a sweep to a Ray cluster as a job, and return; `logs`, `stop` and `status` take the same --address.

    The job carries Bitfront's own code; the cluster's machines need its dependencies. storage.path must be a folder
    that all of them share.
    """
    from service.orchestrate.jobs import submit_sweep
    from service.spec import load_spec

    spec = load_spec(spec_file, overrides, smoke=smoke)
    job = submit_sweep(spec, address)
    click.echo(f"Submitted as {job}. Follow it with:  {_own_command()} logs {spec.name} --address {address} --follow")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what a shell needs to complete commands, options and sweeps' names: eval "$(bitfront completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # click knows the three
    click.echo(kind(main, {}, "bitfront", "_BITFRONT_COMPLETE").source())


for command in (clean, compare, front, list_, logs, policy, register, status, stop, sync, ui):
    main.add_command(command)


if __name__ == "__main__":
    main()
