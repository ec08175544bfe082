"""The commands on nightly reproductions: run and judge, accept a baseline, show past nights."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.arguments import (
    INTERRUPT_STATUS,
    address_option,
    json_option,
    new_console,
    storage_option,
)

if TYPE_CHECKING:
    from service.night_folder import NightFolder
    from service.nightly import Move
    from service.nightly_report import NightReport, Verdict

DRIFTED_STATUS, BROKEN_STATUS = 5, 3
"""That no error has, of this command or of Python."""
night_option = click.option(
    "--night", default="", metavar="NIGHT", help="One that has begun, or the name of a new one."
)


class NightlyGroup(click.Group):
    """`bitfront nightly DIR` is `bitfront nightly run DIR`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As the group does, with its first command where none is named."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=NightlyGroup)
def nightly() -> None:
    """Repeat sweeps, compare them with their baselines and with the papers' claims: bitfront nightly DIR."""


@nightly.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="DIR_OR_SWEEP.YAML...")
@storage_option
@address_option
@click.option("--submit", default="", metavar="URL", help="Send sweeps as Ray jobs to this dashboard, and wait.")
@night_option
@click.option("--accept-new", is_flag=True, help="What has no baseline yet gets this night's result as one.")
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    paths: tuple[Path, ...],
    storage: Path,
    address: str,
    submit: str,
    night: str,
    accept_new: bool,
    as_json: bool,
) -> None:
    """Run every sweep of a folder, judge each, print the report.

    A night that was cut off goes on with --night; more sweeps may be named then. Exit status: 0 when every sweep was
    reproduced or is new, 5 when one has drifted, 3 when one is broken, 2 when nothing was run because something is
    wrong with what was asked, 1 when something went wrong with the night itself, 130 when it was interrupted.
    """
    if address and submit:
        raise click.UsageError("Give --address or --submit, not both.")
    if not paths and not night:
        raise click.UsageError("Nothing to run: give a folder of sweeps, sweeps, or a --night to go on with.")
    from service.night_folder import fetch_nights
    from service.night_launch import Here, Submitted
    from service.nightly import begin, check_files, run_night, sweep_files, tonight
    from service.records import now_ms

    files = sweep_files(paths)
    check_files(files)
    begun_ms = now_ms()
    fetch_nights(storage.absolute())
    folder = begin(storage.absolute(), night or tonight(), files)
    launch = Submitted(submit) if submit else Here(address)

    def tell(line: str) -> None:
        ctx.find_root().obj = "running"
        click.echo(line, err=as_json)

    with _interrupted_by_signals():
        try:
            report = run_night(folder, files, launch, tell, accept_new=accept_new)
        except KeyboardInterrupt:
            _print(folder.report(), as_json=as_json)
            ctx.exit(INTERRUPT_STATUS)
    _print(report, as_json=as_json)
    _tell(folder, report, begun_ms)
    ctx.exit(_status(_verdict_of(report, [file.stem for file in files])))


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM, and the end of the terminal, as Ctrl-C: what runs is ended in order."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    ends = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _verdict_of(report: NightReport, names: list[str]) -> Verdict:
    """Of the sweeps that were asked for; of all where none was named."""
    from service.nightly_report import worst

    return worst(sweep.verdict for sweep in report.sweeps if not names or sweep.name in names)


def _status(verdict: Verdict) -> int:
    return {"drifted": DRIFTED_STATUS, "broken": BROKEN_STATUS}.get(verdict, 0)


def _print(report: NightReport, *, as_json: bool) -> None:
    from dashboards.nightly_report import as_report

    if as_json:
        click.echo(json.dumps(report.to_content(), indent=2))
    else:
        new_console().print(as_report(report), soft_wrap=False)


def _tell(night: NightFolder, report: NightReport, since_ms: int) -> None:
    """Trend page, MLflow, and to people what was judged since. What goes wrong there is told, and is no verdict."""
    from service.night_folder import fetch_nights
    from service.nightly_mirror import record
    from service.notify import notify
    from trainables.errors import BitfrontError

    link = ""
    try:
        fetch_nights(night.storage)  # others may have run meanwhile, elsewhere
        _write_trend(night.storage)
        link = record(night.folder)
    except (BitfrontError, OSError) as error:
        click.echo(f"The night is not recorded in MLflow: {str(error).splitlines()[0]}", err=True)
    judged = [sweep for sweep in report.sweeps if sweep.judged_ms >= since_ms]
    facts = {sweep.name: f"{sweep.verdict}: {sweep.reason}" for sweep in judged}
    if facts:
        notify(f"Night {report.night}: {report.verdict}", facts=facts, link=link)


def _write_trend(storage: Path) -> Path:
    """The page of all nights that are here."""
    from dashboards.trend import write_trend
    from service.marks import NIGHTS
    from service.night_folder import carry_file

    page = write_trend(storage / NIGHTS)
    carry_file(page, storage)
    return page


@nightly.command()
@click.argument("sweeps", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SWEEP.YAML...")
@storage_option
@click.option("--night", default="", metavar="NIGHT", help="Another night than the last that has the sweep.")
def accept(sweeps: tuple[Path, ...], storage: Path, night: str) -> None:
    """Move the baselines of sweeps to what a night has found, on purpose: commit the files.

    A folder stands for its sweeps. Nothing is moved where one of them has not ended, has failed trials, or has been
    changed since that night.
    """
    from service.night_folder import fetch_nights
    from service.nightly import make_move, plan_move, sweep_files

    fetch_nights(storage.absolute())
    moves = [plan_move(storage.absolute(), file, night) for file in sweep_files(sweeps)]
    for move in moves:
        make_move(move)
        click.echo("\n".join(_moved(move)))


def _moved(move: Move) -> list[str]:
    """What another baseline changes."""
    from service.verdict import told

    after = move.after.outcome
    before = f"from night {move.before.outcome.night} " if move.before else ""
    lines = [f"{move.after.name}: {before}to night {after.night}, {len(after.trials)} trials: {move.path}"]
    if move.report.identical:
        return [*lines, "  nothing moves: every policy and number is the same"]
    if move.before:
        changed = len(move.report.policies.changed)
        lines.append(f"  {changed} of {changed + move.report.policies.same} policies change")
    lines += [f"  {told(finding)}" for finding in move.report.findings if finding.drifted]
    lines += [f"  does not hold: {one.claim} ({one.source})" for one in move.report.claims if one.holds is False]
    return lines


@nightly.command()
@click.argument("night", default="")
@storage_option
@json_option
def show(night: str, storage: Path, as_json: bool) -> None:
    """List past nights, or show the report of one."""
    from dashboards.nightly_report import as_list
    from service.night_folder import NightFolder, fetch_nights, nights
    from service.nightly_report import REPORT_FILE
    from service.working_copy import Place

    fetch_nights(storage.absolute())
    if night:
        _print(NightFolder(storage, night).report(), as_json=as_json)
        return
    from trainables.errors import StorageError

    reports = []
    for one in nights(storage.absolute()):
        try:
            reports += [one.report()] if (one.folder / REPORT_FILE).exists() else []
        except StorageError as error:
            click.echo(f"{one.night} is left out: {error}", err=True)
    if as_json:
        click.echo(json.dumps([report.to_content() for report in reports], indent=2))
    elif reports:
        new_console().print(as_list(reports))
    else:
        click.echo(f"{Place.of(storage)} has no night; run one: bitfront nightly DIR")


@nightly.command()
@storage_option
@click.option("--uri", default="", help="Another MLflow server or database than that of the nights' sweeps.")
def sync(storage: Path, uri: str) -> None:
    """Bring the trend page and MLflow in line with all nights; rebuilds what is missing there."""
    from service.marks import NIGHTS
    from service.night_folder import fetch_nights
    from service.nightly_mirror import record_all
    from service.nightly_report import REPORT_FILE
    from service.working_copy import Place

    fetch_nights(storage.absolute())
    reported = {path.parent.name for path in (storage.absolute() / NIGHTS).glob(f"[!.]*/{REPORT_FILE}")}
    if not reported:
        click.echo(f"{Place.of(storage)} has no night; run one: bitfront nightly DIR")
        return
    page, recorded = _write_trend(storage.absolute()), record_all(storage.absolute(), uri=uri)
    for night in sorted(reported.difference(recorded)):
        click.echo(f"{night} is left out: its {REPORT_FILE} is damaged, or none.", err=True)
    click.echo(f"{len(recorded)} nights are recorded; all of them: {page}")
