"""The command `bitfront`. No logic: reads arguments, calls, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainables.errors import BitfrontError

if TYPE_CHECKING:
    from service.orchestrate.sweep import SweepOutcome

USAGE_ERROR, RUN_ERROR = 2, 1


class _Commands(click.Group):
    """Turns our errors into one message on standard error."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BitfrontError as error:
            click.echo(f"bitfront: {error}", err=True)
            ctx.exit(USAGE_ERROR if not ctx.obj else RUN_ERROR)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bitfront")
def main() -> None:
    """Sweeps for mixed-precision quantization policies, with a Pareto front to browse."""


@main.command()
@click.argument("spec_file", type=click.Path(path_type=Path), metavar="SWEEP.YAML")
@click.pass_context
def run(ctx: click.Context, spec_file: Path) -> None:
    """Run a sweep on this machine, and print its front.

    Exit status: 0 when at least one trial is done, 1 when none is or the reference could not be made, 2 when nothing
    was run because the sweep's YAML, its data, its tracking server or this machine's resources do not allow it.
    """
    from service.spec import load_spec

    spec = load_spec(spec_file)
    from service.preflight import check

    check(spec)
    from rich.console import Console

    from service.orchestrate.sweep import epochs_per_trial, run_sweep
    from service.progress import Progress

    console = Console()
    ctx.find_root().obj = "running"
    outcome = run_sweep(
        spec,
        lambda store: Progress(
            console, sweep=store.folder.name, trials=spec.trials, epochs_per_trial=epochs_per_trial(spec)
        ),
    )
    _print_outcome(outcome, spec.storage.path, spec.tracking.uri, console)
    ctx.exit(0 if outcome.found.done else RUN_ERROR)


def _print_outcome(outcome: SweepOutcome, storage: str, uri: str, console: Any) -> None:
    from dashboards.front import as_table
    from service.progress import describe
    from service.tracking import without_secrets

    sweep, found = outcome.store.sweep(), outcome.found
    for trial in outcome.store.trials():
        if trial.state != "done":
            console.print(describe(trial), highlight=False, soft_wrap=True)
    reference = f", full precision {sweep.reference['top1']:.2f} % top-1" if sweep.reference else ""
    console.print()
    if found.members:
        console.print(as_table(found, f"{sweep.name}: Pareto front of {len(found.done)} policies{reference}"))
    else:
        console.print(f"{sweep.name}: no trial is done, so there is no front.")
    if outcome.mirror_error is not None:
        console.print(f"The tracking record is behind: {outcome.mirror_error}", highlight=False, soft_wrap=True)
    console.print(f"Stored in {outcome.store.folder}", highlight=False, soft_wrap=True)
    if uri and not uri.startswith("sqlite:"):
        console.print(f"Recorded in MLflow at {without_secrets(uri)}", highlight=False, soft_wrap=True)
    else:
        command = f"{_own_command()} ui" + (f" --uri {uri}" if uri else f" --storage {storage}")
        console.print(f"Open in the MLflow UI:  {command}", highlight=False, soft_wrap=True)


def _own_command() -> str:
    """This command as it was called, so that it can be called again by copying."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "bitfront" else "bitfront"


@main.command()
@click.option("--storage", default="bitfront-sweeps", show_default=True, help="The sweeps' storage folder.")
@click.option("--uri", default="", help="A database other than the storage's own, as in the sweep's tracking.uri.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def ui(storage: str, uri: str, host: str, port: int) -> None:
    """Open the MLflow UI on the records in a storage folder, until Ctrl-C."""
    from service.tracking import serve_ui

    click.echo(f"MLflow UI: http://{host}:{port}  (Ctrl-C ends it)")
    sys.exit(serve_ui(Path(storage), uri, host=host, port=port))


if __name__ == "__main__":
    main()
