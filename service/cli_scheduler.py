"""The command that launches sweeps by the clock."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.arguments import INTERRUPT_STATUS, RUN_ERROR, address_option, json_option, new_console, storage_option

if TYPE_CHECKING:
    from service.scheduler import Launch, Scheduler


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR")
@storage_option
@address_option
@click.option("--submit", default="", help="Send sweeps as Ray jobs to this dashboard, such as http://head:8265.")
@click.option("--at-once", default=1, show_default=True, type=click.IntRange(1), help="Launches at the same time.")
@click.option("--once", is_flag=True, help="Launch what is due, wait for its end and end: for crontab or a CronJob.")
@click.option("--dry-run", is_flag=True, help="Show the next and the last launches, and do nothing.")
@json_option
@click.pass_context
def scheduler(
    ctx: click.Context,
    folder: Path,
    storage: Path,
    address: str,
    submit: str,
    at_once: int,
    once: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Launch the sweeps of a folder when their `schedule` says so, each time once, whatever happens in between.

    What is launched is a sweep of its own in the storage, NAME-20261122t020000z by the time in UTC: a nightly
    reproduction where NAME.expect.yaml or NAME.baseline.json is beside the file, else a run.

    SIGTERM ends it in order: what runs notes where it is, and the next start goes on with it. Exit status: 0; with
    --once 1 where a launch failed, drifted or was broken, or a file of the folder is broken; 130 when that was
    interrupted.
    """
    if address and submit:
        raise click.UsageError("Give --address or --submit, not both.")
    if dry_run:
        _show(folder, storage.absolute(), as_json=as_json)
        return
    from service.scheduler import Scheduler

    one = Scheduler(
        folder=folder,
        storage=storage.absolute(),
        command=lambda launch: command_of(launch, storage.absolute(), address=address, submit=submit),
        tell=_tell,
        at_once=at_once,
    )
    interrupted = _run(one, once=once)
    if once:
        ctx.exit(INTERRUPT_STATUS if interrupted else RUN_ERROR if one.failed else 0)


def _run(one: Scheduler, *, once: bool) -> bool:
    """Until its end; whether a signal was it."""

    def stop(*_: object) -> None:
        one.stopping, one.hurrying = True, one.stopping

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if once:
            one.run_once()
        else:
            _tell(f"launching the sweeps of {one.folder} into {one.storage}")
            one.serve()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return one.stopping


def command_of(launch: Launch, storage: Path, *, address: str, submit: str) -> Sequence[str]:
    """What is run for a launch. A sweep that has begun goes on as it began, whatever its file says now."""
    from service.marks import SWEEP_FILE
    from service.working_copy import Place

    cluster, place = ["--address", address] if address else [], str(Place.of(storage))
    if launch.sweep.nightly:
        wanted = ["nightly", str(launch.sweep.file), "--night", launch.key, "--storage", place, *cluster]
        wanted += ["--submit", submit] if submit else []
    elif submit:
        wanted = ["submit", *_named(launch, place), "--address", submit, "--wait"]
    elif (storage / launch.name / SWEEP_FILE).exists():
        wanted = ["resume", launch.name, "--storage", place, *cluster]
    else:
        wanted = ["run", *_named(launch, place), *cluster]
    return [sys.executable, "-m", "service.cli", *wanted]


def _named(launch: Launch, storage: str) -> list[str]:
    path = json.dumps(storage, ensure_ascii=False)
    return [str(launch.sweep.file), "--set", f"name={launch.name}", "--set", f"storage.path={path}"]


def _tell(line: str) -> None:
    click.echo(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z} {line}")


def _show(folder: Path, storage: Path, *, as_json: bool) -> None:
    from service.schedule_report import as_table, read_standing

    standing = read_standing(folder, storage, datetime.now(UTC))
    if as_json:
        click.echo(json.dumps(standing.as_json(), indent=2))
        return
    new_console().print(as_table(standing))
    for problem in standing.problems:
        click.echo(problem, err=True)
