import dataclasses
from pathlib import Path

import pytest

from service import driver
from service.records import SweepStore, TrialRecord
from service.spec import SweepSpec, load_spec
from service.sweeps import (
    RESERVED,
    clean,
    extend,
    find_sweep,
    list_sweeps,
    open_sweep,
    remove,
    rerun_failed,
    stored_spec,
)
from trainables.errors import ConfigError, StorageError

SPEC = """\
name: {name}
owner: ada
network: {{name: resnet8}}
data: {{name: digits, image_size: 8}}
reference: {{epochs: 1}}
method: {{name: gmpq, eta: {eta}, epochs: 4}}
finetune: {{epochs: 4}}
space: {space}
sampler: {{name: {sampler}}}
trials: {trials}
limits: {limits}
objectives: [top1, bops_g]
constraints: ['bops_g <= 7.5']
resources: {resources}
storage: {{path: {path}}}
"""


def spec_of(folder: Path, **changes: object) -> SweepSpec:
    filled = {
        "name": "s",
        "eta": 1.0,
        "space": "{method.zeta: {loguniform: [0.05, 2.0]}}",
        "sampler": "tpe",
        "trials": 4,
        "limits": "{wall_time: 2h, retries: 1}",
        "resources": "{}",
        "path": folder / "storage",
        **changes,
    }
    path = folder / f"{filled['name']}.yaml"
    path.write_text(SPEC.format(**filled))
    return load_spec(path)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add_trial(store: SweepStore, number: int, state: str = "done") -> TrialRecord:
    trial_id = f"t{number:04d}"
    store.plan_trial(trial_id, number=number, settings={"method.zeta": 0.1})
    begun = store.start_trial(trial_id, now_ms=5)
    store.checkpoint(trial_id).write_bytes(b"weights")
    if state == "running":
        return begun
    return store.finish_trial(dataclasses.replace(begun, state=state, ended_ms=9))  # type: ignore[arg-type]


def test_a_new_sweep_is_a_folder_with_its_yaml_and_its_record(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    store = open_sweep(spec, now_ms=7)
    assert store.folder == tmp_path / "storage" / "s"
    assert (store.folder / "spec.yaml").read_text() == (tmp_path / "s.yaml").read_text()
    sweep = store.sweep()
    assert (sweep.name, sweep.total_trials, sweep.created_ms, sweep.spec_hash) == ("s", 4, 7, spec.hash)
    assert (sweep.objectives, sweep.constraints, sweep.owner) == (("top1", "bops_g"), ("bops_g <= 7.5",), "ada")
    assert sweep.facts == {
        "network": "resnet8", "data": "digits", "method": "gmpq", "sampler": "tpe", "trials": "4", "seed": "0"
    }  # fmt: skip


def test_storage_that_is_relative_lies_where_the_command_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_sweep(spec_of(tmp_path, path="here"), now_ms=7)
    assert store.folder == tmp_path / "here" / "s"


def test_the_same_sweep_is_found_again_and_left_as_it_is(tmp_path: Path) -> None:
    store = open_sweep(spec_of(tmp_path), now_ms=7)
    before = content(tmp_path / "storage")
    # Neither the default of a setting, nor how many trials run at once, nor a limit makes another sweep.
    same = spec_of(tmp_path, resources="{concurrency: 2, workers: 1}", limits="{wall_time: 3h}")
    assert open_sweep(same, now_ms=8).folder == store.folder
    assert content(tmp_path / "storage") == before


def test_another_sweep_of_the_same_name_is_refused_with_what_differs_and_nothing_is_written(tmp_path: Path) -> None:
    open_sweep(spec_of(tmp_path), now_ms=7)
    before = content(tmp_path / "storage")
    other = spec_of(tmp_path, eta=2.0, sampler="random", space="{method.zeta: {loguniform: [0.05, 3.0]}}", trials=5)
    with pytest.raises(StorageError, match="holds another sweep of this name") as refused:
        open_sweep(other, now_ms=8)
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{tmp_path}/storage/s holds another sweep of this name. What differs, there -> here:"
    assert set(lines[1:-1]) == {
        "  method.eta: 1.0 -> 2.0",
        '  sampler.name: "tpe" -> "random"',
        '  space.method.zeta: {"loguniform": [0.05, 2.0]} -> {"loguniform": [0.05, 3.0]}',
        "  trials: 4 -> 5",
    }
    assert lines[-1] == "Give this one another name, or undo the change."
    assert content(tmp_path / "storage") == before


@pytest.mark.parametrize(
    ("trials", "hint"),
    [
        (6, "Give this one another name, or run more of the same with: bitfront extend s --trials 6."),
        (2, "Give this one another name, or undo the change."),
    ],
)
def test_only_more_trials_is_what_extend_is_for(tmp_path: Path, trials: int, hint: str) -> None:
    open_sweep(spec_of(tmp_path), now_ms=7)
    with pytest.raises(StorageError, match=rf"trials: 4 -> {trials}") as refused:
        open_sweep(spec_of(tmp_path, trials=trials), now_ms=8)
    assert str(refused.value).splitlines()[-1] == hint


def test_an_extended_sweep_is_found_again_by_the_yaml_that_it_was_begun_with(tmp_path: Path) -> None:
    store = open_sweep(spec_of(tmp_path), now_ms=7)
    extend(store, trials="+4", wall_time="", device_hours=None)
    assert open_sweep(spec_of(tmp_path), now_ms=8).sweep().total_trials == 8
    with pytest.raises(StorageError, match=r"trials: 4 -> 6\nGive this one another name, or undo the change"):
        open_sweep(spec_of(tmp_path, trials=6), now_ms=8)


@pytest.mark.parametrize("name", [name for name in RESERVED if "/" not in name])
def test_a_name_that_the_storage_uses_itself_is_refused(tmp_path: Path, name: str) -> None:
    spec = spec_of(tmp_path, name=name)
    with pytest.raises(ConfigError, match=f"name is '{name}', which the storage uses itself; choose another"):
        open_sweep(spec, now_ms=7)
    assert not (tmp_path / "storage").exists()


def test_a_folder_of_the_name_that_is_no_sweep_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "storage" / "s").mkdir(parents=True)
    (tmp_path / "storage" / "s" / "thesis.tex").write_text("years of work")
    before = content(tmp_path / "storage")
    with pytest.raises(StorageError, match=r"sweep\.json does not exist: .*/s is not a sweep's storage"):
        open_sweep(spec_of(tmp_path), now_ms=7)
    assert content(tmp_path / "storage") == before


def test_sweeps_are_listed_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    assert list_sweeps(tmp_path / "storage") == []
    for created_ms, name in ((9, "a"), (3, "c"), (5, "b")):
        open_sweep(spec_of(tmp_path, name=name), now_ms=created_ms)
    (tmp_path / "storage" / "references").mkdir()
    (tmp_path / "storage" / ".half-made").mkdir()
    (tmp_path / "storage" / ".half-made" / "sweep.json").write_text("{}")
    assert [store.folder.name for store in list_sweeps(tmp_path / "storage")] == ["c", "b", "a"]


def test_a_sweep_that_is_not_there_is_named_with_the_one_that_may_be_meant(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with pytest.raises(StorageError, match=f"{storage} holds no sweep; run one, or give --storage"):
        find_sweep(storage, "digits")
    open_sweep(spec_of(tmp_path, name="digits"), now_ms=1)
    assert find_sweep(storage, "digits").folder == storage / "digits"
    with pytest.raises(StorageError, match=rf"{storage} holds no sweep 'digit'; did you mean 'digits'\?"):
        find_sweep(storage, "digit")
    for name in ("", ".", "..", "../storage/digits", "digits/"):
        with pytest.raises(StorageError, match=f"{storage} holds no sweep '{name}'"):
            find_sweep(storage, name)


def test_a_stored_sweep_has_the_trials_limits_and_place_that_it_has_now(tmp_path: Path) -> None:
    store = open_sweep(spec_of(tmp_path), now_ms=7)
    written = stored_spec(store)
    assert (written.trials, written.limits.wall_time, written.limits.retries) == (4, "2h", 1)
    extend(store, trials="10", wall_time="3h", device_hours=0.5)
    found = stored_spec(store)
    assert (found.trials, found.limits.wall_time, found.limits.device_hours, found.limits.retries) == (10, "3h", 0.5, 1)
    # Extended again: what is not given stays.
    extend(store, trials="", wall_time="", device_hours=0.0)
    found = stored_spec(store)
    assert (found.trials, found.limits.wall_time, found.limits.device_hours) == (10, "3h", 0.0)
    moved = tmp_path / "elsewhere"
    store.folder.parent.rename(moved)
    assert stored_spec(find_sweep(moved, "s")).storage.path == str(moved)


@pytest.mark.parametrize(("trials", "total"), [("+2", 6), ("+0", 4), ("9", 9), ("4", 4), ("", 4)])
def test_trials_are_given_as_more_or_as_all(tmp_path: Path, trials: str, total: int) -> None:
    store = open_sweep(spec_of(tmp_path), now_ms=7)
    assert extend(store, trials=trials, wall_time="", device_hours=None).total_trials == total
    assert store.sweep().total_trials == total


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trials": "3"}, "--trials is 3, but 4 are planned already; nothing is taken away"),
        ({"trials": "-2"}, r"--trials is '-2'; give how many more \(\+20\), or how many in all \(60\)"),
        ({"trials": "+-1"}, r"--trials is '\+-1'; give"),
        ({"trials": "many"}, "--trials is 'many'; give"),
        ({"trials": "1.5"}, r"--trials is '1\.5'; give"),
        ({"trials": "²"}, "--trials is '²'; give"),
        ({"trials": "+"}, r"--trials is '\+'; give"),
        ({"trials": "++2"}, r"--trials is '\+\+2'; give"),
        ({"wall_time": "soon"}, r"limits\.wall_time is 'soon'; give a time such as"),
        ({"device_hours": -1.0}, r"limits\.device_hours is -1\.0; give a positive number"),
        ({"device_hours": float("nan")}, "--device-hours is nan; give a positive number"),
        ({"device_hours": float("inf")}, "--device-hours is inf; give a positive number"),
        ({"trials": "9" * 5000}, "--trials is '9+'; give how many more"),
        ({"trials": "+2", "wall_time": "0h"}, r"limits\.wall_time is '0h'; give a time such as"),
    ],
)
def test_what_is_no_extension_is_refused_and_nothing_is_written(
    tmp_path: Path, given: dict[str, str], message: str
) -> None:
    store = open_sweep(spec_of(tmp_path), now_ms=7)
    before = store.sweep()
    with pytest.raises(ConfigError, match=message):
        extend(store, **{"trials": "", "wall_time": "", "device_hours": None, **given})  # type: ignore[arg-type]
    assert store.sweep() == before


def test_a_grid_has_no_more_points(tmp_path: Path) -> None:
    space = "{method.zeta: {grid: [0.1, 0.2, 0.4, 0.8]}}"
    store = open_sweep(spec_of(tmp_path, sampler="grid", space=space), now_ms=7)
    with pytest.raises(ConfigError, match=r"--trials is \+1, but the grid has 4 points; give no more"):
        extend(store, trials="+1", wall_time="", device_hours=None)
    assert extend(store, trials="", wall_time="9h", device_hours=None).limits == {"wall_time": "9h"}


def test_a_grid_of_which_only_some_points_were_planned_has_more(tmp_path: Path) -> None:
    space = "{method.zeta: {grid: [0.1, 0.2, 0.4, 0.8]}}"
    store = open_sweep(spec_of(tmp_path, sampler="grid", space=space, trials=2), now_ms=7)
    assert extend(store, trials="4", wall_time="", device_hours=None).total_trials == 4
    with pytest.raises(ConfigError, match=r"--trials is \+1, but the grid has 4 points; give no more"):
        extend(store, trials="+1", wall_time="", device_hours=None)


def test_while_it_runs_a_sweep_is_not_extended_reopened_cleaned_or_removed(tmp_path: Path) -> None:
    store = open_sweep(spec_of(tmp_path), now_ms=7)
    add_trial(store, 0, "failed")
    with driver.hold(store.folder):
        before = content(store.folder)
        for change in (
            lambda: extend(store, trials="+2", wall_time="", device_hours=None),
            lambda: rerun_failed(store),
            lambda: clean(store),
            lambda: remove(store),
        ):
            with pytest.raises(StorageError, match=r"s is run by process \d+ on .* already.*bitfront stop s"):
                change()
        assert content(store.folder) == before
    assert rerun_failed(store) == ["t0000"]


def test_failed_trials_and_only_these_are_run_again(tmp_path: Path) -> None:
    store = open_sweep(spec_of(tmp_path), now_ms=7)
    for number, state in enumerate(("done", "failed", "diverged", "failed", "pruned")):
        add_trial(store, number, state)
    assert rerun_failed(store) == ["t0001", "t0003"]
    again = SweepStore(store.folder)
    assert [t.state for t in again.trials()] == ["done", "pending", "diverged", "pending", "pruned"]
    assert again.checkpoint("t0001").exists()
    assert rerun_failed(again) == []


def test_cleaning_takes_rays_notes_and_checkpoints_of_final_trials_and_says_how_much(tmp_path: Path) -> None:
    store = open_sweep(spec_of(tmp_path), now_ms=7)
    for number, state in enumerate(("failed", "running", "done")):
        add_trial(store, number, state)
    assert [store.checkpoint(t.trial_id).exists() for t in store.trials()] == [True, True, False]
    for name, size in (("tune", 100), ("train", 20)):
        (store.folder / name / "deep").mkdir(parents=True)
        (store.folder / name / "deep" / "notes").write_bytes(b"x" * size)
    kept = {name for name in content(store.folder) if not name.startswith(("tune/", "train/"))}
    assert clean(store) == 100 + 20 + len(b"weights")
    left = set(content(store.folder))
    assert kept - left == {"trials/t0000/checkpoint.pt"}
    assert left - kept == {"driver.lock"}
    assert clean(store) == 0


def test_a_removed_sweep_is_gone_and_the_others_stay(tmp_path: Path) -> None:
    store, other = (open_sweep(spec_of(tmp_path, name=name), now_ms=7) for name in ("s", "t"))
    (tmp_path / "storage" / "references").mkdir()
    add_trial(store, 0)
    before = content(other.folder)
    remove(store)
    assert sorted(path.name for path in (tmp_path / "storage").iterdir()) == ["references", "t"]
    assert content(other.folder) == before
    # The name is free, and nothing of the first comes back.
    assert open_sweep(spec_of(tmp_path, name="s", eta=2.0), now_ms=9).trials() == []
