"""The commands `front` and `compare`, on sweeps as trials leave them, through the command line's own front door."""

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from rich.console import Console

from dashboards import comparison as comparison_shown
from dashboards import front as front_shown
from dashboards.page import links_of, with_links
from service.cli import main
from service.comparison import compare
from service.pareto import front
from service.records import State, SweepRecord, SweepStore, TrialRecord
from service.selection import read_views
from service.view import read_view
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.report import EpochReport

SWEEP = SweepRecord(
    name="first",
    spec_hash="h",
    facts={"network": "resnet8", "data": "digits", "method": "gmpq"},
    total_trials=5,
    created_ms=1,
    references={"r": {"top1": 99.0, "device_hours": 0.25, "data_fingerprint": "f" * 64}},
)
POINTS = [(90.0, 2.0, 3.0), (95.0, 4.0, 2.0), (89.0, 3.0, 3.5), (80.0, 1.0, 9.0)]
"""top1, bops_g, ard: the third is dominated by the first."""
BETTER = [(85.0, 1.0, 2.5), (94.0, 2.5, 2.5), (94.5, 4.0, 2.5)]
Run = Callable[..., Result]


def make_sweep(
    storage: Path, points: Sequence[tuple[float, float, float]], *, states: Sequence[State] = (), **changes: object
) -> SweepStore:
    """A sweep with a done trial for each point, and one of each of the other states."""
    sweep = replace(SWEEP, **changes)  # type: ignore[arg-type]
    store = SweepStore.create(storage, sweep, spec_text=f"name: {sweep.name}\n")
    for number, point in enumerate([*points, *states]):
        name = f"t{number:04}"
        settings = {"method.zeta": 0.1 + number, "method.start": "scratch" if number % 2 else "reference"}
        if number % 2:
            settings["method.weight_lr"] = 0.5
        store.plan_trial(name, number=number, settings=settings)
        state = point if isinstance(point, str) else "done"
        if state == "pending":
            continue
        begun = store.start_trial(name, now_ms=10)
        store.append_epoch(name, EpochReport(stage="search", epoch=1, epochs=1, metrics={}), seconds=1800.0, now_ms=20)
        if state == "running":
            continue
        ended = replace(begun, state=state, ended_ms=30 + number)
        if not isinstance(point, str):
            top1, bops_g, ard = point
            metrics = {
                "top1": top1, "bops_g": bops_g, "ard": ard, "ard_normalised": ard / 10, "compression": 100 / bops_g,
                "storage_mb": bops_g / 2, "device_hours": 0.5, "entropy": 2.0,
            }  # fmt: skip
            policy = BitPolicy(network="resnet8", bits={"conv": LayerBits(2 + number % 3, 4)}, pinned=frozenset())
            record = PolicyRecord(policy=policy, method="gmpq", settings={}, costs={"bops_g": bops_g})
            store.save_policy(name, record)
            ended = replace(ended, metrics=metrics, policy_hash=policy.hash)
        store.finish_trial(ended)
    return store


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "sweeps"
    folder.mkdir()
    make_sweep(folder, POINTS, states=("failed",))
    make_sweep(folder, BETTER, states=("running", "pruned"), name="second", created_ms=2)
    make_sweep(folder, [], name="empty", created_ms=3)
    return folder


@pytest.fixture
def run(storage: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("BITFRONT_STORAGE", str(storage))

    def run(*arguments: str, status: int = 0) -> Result:
        found = CliRunner().invoke(main, [*arguments])
        assert found.exit_code == status, found.output
        assert found.exception is None or isinstance(found.exception, SystemExit)
        return found

    return run


def test_the_front_of_a_sweep_is_a_table_from_which_policies_are_called(run: Run) -> None:
    text = run("front", "first").stdout
    assert "first: front of 3, full precision 99.00 % top-1: 4 done of 5, 1 failed" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("first/")]
    assert [row[0] for row in rows] == ["first/3", "first/0", "first/1"]
    assert [row[1] for row in rows if "◆" in row] == ["◆"]
    knee = next(row[0] for row in rows if "◆" in row)
    assert f"bitfront policy show {knee} --storage" in text
    assert "zeta" in text
    assert json.loads(run("policy", "show", knee, "--json").stdout)["network"] == "resnet8"


def test_settings_of_one_name_have_different_heads(tmp_path: Path) -> None:
    store = make_sweep(tmp_path, POINTS[:1])
    record = store.trial_folder("t0000") / "result.json"
    record.write_text(
        record.read_text().replace('"method.start"', '"network.name"').replace("method.zeta", "data.name")
    )
    views = read_views(["first"], tmp_path)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(front_shown.as_report(views, compare(views), width=200))
    assert {"network.name", "data.name"} <= set(console.export_text().split())


def test_a_policy_file_that_cannot_be_read_is_told_and_holds_nothing_up(run: Run, storage: Path) -> None:
    before = json.loads(run("front", "first", "--json").stdout)
    old, gone = (storage / "first" / "trials" / name / "policy.json" for name in ("t0000", "t0003"))
    old.write_text(old.read_text().replace('"layers"', '"bits"'))
    told = f"! first: the policy of trial 0 cannot be read: {old}: the policy file lacks 'layers'."
    assert "".join(told.split()) in "".join(run("front", "first").stdout.split())
    gone.unlink()
    told = f"! first: 2 policies, of trials 3, 0, cannot be read: {gone}: no such file."
    assert "".join(told.split()) in "".join(run("front", "first", "second").stdout.split())
    found = json.loads(run("front", "first", "--json").stdout)
    assert list(found["sweeps"][0]["unreadable_policies"]) == ["t0003", "t0000"]
    assert [member["policy"] for member in found["front"]] == [member["policy"] for member in before["front"]]
    assert list(read_views(["first"], storage)[0].policies) == ["t0001"]
    run("compare", "first", "second", "--page", str(storage / "p.html"))


def test_the_front_of_several_sweeps_is_that_of_all_their_trials(run: Run) -> None:
    found = json.loads(run("front", "first", "second", "--json").stdout)
    every = [*(("first", p) for p in POINTS), *(("second", p) for p in BETTER)]
    points = [dict(zip(("top1", "bops_g", "ard"), p, strict=True)) for _, p in every]
    expected = [every[place][1] for place in front(points)]
    shown = [tuple(member["metrics"][name] for name in ("top1", "bops_g", "ard")) for member in found["front"]]
    assert sorted(shown) == sorted(expected)
    assert {member["sweep"] for member in found["front"]} == {"first", "second"}
    assert [one["sweep"] for one in found["sweeps"]] == ["first", "second"]
    assert found["sweeps"][1]["unfinished"] == {"pruned": 1, "running": 1}
    assert found["knee"] in [member["policy"] for member in found["front"]]
    text = run("front", "first", "second").stdout
    assert f"Pareto front of {len(expected)} policies together: " in text


def test_the_csv_has_one_header_and_all_metrics_and_settings(run: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(run("front", "first", "second", "--csv").stdout)))
    found = json.loads(run("front", "first", "second", "--json").stdout)
    assert [row["policy"] for row in rows] == [member["policy"] for member in found["front"]]
    for row, member in zip(rows, found["front"], strict=True):
        assert {name: float(row[name]) for name in member["metrics"]} == member["metrics"]
        assert row["method.start"] == member["settings"]["method.start"]
        assert row["method.weight_lr"] == str(member["settings"].get("method.weight_lr", ""))
        assert row["knee"] == str(member["policy"] == found["knee"]).lower()


def test_a_budget_leaves_only_policies_within_it(run: Run) -> None:
    def members(*arguments: str) -> list[str]:
        return [member["policy"] for member in json.loads(run("front", "first", "--json", *arguments).stdout)["front"]]

    assert members("--budget", "bops_g <= 2") == ["first/3", "first/0"]
    assert members("--budget", "2") == ["first/3", "first/0"]
    assert members("--budget", "2", "--budget", "top1>=85") == ["first/0"]
    assert members("--budget", "0.5") == []
    assert "only policies with bops_g <= 2" in run("front", "first", "--budget", "2").stdout
    text = run("front", "first", "--budget", "0.5").stdout
    assert "first: no policy with bops_g <= 0.5, so there is no front (4 done of 5, 4 of them beyond" in text


def test_the_front_is_seen_in_other_objectives(run: Run) -> None:
    found = json.loads(run("front", "first", "--objectives", "ard, entropy", "--json").stdout)
    assert [o["name"] for o in found["objectives"]] == ["ard", "entropy"]
    assert [member["policy"] for member in found["front"]] == ["first/1"]
    assert "attribution entropy (nats)" in run("front", "first", "--objectives", "ard,entropy").stdout


def test_an_empty_sweep_has_an_empty_front_in_every_form(run: Run) -> None:
    assert run("front", "empty").stdout == "empty: no trial is done yet, so there is no front (0 done of 5).\n"
    found = json.loads(run("front", "empty", "--json").stdout)
    assert (found["front"], found["knee"], found["hypervolume"], found["reference_point"]) == ([], None, 0.0, None)
    assert run("front", "empty", "--csv").stdout == "policy,sweep,trial,number,knee,policy_hash,top1,bops_g,ard\n"
    assert "together" in run("compare", "empty", "first").stdout
    nothing = run("compare", "empty", "first", "--budget", "0.5").stdout.splitlines()
    assert [line.split(":")[0] for line in nothing[1:]] == ["empty", "first"]
    assert json.loads(run("compare", "first", "empty", "--json").stdout)["coverage"] == [[1.0, None], [None, None]]


def test_a_sweep_is_named_by_its_folder_too(
    run: Run, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    make_sweep(elsewhere, BETTER)
    folder = str(elsewhere / "first")
    assert json.loads(run("front", folder, "--json").stdout)["sweeps"][0]["hypervolume"] > 0
    monkeypatch.chdir(elsewhere)
    assert json.loads(run("front", "first/", "--json").stdout)["sweeps"][0]["folder"] == folder
    assert json.loads(run("front", "first", "--json").stdout)["sweeps"][0]["folder"] == str(storage / "first")
    found = json.loads(run("compare", "first", folder, "--json").stdout)
    assert [one["sweep"] for one in found["sweeps"]] == [str(storage / "first"), folder]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("front", "frist"), "holds no sweep 'frist'; did you mean 'first'? known: empty, first, second."),
        (("front", "/nowhere/s"), "/nowhere/s is not a sweep's folder: it has no sweep.json"),
        (("front", "first", "first"), "first is named twice; give each sweep once."),
        (("front", "first", "--budget", "bobs_g <= 1"), "--budget: unknown metric 'bobs_g'; did you mean 'bops_g'?"),
        (
            ("front", "first", "--budget", "little"),
            "--budget: found 'little'; expected a metric, <= or >=, and a number",
        ),
        (("front", "first", "--budget", "nan"), "--budget: found 'bops_g <= nan'; expected a metric"),
        (("front", "first", "--objectives", "top1,top2"), "--objectives: unknown metric 'top2'; did you mean 'top1'?"),
        (("front", "first", "--objectives", "top1,top1"), "give one to 3 different metrics"),
        (("front", "first", "--objectives", "storage_mib"), "first/0 has no storage_mib: it was measured for another"),
        (("front", "first", "--json", "--csv"), "Give --json or --csv, not both."),
        (("front",), "Missing argument 'SWEEP...'"),
        (("compare", "first"), "give two sweeps or more, or see: bitfront front first"),
        (("front", "first", "--page", "/tmp"), "/tmp is a folder; give a file in it, such as /tmp/front.html."),
        (("front", "first", "--page", "/nowhere/p.html"), "/nowhere is not a folder that can be written to"),
    ],
)
def test_bad_input_ends_in_one_message_and_status_2(run: Run, arguments: tuple[str, ...], message: str) -> None:
    found = run(*arguments, status=2)
    assert message in found.stderr
    assert found.stdout == ""


def test_a_page_has_the_links_of_the_sweeps_own_page(run: Run, tmp_path: Path, storage: Path) -> None:
    page = tmp_path / "p.html"
    run("front", "first", "--page", str(page))
    assert links_of(page.read_text()) == ("", {})
    runs = {"t0000": "#/experiments/1/runs/abc"}
    (storage / "first" / "front.html").write_text(with_links(page.read_text(), base="http://a:5000", runs=runs))
    run("front", "first", "--page", str(page), "--force")
    assert links_of(page.read_text()) == ("http://a:5000", runs)


def test_a_page_is_written_for_one_sweep_or_several_and_never_over_another_file(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    assert f"Page:  {page}" in run("front", "first", "--page", str(page)).stdout
    assert page.read_text().lower().startswith("<!doctype html>")
    before = page.read_text()
    assert (
        f"{page} exists; give another file, or --force"
        in run("compare", "first", "second", "--page", str(page), status=2).stderr
    )
    assert page.read_text() == before
    json.loads(run("compare", "first", "second", "--page", str(page), "--force", "--json").stdout)
    assert "second" in page.read_text()


def test_compare_says_who_is_ahead_where_in_words_and_for_programs(run: Run) -> None:
    found = json.loads(run("compare", "first", "second", "--json").stdout)
    assert (found["cost"], found["quality"]) == ("bops_g", "top1")
    assert found["ahead"] == [
        {"low": 1.0, "high": 2.0, "sweep": "second", "least_gap": 5.0, "largest_gap": 5.0},
        {"low": 2.0, "high": 2.5, "sweep": "first", "least_gap": 5.0, "largest_gap": 5.0},
        {"low": 2.5, "high": 4.0, "sweep": "second", "least_gap": 4.0, "largest_gap": 4.0},
        {"low": 4.0, "high": None, "sweep": "first", "least_gap": 0.5, "largest_gap": 0.5},
    ]
    text = run("compare", "first", "second").stdout
    assert "second's front dominates" in text
    assert [line.split() for line in text.splitlines() if line.startswith("from 4")] == [["from", "4", "first", "0.5"]]
    assert "1 to 2" in text
    assert "1 to 2" not in run("compare", "first", "second", "--budget", "top1 >= 90").stdout


def test_the_distances_are_called_by_their_names_and_signs_are_kept(run: Run, storage: Path) -> None:
    found = json.loads(run("compare", "first", "second", "--json").stdout)
    text = run("compare", "first", "second").stdout
    rows = [line.split() for line in text.splitlines()]
    assert ["front", "against", "equals", "or", "beats", "IGD+", "ε"] in rows
    epsilon = f"{found['epsilon'][1][0]:+.4f}".replace("-", "−")
    (row,) = (row for row in rows if row[:2] == ["second", "first"])
    assert row[-2:] == [f"{found['igd_plus'][1][0]:.4f}", epsilon]
    assert "at most" not in text
    make_sweep(storage, [(99.0, 0.5, 1.0)], name="better")
    rows = [line.split() for line in run("compare", "better", "first").stdout.splitlines()]
    (row,) = (row for row in rows if row[:2] == ["better", "first"])
    assert row[-2] == "0.0000"
    assert row[-1].startswith("−0.")


def test_the_verdict_is_right_for_folders_with_an_apostrophe(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "ana's sweeps"
    folder.mkdir()
    make_sweep(folder, BETTER)
    text = " ".join(run("compare", str(folder / "first"), "first").stdout.split())
    assert f"{folder / 'first'}'s front dominates" in text
    assert text.count("'s front dominates") == 1


def test_a_sweep_that_mixes_networks_is_warned_of_in_text_and_json(run: Run, storage: Path) -> None:
    store = make_sweep(storage, POINTS[:2], name="mixed")
    record = store.trial_folder("t0001") / "result.json"
    record.write_text(record.read_text().replace('"method.start": "scratch"', '"network.name": "resnet20"'))
    warning = "and the networks differ (mixed: resnet8, resnet20)."
    assert "".join(warning.split()) in "".join(run("front", "mixed").stdout.split())
    assert warning in json.loads(run("front", "mixed", "--json").stdout)["warnings"][0]
    both = json.loads(run("compare", "mixed", "first", "--json").stdout)["warnings"]
    assert "(mixed: resnet8, resnet20; first: resnet8)" in both[0]


def test_what_cannot_be_compared_is_told_on_the_way(run: Run, storage: Path) -> None:
    other = {"r": {"top1": 60.0, "data_fingerprint": "0" * 64}}
    make_sweep(storage, BETTER, name="third", facts={"data": "cifar10", "network": "resnet8"}, references=other)
    warning = (
        "The data differ, so top-1 and ARD do not say which policy is better (first: digits ffffffff; third: cifar10"
    )
    assert warning in run("compare", "first", "third").stdout.replace("\n", " ")
    assert warning in json.loads(run("front", "first", "third", "--json").stdout)["warnings"][0]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_reports_fit_the_terminal(storage: Path, width: int) -> None:
    views = read_views(["first", "second"], storage)
    found = compare(views)
    for report in (front_shown.as_report, comparison_shown.as_report):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(report(views, found, width=width))
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        assert "…" not in console.export_text()


def test_names_are_completed(storage: Path) -> None:
    for command in ("front", "compare"):
        shell = ShellComplete(main, {}, "bitfront", "_BITFRONT_COMPLETE")
        found = shell.get_completions([command, "--storage", str(storage), "first"], "se")
        assert [item.value for item in found] == ["second"]


def test_the_front_of_a_thousand_trials_takes_less_than_two_seconds(tmp_path: Path) -> None:
    store = SweepStore.create(tmp_path, replace(SWEEP, name="many", total_trials=1_000), spec_text="name: many\n")
    policy = BitPolicy(network="resnet8", bits={f"conv{n}": LayerBits(2, 4) for n in range(20)}, pinned=frozenset())
    kept = PolicyRecord(policy=policy, method="gmpq", settings={}, costs={"bops_g": 1.0}).to_json()
    line = json.dumps({"stage": "search", "epoch": 1, "epochs": 9, "seconds": 1.0, "metrics": {}, "time_ms": 5})
    for number in range(1_000):
        along = (number * 0.618) % 1
        behind = 0.0 if number % 3 == 0 else 0.5
        metrics = {"top1": 90 + 9 * along - behind, "bops_g": 1 + along**2 + behind, "ard": 3 - along + behind}
        metrics |= dict.fromkeys(("ard_normalised", "compression", "storage_mb", "device_hours"), 1.0)
        folder = store.trial_folder(f"t{number:04}")
        folder.mkdir()
        record = TrialRecord(
            trial_id=folder.name, number=number, state="done", settings={"method.zeta": along}, ended_ms=number + 9,
            attempts=1, metrics=metrics,
        )  # fmt: skip
        for file in ("trial.json", "result.json"):
            (folder / file).write_text(json.dumps(asdict(record)))
        (folder / "history.jsonl").write_text(f"{line}\n" * 12)
        (folder / "policy.json").write_text(kept)
    assert len(read_view(store).found.members) > 300
    begun = time.process_time()
    found = CliRunner().invoke(main, ["front", "many", "--storage", str(tmp_path)])
    assert time.process_time() - begun < 2.0
    assert found.exit_code == 0
    assert found.output.count("\nmany/") > 300
