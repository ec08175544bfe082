"""Nights in MLflow, on a real SQLite store."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from service.cli_nightly import nightly
from service.mirror import Tracker
from service.nightly_mirror import EXPERIMENT, note, record, record_all
from service.nightly_report import (
    ChangedPolicy,
    ClaimFinding,
    Finding,
    NightReport,
    Policies,
    SweepReport,
    Verdict,
    save_report,
)
from service.records import SweepRecord, SweepStore
from service.run_facts import TAG_LENGTH
from service.tracking import resolve_uri
from trainables.errors import TrackingError

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_800_000_000_000
REVISION = "0123456789" * 4


def sweep_of(number: int, *, verdict: Verdict = "reproduced", top1: float = 99.0) -> SweepReport:
    drifted = verdict == "drifted"
    return SweepReport(
        name="digits",
        sweep=f"digits-night{number}",
        verdict=verdict,
        reason="top1 | left the baseline" if drifted else "nothing has left the baseline",
        findings=(Finding(what="top1", baseline=99.0, now=top1, allowed=0.5, drifted=drifted),),
        claims=(
            ClaimFinding(claim="a", source="Table 4", holds=True),
            ClaimFinding(claim="b", source="Table 5", holds=False),
            ClaimFinding(claim="c", source="Table 5", holds=False, required=False),
        ),
        policies=Policies(same=3, changed=(ChangedPolicy(trial="t0", baseline="a", now="b"),) if drifted else ()),
        metrics={"top1": top1, "ard": 1.5},
    )


def add_night(storage: Path, number: int, *, verdict: Verdict = "reproduced", top1: float = 99.0) -> Path:
    """The night's folder; the nights are a day apart and take an hour."""
    folder = storage / "nightly" / f"night{number}"
    folder.mkdir(parents=True)
    sweep = sweep_of(number, verdict=verdict, top1=top1)
    report = NightReport(
        night=folder.name,
        folder=str(folder),
        started_ms=START_MS + number * DAY_MS,
        ended_ms=START_MS + number * DAY_MS + HOUR_MS,
        verdict=sweep.verdict,
        revision=REVISION + "-dirty",
        version="1.2",
        environment={"machine": "x86_64", "torch": "2.15.0"},
        sweeps=(sweep,),
    )
    save_report(folder / "report.json", report)
    (folder / "report.md").write_text("# A night\n")
    (storage / "nightly" / "trend.html").write_text("<p>trend</p>")
    return folder


@pytest.fixture
def storage(tmp_path: Path, empty_database: Path) -> Path:
    shutil.copy(empty_database, tmp_path)
    return tmp_path


def runs_in(storage: Path) -> dict[str, Run]:
    client = MlflowClient(resolve_uri("", storage))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def course(storage: Path, run: Run, metric: str) -> list[tuple[int, int, float]]:
    points = MlflowClient(resolve_uri("", storage)).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.timestamp, point.value) for point in points)


def test_a_night_is_a_run_with_its_verdict_its_numbers_and_its_report(storage: Path) -> None:
    record(add_night(storage, 1, verdict="drifted", top1=97.5))
    run = runs_in(storage)["night1"]
    assert (run.info.status, run.info.start_time) == ("FAILED", START_MS + DAY_MS)
    assert run.info.end_time == START_MS + DAY_MS + HOUR_MS
    assert run.data.metrics == {
        "verdict": 2.0,
        "digits/verdict": 2.0,
        "digits/top1": 97.5,
        "digits/ard": 1.5,
        "digits/policies_changed": 1.0,
        "digits/claims_held": 0.5,
        "digits/numbers_drifted": 1.0,
    }
    assert run.data.params == {"night": "night1", "machine": "x86_64", "torch": "2.15.0"}
    tags = run.data.tags
    assert (tags["bitfront.verdict"], tags["bitfront.revision"]) == ("drifted", REVISION + "-dirty")
    assert tags["mlflow.source.git.commit"] == REVISION
    row = "| digits | drifted | 1 of 3 | 3 of 4 the same | top1 \\| left the baseline |"
    assert row in tags["mlflow.note.content"].splitlines()
    files = {one.path for one in MlflowClient(resolve_uri("", storage)).list_artifacts(run.info.run_id)}
    assert files == {"report.json", "report.md", "trend.html"}


def test_a_sweeps_run_has_a_point_for_each_night_so_that_charts_show_the_trend(storage: Path) -> None:
    for number, top1 in ((1, 99.0), (2, 98.0), (3, 97.0)):
        record(add_night(storage, number, top1=top1, verdict="drifted" if top1 < 98 else "reproduced"))
    run = runs_in(storage)["digits"]
    ends = [START_MS + number * DAY_MS + HOUR_MS for number in (1, 2, 3)]
    assert course(storage, run, "top1") == [(1, ends[0], 99.0), (2, ends[1], 98.0), (3, ends[2], 97.0)]
    assert [value for *_, value in course(storage, run, "verdict")] == [0.0, 0.0, 2.0]
    # It stands as the last night left it.
    assert (run.data.tags["bitfront.verdict"], run.info.status, run.info.end_time) == ("drifted", "FAILED", ends[2])


def test_recording_a_night_again_changes_nothing(storage: Path) -> None:
    first, second = add_night(storage, 1), add_night(storage, 2, verdict="drifted", top1=97.0)
    record(first)
    record(second)
    before = runs_in(storage)
    record(first)
    record(second)
    after = runs_in(storage)
    assert {name: run.to_dictionary() for name, run in before.items()} == {
        name: run.to_dictionary() for name, run in after.items()
    }
    assert len(course(storage, after["digits"], "top1")) == 2


def test_a_lost_record_is_rebuilt_from_the_folders_in_the_order_of_the_nights(
    storage: Path, empty_database: Path
) -> None:
    # Their names are not in the order of their times.
    for number in (9, 10, 11):
        record(add_night(storage, number, top1=80.0 + number))
    before = course(storage, runs_in(storage)["digits"], "top1")
    (storage / "mlflow.db").unlink()
    shutil.rmtree(storage / "artifacts")
    shutil.copy(empty_database, storage)
    assert record_all(storage) == ["night9", "night10", "night11"]
    assert course(storage, runs_in(storage)["digits"], "top1") == before
    assert [step for step, *_ in before] == [1, 2, 3]


def test_the_command_makes_page_and_record_of_all_nights_anew(storage: Path) -> None:
    run = CliRunner().invoke(nightly, ["sync", "--storage", str(storage)])
    assert (run.exit_code, run.output) == (0, f"{storage} has no night; run one: bitfront nightly DIR\n")
    add_night(storage, 1)
    add_night(storage, 2)
    run = CliRunner().invoke(nightly, ["sync", "--storage", str(storage)])
    assert (run.exit_code, run.output.split(" are")[0]) == (0, "2 nights")
    assert set(runs_in(storage)) == {"night1", "night2", "digits"}
    assert "digits" in (storage / "nightly" / "trend.html").read_text()


def test_a_night_that_was_recorded_before_keeps_its_number_when_an_earlier_one_comes_late(storage: Path) -> None:
    late, early = add_night(storage, 2, top1=98.0), add_night(storage, 1, top1=99.0)
    record(late)
    record(early)
    record(late)
    run = runs_in(storage)["digits"]
    assert [(step, value) for step, _, value in course(storage, run, "top1")] == [(1, 98.0), (2, 99.0)]


def test_the_note_leads_to_the_run_of_the_sweep_itself(storage: Path) -> None:
    own = SweepRecord(name="digits-night1", spec_hash="h", facts={"network": "r"}, total_trials=1, created_ms=5)
    Tracker(
        SweepStore.create(storage, own, spec_text="name: s\n"), uri=resolve_uri("", storage), experiment="bitfront"
    ).sync(alive=False)
    record(add_night(storage, 1))
    client = MlflowClient(resolve_uri("", storage))
    experiment = client.get_experiment_by_name("bitfront")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    address = f"#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
    assert f"[digits]({address})" in runs_in(storage)["night1"].data.tags["mlflow.note.content"]


def test_nights_go_where_their_sweeps_are_recorded(storage: Path, tmp_path: Path, empty_database: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(empty_database, elsewhere)
    uri = resolve_uri("", elsewhere)
    own = SweepRecord(name="digits-night1", spec_hash="h", facts={}, total_trials=1, created_ms=5)
    SweepStore.create(storage, own, spec_text=f"name: s\ntracking: {{uri: '{uri}'}}\n")
    record(add_night(storage, 1))
    assert set(runs_in(elsewhere)) == {"night1", "digits"}
    with pytest.raises(AssertionError):
        runs_in(storage)


def test_a_night_that_was_cut_off_is_not_recorded_before_it_has_gone_on(storage: Path) -> None:
    folder = add_night(storage, 1)
    sweep = sweep_of(1)
    cut = NightReport(
        night="night1", folder=str(folder), started_ms=START_MS, verdict="new", left=("b",), sweeps=(sweep,)
    )
    save_report(folder / "report.json", cut)
    record(folder)
    with pytest.raises(AssertionError):
        runs_in(storage)
    save_report(folder / "report.json", replace(cut, ended_ms=START_MS + HOUR_MS))
    record(folder)
    assert set(runs_in(storage)) == {"night1", "digits"}


def test_a_tracking_server_that_is_away_is_told_as_such(storage: Path, closed_port: int) -> None:
    with pytest.raises(TrackingError, match="cannot be reached"):
        record(add_night(storage, 1), uri=f"http://127.0.0.1:{closed_port}")


def test_the_note_fits_into_a_tag_however_many_sweeps_a_night_has() -> None:
    long = replace(sweep_of(1), reason="x" * 2000)
    for count in (1, 40, 400):
        sweeps = tuple(replace(long, name=f"sweep-{number}", sweep=f"s{number}") for number in range(count))
        report = NightReport(night="n", folder="f", started_ms=1, ended_ms=2, verdict="drifted", sweeps=sweeps)
        text = note(report, {})
        assert len(text) <= TAG_LENGTH
        assert text.startswith("**drifted**")
        assert ("sweep-0" in text) == (count < 400)
