"""Plans in numbers that can be checked by hand; hours from records; the quickstart's own plan."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from service.combinations import combinations, references, typical_config
from service.estimate import estimates_of, recorded_hours
from service.files import write_json
from service.plan import (
    Estimate,
    Plan,
    Span,
    duration,
    make_plan,
    trials_at_once,
)
from service.plan_report import as_json, as_text
from service.preflight import survey_all
from service.records import SweepRecord, SweepStore, TrialRecord
from service.settings import ResourcesConfig, StorageConfig
from service.spec import SweepSpec, load_spec
from trainables import api
from trainables.method_config import GmpqConfig

QUICKSTART = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
START = 2.5 / 3600
"""Hours before each trial in a process of its own."""
SWEEP = """\
name: planned
network: {name: resnet8}
data: {name: digits, image_size: 16}
reference: {epochs: 2}
method: {name: gmpq, eta: 1.0, epochs: 6}
finetune: {epochs: 4}
space:
  method.zeta: {loguniform: [0.01, 1.0]}
trials: 12
"""
SURVEY = api.Survey(
    searched=("a", "b"),
    pinned={"stem": 8},
    full_bops_g=3.0,
    reach={"bops_g": api.Reach(0.1, 0.5), "storage_mb": api.Reach(0.02, 0.04)},
    map_pixels={"native": 16, "input": 256},
    method_pixels=16,
    evaluation_pixels=16,
    training_images=1438,
    validation_images=359,
    search_steps=10,
    steps_per_epoch={"reference": 22, "finetune": 5},
)

STEP = api.StepTimes(
    reference_s=1.0, search_s=1.0, finetune_s=1.0, reference_validation_s=1.0, validation_s=1.0, comparison_s=1.0
)


def spec_of(folder: Path, more: str = "", sweep: str = SWEEP) -> SweepSpec:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s.yaml").write_text(sweep + more)
    return load_spec(folder / "s.yaml")


def plan_of(spec: SweepSpec, *, cpus: float = 8, gpus: float = 0, hours: float = 2.0, reference: float = 0.0) -> Plan:
    estimates = [
        Estimate(combination=one, survey=SURVEY, hours=hours, reference_hours=reference) for one in combinations(spec)
    ]
    return make_plan(spec, estimates, cpus=cpus, gpus=gpus, hours_from="measured on one step here")


def test_hours_and_money_are_those_of_the_trials_and_the_reference(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path, "resources: {workers: 2, concurrency: 5, price_per_device_hour: 1.5, currency: EUR, launch: train}\n"
    )
    plan = plan_of(spec, cpus=20, reference=3.0)
    assert plan.concurrency == 5
    assert plan.device_hours == Span(12 * 2.0 + 3.0, 12 * 2.0 + 3.0)
    assert plan.money == Span(27 * 1.5, 27 * 1.5)
    # Two workers halve every hour; 12 trials, 5 at a time, are three rounds.
    start = 15 / 3600
    assert plan.wall_hours.high == plan.wall_hours.low == pytest.approx(1.5 + start + 3 * (1.0 + start))
    assert (plan.warnings, plan.problems, plan.trials_within_limits) == ((), (), 12)
    trained = plan_of(spec, cpus=20)
    assert trained.device_hours == Span(24.0, 24.0)
    assert trained.wall_hours.high == pytest.approx(3 * (1.0 + start))


def test_the_random_policy_takes_a_finetune_unless_there_is_no_gallery(tmp_path: Path) -> None:
    for more, hours in (("", 0.5), ("gallery: {random: false}\n", 0.0), ("gallery: {images: 0}\n", 0.0)):
        spec = spec_of(tmp_path, more)
        (one,) = combinations(spec)
        estimate = Estimate(combination=one, survey=SURVEY, hours=2.0, reference_hours=0.0, finetune_hours=0.5)
        plan = make_plan(spec, [estimate], cpus=8, gpus=0, hours_from="measured on one step here")
        assert plan.device_hours == Span(24.0 + hours, 24.0 + hours)
        start = 2.5 / 3600
        after = hours + start if hours else 0.0
        assert plan.wall_hours.low == plan.wall_hours.high == pytest.approx(12 * (2.0 + start) + after)
        assert ("random policy  one finetune, about 30 min" in as_text(plan)) == bool(hours)
        assert as_json(plan)["random_policy_hours"] == hours


def test_early_stopping_gives_a_range_from_all_stopped_to_none(tmp_path: Path) -> None:
    """Ten epochs, of which a stopped trial has two; the first trial to come is never stopped."""
    plan = plan_of(spec_of(tmp_path, "early_stopping: {name: successive-halving, min_epochs: 2}\n"), reference=1.0)
    assert plan.device_hours == Span(pytest.approx(1.0 + 2.0 * (1 + 11 * 0.2)), 25.0)
    assert plan.wall_hours.low == pytest.approx(1.0 + START + 12 * START + 2.0 * (1 + 11 * 0.2))
    assert plan.wall_hours.high == pytest.approx(1.0 + START + 12 * (START + 2.0))
    assert "7.4 to 25" in as_text(plan)
    wide = plan_of(
        spec_of(tmp_path, "early_stopping: {name: successive-halving}\nresources: {concurrency: 12}\n"), cpus=12
    )
    # However many run at once, one of them runs to its end.
    assert wide.wall_hours.low == pytest.approx(START + 2.0)


@pytest.mark.parametrize(("trials", "whole"), [(4, 1 + 3 / 10), (12, 1 + 11 / 10), (100, 15)])
def test_a_share_of_the_epochs_is_no_less_than_the_first_trial_and_an_epoch_of_each_other(
    tmp_path: Path, trials: int, whole: float
) -> None:
    sweep = SWEEP.replace("trials: 12", f"trials: {trials}")
    plan = plan_of(spec_of(tmp_path, "early_stopping: {name: hypervolume, share: 0.15}\n", sweep))
    assert plan.device_hours == Span(pytest.approx(2.0 * whole), 2.0 * trials)


def test_a_sweep_of_too_few_trials_to_foretell_anything_is_warned_of(tmp_path: Path) -> None:
    """(0.35 · 10 − 1) / (6 + 0.5 · 3) = one third of the trials come to the finetune."""
    for trials, told in ((12, True), (48, False)):
        sweep = SWEEP.replace("trials: 12", f"trials: {trials}")
        plan = plan_of(spec_of(tmp_path, "early_stopping: {name: hypervolume}\n", sweep))
        found = [text for text in plan.warnings if text.startswith("early_stopping: about 4 of 12 trials come to")]
        assert bool(found) == told
    assert not plan_of(spec_of(tmp_path, "early_stopping: {name: successive-halving}\n")).warnings


@pytest.mark.parametrize(
    ("workers", "cpus_each", "gpus_each", "cpus", "gpus", "trials"),
    [
        (1, 1, 0.0, 2, 0, 2),
        (2, 3, 0.0, 17, 0, 2),
        (2, 3, 0.0, 18, 0, 3),
        (4, 1, 0.0, 3, 8, 0),
        (1, 1, 1.0, 16, 2, 2),
        (2, 1, 1.0, 16, 7, 3),
        (1, 1, 0.5, 16, 2, 4),
        (1, 1, 0.1, 99, 3, 30),
        # A third worker of 0.4 would need parts of two GPUs.
        (1, 1, 0.4, 16, 2, 4),
        (1, 1, 1.0, 16, 0, 0),
    ],
)
def test_as_many_trials_run_at_once_as_have_cpus_and_gpus(
    workers: int, cpus_each: int, gpus_each: float, cpus: float, gpus: float, trials: int
) -> None:
    resources = ResourcesConfig(workers=workers, cpus_per_worker=cpus_each, gpus_per_worker=gpus_each)
    assert trials_at_once(resources, cpus=cpus, gpus=gpus) == trials


def test_what_does_not_fit_is_a_warning_and_nothing_fitting_a_problem(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "resources: {concurrency: 4, cpus_per_worker: 2}\n")
    some = plan_of(spec, cpus=5)
    assert (some.concurrency, some.problems) == (2, ())
    assert some.warnings == (
        "resources.concurrency: 4 trials at once are asked for, 5 CPUs and 0 GPUs have room for 2.",
    )
    none = plan_of(spec, cpus=1)
    assert (none.concurrency, none.trials_within_limits, none.warnings) == (0, 0, ())
    assert none.problems == (
        "resources: a trial asks for 2 CPUs and 0 GPUs, there are 1 CPU and 0 GPUs; ask for fewer.",
    )


LIMITS = [
    # limits, trials within them, warning, problem
    ("device_hours: 24", 12, "", ""),
    (
        "device_hours: 23.9",
        11,
        "device_hours: the limit is 23.9, but 12 trials take about 24 device-hours: about 11",
        "",
    ),
    ("device_hours: 1.9", 0, "", "device_hours: the limit is 1.9, but the first trial ends after about 2 device-hours"),
    ("wall_time: 14h", 12, "", ""),
    ("wall_time: 7h1m", 6, "wall_time: the limit is 7h1m, but 12 trials take about 13 h: about 6 run to their end", ""),
    ("wall_time: 2h", 0, "", "wall_time: the limit is 2h, but the first trial ends after about 3 h; allow more"),
    ("wall_time: 30m", 0, "", "wall_time: the limit is 30m"),
    ("trial_time: 3h", 12, "", ""),
    ("trial_time: 119m", 0, "", "trial_time: the limit is 119m, but the first trial ends after about 2 h"),
    ("wall_time: 14h, device_hours: 9", 4, "device_hours: the limit is 9", ""),
]


@pytest.mark.parametrize(("limits", "trials", "warning", "problem"), LIMITS)
def test_a_limit_allows_so_many_trials(tmp_path: Path, limits: str, trials: int, warning: str, problem: str) -> None:
    """A trial takes 2 hours, two run at once, the reference takes 1; 2.5 seconds go before each."""
    plan = plan_of(spec_of(tmp_path, f"limits: {{{limits}}}\nresources: {{concurrency: 2}}\n"), reference=1.0)
    assert plan.trials_within_limits == trials
    for found, expected in ((plan.warnings, warning), (plan.problems, problem)):
        assert len(found) == bool(expected)
        assert expected in "".join(found)


def test_the_hours_are_estimated_for_the_middle_of_the_space(tmp_path: Path) -> None:
    space = """\
space:
  method.zeta: {loguniform: [0.01, 1.0]}
  method.eta: {uniform: [1.0, 3.0]}
  method.epochs: {int: [4, 12]}
  method.batch_size: {choice: [256, 32, 64]}
  method.start: {choice: [scratch, reference]}
"""
    sweep = SWEEP.replace("eta: 1.0, epochs: 6", "top_k: 9").replace(
        "space:\n  method.zeta: {loguniform: [0.01, 1.0]}\n", space
    )
    spec = spec_of(tmp_path, sweep=sweep)
    method = typical_config(spec).method
    assert isinstance(method, GmpqConfig)
    assert (method.zeta, method.eta, method.epochs, method.batch_size, method.start) == (
        pytest.approx(0.1),
        2.0,
        8,
        64,
        "scratch",
    )
    assert plan_of(spec).space == {
        "method.zeta": "0.01 to 1, log scale",
        "method.eta": "1 to 3",
        "method.epochs": "4 to 12, whole numbers",
        "method.batch_size": "one of 256, 32, 64",
        "method.start": "one of scratch, reference",
    }


def recorded(
    storage: Path,
    name: str,
    spec: SweepSpec,
    hours: list[float],
    *,
    text: str | None = None,
    network: dict[str, str] | None = None,
) -> None:
    """A sweep of finished trials, as its storage has them."""
    facts = {"network": ", ".join(spec.names("network")), "method": spec.method_name}
    sweep = SweepRecord(name=name, spec_hash=spec.hash, facts=facts, total_trials=len(hours), created_ms=1)
    store = SweepStore.create(storage, sweep, spec_text=text if text is not None else spec.text)
    for number, spent in enumerate([*hours, 0.0]):
        record = TrialRecord(
            trial_id=f"t{number:04d}",
            number=number,
            state="done" if spent else "diverged",
            settings=spec.example_settings() | (network or {}),
            started_ms=1,
            ended_ms=2,
            metrics={"device_hours": spent} if spent else {},
        )
        folder = store.trial_folder(record.trial_id)
        folder.mkdir(parents=True)
        write_json(folder / "trial.json", dataclasses.asdict(record))
        write_json(folder / "result.json", dataclasses.asdict(record))


def hours_of(storage: Path, spec: SweepSpec) -> tuple[list[float], str]:
    found, where = recorded_hours(storage, spec)
    return list(found.values()), where


def test_hours_come_from_finished_trials_alike(tmp_path: Path) -> None:
    spec, storage = spec_of(tmp_path / "specs"), tmp_path / "storage"
    assert recorded_hours(storage, spec) == ({}, "")
    recorded(storage, "first", spec, [1.0, 2.0, 9.0])
    assert hours_of(storage, spec) == ([2.0], "from 3 trials of sweep 'first'")
    for number, (old, new) in enumerate(
        [
            ("image_size: 16", "image_size: 32"),
            ("name: resnet8", "name: resnet20"),
            ("method: {name: gmpq, eta: 1.0, epochs: 6}", "method: {name: edmips, epochs: 6}"),
            ("epochs: 6", "epochs: 7"),
            ("finetune: {epochs: 4}", "finetune: {epochs: 5}"),
            ("trials: 12", "trials: 12\nresources: {cpus_per_worker: 2}"),
            ("finetune: {epochs: 4}\nspace:\n", "space:\n  finetune.epochs: {int: [4, 5]}\n"),
        ]
    ):
        other = spec_of(tmp_path / "specs", sweep=SWEEP.replace(old, new))
        assert recorded_hours(storage, other) == ({}, "")
        recorded(storage, f"other-{number}", other, [100.0])
        assert hours_of(storage, other) == ([100.0], f"from 1 trial of sweep 'other-{number}'")
    # Another space of what does not change the hours, more trials, another name.
    alike = SWEEP.replace("[0.01, 1.0]", "[0.1, 2.0]").replace("trials: 12", "trials: 40")
    recorded(storage, "second", spec_of(tmp_path / "specs", sweep=alike), [4.0, 4.0])
    assert hours_of(storage, spec) == ([4.0], "from 5 trials of 2 sweeps, the last 'second'")


SEVERAL = SWEEP.replace("network: {name: resnet8}\n", "").replace(
    "space:\n", "space:\n  network.name: {choice: [resnet8, resnet20]}\n"
)


def test_several_networks_are_planned_by_their_shares_and_all_their_references(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "limits: {trial_time: 2h}\n", sweep=SEVERAL)
    first, second = combinations(spec)
    estimates = [
        Estimate(combination=first, survey=SURVEY, hours=1.0, reference_hours=0.5),
        Estimate(combination=second, survey=SURVEY, hours=3.0, reference_hours=1.5),
    ]
    plan = make_plan(spec, estimates, cpus=8, gpus=0, hours_from="measured on one step here")
    assert (plan.hours_per_trial, plan.reference_hours) == (2.0, 2.0)
    assert plan.device_hours == Span(12 * 2.0 + 2.0, 12 * 2.0 + 2.0)
    assert plan.wall_hours.high == pytest.approx(2.0 + 2 * START + 12 * (2.0 + START))
    # Half of the trials are of the network whose trials take too long.
    assert plan.trials_within_limits == 6
    assert plan.warnings == (
        "limits.trial_time: the limit is 2h, but some trials take about 3 h: about 6 run to their end.",
    )
    text, content = as_text(plan), as_json(plan)
    assert "12 of gmpq: resnet8, resnet20 on digits" in text
    assert re.search("resnet20 on digits +2 searched, .* BOPs .G. 0.1 to 0.5, .*; a trial about 3 h", text)
    assert "2 full-precision networks, about 2 h" in text
    assert [(c["network"], c["hours_per_trial"]) for c in content["combinations"]] == [
        ("resnet8", 1.0),
        ("resnet20", 3.0),
    ]
    assert (content["network"], "reach" in content) == ("resnet8, resnet20", False)


def test_a_reference_that_is_trained_or_shared_takes_no_hours(tmp_path: Path) -> None:
    sweep = SEVERAL.replace("space:\n", "space:\n  network.stem_bits: {grid: [4, 8]}\n")
    sweep = sweep.replace("image_size: 16", "image_size: 8, fraction: 0.2")
    spec = spec_of(tmp_path, f"storage: {{path: {tmp_path}}}\n", sweep=sweep)
    keys = list(references(spec))
    folder = tmp_path / "references" / keys[1]
    folder.mkdir(parents=True)
    record = api.ReferenceRecord(key=keys[1], top1=1.0, device_hours=1.0, data_fingerprint="")
    write_json(folder / "record.json", dataclasses.asdict(record))
    estimates, hours_from = estimates_of(spec, survey_all(spec))
    assert hours_from == "measured on one step here"
    assert [one.combination.label for one in estimates if one.reference_hours] == [
        "resnet8 on digits (network.stem_bits 4)"
    ]
    assert len(estimates) == 4
    assert all(one.hours > 0 for one in estimates)


def test_each_combination_has_the_hours_of_its_own_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(tmp_path / "specs", f"storage: {{path: {tmp_path}}}\n", sweep=SEVERAL.replace("e: 16", "e: 8"))
    first, second = combinations(spec)
    surveyed = [(first, SURVEY), (second, SURVEY)]
    timed: list[str] = []
    monkeypatch.setattr(api, "times", lambda configs, **_: [timed.append(c.network.name) or STEP for c in configs])
    for one in (first, second):
        folder = tmp_path / "references" / one.config.reference_key
        folder.mkdir(parents=True)
        record = api.ReferenceRecord(key=folder.name, top1=1.0, device_hours=1.0, data_fingerprint="")
        write_json(folder / "record.json", dataclasses.asdict(record))
    recorded(tmp_path, "a", spec, [1.0, 3.0], network={"network.name": "resnet8"})
    estimates, hours_from = estimates_of(spec, surveyed)
    assert (estimates[0].hours, timed) == (2.0, ["resnet20"])
    assert estimates[1].hours == api.trial_hours(second.config, SURVEY, STEP, workers=1)
    assert hours_from == "from 2 trials of sweep 'a', others measured on one step here"
    # A sweep of the other network alone has trials like these as well.
    alone = SWEEP.replace("e: 16", "e: 8").replace("resnet8", "resnet20")
    recorded(tmp_path, "b", spec_of(tmp_path / "specs", sweep=alone), [7.0])
    estimates, hours_from = estimates_of(spec, surveyed)
    assert [one.hours for one in estimates] == [2.0, 7.0]
    assert hours_from == "from 3 trials of 2 sweeps, the last 'b'"


def test_what_shares_a_reference_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = SEVERAL.replace("space:\n", "space:\n  network.stem_bits: {int: [2, 16]}\n")
    spec = spec_of(tmp_path, f"storage: {{path: {tmp_path}}}\n", sweep=sweep)
    timed: list[str] = []
    monkeypatch.setattr(api, "times", lambda configs, **_: [timed.append(c.network.name) or STEP for c in configs])
    estimates, _ = estimates_of(spec, [(one, SURVEY) for one in combinations(spec)])
    assert (timed, len(estimates)) == (["resnet8", "resnet20"], 30)
    assert sum(one.reference_hours > 0 for one in estimates) == 2


def test_folders_that_cannot_be_read_do_not_count(tmp_path: Path) -> None:
    spec, storage = spec_of(tmp_path / "specs"), tmp_path / "storage"
    recorded(storage, "good", spec, [3.0])
    recorded(storage, "old-grammar", spec, [5.0], text="name: x\nnetwrok: {}\n")
    recorded(storage, "no-spec", spec, [5.0])
    (storage / "no-spec" / "spec.yaml").unlink()
    recorded(storage, "torn", spec, [5.0])
    (storage / "torn" / "trials" / "t0000" / "result.json").write_text('{"trial_id": "t00')
    (storage / "references").mkdir()
    (storage / "damaged").mkdir()
    (storage / "damaged" / "sweep.json").write_text("[]")
    assert hours_of(storage, spec) == ([3.0], "from 1 trial of sweep 'good'")


def test_the_plan_is_json_and_text(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        "budget: {storage_mb: 0.03}\nconstraints: [bops_g <= 0.4]\nlimits: {device_hours: 10}\n"
        "resources: {price_per_device_hour: 2.0}\n",
    )
    plan = plan_of(spec, reference=1.0)
    content = json.loads(json.dumps(as_json(plan), allow_nan=False))
    assert content["reach"]["bops_g"] == {"low": 0.1, "high": 0.5}
    assert content["device_hours"] == {"low": 25.0, "high": 25.0}
    assert content["limits"] == {"limits.device_hours": "10"}
    assert content["constraints"] == ["bops_g <= 0.4"]
    assert content["budget"] == {"storage_mb": 0.03}
    assert content["trials_within_limits"] == 5
    # All that there is to say is in both.
    text = as_text(plan)
    said = [
        "12 of gmpq: resnet8 on digits",
        "0.01 to 1, log scale",
        "0.1 to 0.5",
        "bops_g <= 0.4",
        "storage_mb: 0.03",
        "about 2 h, measured on one step here",
        "about 50.00 USD",
        "warning: limits.device_hours",
    ]
    assert [words for words in said if words not in text] == []
    assert "trained already" in as_text(plan_of(spec))


def test_times_are_told_in_two_units() -> None:
    told = {
        seconds: duration(seconds / 3600) for seconds in (0.2, 12, 59.7, 90, 3599.7, 3600, 5025, 86400 * 2 + 3600 * 4)
    }
    assert list(told.values()) == ["1 s", "12 s", "1 min", "1 min 30 s", "1 h", "1 h", "1 h 24 min", "2 d 4 h"]


def test_the_quickstart_is_planned_from_measured_steps(tmp_path: Path) -> None:
    spec = load_spec(QUICKSTART)
    spec = dataclasses.replace(spec, storage=StorageConfig(path=str(tmp_path)))
    estimates, hours_from = estimates_of(spec, survey_all(spec))
    plan = make_plan(spec, estimates, cpus=2, gpus=0, hours_from=hours_from)
    assert hours_from == "measured on one step here"
    assert (plan.concurrency, plan.warnings, plan.problems) == (2, (), ())
    assert 0 < plan.reference_hours < plan.device_hours.high < 1
    assert plan.wall_hours.high < plan.device_hours.high


METHODS = """\
name: m
network: {name: resnet8}
data: {name: digits, image_size: 8, fraction: 0.3}
reference: {epochs: 1, batch_size: 64}
method: {zeta: 0.1, epochs: 20, batch_size: 64, images: 64}
finetune: {epochs: 1, batch_size: 64}
budget: {compression: 80.0}
space:
  method.name: {choice: [uniform, edmips, blackbox]}
  method.evaluations: {fixed: 9, when: {method.name: blackbox}}
sampler: {name: grid}
"""


def test_each_method_is_timed_by_itself(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, f"storage: {{path: {tmp_path / 'none'}}}\n", METHODS)
    (uniform, edmips, blackbox), hours_from = estimates_of(spec, survey_all(spec))
    assert hours_from == "measured on one step here"
    # Twenty epochs of six steps, and nine short trials, next to none and a finetune of six steps.
    assert edmips.hours > 4 * uniform.hours
    assert blackbox.hours > 2 * uniform.hours
    assert uniform.reference_hours > 0 == edmips.reference_hours == blackbox.reference_hours


@pytest.mark.parametrize(
    ("old", "new"),
    [("epochs: 20", "epochs: 21"), ("fixed: 9", "fixed: 10"), ("epochs: 20", "epochs: 20, tune_steps: 3")],
)
def test_trials_of_several_methods_are_alike_where_every_search_is_as_long(tmp_path: Path, old: str, new: str) -> None:
    spec, storage = spec_of(tmp_path / "specs", sweep=METHODS), tmp_path / "storage"
    recorded(storage, "first", spec, [1.0])
    assert recorded_hours(storage, spec) != ({}, "")
    assert recorded_hours(storage, spec_of(tmp_path / "specs", sweep=METHODS.replace(old, new))) == ({}, "")
