"""The commands that look after sweeps: where they stand, what they said, how they end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from service.arguments import json_option, storage_option, sweep_argument
from service.working_copy import Place

POLL_S = 1.0
jobs_option = click.option("--address", default="", help="Of a submitted sweep: the cluster's dashboard.")


@click.command("list")
@storage_option
@json_option
def list_(storage: Path, as_json: bool) -> None:
    """List the sweeps of a storage folder."""
    from service.standing import age, standing
    from service.standing import as_json as to_json
    from service.sweeps import list_sweeps

    found = [standing(store) for store in list_sweeps(storage.absolute())]
    if as_json:
        click.echo(json.dumps([to_json(one) for one in found], indent=2))
        return
    if not found:
        click.echo(f"{Place.of(storage)} holds no sweep.")
        return
    width = max(len(one.name) for one in found)
    for one in found:
        ended = sum(
            count for state, count in one.trials_by_state.items() if state not in ("pending", "running", "stale")
        )
        progress = f"{ended}/{one.trials_planned} trials"
        front = f"front {one.front_size}"
        kind = "  promotion" if one.kind == "finetune" else ""
        click.echo(f"{one.name:{width}}  {one.state:8}  {progress:>14}  {front:>9}  {age(one.created_ms)}{kind}")


@click.command()
@sweep_argument
@storage_option
@jobs_option
@json_option
@click.option("--watch", is_flag=True, help="Draw it anew until the sweep is over.")
def status(name: str, storage: Path, address: str, as_json: bool, watch: bool) -> None:
    """Show where a sweep stands: trials by state, front, what was spent, time left."""
    if address:
        from service.orchestrate.jobs import job_status

        found = job_status(name, address)
        click.echo(json.dumps(found, indent=2) if as_json else f"{found['job']}: {found['status']}")
        return
    from service.standing import as_json as to_json
    from service.standing import as_text, standing
    from service.sweeps import find_sweep, refresh

    store = find_sweep(storage.absolute(), name)
    if as_json:
        click.echo(json.dumps(to_json(standing(store)), indent=2))
        return
    while True:
        found_now = standing(store)
        if watch and sys.stdout.isatty():
            click.clear()
        click.echo(as_text(found_now))
        if not watch or found_now.state != "running":
            return
        time.sleep(POLL_S)
        refresh(store.folder.parent, name)


@click.command()
@sweep_argument
@click.argument("trial", default="")
@storage_option
@jobs_option
@click.option("--follow", "-f", is_flag=True, help="Go on until the sweep is over.")
def logs(name: str, trial: str, storage: Path, address: str, follow: bool) -> None:
    """Print what a sweep has told, or of one TRIAL its epochs and its error."""
    if address:
        from service.orchestrate.jobs import job_logs

        for text in job_logs(name, address, follow=follow):
            click.echo(text, nl=False)
        return
    from service import driver
    from service.records import LOG_FILE
    from service.sweeps import find_sweep, refresh

    store = find_sweep(storage.absolute(), name)
    if trial:
        _print_trial(store.folder, trial)
        return
    path, shown = store.folder / LOG_FILE, 0
    while True:
        alive = driver.alive(store.folder)
        text = path.read_text() if path.exists() else ""
        click.echo(text[shown:], nl=False)
        shown = len(text)
        if not follow or not alive:
            return
        time.sleep(POLL_S)
        refresh(store.folder.parent, name)


def _print_trial(folder: Path, trial: str) -> None:
    from service.records import SweepStore

    store = SweepStore(folder)
    record = store.trial(trial)
    for setting, value in record.settings.items():
        click.echo(f"{setting}: {value}")
    for line in store.history(trial):
        metrics = "  ".join(f"{name} {value:.5g}" for name, value in line["metrics"].items())
        click.echo(f"{line['stage']} {line['epoch']}/{line['epochs']}  {metrics}")
    click.echo(f"{trial}: {record.state}{f' ({record.failure})' if record.failure else ''} {record.error}".rstrip())
    error = store.trial_folder(trial) / "error.txt"
    if error.exists():
        click.echo(error.read_text(), nl=False)


@click.command()
@sweep_argument
@storage_option
@jobs_option
@click.option("--wait/--no-wait", default=True, help="Return once it has ended.", show_default=True)
def stop(name: str, storage: Path, address: str, wait: bool) -> None:
    """End a running sweep; `resume` goes on with it."""
    if address:
        from service.orchestrate.jobs import stop_job

        click.echo(f"{stop_job(name, address)} was told to stop.")
        return
    from service import driver
    from service.sweeps import find_sweep

    folder = find_sweep(storage.absolute(), name).folder
    if not driver.alive(folder):
        click.echo(f"{name} is not running.")
        return
    driver.request_stop(folder)
    while wait and driver.alive(folder):
        time.sleep(POLL_S / 5)
    click.echo(f"{name} {'has ended' if wait else 'was told to stop'}; go on with: bitfront resume {name}")


@click.command()
@sweep_argument
@storage_option
@click.option("--uri", default="", help="Another MLflow server or database than the sweep's tracking.uri.")
def sync(name: str, storage: Path, uri: str) -> None:
    """Bring MLflow in line with a sweep's storage; rebuilds what is missing there."""
    from service import driver
    from service.mirror import Tracker
    from service.sweeps import find_sweep, stored_tracking
    from service.tracking import check_tracking, resolve_uri, without_secrets

    store = find_sweep(storage.absolute(), name)
    alive = driver.alive(store.folder)
    if alive and not uri:
        click.echo(f"{name} is running, and its driver keeps the record.")
        return
    tracking = stored_tracking(store)
    place = resolve_uri(uri or tracking.uri, store.folder.parent)
    check_tracking(place)
    Tracker(store, uri=place, experiment=tracking.experiment).sync(alive=alive)
    click.echo(f"{name}: {len(store.trials())} trials are recorded at {without_secrets(place)}")


@click.command()
@sweep_argument
@storage_option
@click.option("--all", "everything", is_flag=True, help="Delete the whole sweep: trials, policies, front.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(name: str, storage: Path, everything: bool, yes: bool) -> None:
    """Remove what a sweep needs no more: Ray's notes and checkpoints. Results stay, unless --all is given."""
    from service import sweeps

    store = sweeps.find_sweep(storage.absolute(), name)
    if not everything:
        click.echo(f"{name}: {sweeps.clean(store) / 1e6:.1f} MB freed")
        return
    if not yes:
        click.confirm(f"Delete {Place.of(store.folder)} with its {len(store.trials())} trials?", abort=True)
    sweeps.remove(store)
    click.echo(f"{name} is deleted.")


@click.command()
@storage_option
@click.option("--uri", default="", help="A database other than the storage's own, as in the sweep's tracking.uri.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def ui(storage: Path, uri: str, host: str, port: int) -> None:
    """Open the MLflow UI on the records in a storage folder, until Ctrl-C."""
    from service.tracking import serve_ui

    click.echo(f"MLflow UI: http://{host}:{port}  (Ctrl-C ends it)")
    sys.exit(serve_ui(storage, uri, host=host, port=port))
