"""Nights whose storage is a real S3-compatible store: run on one machine, gone on with, accepted, shown on another."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service import lease
from service.cli import main
from service.measured import Measured
from service.night_folder import NightFolder, fetch_nights, nights
from service.nightly import begin, make_move, plan_move, run_night, sweep_files
from service.nightly_baseline import Outcome
from service.nightly_report import NightReport
from service.orchestrate.measure import _keep
from service.records import SweepStore
from service.replica import Replica
from service.spec import SweepSpec
from service.sweeps import find_sweep, list_sweeps
from tests.service import test_nightly
from tests.service.outcomes import outcome
from tests.service.test_nightly import NIGHT, recorded
from trainables.errors import StorageError

from ..orchestrate import test_jobs
from ..orchestrate.conftest import Bitfront, wait_for
from ..orchestrate.test_nightly_for_real import SWEEP as TINY
from . import test_sweeps_on_objects
from .test_sweeps_on_objects import kill_all

Machine = Callable[[str], Replica]
command, head, sweeps = test_sweeps_on_objects.command, test_jobs.head, test_nightly.sweeps


def run(
    on: Replica, sweeps: Path, results: Callable[[SweepSpec], Outcome | str] = lambda spec: outcome(), **given: Any
) -> NightReport:
    files = sweep_files([sweeps])

    def launch(spec: SweepSpec, file: Path, log: Path) -> str:
        told = recorded(results)(spec, file, log)
        on.push_sweep(spec.name)
        return told

    return run_night(begin(on.root, NIGHT, files), files, launch, lambda line: None, **given)


def invoke(*arguments: str, status: int = 0) -> str:
    found = CliRunner().invoke(main, ["nightly", *arguments])
    assert found.exit_code == status, found.output
    return found.output


def test_a_night_is_shown_and_accepted_on_a_machine_that_has_not_run_it(
    machine: Machine, sweeps: Path, url: str
) -> None:
    report = run(machine("one"), sweeps)
    assert report.folder == f"{url}/nightly/{NIGHT}"
    assert SweepStore.open(machine("one").root / f"one-{NIGHT}").sweep().total_trials == 12
    two = machine("two")
    assert json.loads(invoke("show", NIGHT, "--json", "--storage", url)) == json.loads(json.dumps(report.to_content()))
    assert NIGHT in invoke("show", "--storage", url)
    assert f"to night {NIGHT}, 12 trials" in invoke("accept", str(sweeps), "--storage", url)
    assert [one.night for one in nights(two.root)] == [NIGHT]
    assert len(find_sweep(two.root, f"two-{NIGHT}").trials()) == 12
    assert f"{url} has no report of a night n7; it has {NIGHT}." in invoke("show", "n7", "--storage", url, status=2)


def test_the_page_and_the_records_are_made_anew_on_any_machine(machine: Machine, sweeps: Path, url: str) -> None:
    run(machine("one"), sweeps)
    two = machine("two")
    assert "1 nights are recorded" in invoke("sync", "--storage", url, "--uri", f"sqlite:///{sweeps}/mlflow.db")
    page = (two.root / "nightly" / "trend.html").read_text()
    assert {"<h2>one</h2>", "<h2>two</h2>"} <= set(re.findall("<h2>.*?</h2>", page))
    found = two.store.get("nightly/trend.html")
    assert found is not None
    assert found.content.decode() == page


def test_listing_and_asking_for_sweeps_leaves_nights_alone(machine: Machine, sweeps: Path, url: str) -> None:
    one = machine("one")
    run(one, sweeps)
    before = sorted(path for path in (one.root / "nightly").rglob("*") if path.is_file())
    assert [store.folder.name for store in list_sweeps(one.root)] == [f"one-{NIGHT}", f"two-{NIGHT}"]
    with pytest.raises(StorageError, match="holds no sweep 'nightly'"):
        find_sweep(one.root, "nightly")
    assert sorted(path for path in (one.root / "nightly").rglob("*") if path.is_file()) == before


def test_a_night_that_runs_elsewhere_is_refused_until_its_machine_is_silent(
    machine: Machine, sweeps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, begun = machine("one"), []

    def lost(spec: SweepSpec) -> Outcome:
        begun.append(spec.name)
        if spec.name.startswith("two"):
            two = machine("two")
            with pytest.raises(StorageError, match=f"night {NIGHT} is run by process [0-9]+ on .* already; wait"):
                run(two, sweeps)
            # Silent from here on, in the eyes of others.
            monkeypatch.setattr(lease, "SILENCE_S", -1.0)
            monkeypatch.setattr(lease, "WATCH_S", 0.0)
            report = run(two, sweeps)
            assert [found.verdict for found in report.sweeps] == ["new", "new"]
            machine("one")
        return outcome()

    with pytest.raises(StorageError, match=f"night {NIGHT} is run elsewhere by now|was taken over by"):
        run(one, sweeps, lost)
    # The first sweep was judged already when the other machine went on.
    assert begun == [f"one-{NIGHT}", f"two-{NIGHT}"]
    three = machine("three")
    fetch_nights(three.root)
    assert not NightFolder(three.root, NIGHT).report().left


def test_a_night_that_was_cut_off_goes_on_on_another_machine_from_its_verdicts(machine: Machine, sweeps: Path) -> None:
    begun = []

    def cut_off(spec: SweepSpec) -> Outcome:
        begun.append(spec.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return outcome()

    with pytest.raises(KeyboardInterrupt):
        run(machine("one"), sweeps, cut_off)
    two = machine("two")
    report = run(two, sweeps, cut_off)
    assert begun == [f"one-{NIGHT}", f"two-{NIGHT}", f"two-{NIGHT}"]
    assert [found.verdict for found in report.sweeps] == ["new", "new"]
    fetch_nights(machine("one").root)
    assert NightFolder(machine("one").root, NIGHT).report() == report
    make_move(plan_move(machine("one").root, sweeps / "two.yaml"))
    assert (sweeps / "two.baseline.json").exists()


def test_nights_that_are_removed_in_the_store_go_everywhere_and_what_a_cleaner_takes_comes_back(
    machine: Machine, sweeps: Path
) -> None:
    one = machine("one")
    run(one, sweeps)
    shutil.rmtree(one.root / "nightly" / NIGHT)
    fetch_nights(one.root)
    assert not NightFolder(one.root, NIGHT).report().left
    two = machine("two")
    fetch_nights(two.root)
    two.store.delete(two.store.entries("nightly/"))
    fetch_nights(two.root)
    assert nights(two.root) == []


def test_what_was_measured_of_a_sweep_is_carried(machine: Machine, sweeps: Path) -> None:
    one = machine("one")
    run(one, sweeps)
    store = SweepStore.open(one.root / f"one-{NIGHT}")
    _keep(store, Measured(environment={}, step_ratio=3.0))
    assert (
        '"step_ratio": 3.0' in (find_sweep(machine("two").root, store.folder.name).folder / "measured.json").read_text()
    )


@pytest.mark.long
def test_a_real_night_whose_machine_is_lost_goes_on_on_another_one(
    command: Callable[[str], Bitfront], machine: Machine, url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "sweeps"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text(TINY.replace("name: tiny", f"name: {name}"))
    arguments = ("nightly", str(folder), "--night", "n1", "--storage", url)
    one, watching = command("one"), machine("watching")
    process = one.start(*arguments)
    wait_for(lambda: watching.store.get("nightly/n1/sweeps/a/verdict.json"), seconds=400)
    wait_for(lambda: watching.store.get("b-n1/sweep.json"), seconds=100)
    kill_all(process)
    refused = command("two")(*arguments, status=2)
    assert "night n1 is run by process" in refused
    wait_for(lambda: not lease.alive(watching, "nightly/n1") and not lease.alive(watching, "b-n1"), seconds=200)
    told = command("two")(*arguments, "--accept-new", timeout=900)
    assert f"Report: {url}/nightly/n1/report.md" in told
    assert "a-n1" not in told
    report = json.loads(command("three")("nightly", "show", "n1", "--json", "--storage", url))
    assert [(found["name"], found["verdict"]) for found in report["sweeps"]] == [("a", "new"), ("b", "new")]
    assert all(found["metrics"]["step_ratio"] > 1 for found in report["sweeps"])
    output = command("three")("nightly", str(folder), "--night", "n2", "--storage", url, timeout=900)
    assert "reproduced" in output


@pytest.mark.long
def test_a_nights_jobs_run_on_a_cluster_that_shares_no_folder_with_who_waits(
    command: Callable[[str], Bitfront], machine: Machine, url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cluster = machine("cluster")
    address = request.getfixturevalue("head")
    folder = tmp_path / "sweeps"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY)
    client = command("client")
    arguments = ("nightly", str(folder), "--submit", address, "--storage", url)
    client(*arguments, "--night", "n1", "--accept-new", timeout=900)
    assert (cluster.root / "tiny-n1" / "measured.json").exists()
    assert not (cluster.root / "nightly").exists()
    assert "reproduced" in client(*arguments, "--night", "n2", timeout=900)
    report = json.loads(client("nightly", "show", "n2", "--json", "--storage", url))
    assert report["sweeps"][0]["metrics"]["step_ratio"] > 1
