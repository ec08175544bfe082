"""What a sweep comes to: conditions, grids, warm starts, and what makes two sweeps the same."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from service.combinations import budgets, combinations, references
from service.schedule import ScheduleConfig, next_launches
from service.space import is_active, points
from service.spec import SweepSpec, differences, load_spec
from trainables.errors import ConfigError, SpecError

GOOD = """\
name: good
network: {name: resnet8}
data: {name: digits, image_size: 16}
reference: {epochs: 20}
method:
  name: gmpq
  eta: 1.0
finetune: {epochs: 8}
space:
  method.start: {choice: [reference, scratch]}
  method.zeta: {grid: [0.1, 0.2]}
  method.capacity: {choice: [12, 24], when: {method.start: scratch}}
  method.eta: {fixed: 2, when: {method.capacity: 24}}
trials: 8
"""
Load = Callable[..., SweepSpec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_text(text: str, *overrides: str) -> SweepSpec:
        (tmp_path / "s.yaml").write_text(text)
        return load_spec(tmp_path / "s.yaml", overrides)

    return load_text


def test_a_setting_whose_condition_does_not_hold_is_what_its_section_fixes_or_its_default(load: Load) -> None:
    spec = load(GOOD)
    assert spec.example_settings() == {"method.start": "reference", "method.zeta": 0.1}
    method = spec.trial_config(spec.example_settings()).method
    assert (method.eta, method.capacity) == (1.0, 24.0)
    settings = {"method.start": "scratch", "method.zeta": 0.2, "method.capacity": 24.0, "method.eta": 2.0}
    assert settings in points(spec.space)
    assert spec.trial_config(settings).method.eta == 2.0


def test_every_point_of_a_space_with_conditions_is_a_trial(load: Load) -> None:
    spec = load(GOOD)
    found = [spec.trial_config(point) for point in points(spec.space)]
    assert len(found) == len({repr(config) for config in found}) == 6
    assert all(is_active(spec.space[name], point) for point in points(spec.space) for name in point)


def test_a_grid_has_as_many_trials_as_points_unless_it_says_fewer(load: Load) -> None:
    assert load(GOOD.replace("trials: 8", "sampler: {name: grid}")).trials == 6
    assert load(GOOD.replace("trials: 8", "sampler: {name: grid}\ntrials: 4")).trials == 4
    with pytest.raises(SpecError, match=r"s\.yaml:15:9: trials is 7, but the grid has 6 points"):
        load(GOOD.replace("trials: 8", "sampler: {name: grid}\ntrials: 7"))


def test_points_of_a_warm_start_become_values_of_the_space(load: Load) -> None:
    spec = load(GOOD + "warm_start: {points: [{method.capacity: 12, method.start: scratch}, {}], sweeps: [old-2]}\n")
    assert spec.warm_start.points == ({"method.capacity": 12.0, "method.start": "scratch"}, {})
    assert isinstance(spec.warm_start.points[0]["method.capacity"], float)


def test_the_identity_is_of_what_results_depend_on(load: Load) -> None:
    spec = load(GOOD)
    assert spec.identity == json.loads(json.dumps(spec.identity))
    same = [
        ("name: good", "name: other\nowner: ann\ntags: {a: b}\ndescription: x"),
        ("trials: 8", "trials: 8\nresources: {concurrency: 3, launch: process, price_per_device_hour: 2.0}"),
        ("trials: 8", "trials: 8\nlimits: {wall_time: 2h}\nschedule: {cron: 0 2 * * *}\nstorage: {path: there}"),
        ("trials: 8", "trials: 8\ngallery: {images: 3, random: false}"),
        ("eta: 1.0", "eta: 1\n  epochs: 25"),
        ("choice: [12, 24]", "grid: [12.0, 24]"),
        ("{method.capacity: 24}", "{method.capacity: [24.0]}"),
    ]
    for old, new in same:
        assert load(GOOD.replace(old, new)).hash == spec.hash, new
    other = [
        ("eta: 1.0", "eta: 1.5"), ("trials: 8", "trials: 9"), ("trials: 8", "trials: 8\nseed: 1"),
        ("grid: [0.1, 0.2]", "grid: [0.2, 0.1]"), ("{method.capacity: 24}", "{method.capacity: [12, 24]}"),
        ("trials: 8", "trials: 8\nobjectives: [top1, ard]"),
        ("trials: 8", "trials: 8\nconstraints: [top1 >= 50.0000001]"),
        ("trials: 8", "trials: 8\nconstraints: [top1 >= 50.0000002]"), ("trials: 8", "trials: 8\nsampler: {seed: 1}"),
        ("trials: 8", "trials: 8\nearly_stopping: {name: successive-halving}"),
        ("trials: 8", "trials: 8\nearly_stopping: {name: hypervolume}"),
        ("trials: 8", "trials: 8\nearly_stopping: {name: hypervolume, share: 0.5}"),
        ("trials: 8", "trials: 8\nwarm_start: {points: [{}]}"),
        ("trials: 8", "trials: 8\nresources: {cpus_per_worker: 2}"),
    ]  # fmt: skip
    assert len({spec.hash, *(load(GOOD.replace(old, new)).hash for old, new in other)}) == 1 + len(other)


def test_the_order_of_the_space_counts(load: Load) -> None:
    lines = GOOD.splitlines(keepends=True)
    lines[9:11] = lines[10], lines[9]
    spec, other = load(GOOD), load("".join(lines))
    assert spec.hash != other.hash
    assert differences(spec.identity, other.identity) == [
        'space_order: ["method.start", "method.zeta", "method.capacity", "method.eta"]'
        ' -> ["method.zeta", "method.start", "method.capacity", "method.eta"]'
    ]


def test_differences_are_told_by_their_settings(load: Load) -> None:
    old = json.loads(json.dumps(load(GOOD).identity, sort_keys=True))
    new = load(
        GOOD.replace("eta: 1.0", "eta: 2.0")
        .replace("grid: [0.1, 0.2]", "uniform: [0, 1]")
        .replace("resnet8", "resnet20")
        + "constraints: [bops_g <= 7]\n",
        "space.method.top_k={int: [4, 8]}",
        "network.pinned={a: 4}",
    ).identity
    assert sorted(differences(old, new)) == [
        'constraints: [] -> ["bops_g <= 7.0"]',
        "method.eta: 1.0 -> 2.0",
        "method.top_k: removed, was 500",
        'network.name: "resnet8" -> "resnet20"',
        "network.pinned.a: added 4",
        'space.method.top_k: added {"int": [4, 8]}',
        'space.method.zeta: {"choice": [0.1, 0.2]} -> {"uniform": [0.0, 1.0]}',
    ]
    assert differences(old, old) == []


def test_a_sweep_is_the_same_as_before_precision_could_be_set(load: Load) -> None:
    spec, as_before = load(GOOD), {"amp": "none", "channels_last": False}
    assert not as_before.keys() & spec.identity["method"].keys()
    assert load(GOOD.replace("  eta: 1.0", "  eta: 1.0\n  amp: none\n  channels_last: false")).hash == spec.hash
    other = load(GOOD.replace("  eta: 1.0", "  eta: 1.0\n  amp: bf16\n  channels_last: true"))
    assert differences(spec.identity, other.identity) == [
        'method.amp: added "bf16"',
        "method.channels_last: added true",
    ]


@pytest.mark.parametrize("name", ["method.amp", "finetune.amp"])
def test_half_precision_of_which_only_gpus_have_the_exponent_needs_one(load: Load, name: str) -> None:
    with pytest.raises(SpecError, match=rf"{name} is 'fp16', which needs a GPU, and resources.gpus_per_worker is 0"):
        load(GOOD, f"{name}=fp16")
    assert load(GOOD, f"{name}=fp16", "resources.gpus_per_worker=1")


VARIED = """\
name: varied
network: {tie_residuals: true}
data: {image_size: 16, root: "there"}
reference: {epochs: 2}
method: {name: rgmpq, eta: 1.0}
finetune: {epochs: 1}
space:
  method.zeta: {loguniform: [0.1, 1.0]}
  network.name: {choice: [resnet8, resnet20]}
  data.name: {choice: [digits, cifar10]}
  data.root: {fixed: "", when: {data.name: digits}}
  data.fraction: {grid: [0.5, 1]}
  budget.bops_g: {uniform: [0.5, 2.0], when: {network.name: resnet20}}
  budget.storage_mb: {fixed: 4, when: {data.name: cifar10}}
trials: 8
"""


def test_a_space_varies_network_data_and_budget(load: Load) -> None:
    spec = load(VARIED)
    settings = {
        "method.zeta": 0.3, "network.name": "resnet20", "data.name": "digits", "data.root": "", "data.fraction": 0.5,
        "budget.bops_g": 0.7,
    }  # fmt: skip
    config = spec.trial_config(settings)
    assert (config.network.name, config.network.tie_residuals) == ("resnet20", True)
    assert (config.data.name, config.data.root, config.data.fraction, config.data.image_size) == ("digits", "", 0.5, 16)
    assert config.budget.limits == {"bops_g": 0.7}
    other = spec.trial_config({"method.zeta": 0.3, "network.name": "resnet8", "data.name": "cifar10",
                               "data.fraction": 1.0, "budget.storage_mb": 4.0})  # fmt: skip
    assert (other.data.root, other.budget.limits) == ("there", {"storage_mb": 4.0})
    assert (spec.names("network"), spec.names("data")) == (("resnet8", "resnet20"), ("digits", "cifar10"))


def test_what_the_space_gives_is_in_the_identity_once(load: Load) -> None:
    spec = load(VARIED)
    assert spec.identity == json.loads(json.dumps(spec.identity))
    assert "name" not in spec.identity["network"]
    assert "name" not in spec.identity["data"]
    # Where a condition does not hold, the section's value or the default.
    assert (spec.identity["data"]["root"], spec.identity["budget"]["storage_mb"]) == ("there", 0.0)
    other = [
        ('root: "there"', "root: here"),
        ("[resnet8, resnet20]", "[resnet20, resnet8]"),
        ("grid: [0.5, 1]", "grid: [0.5]"),
        ("[0.5, 2.0]", "[0.5, 2.5]"),
        ("tie_residuals: true", "tie_residuals: false"),
        ("trials: 8", "trials: 8\nbudget: {compression: 60}"),
    ]
    assert len({spec.hash, *(load(VARIED.replace(old, new)).hash for old, new in other)}) == 1 + len(other)


def test_every_network_with_every_data_set_that_can_meet_is_a_combination(load: Load) -> None:
    found = combinations(load(VARIED))
    assert [(c.config.network.name, c.config.data.name, c.config.data.fraction) for c in found] == [
        (network, data, fraction)
        for network in ("resnet8", "resnet20") for data in ("digits", "cifar10") for fraction in (0.5, 1.0)
    ]  # fmt: skip
    assert [c.share for c in found] == [1 / 8] * 8
    assert found[0].label == "resnet8 on digits (data.fraction 0.5)"
    assert [c.config.data.root for c in found[:4]] == ["", "", "there", "there"]
    assert sorted(references(load(VARIED))) == sorted({c.config.reference_key for c in found})
    alone = combinations(load(GOOD))
    assert [(c.label, c.share) for c in alone] == [("resnet8 on digits", 1.0)]


def test_a_reference_is_one_for_all_trials_of_a_network_and_a_data_set(load: Load) -> None:
    spec = load(VARIED.replace("fraction: {grid: [0.5, 1]}", "loader_workers: {grid: [0, 1]}"))
    assert len(combinations(spec)) == 8
    assert len(references(spec)) == 4
    assert [config.reference_key for config in references(spec).values()] == list(references(spec))


def test_a_grid_reaches_the_combinations_of_the_points_that_it_tries(load: Load) -> None:
    text = VARIED.replace("loguniform: [0.1, 1.0]", "grid: [0.1, 1.0]").replace("uniform: [0.5, 2.0]", "grid: [1, 2]")
    grid = text.replace("trials: 8", "sampler: {name: grid}")
    # resnet20 has a budget of two values.
    assert [round(c.share * 24, 9) for c in combinations(load(grid))] == [2, 2, 2, 2, 4, 4, 4, 4]
    few = combinations(load(grid.replace("sampler:", "trials: 3\nsampler:")))
    assert [c.label for c in few] == [
        "resnet8 on digits (data.fraction 0.5)", "resnet8 on digits (data.fraction 1.0)",
        "resnet8 on cifar10 (data.fraction 0.5)",
    ]  # fmt: skip


def test_budgets_are_those_of_both_ends_with_each_combination(load: Load) -> None:
    text = VARIED.replace("  data.fraction: {grid: [0.5, 1]}\n", "")
    found = [(c.network.name, c.data.name, c.budget.limits) for c, _ in budgets(load(text))]
    assert found == [
        ("resnet8", "digits", {}), ("resnet8", "cifar10", {"storage_mb": 4.0}),
        ("resnet20", "digits", {"bops_g": 0.5}), ("resnet20", "digits", {"bops_g": 2.0}),
        ("resnet20", "cifar10", {"bops_g": 0.5, "storage_mb": 4.0}),
        ("resnet20", "cifar10", {"bops_g": 2.0, "storage_mb": 4.0}),
    ]  # fmt: skip


def test_a_setting_stands_where_the_trial_has_it_from(load: Load) -> None:
    spec = load(VARIED)
    assert spec.place(spec.path_of("data.name", {"data.name": "cifar10"})).endswith("s.yaml:10:32")
    assert spec.place(spec.path_of("data.root", {"data.name": "cifar10"})).endswith("s.yaml:3:30")
    assert spec.place(spec.path_of("data.fraction", {"data.fraction": 1.0})).endswith("s.yaml:12:31")
    assert spec.place(spec.path_of("data.root", {"data.root": ""})).endswith("s.yaml:11:14")
    assert spec.place(spec.path_of("budget.bops_g", {"budget.bops_g": 0.5})).endswith("s.yaml:13:18")


def test_launches_follow_the_clock_of_their_time_zone() -> None:
    schedule = ScheduleConfig(cron="30 2 * * mon-fri", time_zone="Europe/Berlin")
    found = next_launches(schedule, datetime(2026, 10, 22, 12, tzinfo=UTC), 3)
    berlin = ZoneInfo("Europe/Berlin")
    assert found == [datetime(2026, 10, day, 2, 30, tzinfo=berlin) for day in (23, 26, 27)]
    # Summer time has ended in between.
    assert [launch.astimezone(UTC).hour for launch in found] == [0, 1, 1]
    assert next_launches(ScheduleConfig(), datetime(2026, 1, 1, tzinfo=UTC), 3) == []


@pytest.mark.parametrize(
    "cron", ["0 0 30 2 *", "* * * *", "0 0 * * * *", "@daily", "0 25 * * *", "1#2/3 * * * *", "é * * * *"]
)
def test_a_schedule_that_is_none_is_refused(cron: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.cron is "):
        ScheduleConfig(cron=cron)


@pytest.mark.parametrize("zone", ["", "Mars", "Europe", "../UTC", "/etc/passwd", "a" * 5000, "\0"])
def test_a_time_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.time_zone is "):
        ScheduleConfig(time_zone=zone)
