"""What the commands do that run something to its end: print how it goes, what came of it, and what goes on with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from service import driver
from service.arguments import INTERRUPT_STATUS, RECORD_BEHIND, RUN_ERROR
from service.working_copy import Place
from trainables.errors import StorageError

if TYPE_CHECKING:
    from service.launched import Launched
    from service.orchestrate.drive import SweepOutcome
    from service.records import SweepStore
    from service.settings import PromoteConfig
    from service.spec import SweepSpec
    from service.template import Template


def drive_sweep(ctx: click.Context, store: SweepStore, spec: SweepSpec, address: str) -> NoReturn:
    """Runs what is left of a sweep, prints its front and promotes from it; ends the command."""
    if not spec.promotion:
        _drive_sweep(ctx, store, spec, address)
    from service.orchestrate.cluster import kept

    # One Ray for both, with processes that have their imports behind them; whoever needs it first connects.
    with kept():
        _drive_sweep(ctx, store, spec, address)


def _drive_sweep(ctx: click.Context, store: SweepStore, spec: SweepSpec, address: str) -> NoReturn:
    from rich.console import Console

    from service.orchestrate.drive import FINISHED, INTERRUPTED
    from service.orchestrate.limits import STOPPED as STOPPED_ON_REQUEST
    from service.orchestrate.scheduler import longest_trial
    from service.orchestrate.sweep import run_sweep
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
    if outcome.end == FINISHED and outcome.found.members and spec.promotion:
        # The request came while the random policy was made: the sweep is finished, and nothing else was wanted.
        if driver.stop_requested(store.folder):
            ctx.exit(INTERRUPT_STATUS)
        promote_finished(ctx, store, spec.promotion, spec.promote, address)
    ctx.exit(_status(outcome, well=bool(outcome.found.done)))


def drive_promotion(
    ctx: click.Context, store: SweepStore, address: str, *, wanted: Sequence[str] | None = None
) -> NoReturn:
    """Finetunes what is left of a promotion, prints its final table and registers the best; ends the command.

    Its exit status tells of the trials that are `wanted`, or of all.
    """
    from rich.console import Console

    from service.orchestrate.drive import INTERRUPTED
    from service.orchestrate.limits import STOPPED as STOPPED_ON_REQUEST
    from service.orchestrate.promote import run_promotion
    from service.preflight import check_promotion
    from service.progress import Progress
    from service.promotion import stored_template

    template = stored_template(store)
    check_promotion(template, store.folder.parent, elsewhere=bool(address))
    console = Console(markup=False)
    ctx.find_root().obj = "running"
    epochs = template.finetune.epochs
    outcome = run_promotion(
        template, store, lambda store: Progress(console, store, epochs_per_trial=epochs), address=address
    )
    _print_promotion(outcome, template, console)
    if outcome.end in (INTERRUPTED, STOPPED_ON_REQUEST):
        ctx.exit(INTERRUPT_STATUS)
    judged = [trial for trial in store.trials() if wanted is None or trial.trial_id in wanted]
    ctx.exit(_status(outcome, well=all(trial.state == "done" for trial in judged)))


def _status(outcome: SweepOutcome, *, well: bool) -> int:
    if not well:
        return RUN_ERROR
    return 0 if outcome.mirror_error is None else RECORD_BEHIND


def promote_finished(
    ctx: click.Context, store: SweepStore, template: Template, config: PromoteConfig, address: str
) -> NoReturn:
    """The promotion that a sweep's own YAML asks for; ends the command."""
    from service.promotion import enrol
    from service.promotion_plan import plan_promotion
    from service.promotion_report import as_text
    from service.records import now_ms
    from service.rules import parse_rule
    from service.spec import PROMOTE_FILE

    plan = plan_promotion(template, store, parse_rule(config.rule), config.gates)
    click.echo(as_text(plan))
    if not plan.candidates:
        ctx.exit(0)
    try:
        promotion = enrol(template, store.folder.parent, plan.candidates, now_ms=now_ms())
    except StorageError as error:
        again = f"promote {store.folder.name} --to {store.folder / PROMOTE_FILE} --rule '{config.rule}'"
        raise StorageError(
            f"nothing was promoted: {error} When that has ended: {own_command()} {again}{_storage_hint(store)}"
        ) from None
    drive_promotion(ctx, promotion, address, wanted=[one.trial_id for one in plan.candidates])


def _print_promotion(outcome: SweepOutcome, template: Template, console: Any) -> None:
    """The final table, and what became of the best network."""
    from dashboards.final_table import as_table
    from service.final_table import final_table
    from service.orchestrate.drive import FINISHED
    from service.orchestrate.promote import register_outcome

    _print_failed(outcome, console)
    console.print()
    console.print(as_table(final_table(outcome.store), width=console.width))
    _print_places(outcome, template, console)
    if outcome.end == FINISHED and template.register.alias and outcome.found.done:
        console.print(register_outcome(template, outcome.store), highlight=False, soft_wrap=True)


def _print_outcome(outcome: SweepOutcome, spec: SweepSpec, console: Any) -> None:
    from dashboards.front import as_table

    sweep, found = outcome.store.sweep(), outcome.found
    _print_failed(outcome, console)
    reference = f", full precision {sweep.full_precision}" if sweep.full_precision else ""
    console.print()
    if found.members:
        console.print(as_table(found, f"{sweep.name}: Pareto front of {len(found.done)} policies{reference}"))
    else:
        console.print(f"{sweep.name}: no trial is done within the constraints, so there is no front.")
    _print_places(outcome, spec, console)


def _print_failed(outcome: SweepOutcome, console: Any) -> None:
    from service.progress import describe

    for trial in outcome.store.trials():
        if trial.state in ("diverged", "failed"):
            console.print(describe(trial), highlight=False, soft_wrap=True)


def _print_places(outcome: SweepOutcome, launched: Launched, console: Any) -> None:
    """Where everything is, and what goes on with it."""
    from service.orchestrate.drive import FINISHED
    from service.standing import next_command
    from service.tracking import first_line, without_secrets

    sweep, uri = outcome.store.sweep(), launched.tracking.uri
    if outcome.mirror_error is not None:
        line = first_line(outcome.mirror_error)
        hint = f"when it is back: {own_command()} sync {sweep.name}{_storage_hint(outcome.store)}"
        console.print(f"The tracking record is behind ({line}); {hint}", highlight=False, soft_wrap=True)
    if outcome.end != FINISHED:
        command = f"{own_command()} {next_command(sweep)}{_storage_hint(outcome.store)}"
        console.print(f"Ended early: {outcome.end}. Go on with:  {command}", highlight=False, soft_wrap=True)
    console.print(f"Stored in {Place.of(outcome.store.folder)}", highlight=False, soft_wrap=True)
    if uri and not uri.startswith("sqlite:"):
        console.print(f"Recorded in MLflow at {without_secrets(uri)}", highlight=False, soft_wrap=True)
    else:
        command = f"{own_command()} ui" + (f" --uri {uri}" if uri else _storage_hint(outcome.store))
        console.print(f"Open in the MLflow UI:  {command}", highlight=False, soft_wrap=True)


def _storage_hint(store: SweepStore) -> str:
    storage = store.folder.parent
    if store.replica is not None:
        return f" --storage {store.replica.url}"
    here = Path.cwd()
    return f" --storage {storage.relative_to(here) if storage.is_relative_to(here) else storage}"


def own_command() -> str:
    """This command as it was called, so that it can be called again by copying."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "bitfront" else "bitfront"
