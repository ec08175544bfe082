"""The command `bitfront`. No logic: reads arguments, calls, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.arguments import (
    INTERRUPT_STATUS,
    RECORD_BEHIND,
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
from service.cli_drive import drive_promotion, drive_sweep, own_command
from service.cli_fronts import compare, front, table
from service.cli_models import evaluate, export
from service.cli_nightly import nightly
from service.cli_policy import policy
from service.cli_promote import promote
from service.cli_records import clean, list_, logs, status, stop, sync, ui
from service.cli_registry import register
from service.cli_scheduler import scheduler
from service.redaction import print_error

if TYPE_CHECKING:
    from service.combinations import Surveyed
    from service.spec import SweepSpec


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bitfront")
def main() -> None:
    """Sweeps for mixed-precision quantization policies, with a Pareto front to browse."""
    sys.excepthook = print_error


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

    Exit status: 0 when at least one trial is done, 1 when none is or the reference could not be made (of a sweep that
    promotes: when a policy that it has promoted could not be finetuned), 2 when nothing was run because the sweep's
    YAML, its data, its tracking server or the resources do not allow it, 4 when it would be 0 and the record in MLflow
    is behind, which `sync` completes, 130 when it was interrupted or stopped on request before its end.
    """
    from service.spec import load_spec
    from service.sweeps import is_finished

    spec = load_spec(spec_file, overrides, smoke=smoke, to_launch=True)
    _preflight_and_begin(spec, address, is_work_left=not is_finished(spec))
    from service.records import now_ms
    from service.sweeps import open_sweep, with_extensions

    store = open_sweep(spec, now_ms=now_ms())
    drive_sweep(ctx, store, with_extensions(spec, store.folder.parent, store.sweep()), address)


def _preflight(spec: SweepSpec) -> None:
    """Everything that can be known to fail on this machine."""
    _check_machine(spec, "")
    _check_networks(spec)


def _preflight_and_begin(spec: SweepSpec, address: str, *, is_work_left: bool) -> None:
    """Likewise, of a sweep that goes on next; the size of a cluster is checked once it is connected.

    A Ray of our own starts while the networks are counted, unless nothing is left to do or somebody does it.
    """
    from service.sweeps import is_driven, lacks_reference

    _check_machine(spec, address)
    if is_work_left and not address and not is_driven(spec):
        from service.orchestrate.cluster import begin

        begin(imports=lacks_reference(spec))
    _check_networks(spec)


def _check_machine(spec: SweepSpec, address: str) -> None:
    from service.preflight import check

    check(spec, cpus=float("inf") if address else None, gpus=float("inf") if address else None)


def _check_networks(spec: SweepSpec) -> None:
    from service.preflight import needs_survey

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
    """Go on with a sweep, or a promotion, that was stopped, killed or extended.

    Finished trials stay as they are; those that were cut off continue after their last epoch.

    Exit status: as that of `run`.
    """
    from service.sweeps import find_sweep, is_finished, stored_spec

    store = find_sweep(storage.absolute(), name)
    if store.sweep().kind == "finetune":
        drive_promotion(ctx, store, address)
    spec = stored_spec(store)
    _preflight_and_begin(spec, address, is_work_left=not is_finished(spec))
    drive_sweep(ctx, store, spec, address)


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
    """Give a sweep more trials or larger limits, and go on with it.

    Exit status: as that of `run`.
    """
    from service import sweeps

    if not trials and not wall_time and device_hours is None:
        raise click.UsageError("Nothing to extend: give --trials, --wall-time or --device-hours.")
    store = sweeps.find_sweep(storage.absolute(), name)
    if store.sweep().kind == "finetune":
        raise click.UsageError(f"{name} is a promotion: promote more policies into it, with other limits if need be.")
    sweeps.extended(store, trials=trials, wall_time=wall_time, device_hours=device_hours)
    _preflight_and_begin(sweeps.stored_spec(store), address, is_work_left=True)
    sweeps.extend(store, trials=trials, wall_time=wall_time, device_hours=device_hours)
    drive_sweep(ctx, store, sweeps.stored_spec(store), address)


@main.command("rerun-failed")
@sweep_argument
@storage_option
@address_option
@click.pass_context
def rerun_failed(ctx: click.Context, name: str, storage: Path, address: str) -> None:
    """Run the failed trials of a sweep, or of a promotion, again, and what else is left of it.

    Exit status: as that of `run`.
    """
    from service import sweeps

    store = sweeps.find_sweep(storage.absolute(), name)
    is_promotion = store.sweep().kind == "finetune"
    if not is_promotion:
        spec = sweeps.stored_spec(store)
        has_failed = any(trial.state == "failed" for trial in store.trials())
        _preflight_and_begin(spec, address, is_work_left=has_failed or not sweeps.is_finished(spec))
    failed = sweeps.rerun_failed(store)
    click.echo(f"Running again: {', '.join(failed) or 'none has failed'}")
    if is_promotion:
        drive_promotion(ctx, store, address)
    spec = sweeps.stored_spec(store)
    drive_sweep(ctx, store, spec, address)


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
            spec = load_spec(spec_file, overrides, smoke=smoke, to_launch=True)
            _preflight(spec)
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
    from service.schedule import next_launches
    from service.spec import load_spec

    spec = load_spec(spec_file, overrides, smoke=smoke, to_launch=True)
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
@click.option("--finetune", is_flag=True, help="Of a finetune template.")
def schema(finetune: bool) -> None:
    """Print the JSON Schema of a sweep's YAML, for editors."""
    from service.schema import schema as sweep_schema
    from service.schema import template_schema

    click.echo(json.dumps(template_schema() if finetune else sweep_schema(), indent=2))


@main.command()
@spec_argument
@overrides_option
@smoke_option
@click.option("--address", required=True, help="The cluster's dashboard, such as http://head:8265.")
@click.option("--wait", is_flag=True, help="Print what the job prints, and end when it ends.")
@click.pass_context
def submit(
    ctx: click.Context, spec_file: Path, overrides: tuple[str, ...], smoke: bool, address: str, wait: bool
) -> None:
    """Send a sweep to a Ray cluster as a job, and return; `logs`, `stop` and `status` take the same --address.

    The job carries Bitfront's own code; the cluster's machines need its dependencies. storage.path must be a folder
    that all of them share.

    With --wait a job of this sweep that runs already is waited for. Exit status then: 0 when the job succeeded, 4
    when it did and its record in MLflow is behind, 1 when it failed, 130 when it was stopped. Whoever waits may go
    away: the job goes on.
    """
    from service.orchestrate.jobs import is_running, submit_sweep
    from service.spec import load_spec

    spec = load_spec(spec_file, overrides, smoke=smoke, to_launch=True)
    if wait and is_running(spec.name, address):
        click.echo(f"{spec.name} runs there already.")
    else:
        job = submit_sweep(spec, address)
        click.echo(
            f"Submitted as {job}. Follow it with:  {own_command()} logs {spec.name} --address {address} --follow"
        )
    if wait:
        ctx.exit(_wait_for_job(spec.name, address))


def _wait_for_job(name: str, address: str) -> int:
    """Prints what a job prints until it ends; the exit status that tells of it."""
    from service.orchestrate.jobs import job_exit_status, job_logs, job_status

    for text in job_logs(name, address, follow=True):
        click.echo(text, nl=False)
    ended = job_status(name, address)["status"]
    if ended == "FAILED" and (status := job_exit_status(name, address)) in (RECORD_BEHIND, INTERRUPT_STATUS):
        return status
    return {"SUCCEEDED": 0, "STOPPED": INTERRUPT_STATUS}.get(ended, RUN_ERROR)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what a shell needs to complete commands, options and sweeps' names: eval "$(bitfront completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # click knows the three
    click.echo(kind(main, {}, "bitfront", "_BITFRONT_COMPLETE").source())


_OTHERS = (
    clean, compare, evaluate, export, front, list_, logs, nightly, policy, promote, register, scheduler, status,
    stop, sync, table, ui,
)  # fmt: skip
for command in _OTHERS:
    main.add_command(command)


if __name__ == "__main__":
    main()
