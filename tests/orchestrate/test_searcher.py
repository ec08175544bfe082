"""The searcher on a real study and a real store, with trials whose results are a formula of their settings."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from service.hypervolume import hypervolume
from service.orchestrate.searcher import StudySearcher, open_study
from service.records import State, SweepStore, TrialRecord
from service.spec import SweepSpec, load_spec
from service.sweeps import extend, open_sweep, rerun_failed, stored_spec
from trainables.errors import StorageError

SPEC = """\
name: {name}
network: {{name: resnet8}}
data: {{name: digits, image_size: 8}}
reference: {{epochs: 1}}
method: {{name: gmpq, epochs: 4, {method}}}
finetune: {{epochs: 4}}
space: {space}
sampler: {{name: {sampler}, seed: {seed}}}
trials: {trials}
objectives: {objectives}
constraints: {constraints}
warm_start: {warm_start}
resources: {{concurrency: {concurrency}}}
storage: {{path: {path}}}
"""
RANGES = "{method.zeta: {loguniform: [0.05, 2.0]}, method.eta: {uniform: [0.0, 2.0]}, method.top_k: {int: [2, 9]}}"
POINTS = "{method.zeta: {grid: [0.1, 0.2, 0.4, 0.8]}, method.top_k: {int: [2, 5]}}"
SPACES = {"grid": POINTS}
TRIALS = {"nsga2": 16, "gp": 12}
SAMPLERS = ("tpe", "nsga2", "gp", "random", "quasi-random", "grid")


def spec_of(folder: Path, **changes: object) -> SweepSpec:
    sampler = str(changes.get("sampler", "random"))
    filled = {
        "name": "s",
        "space": SPACES.get(sampler, RANGES),
        "method": "eta: 1.0" if sampler == "grid" else "",
        "sampler": "random",
        "seed": 3,
        "trials": 6,
        # A Gaussian process of three objectives takes seconds a trial.
        "objectives": "[top1]" if sampler == "gp" else "[top1, bops_g, ard]",
        "constraints": "[]",
        "warm_start": "{}",
        "concurrency": 1,
        "path": folder / "storage",
        **changes,
    }
    path = folder / f"{filled['name']}.yaml"
    path.write_text(SPEC.format(**filled))
    return load_spec(path)


def store_of(spec: SweepSpec) -> SweepStore:
    return open_sweep(spec, now_ms=1)


def metrics_of(settings: Mapping[str, Any]) -> dict[str, float]:
    """A trial's results: an optimum at zeta 0.3, eta 1.5, and costs that pull away from it."""
    zeta, eta, top_k = (float(settings.get(f"method.{n}", 1.0)) for n in ("zeta", "eta", "top_k"))
    return {
        "top1": 90 - 40 * (zeta - 0.3) ** 2 - 10 * (eta - 1.5) ** 2,
        "bops_g": 1 / zeta + top_k / 9,
        "ard": 1 + abs(eta - 0.5) + top_k / 5,
        "storage_mb": 1 / zeta,
    }


def finish(store: SweepStore, trial_id: str, state: State = "done") -> TrialRecord:
    begun = store.start_trial(trial_id, now_ms=5)
    error = "" if state in ("done", "pruned") else "it went wrong"
    metrics = metrics_of(begun.settings) if state == "done" else {}
    return store.finish_trial(dataclasses.replace(begun, state=state, ended_ms=9, metrics=metrics, error=error))


def hand_out(searcher: StudySearcher) -> Iterator[str]:
    """Names of all trials that the searcher still has, Tune's id being the same here."""
    while (found := searcher.suggest(f"tune{time.monotonic_ns()}")) != Searcher.FINISHED:
        assert isinstance(found, dict)
        yield found["trial_id"]


def run_one(searcher: StudySearcher, store: SweepStore, state: State = "done") -> bool:
    """A trial from its suggestion to the study; whether there was one."""
    found = searcher.suggest("tune0")
    if found == Searcher.FINISHED:
        return False
    assert isinstance(found, dict)
    finish(store, found["trial_id"], state)
    searcher.on_trial_complete("tune0", {})
    return True


def run_all(spec: SweepSpec, store: SweepStore, *, a_driver_each: bool = False) -> None:
    searcher = StudySearcher(spec, store)
    while run_one(searcher, store):
        if a_driver_each:
            store = SweepStore(store.folder)
            searcher = StudySearcher(spec, store)


def settings_of(store: SweepStore) -> list[Mapping[str, Any]]:
    return [record.settings for record in store.trials()]


def study_of(store: SweepStore) -> optuna.Study:
    """As anybody may open it, with Optuna alone."""
    storage = JournalStorage(JournalFileBackend(str(store.folder / "study.journal")))
    return optuna.load_study(study_name=store.folder.name, storage=storage)


def told(store: SweepStore) -> list[tuple[str, str, Any, Any]]:
    """What the study knows of the sweep's trials; a driver that is killed in a suggestion leaves one without a name."""
    trials = study_of(store).trials
    assert all(t.state == TrialState.FAIL for t in trials if "trial" not in t.user_attrs)
    named = [t for t in trials if "trial" in t.user_attrs]
    return [(t.user_attrs["trial"], t.state.name, t.params, t.values) for t in named]


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of the program catches it."""


@contextmanager
def killed_at(owner: type, name: str, *, after: int = 0) -> Iterator[None]:
    """The driver dies in the call of this method that comes after so many others."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def until(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KilledError(name)
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, until)
        with pytest.raises(KilledError, match=name):
            yield


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_suggests_the_same_also_with_a_new_driver_after_each_trial(tmp_path: Path, sampler: str) -> None:
    found = []
    for name in ("one", "two", "three"):
        spec = spec_of(tmp_path, name=name, sampler=sampler, trials=TRIALS.get(sampler, 13))
        store = store_of(spec)
        run_all(spec, store, a_driver_each=name == "three")
        found.append(told(store))
        assert [(t, state) for t, state, _, _ in told(store)] == [(f"t{i:04d}", "COMPLETE") for i in range(spec.trials)]
        assert [t.params for t in study_of(store).trials] == settings_of(store)
        assert len({str(settings) for settings in settings_of(store)}) > spec.trials // 2
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random", "quasi-random"])
def test_another_seed_suggests_something_else(tmp_path: Path, sampler: str) -> None:
    found = []
    for seed in (1, 2):
        spec = spec_of(tmp_path, name=f"s{seed}", sampler=sampler, trials=2, seed=seed)
        store = store_of(spec)
        run_all(spec, store)
        found.append(settings_of(store))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


CUTS = {
    "asked": (optuna.Trial, "_suggest", 0),
    "one value suggested": (optuna.Trial, "_suggest", 1),
    "all but one suggested": (optuna.Trial, "_suggest", 2),
    "all suggested": (optuna.Trial, "set_user_attr", 0),
    "named": (SweepStore, "plan_trial", 0),
    "result written": (optuna.Study, "tell", 0),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random", "quasi-random"])
def test_a_driver_killed_between_two_writes_changes_nothing(tmp_path: Path, sampler: str, cut: str) -> None:
    count = TRIALS.get(sampler, 12)
    undisturbed = spec_of(tmp_path, name="undisturbed", sampler=sampler, trials=count)
    run_all(undisturbed, store_of(undisturbed))
    spec = spec_of(tmp_path, sampler=sampler, trials=count)
    store = store_of(spec)
    searcher = StudySearcher(spec, store)
    # Once while the sampler draws at random, and once where it has something to go by.
    for before in (2, count - 2):
        while len(store.trials()) < before:
            run_one(searcher, store)
        owner, method, after = CUTS[cut]
        with killed_at(owner, method, after=after):
            run_one(searcher, store)
        store = SweepStore(store.folder)
        searcher = StudySearcher(spec, store)
    while run_one(searcher, store):
        pass
    assert told(store) == told(store_of(undisturbed))
    assert settings_of(store) == settings_of(store_of(undisturbed))


def test_trials_that_were_cut_off_come_first_and_in_order_and_none_too_many(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, trials=7, concurrency=3)
    store = store_of(spec)
    searcher = StudySearcher(spec, store)
    first = [str(searcher.suggest(f"tune{i}")["trial_id"]) for i in range(4)]  # type: ignore[call-overload,index]
    assert first == ["t0000", "t0001", "t0002", "t0003"]
    store.start_trial("t0000", now_ms=5)
    finish(store, "t0001")
    searcher.on_trial_complete("tune1", {})
    store.start_trial("t0003", now_ms=6)
    # Tune says so too of a trial that it stops with the sweep.
    searcher.on_trial_complete("tune3", {})
    store = SweepStore(store.folder)
    searcher = StudySearcher(spec, store)
    assert [(t.trial_id, t.state) for t in store.trials()] == [
        ("t0000", "pending"), ("t0001", "done"), ("t0002", "pending"), ("t0003", "pending")
    ]  # fmt: skip
    assert searcher.remaining == 6
    assert list(hand_out(searcher)) == ["t0000", "t0002", "t0003", "t0004", "t0005", "t0006"]
    assert searcher.remaining == 0
    assert searcher.suggest("one more") == Searcher.FINISHED
    assert [t.number for t in store.trials()] == list(range(7))
    assert len(study_of(store).trials) == 7


def test_a_journal_that_ends_in_half_a_line_and_a_lock_that_was_left_are_no_obstacle(tmp_path: Path) -> None:
    undisturbed = spec_of(tmp_path, name="undisturbed", sampler="tpe", trials=12)
    run_all(undisturbed, store_of(undisturbed))
    spec = spec_of(tmp_path, sampler="tpe", trials=12)
    store = store_of(spec)
    searcher = StudySearcher(spec, store)
    for _ in range(10):
        run_one(searcher, store)
    journal = store.folder / "study.journal"
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code": 5, "worker_id": "abc", "trial_')
    # Optuna's own lock is a link to the journal.
    (store.folder / "study.journal.lock").symlink_to(journal)
    began = time.monotonic()
    run_all(spec, SweepStore(store.folder))
    assert time.monotonic() - began < 20
    assert journal.read_bytes().startswith(whole)
    assert told(store) == told(store_of(undisturbed))


def test_what_the_study_is_told_of_every_state(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, trials=5, objectives="[bops_g, top1]", constraints="['bops_g <= 3', 'top1 >= 80']")
    store = store_of(spec)
    searcher = StudySearcher(spec, store)
    states: tuple[State, ...] = ("done", "pruned", "diverged", "failed", "done")
    for state in states:
        run_one(searcher, store, state)
    study, records = study_of(store), store.trials()
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "COMPLETE"]
    assert [d.name for d in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.metric_names == ["bops_g", "top1"]
    for trial, record in zip(study.trials, records, strict=True):
        if record.state == "done":
            assert trial.values == [record.metrics["bops_g"], record.metrics["top1"]]
            expected = {"bops_g <= 3": trial.values[0] - 3, "top1 >= 80": 80 - trial.values[1]}
            assert trial.constraints == pytest.approx(expected)
        else:
            assert trial.values is None
            assert trial.constraints == {}


@pytest.mark.parametrize(
    ("objectives", "directions"), [("[top1]", ["MAXIMIZE"]), ("[ard, storage_mb]", ["MINIMIZE"] * 2)]
)
def test_objectives_other_than_the_usual_three(tmp_path: Path, objectives: str, directions: list[str]) -> None:
    spec = spec_of(tmp_path, sampler="tpe", trials=13, objectives=objectives)
    store = store_of(spec)
    run_all(spec, store)
    study = study_of(store)
    assert [d.name for d in study.directions] == directions
    names = [o.name for o in spec.objectives]
    assert [t.values for t in study.trials] == [[r.metrics[name] for name in names] for r in store.trials()]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_policies_beyond_a_constraint_are_not_among_the_studys_best(tmp_path: Path, sampler: str) -> None:
    spec = spec_of(tmp_path, sampler=sampler, trials=14, objectives="[top1, bops_g]", constraints="['bops_g <= 4']")
    store = store_of(spec)
    run_all(spec, store)
    study = study_of(store)
    beyond = [t.number for t in study.trials if t.values[1] > 4]
    assert beyond
    best = [t.number for t in study.best_trials]
    kept = [t for t in study.trials if t.number not in beyond]
    dominated = [t.number for t in kept if any(o.values[0] > t.values[0] and o.values[1] < t.values[1] for o in kept)]
    assert sorted(best) == sorted(t.number for t in kept if t.number not in dominated)


def test_points_to_start_from_come_first_and_exactly(tmp_path: Path) -> None:
    points = "[{method.zeta: 0.3, method.eta: 1.25, method.top_k: 4}, {method.top_k: 9}, {method.eta: 0}]"
    spec = spec_of(tmp_path, sampler="tpe", trials=5, warm_start=f"{{points: {points}}}")
    store = store_of(spec)
    run_all(spec, store, a_driver_each=True)
    found = settings_of(store)
    assert found[0] == {"method.zeta": 0.3, "method.eta": 1.25, "method.top_k": 4}
    assert found[1]["method.top_k"] == 9
    assert (found[2]["method.eta"], type(found[2]["method.eta"])) == (0.0, float)
    # What a point leaves out is drawn, and not the same for both.
    assert len({settings["method.zeta"] for settings in found}) == 5
    assert all(0.05 <= settings["method.zeta"] <= 2 and 2 <= settings["method.top_k"] <= 9 for settings in found)


def test_a_grid_is_every_point_once_whoever_is_killed(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, sampler="grid", trials=16)
    store = store_of(spec)
    searcher = StudySearcher(spec, store)
    for before, (owner, method, after) in zip((2, 5, 9, 13), list(CUTS.values())[1:5], strict=True):
        while len(store.trials()) < before:
            run_one(searcher, store)
        with killed_at(owner, method, after=min(after, 1)):
            run_one(searcher, store)
        store = SweepStore(store.folder)
        searcher = StudySearcher(spec, store)
    while run_one(searcher, store):
        pass
    expected = [{"method.zeta": zeta, "method.top_k": k} for zeta in (0.1, 0.2, 0.4, 0.8) for k in (2, 3, 4, 5)]
    assert settings_of(store) == expected


def origins(store: SweepStore) -> list[str]:
    return [t.user_attrs["origin"] for t in study_of(store).trials if "origin" in t.user_attrs]


def test_other_sweeps_results_are_learned_from_once_and_only_where_they_fit(tmp_path: Path) -> None:
    other = spec_of(tmp_path, name="other", trials=12)
    others = store_of(other)
    searcher = StudySearcher(other, others)
    for number in range(12):
        run_one(searcher, others, "failed" if number == 3 else "done")
    fitting = [r for r in others.trials() if r.state == "done" and 0.1 <= r.settings["method.zeta"] <= 0.8]
    assert 0 < len(fitting) < 11
    narrow = RANGES.replace("[0.05, 2.0]", "[0.1, 0.8]")
    spec = spec_of(
        tmp_path, sampler="tpe", space=narrow, trials=3, warm_start="{sweeps: [other]}", constraints="['bops_g <= 4']"
    )
    store = store_of(spec)
    run_all(spec, store, a_driver_each=True)
    study = study_of(store)
    assert origins(store) == [f"other/{r.trial_id}" for r in fitting]
    for trial, record in zip(study.trials, fitting, strict=False):
        assert (trial.state, trial.params) == (TrialState.COMPLETE, record.settings)
        assert trial.values == [record.metrics[name] for name in ("top1", "bops_g", "ard")]
        assert trial.constraints == pytest.approx({"bops_g <= 4": record.metrics["bops_g"] - 4})
    # The sweep's own trials are its own, and numbered from 0.
    assert [t.user_attrs["trial"] for t in study.trials if "trial" in t.user_attrs] == ["t0000", "t0001", "t0002"]
    assert len(store.trials()) == 3


def test_results_of_a_space_with_other_settings_or_kinds_of_values_are_left_out(tmp_path: Path) -> None:
    for name, space in {
        "fewer": "{method.zeta: {loguniform: [0.05, 2.0]}}",
        "more": f"{RANGES[:-1]}, method.capacity: {{choice: [12.0, 24.0]}}}}",
        "real": RANGES.replace("{int: [2, 9]}", "{choice: [2, 11]}"),
    }.items():
        other = spec_of(tmp_path, name=name, space=space, trials=4, method="" if "method.eta" in space else "eta: 1.0")
        run_all(other, store_of(other))
    spec = spec_of(tmp_path, trials=1, warm_start="{sweeps: [fewer, more, real]}")
    store = store_of(spec)
    run_all(spec, store)
    real = SweepStore(store.folder.parent / "real").trials()
    assert {r.settings["method.top_k"] for r in real} == {2, 11}
    assert origins(store) == [f"real/{r.trial_id}" for r in real if r.settings["method.top_k"] == 2]


def test_a_sweep_to_learn_from_that_is_not_there_is_named(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, warm_start="{sweeps: [nowhere]}")
    with pytest.raises(StorageError, match=r"warm_start\.sweeps: 'nowhere': .*sweep\.json does not exist"):
        StudySearcher(spec, store_of(spec))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_entry_with_a_condition_is_there_where_the_condition_holds(tmp_path: Path, sampler: str) -> None:
    inner = "{choice: [0.1, 0.5, 0.9], when: {method.capacity: 12.0}}"
    space = f"{{method.capacity: {{choice: [12.0, 24.0]}}, method.zeta: {inner}, method.top_k: {{int: [2, 4]}}}}"
    count = 12 if sampler == "grid" else 16
    fixed = "eta: 1.0, zeta: 0.3"
    spec = spec_of(tmp_path, sampler=sampler, space=space, trials=count, method=fixed)
    store = store_of(spec)
    run_all(spec, store, a_driver_each=True)
    found = settings_of(store)
    for settings in found:
        assert ("method.zeta" in settings) == (settings["method.capacity"] == 12.0)
    assert {settings["method.capacity"] for settings in found} == {12.0, 24.0}
    assert [t.params for t in study_of(store).trials] == found
    undisturbed = spec_of(tmp_path, name="undisturbed", sampler=sampler, space=space, trials=count, method=fixed)
    run_all(undisturbed, store_of(undisturbed))
    assert found == settings_of(store_of(undisturbed))


@pytest.mark.parametrize("killed", [False, True])
def test_a_failed_trial_that_is_run_again_gives_the_study_its_values(tmp_path: Path, killed: bool) -> None:
    spec = spec_of(tmp_path, trials=3)
    store = store_of(spec)
    searcher = StudySearcher(spec, store)
    for state in ("done", "failed", "done"):
        run_one(searcher, store, state)
    assert rerun_failed(store) == ["t0001"]
    store = SweepStore(store.folder)
    searcher = StudySearcher(spec, store)
    assert searcher.remaining == 1
    assert searcher.suggest("tune0")["trial_id"] == "t0001"  # type: ignore[call-overload,index]
    finish(store, "t0001")
    if not killed:
        searcher.on_trial_complete("tune0", {})
    for _ in range(2):
        assert StudySearcher(spec, SweepStore(store.folder)).remaining == 0
    record = store.trials()[1]
    assert [(trial, state) for trial, state, _, _ in told(store)] == [
        ("t0000", "COMPLETE"), ("t0001", "FAIL"), ("t0002", "COMPLETE"), ("t0001", "COMPLETE")
    ]  # fmt: skip
    assert told(store)[3][2:] == (record.settings, [record.metrics[name] for name in ("top1", "bops_g", "ard")])


def test_a_trial_that_failed_before_the_study_heard_of_it_is_told_once_when_it_is_done(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, trials=1)
    store = store_of(spec)
    with killed_at(optuna.Study, "tell"):
        run_one(StudySearcher(spec, store), store, "failed")
    rerun_failed(SweepStore(store.folder))
    run_all(spec, SweepStore(store.folder))
    assert [(trial, state) for trial, state, _, _ in told(store)] == [("t0000", "COMPLETE")]


def test_more_trials_go_on_where_the_sweep_ended(tmp_path: Path) -> None:
    whole = spec_of(tmp_path, name="whole", sampler="tpe", trials=13)
    run_all(whole, store_of(whole))
    spec = spec_of(tmp_path, sampler="tpe", trials=8)
    store = store_of(spec)
    run_all(spec, store)
    assert StudySearcher(spec, store).remaining == 0
    extend(store, trials="+5", wall_time="", device_hours=None)
    store = SweepStore(store.folder)
    longer = stored_spec(store)
    assert StudySearcher(longer, store).remaining == 5
    run_all(longer, store)
    assert told(store) == told(store_of(whole))


def test_tpe_learns_from_what_it_is_told(tmp_path: Path) -> None:
    """The hypervolume of (top1, bops_g) after 40 trials, on average over 3 seeds, and how near one objective comes."""
    volumes: dict[str, list[float]] = {"tpe": [], "random": []}
    gaps: dict[str, list[float]] = {"tpe": [], "random": []}
    for sampler in volumes:
        for seed in (0, 1, 2):
            two = spec_of(
                tmp_path,
                name=f"two-{sampler}-{seed}",
                sampler=sampler,
                seed=seed,
                trials=40,
                objectives="[top1, bops_g]",
            )
            run_all(two, store_of(two))
            points = [r.metrics for r in store_of(two).trials()]
            volumes[sampler].append(hypervolume(points, {"top1": 60.0, "bops_g": 10.0}, two.objectives))
            one = spec_of(
                tmp_path, name=f"one-{sampler}-{seed}", sampler=sampler, seed=seed, trials=40, objectives="[top1]"
            )
            run_all(one, store_of(one))
            gaps[sampler].append(90 - max(r.metrics["top1"] for r in store_of(one).trials()))
    assert sum(volumes["tpe"]) > sum(volumes["random"])
    assert sum(gaps["tpe"]) < sum(gaps["random"]) / 2


def test_the_six_hundredth_suggestion_takes_no_longer_than_the_first(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, trials=600)
    store = store_of(spec)
    searcher = StudySearcher(spec, store)
    seconds = []
    for _ in range(600):
        began = time.perf_counter()
        found = searcher.suggest("tune0")
        seconds.append(time.perf_counter() - began)
        assert isinstance(found, dict)
        finish(store, found["trial_id"])
        began = time.perf_counter()
        searcher.on_trial_complete("tune0", {})
        seconds[-1] += time.perf_counter() - began
    first, last = sum(seconds[:100]) / 100, sum(seconds[-100:]) / 100
    print(f"{1000 * first:.1f} ms each of the first 100, {1000 * last:.1f} ms of the last 100")
    assert last < 4 * first
    assert searcher.remaining == 0


def test_the_study_is_opened_anew_as_it_was_left(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, trials=2)
    store = store_of(spec)
    run_all(spec, store)
    before = told(store)
    assert [t.params for t in open_study(store).trials] == [params for _, _, params, _ in before]
    assert told(store) == before
