"""Nights: begun, run, judged, gone on with, accepted and shown. Sweeps' results are recorded, not computed.

What computes them is in `test_nightly_for_real.py`.
"""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from service import driver
from service.cli import main
from service.files import write_json
from service.night_folder import NightFolder, nights
from service.nightly import Launch, begin, check_files, make_move, plan_move, run_night, sweep_files
from service.nightly_baseline import Outcome, read_baseline
from service.nightly_report import NightReport, read_report
from service.records import SweepStore
from service.revision import commits_between, revision
from service.spec import SweepSpec
from service.sweeps import open_sweep
from tests.service.outcomes import HERE, SPEC, outcome
from trainables.errors import ConfigError, SpecError, StorageError

Results = Mapping[str, Outcome]
NIGHT = "20261122t020000z"


def recorded(results: Callable[[SweepSpec], Outcome | str]) -> Launch:
    """A launch after which the storage has these results; a text is what went wrong instead."""

    def launch(spec: SweepSpec, file: Path, log: Path) -> str:
        found = results(spec)
        if isinstance(found, str):
            return found
        store = open_sweep(spec, now_ms=1)
        for number, trial in enumerate(found.trials):
            store.plan_trial(trial.trial, number=number, settings=trial.settings)
            begun = store.start_trial(trial.trial, now_ms=2)
            store.finish_trial(
                replace(
                    begun, state=trial.state, ended_ms=3, metrics=dict(trial.metrics), policy_hash=trial.policy_hash
                )
            )
        write_json(store.folder / "measured.json", {"environment": dict(found.environment), "step_ratio": 2.0})
        return ""

    return launch


@pytest.fixture
def sweeps(tmp_path: Path) -> Path:
    folder = tmp_path / "sweeps"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text(SPEC.replace("two-methods", name))
    (folder / "one.expect.yaml").write_text(
        "claims: [{claim: GMPQ is better, source: Table 5, metric: top1, more: {method.name: gmpq}, "
        "than: {method.name: edmips}}]\n"
    )
    (folder / "_base.yaml").write_text("trials: 3\n")
    (folder / "full").mkdir()
    return folder


def run(folder: Path, sweeps: Path, *, night: str = NIGHT, shift: float = 0.0, accept_new: bool = False) -> NightReport:
    files = sweep_files([sweeps])
    launch = recorded(lambda spec: outcome(night=night, shift=shift))
    return run_night(begin(folder, night, files), files, launch, lambda line: None, accept_new=accept_new)


@pytest.mark.parametrize("name", ["a+b(1)é", "a b", "-a", "a" * 72])
def test_a_file_whose_name_no_record_can_have_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.yaml"
    file.write_text("name: fine")
    with pytest.raises(ConfigError, match="is no name for its records; give the file one of letters"):
        sweep_files([file])


def test_a_folders_sweeps_are_its_own_without_expectations_bases_and_folders(sweeps: Path) -> None:
    assert [path.name for path in sweep_files([sweeps])] == ["one.yaml", "two.yaml"]
    assert [path.name for path in sweep_files([sweeps / "two.yaml", sweeps])] == ["two.yaml", "one.yaml"]
    with pytest.raises(ConfigError, match="holds no sweep"):
        sweep_files([sweeps / "full"])
    with pytest.raises(ConfigError, match="no such file"):
        sweep_files([sweeps / "three.yaml"])
    with pytest.raises(ConfigError, match="holds expectations; name the sweep"):
        sweep_files([sweeps / "one.expect.yaml"])
    (sweeps / "full" / "one.yaml").write_text(SPEC)
    with pytest.raises(ConfigError, match="two sweeps are called one"):
        sweep_files([sweeps, sweeps / "full"])


def test_a_night_runs_every_sweep_under_its_own_name_and_reports(sweeps: Path, tmp_path: Path) -> None:
    report = run(tmp_path / "s", sweeps)
    assert [(s.name, s.sweep, s.verdict) for s in report.sweeps] == [
        ("one", f"one-{NIGHT}", "new"), ("two", f"two-{NIGHT}", "new"),
    ]  # fmt: skip
    assert (report.verdict, report.left, report.environment) == ("new", (), HERE)
    assert report.ended_ms >= report.started_ms > 0
    assert report.sweeps[0].claims[0].holds is True
    assert report.sweeps[0].metrics["step_ratio"] == 2.0
    folder = tmp_path / "s" / "nightly" / NIGHT
    assert read_report(folder / "report.json") == report
    assert json.loads((folder / "report.json").read_text())["format"] == 1
    assert "| one | new |" in (folder / "report.md").read_text()
    assert SweepStore.open(tmp_path / "s" / f"one-{NIGHT}").sweep().total_trials == 12


def test_an_accepted_night_is_reproduced_and_a_change_drifts(sweeps: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "s", sweeps, accept_new=True).sweeps[1].reason.endswith("its result is the baseline now")
    second = run(tmp_path / "s", sweeps, night="n2")
    assert [(s.verdict, s.identical, s.policies.same) for s in second.sweeps] == [("reproduced", True, 12)] * 2
    assert second.sweeps[0].baseline is not None
    assert second.sweeps[0].baseline.night == NIGHT
    third = run(tmp_path / "s", sweeps, night="n3", shift=-3.0)
    assert [s.verdict for s in third.sweeps] == ["drifted", "drifted"]
    assert "top1 -3 from 92.75, 6.0 times the seeds' spread" in third.sweeps[1].reason


def test_what_breaks_one_sweep_is_its_verdict_and_the_night_goes_on(sweeps: Path, tmp_path: Path) -> None:
    files = sweep_files([sweeps])
    launch = recorded(lambda spec: "bitfront: no room\non the disk" if spec.name.startswith("one") else outcome())
    report = run_night(begin(tmp_path / "s", NIGHT, files), files, launch, lambda line: None)
    assert (report.sweeps[0].verdict, report.sweeps[0].reason) == ("broken", "bitfront: no room")
    assert (report.sweeps[0].error, report.sweeps[1].verdict) == ("bitfront: no room\non the disk", "new")
    assert report.verdict == "broken"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "log.txt"), KeyError("ard")])
def test_what_nobody_has_foreseen_breaks_its_sweep_alone(sweeps: Path, tmp_path: Path, error: Exception) -> None:
    def results(spec: SweepSpec) -> Outcome:
        if spec.name.startswith("one"):
            raise error
        return outcome()

    files = sweep_files([sweeps])
    report = run_night(begin(tmp_path / "s", NIGHT, files), files, recorded(results), lambda line: None)
    assert [s.verdict for s in report.sweeps] == ["broken", "new"]
    assert str(error) in report.sweeps[0].reason


def test_a_trial_that_lacks_an_objective_is_drift_and_ends_no_night(sweeps: Path, tmp_path: Path) -> None:
    run(tmp_path / "s", sweeps, accept_new=True)
    files, found = sweep_files([sweeps]), outcome()
    lacking = replace(found.trials[3], metrics={"top1": 90.0, "bops_g": 0.02})
    launch = recorded(lambda spec: replace(found, trials=(*found.trials[:3], lacking, *found.trials[4:])))
    report = run_night(begin(tmp_path / "s", "n2", files), files, launch, lambda line: None)
    assert [s.verdict for s in report.sweeps] == ["drifted", "drifted"]
    assert "ard of" in report.sweeps[1].reason


def test_a_baseline_that_cannot_be_written_is_a_warning_and_the_night_goes_on(sweeps: Path, tmp_path: Path) -> None:
    def results(spec: SweepSpec) -> Outcome:
        (sweeps / "one.yaml").unlink(missing_ok=True)
        return outcome()

    files = sweep_files([sweeps])
    folder = begin(tmp_path / "s", NIGHT, files)
    report = run_night(folder, files, recorded(results), lambda line: None, accept_new=True)
    assert [s.verdict for s in report.sweeps] == ["new", "new"]
    assert "could not become the baseline" in report.sweeps[0].warnings[-1]
    assert (sweeps / "two.baseline.json").exists()


def test_a_mistake_in_one_file_breaks_its_sweep_and_in_the_only_one_is_told_beforehand(
    sweeps: Path, tmp_path: Path
) -> None:
    (sweeps / "one.expect.yaml").write_text("match: never\n")
    check_files(sweep_files([sweeps]))
    report = run(tmp_path / "s", sweeps)
    assert [s.verdict for s in report.sweeps] == ["broken", "new"]
    assert "one.expect.yaml:1:8: match: found 'never'" in report.sweeps[0].reason
    with pytest.raises(SpecError, match="found 'never'"):
        check_files([sweeps / "one.yaml"])


def test_a_damaged_baseline_breaks_its_sweep_and_can_be_accepted_anew(sweeps: Path, tmp_path: Path) -> None:
    run(tmp_path / "s", sweeps, accept_new=True)
    path = sweeps / "one.baseline.json"
    path.write_text(path.read_text()[:500])
    report = run(tmp_path / "s", sweeps, night="n2")
    assert [s.verdict for s in report.sweeps] == ["broken", "reproduced"]
    assert "its baseline cannot be read" in report.sweeps[0].reason
    make_move(plan_move(tmp_path / "s", sweeps / "one.yaml"))
    assert run(tmp_path / "s", sweeps, night="n3").verdict == "reproduced"


def test_a_changed_sweep_asks_to_be_accepted_anew_and_a_default_that_is_written_out_is_no_change(
    sweeps: Path, tmp_path: Path
) -> None:
    run(tmp_path / "s", sweeps, accept_new=True)
    text = (sweeps / "two.yaml").read_text()
    (sweeps / "two.yaml").write_text(text.replace("{name: grid}", "{name: grid, seed: 0}"))
    text = (sweeps / "one.yaml").read_text()
    (sweeps / "one.yaml").write_text(text.replace("zeta: 0.1", "zeta: 0.2"))
    report = run(tmp_path / "s", sweeps, night="n2")
    assert [s.verdict for s in report.sweeps] == ["drifted", "reproduced"]
    assert "the sweep has changed since its baseline (method" in report.sweeps[0].reason
    make_move(plan_move(tmp_path / "s", sweeps / "one.yaml"))
    assert run(tmp_path / "s", sweeps, night="n3").verdict == "reproduced"


def test_a_night_that_was_cut_off_tells_what_was_done_and_goes_on(sweeps: Path, tmp_path: Path) -> None:
    files, begun = sweep_files([sweeps]), []

    def cut_off(spec: SweepSpec) -> Outcome:
        begun.append(spec.name)
        if spec.name == f"two-{NIGHT}" and len(begun) == 2:
            raise KeyboardInterrupt
        return outcome()

    folder = begin(tmp_path / "s", NIGHT, files)
    with pytest.raises(KeyboardInterrupt):
        run_night(folder, files, recorded(cut_off), lambda line: None)
    report = folder.report()
    assert ([s.name for s in report.sweeps], report.left, report.ended_ms) == (["one"], ("two",), 0)
    text = (folder.folder / "report.md").read_text()
    assert "two | not reached" in text
    assert text.startswith(f"# Night {NIGHT}: new so far\n")
    shown = CliRunner().invoke(main, ["nightly", "show", "--storage", str(tmp_path / "s")]).output
    assert "new so far" in " ".join(shown.split())
    # Only named by its night.
    report = run_night(begin(tmp_path / "s", NIGHT, []), [], recorded(cut_off), lambda line: None)
    assert begun == [f"one-{NIGHT}", f"two-{NIGHT}", f"two-{NIGHT}"]
    assert ([s.name for s in report.sweeps], report.left) == (["one", "two"], ())
    assert report.started_ms == folder.read().started_ms
    with pytest.raises(StorageError, match=f"has no night n7; it has {NIGHT}"):
        begin(tmp_path / "s", "n7", [])


def test_a_night_that_another_process_runs_is_refused_and_one_that_ended_takes_more_sweeps(
    sweeps: Path, tmp_path: Path
) -> None:
    first = begin(tmp_path / "s", NIGHT, [sweeps / "one.yaml"])
    with driver.hold(first.folder), pytest.raises(StorageError, match=f"night {NIGHT} is run by process .*another"):
        run(tmp_path / "s", sweeps)
    launch = recorded(lambda spec: outcome())
    run_night(first, [sweeps / "one.yaml"], launch, lambda line: None)
    report = run(tmp_path / "s", sweeps)
    assert [s.name for s in report.sweeps] == ["one", "two"]
    (sweeps / "full" / "one.yaml").write_text(SPEC)
    with pytest.raises(StorageError, match="has a sweep one already"):
        run(tmp_path / "s", sweeps / "full")


def test_a_night_is_named_so_that_it_can_be_a_folder(tmp_path: Path) -> None:
    for name in ("", "../x", "A", "x" * 41):
        with pytest.raises(ConfigError, match="--night is"):
            NightFolder(tmp_path, name)


def test_accept_moves_to_the_last_night_or_to_the_one_that_is_named_and_keeps_the_box(
    sweeps: Path, tmp_path: Path
) -> None:
    run(tmp_path / "s", sweeps, accept_new=True)
    first = read_baseline(sweeps / "two.baseline.json")
    run(tmp_path / "s", sweeps, night="n2", shift=-3.0)
    run(tmp_path / "s", sweeps, night="n3", shift=-1.0)
    move = plan_move(tmp_path / "s", sweeps / "two.yaml", "n2")
    assert move.after.outcome.night == "n2"
    make_move(plan_move(tmp_path / "s", sweeps / "two.yaml"))
    moved = read_baseline(sweeps / "two.baseline.json")
    assert first is not None
    assert moved is not None
    assert (moved.outcome.night, moved.box) == ("n3", first.box)
    assert run(tmp_path / "s", sweeps, night="n4", shift=-1.0).sweeps[1].verdict == "reproduced"


def test_accept_refuses_what_is_broken_or_of_another_sweep(sweeps: Path, tmp_path: Path) -> None:
    files = sweep_files([sweeps])
    failed = replace(outcome(), trials=(replace(outcome().trials[0], state="failed"), *outcome().trials[1:]))
    folder = begin(tmp_path / "s", "bad", files)
    run_night(folder, files, recorded(lambda spec: failed if "one" in spec.name else "it crashed"), lambda line: None)
    with pytest.raises(StorageError, match="one: night bad can be no baseline: t0000 is failed"):
        plan_move(tmp_path / "s", sweeps / "one.yaml")
    with pytest.raises(StorageError, match="two: night bad has no result of it"):
        plan_move(tmp_path / "s", sweeps / "two.yaml")
    run(tmp_path / "s", sweeps, night="good")
    text = (sweeps / "one.yaml").read_text()
    (sweeps / "one.yaml").write_text(text.replace("zeta: 0.1", "zeta: 0.2"))
    with pytest.raises(StorageError, match="one has changed since night good; run it again first"):
        plan_move(tmp_path / "s", sweeps / "one.yaml")
    with pytest.raises(StorageError, match="has no night with three"):
        plan_move(tmp_path / "s", sweeps / "three.yaml")


def test_a_sweep_of_which_a_trial_diverges_can_be_accepted_and_is_reproduced(sweeps: Path, tmp_path: Path) -> None:
    files, found = sweep_files([sweeps / "two.yaml"]), outcome()
    diverged = replace(found, trials=(replace(found.trials[0], state="diverged", metrics={}), *found.trials[1:]))
    launch = recorded(lambda spec: diverged)
    assert run_night(begin(tmp_path / "s", "n1", files), files, launch, lambda line: None).verdict == "broken"
    make_move(plan_move(tmp_path / "s", files[0]))
    assert run_night(begin(tmp_path / "s", "n2", files), files, launch, lambda line: None).verdict == "reproduced"


def test_a_night_that_is_seen_again_keeps_the_time_of_its_end(sweeps: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "s", sweeps)
    assert first.ended_ms == max(sweep.judged_ms for sweep in first.sweeps)
    assert run(tmp_path / "s", sweeps).ended_ms == first.ended_ms


def test_two_files_of_one_name_and_a_night_without_sweeps_are_refused(sweeps: Path, tmp_path: Path) -> None:
    (sweeps / "two.yaml").write_text(SPEC.replace("two-methods", "one"))
    with pytest.raises(ConfigError, match="have the same name"):
        run(tmp_path / "s", sweeps)
    begin(tmp_path / "s", "empty", [sweeps / "one.yaml"])
    with pytest.raises(ConfigError, match="night empty has no sweep yet"):
        begin(tmp_path / "s", "empty", [])


def test_a_damaged_report_hides_no_other_night(sweeps: Path, tmp_path: Path) -> None:
    run(tmp_path / "s", sweeps)
    run(tmp_path / "s", sweeps, night="n2")
    (tmp_path / "s" / "nightly" / "n2" / "report.json").write_text("{")
    shown = CliRunner().invoke(main, ["nightly", "show", "--storage", str(tmp_path / "s")])
    assert shown.exit_code == 0
    assert NIGHT in shown.output
    assert "n2 is left out" in shown.output


def test_uncommitted_changes_stand_among_the_revisions(
    sweeps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFRONT_REVISION", "a" * 40)
    run(tmp_path / "s", sweeps, accept_new=True)
    monkeypatch.setenv("BITFRONT_REVISION", f"{'a' * 40}-dirty")
    found = run(tmp_path / "s", sweeps, night="n2").sweeps[0].revisions
    assert found[0].subject == "uncommitted changes"


def test_the_commands_accept_and_show(sweeps: Path, tmp_path: Path) -> None:
    storage = ["--storage", str(tmp_path / "s")]
    shown = CliRunner().invoke(main, ["nightly", "show", *storage])
    assert (shown.exit_code, "has no night" in shown.output) == (0, True)
    run(tmp_path / "s", sweeps)
    moved = CliRunner().invoke(main, ["nightly", "accept", str(sweeps), *storage])
    assert moved.exit_code == 0
    assert f"one: to night {NIGHT}, 12 trials: {sweeps}/one.baseline.json" in moved.output
    again = CliRunner().invoke(main, ["nightly", "accept", str(sweeps / "one.yaml"), *storage])
    assert "nothing moves: every policy and number is the same" in again.output
    run(tmp_path / "s", sweeps, night="n2", shift=-3.0)
    more = CliRunner().invoke(main, ["nightly", "accept", str(sweeps / "one.yaml"), *storage])
    assert f"one: from night {NIGHT} to night n2" in more.output
    assert "top1 -3 from 92.75" in more.output
    listed = CliRunner().invoke(main, ["nightly", "show", *storage]).output
    assert [line.split()[1] for line in listed.splitlines() if " n2 " in line or NIGHT in line] == ["n2", NIGHT]
    one = CliRunner().invoke(main, ["nightly", "show", "n2", *storage]).output
    assert "drifted" in one
    assert json.loads(CliRunner().invoke(main, ["nightly", "show", "n2", "--json", *storage]).output)["night"] == "n2"
    assert [folder.night for folder in nights(tmp_path / "s")] == [NIGHT, "n2"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Usage: "),
        (["nowhere"], "nowhere: no such file or folder."),
        (["--night", "n1"], "has no night n1"),
        (["--address", "a:1", "--submit", "b", "nowhere"], "Give --address or --submit, not both"),
        (["run"], "Nothing to run"),
        (["show", "n1"], "has no report of a night n1"),
    ],
)
def test_what_is_wrong_with_what_was_asked_ends_with_status_2(arguments: list[str], told: str, tmp_path: Path) -> None:
    storage = ["--storage", str(tmp_path)] if arguments else []
    found = CliRunner().invoke(main, ["nightly", *arguments, *storage])
    assert found.exit_code == 2
    assert told in found.output


def test_commits_between_are_those_of_the_repository_where_it_is(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    hashes = []
    for subject in ("first", "second\twith a tab", "third"):
        git("commit", "-q", "--allow-empty", "-m", subject)
        hashes.append(revision(tmp_path))
    assert commits_between(tmp_path, hashes[0], f"{hashes[2]}-dirty") == (
        (hashes[2], "third"), (hashes[1], "second\twith a tab"),
    )  # fmt: skip
    assert commits_between(tmp_path, hashes[0], hashes[0]) == ()
    assert commits_between(tmp_path, "f" * 40, hashes[0]) is None
    assert commits_between(tmp_path, "--output=x", hashes[0]) is None
