"""What cannot work is told before anything is computed, at its place in the file."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.cli import main
from service.combinations import Surveyed, combinations, references
from service.preflight import check, check_survey, survey_all
from service.records import SweepRecord, SweepStore
from service.spec import SweepSpec, load_spec
from trainables import api
from trainables import survey as survey_module
from trainables.errors import ConfigError, SpecError

ROOT = Path(__file__).parents[2]
GOOD = """\
name: good
network: {name: resnet8}
data: {name: digits, image_size: 16}
reference: {epochs: 2}
method:
  name: gmpq
  weight_bits: [2, 4]
finetune: {epochs: 2}
evaluation: {batch_size: 128}
space:
  method.zeta: {loguniform: [0.1, 1.0]}
  method.eta: {uniform: [0.0, 2.0]}
constraints: [bops_g <= 0.03, storage_mb <= 0.03]
resources: {workers: 1, cpus_per_worker: 1}
trials: 4
"""


def spec_of(folder: Path, *changes: tuple[str, str]) -> SweepSpec:
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "s.yaml").write_text(text)
    return load_spec(folder / "s.yaml")


_surveys: dict[str, api.Survey] = {}


def survey_of(spec: SweepSpec) -> Surveyed:
    """Surveys read the data and build the network; most sweeps here differ in what is not surveyed."""
    found = []
    for one in combinations(spec):
        if repr(one.config) not in _surveys:
            _surveys[repr(one.config)] = api.survey(one.config)
        found.append((one, _surveys[repr(one.config)]))
    return found


def problems(spec: SweepSpec) -> list[str]:
    with pytest.raises(SpecError) as caught:
        check_survey(spec, survey_of(spec))
    return [line.split("s.yaml:", 1)[1] for line in str(caught.value).splitlines()]


CASES = [
    # what (once in the good spec), replaced by, line:column, message
    (
        "bops_g <= 0.03",
        "bops_g <= 0.001",
        "13:15",
        "'bops_g <= 0.001': with the widths offered bops_g is at least 0.01",
    ),
    ("bops_g <= 0.03", "bops_g >= 1", "13:15", "no policy keeps 'bops_g >= 1'"),
    ("bops_g <= 0.03", "bops_paper_g <= 1e-3", "13:15", "bops_paper_g is at least 0.0125"),
    ("bops_g <= 0.03", "compression >= 5000", "13:15", "compression is at most 166.9"),
    ("bops_g <= 0.03", "compression <= 2", "13:15", "compression is at least"),
    ("storage_mb <= 0.03", "storage_mb <= 0.02", "13:31", "storage_mb is at least 0.0201"),
    ("storage_mb <= 0.03", "storage_mib >= 0.05", "13:31", "storage_mib is at most 0.037"),
    ("storage_mb <= 0.03", "bops_g >= 0.04", "13:31", "no policy keeps both 'bops_g <= 0.03' and 'bops_g >= 0.04'"),
    ("name: gmpq", "name: gmpq\n  top_k: 17", "7:10", "method.top_k: 17 pixels are to be ranked, but the attribution"),
    (
        "name: gmpq",
        "name: gmpq\n  top_k: 500",
        "7:10",
        "method.top_k: 500 pixels are to be ranked, but the attribution",
    ),
    ("uniform: [0.0, 2.0]}", "uniform: [0.0, 2.0]}\n  method.top_k: {int: [6, 40]}", "13:17", "maps have 16; give at"),
    ("uniform: [0.0, 2.0]}", "uniform: [0.0, 2.0]}\n  method.top_k: {choice: [90, 6]}", "13:17", "90 pixels are to be"),
    ("batch_size: 128", "top_k: 20", "9:21", "evaluation.top_k: 20 pixels are to be ranked, but the attribution maps"),
    ("batch_size: 128", "top_k: 500", "9:21", "evaluation.top_k: 500 pixels are to be ranked"),
    ("batch_size: 128", "top_k: 257, resolution: input", "9:21", "maps have 256; give at most that"),
]


@pytest.mark.parametrize(("old", "new", "place", "message"), CASES)
def test_what_no_policy_and_no_map_can_do_is_found_at_its_place(
    tmp_path: Path, old: str, new: str, place: str, message: str
) -> None:
    found = problems(spec_of(tmp_path, (old, new)))
    assert len(found) == 1
    assert found[0].startswith(f"{place}: ")
    assert message in found[0]


BUDGETS = [
    # limits, line:column, message
    (
        "bops_g: 0.001",
        "16:18",
        "bops_g is 0.001, but with the smallest widths everywhere bops_g is still 0.01918: give at",
    ),
    ("bops_paper_g: 0.012", "16:24", "bops_paper_g is 0.012, but with the smallest widths everywhere bops_paper_g is "),
    (
        "compression: 200",
        "16:23",
        "compression is 200, but with the smallest widths everywhere compression is still 166.9",
    ),
    ("bops_g: 9, storage_mb: 0.01", "16:33", "storage_mb is 0.01, but "),
    (
        "mean_weight_bits: 2",
        "16:28",
        "mean_weight_bits is 2, but with the smallest widths everywhere mean_weight_bits is ",
    ),
]


@pytest.mark.parametrize(("budget", "place", "message"), BUDGETS)
def test_a_budget_that_no_policy_keeps_is_found_at_its_place(
    tmp_path: Path, budget: str, place: str, message: str
) -> None:
    found = problems(spec_of(tmp_path, ("trials: 4\n", f"trials: 4\nbudget: {{{budget}}}\n")))
    assert len(found) == 1
    assert found[0].startswith(f"{place}: budget.{message}")


SEVERAL = """\
name: several
network: {stem_bits: 8}
data: {name: digits}
reference: {epochs: 2}
method: {name: rgmpq, zeta: 0.1, eta: 1.0}
finetune: {epochs: 2}
space:
  network.name: {choice: [resnet8, resnet20]}
  data.image_size: {grid: [8, 16]}
  budget.bops_g: {choice: [0.04, 2.0], when: {network.name: resnet20}}
trials: 4
"""


def several(folder: Path, *changes: tuple[str, str]) -> SweepSpec:
    text = SEVERAL
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "s.yaml").write_text(text)
    return load_spec(folder / "s.yaml")


def test_each_combination_is_looked_at_and_named(tmp_path: Path) -> None:
    spec = several(tmp_path, ("trials: 4", "trials: 4\nconstraints: [storage_mb <= 0.04]"))
    found = problems(spec)
    # resnet20 has three times the weights; at 16 pixels it costs four times as much as at 8.
    assert [re.split(": with|, but", line)[0] for line in found] == [
        "10:28: resnet20 on digits (data.image_size 16): budget.bops_g is 0.04",
        "12:15: constraints: no policy of resnet20 on digits (data.image_size 16) keeps 'storage_mb <= 0.04'",
        "12:15: constraints: no policy of resnet20 on digits (data.image_size 8) keeps 'storage_mb <= 0.04'",
    ]


def test_a_map_of_some_combination_may_have_the_pixels_that_are_ranked(tmp_path: Path) -> None:
    spec = several(tmp_path, ("[0.04, 2.0]", "[2.0]"), ("zeta: 0.1", "zeta: 0.1, top_k: 256"))
    check_survey(spec, survey_of(spec))
    found = problems(several(tmp_path, ("[0.04, 2.0]", "[2.0]"), ("zeta: 0.1", "zeta: 0.1, top_k: 257")))
    assert len(found) == 1
    assert found[0].startswith("5:41: method.top_k: 257 pixels are to be ranked, but the attribution maps have 256")


def test_combinations_of_one_data_set_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = survey_module.load_data
    monkeypatch.setattr(survey_module, "load_data", lambda config: read.append(config) or original(config))
    spec = several(tmp_path)
    surveyed = survey_all(spec)
    assert [config.image_size for config in read] == [8, 16]
    assert [(one.config.network.name, one.config.data.image_size) for one, _ in surveyed] == [
        ("resnet8", 8), ("resnet8", 16), ("resnet20", 8), ("resnet20", 16)
    ]  # fmt: skip
    assert [survey.map_pixels["input"] for _, survey in surveyed] == [64, 256, 64, 256]
    assert [len(survey.searched) for _, survey in surveyed] == [8, 8, 20, 20]


def test_every_data_set_that_is_missing_is_told_where_it_is_named(tmp_path: Path) -> None:
    spec = several(
        tmp_path,
        ("name: digits}", "image_size: 8, root: nowhere}"),
        (
            "  data.image_size: {grid: [8, 16]}\n",
            "  data.name: {choice: [digits, cifar10, cifar100]}\n  data.root: {fixed: '', when: {data.name: digits}}\n",
        ),
        ("trials: 4", f"trials: 4\nstorage: {{path: {tmp_path}}}"),
    )
    with pytest.raises(SpecError) as caught:
        check(spec)
    lines = [line.split("s.yaml:", 1)[1] for line in str(caught.value).splitlines()]
    assert [line.split(" nowhere/")[0] for line in lines] == [
        "3:29: cifar10 is not complete in nowhere; missing:",
        "3:29: cifar100 is not complete in nowhere; missing:",
    ]
    spec = several(tmp_path, ("name: digits}", "image_size: 8}"),
                   ("data.image_size: {grid: [8, 16]}", "data.name: {choice: [digits, cifar10]}"))  # fmt: skip
    with pytest.raises(SpecError, match=r"s\.yaml:9:32: data\.root is missing: 'cifar10' needs the folder that holds"):
        check(spec)


def test_all_is_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        ("bops_g <= 0.03", "bops_g <= 0"),
        ("storage_mb <= 0.03", "storage_mb <= 0"),
        ("batch_size: 128", "top_k: 99"),
    )
    assert [line.split(" ")[0] for line in problems(spec)] == ["9:21:", "13:15:", "13:28:"]


ALLOWED = [
    # The default of 500 pixels means all of a smaller map.
    ("batch_size: 128", "batch_size: 64"),
    ("batch_size: 128", "top_k: 16"),
    ("batch_size: 128", "top_k: 256, resolution: input"),
    ("name: gmpq", "name: gmpq\n  top_k: 256\n  resolution: input"),
    ("uniform: [0.0, 2.0]}", "uniform: [0.0, 2.0]}\n  method.top_k: {int: [6, 16]}"),
    # Some trials compare maps of 256 pixels.
    (
        "uniform: [0.0, 2.0]}",
        "uniform: [0.0, 2.0]}\n  method.top_k: {int: [6, 99]}\n  method.resolution: {choice: [native, input]}",
    ),
    # No trial compares any.
    ("method.eta: {uniform: [0.0, 2.0]}", "method.eta: {choice: [0.0]}\n  method.top_k: {int: [6, 99]}"),
    ("bops_g <= 0.03", "top1 >= 90"),
    ("bops_g <= 0.03", "bops_g <= 100"),
]


@pytest.mark.parametrize(("old", "new"), ALLOWED)
def test_what_can_be_kept_is_not_refused(tmp_path: Path, old: str, new: str) -> None:
    spec = spec_of(tmp_path, (old, new))
    check_survey(spec, survey_of(spec))


def test_the_floor_and_the_ceiling_that_an_error_names_can_be_kept(tmp_path: Path) -> None:
    for constraint in ("bops_g <= 0", "bops_paper_g <= 0", "storage_mib <= 0", "compression >= 1e9", "storage_mb >= 9"):
        metric, relation, _ = constraint.split()
        found = problems(spec_of(tmp_path, ("bops_g <= 0.03, storage_mb <= 0.03", constraint)))
        named = found[0].rsplit(" ", 1)[1]
        spec = spec_of(tmp_path, ("bops_g <= 0.03, storage_mb <= 0.03", f"{metric} {relation} {named}"))
        check_survey(spec, survey_of(spec))


def test_the_sweeps_that_we_ship_pass() -> None:
    spec = load_spec(ROOT / "sweeps" / "quickstart.yaml")
    check_survey(spec, survey_of(spec))


def test_a_trial_that_the_machine_or_cluster_cannot_hold_is_refused_at_its_workers(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        ("workers: 1, cpus_per_worker: 1", "workers: 4, cpus_per_worker: 2, gpus_per_worker: 0.5"),
        ("trials: 4", f"trials: 4\nstorage: {{path: '{tmp_path}/sweeps'}}"),
    )
    with pytest.raises(SpecError) as caught:
        check(spec, cpus=6, gpus=1)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/s.yaml:14:22: resources: a trial asks for 2 GPUs (4 workers × 0.5), there are 1; ask for fewer",
        f"{tmp_path}/s.yaml:14:22: resources: a trial asks for 8 CPUs (4 workers × 2), there are 6; ask for fewer",
    ]
    check(spec, cpus=8, gpus=2)
    with pytest.raises(SpecError, match=r":14:58: resources: 3 trials at once ask for 24 CPUs, there are 20"):
        check(
            spec_of(tmp_path, ("workers: 1, cpus_per_worker: 1", "workers: 4, cpus_per_worker: 2, concurrency: 3")),
            cpus=20,
        )


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = spec_of(tmp_path, ("trials: 4", f"trials: 4\nstorage: {{path: '{tmp_path}/file/sweeps'}}"))
    with pytest.raises(ConfigError, match="is not a writable folder"):
        check(spec)


def test_sweeps_to_learn_from_are_there_before_anything_runs(tmp_path: Path) -> None:
    store = tmp_path / "st" / "older"
    record = SweepRecord(name="older", spec_hash="", facts={}, total_trials=1, created_ms=1)
    SweepStore.create(tmp_path / "st", record, spec_text="")
    settings = ("trials: 4", f"trials: 4\nstorage: {{path: {tmp_path / 'st'}}}\nwarm_start: {{sweeps: [SWEEPS]}}")
    check(spec_of(tmp_path, settings, ("SWEEPS", "older")))
    with pytest.raises(SpecError) as caught:
        check(spec_of(tmp_path, settings, ("SWEEPS", "older, oldr, good")))
    first, second = str(caught.value).splitlines()
    assert f"s.yaml:17:30: warm_start.sweeps: {tmp_path / 'st'} holds no sweep 'oldr'; did you mean 'older'?" in first
    assert "s.yaml:17:36: warm_start.sweeps: 'good' is this sweep itself; name others" in second
    assert store.is_dir()


def test_code_of_the_users_own_that_is_not_there_is_found_by_check(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "name: own\ntrials: 1\nnetwork: {name: 'no_such_module:net'}\ndata: {name: digits, image_size: 16}\n"
        "reference: {epochs: 1}\nmethod: {name: edmips}\nfinetune: {epochs: 1}\nspace: {method.zeta: {fixed: 1.0}}\n"
    )
    ended = CliRunner().invoke(main, ["check", str(tmp_path / "s.yaml")])
    assert ended.exit_code == 2
    assert "network.name" in ended.output
    assert "no_such_module" in ended.output


def test_a_network_that_does_not_fit_the_images_is_found_at_its_place_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "name: own\nnetwork: {name: resnet8}\ndata: {name: digits, image_size: 8}\nreference: {epochs: 1}\n"
        "method: {name: edmips}\nfinetune: {epochs: 1}\ntrials: 3\nspace:\n  method.zeta: {fixed: 1.0}\n"
        "  data.augment: {choice: [none, flip]}\n"
        "  network.name: {choice: [resnet20, deit_tiny], when: {data.augment: flip}}\n"
    )
    ended = CliRunner().invoke(main, ["check", str(tmp_path / "s.yaml")])
    assert ended.exit_code == 2
    assert "s.yaml:11:37: deit_tiny on digits" in ended.output
    assert "data.image_size is 8" in ended.output


def test_networks_that_share_a_reference_are_counted_as_what_they_are(tmp_path: Path) -> None:
    spaces = (
        "method.zeta: {choice: [0.1, 0.2]}",
        "method.top_k: {int: [4, 400]}",
        "data.fraction: {fixed: 0.5, when: {method.top_k: 7}}",
    )
    (tmp_path / "s.yaml").write_text(
        "name: own\nnetwork: {name: resnet8}\ndata: {name: digits, image_size: 16}\nreference: {epochs: 1}\n"
        "method: {name: gmpq, eta: 1.0}\nfinetune: {epochs: 1}\ntrials: 3\nspace:\n"
        + "".join(f"  {entry}\n" for entry in spaces)
    )
    assert len(combinations(load_spec(tmp_path / "s.yaml"))) == 2


def test_all_that_cannot_be_is_told_at_once_each_where_its_value_is_given(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "name: own\nnetwork: {stem_bits: 8}\ndata: {name: digits}\nreference: {epochs: 1}\n"
        "method: {name: edmips}\nfinetune: {epochs: 1}\ntrials: 3\nbudget: {bops_g: 0.0001}\nspace:\n"
        "  method.zeta: {fixed: 1.0}\n"
        "  network.name: {choice: [resnet8, deit_tiny]}\n"
        "  data.image_size: {choice: [8, 24]}\n"
    )
    with pytest.raises(SpecError) as caught:
        survey_all(load_spec(tmp_path / "s.yaml"))
    lines = [line.split("s.yaml:", 1)[1] for line in str(caught.value).splitlines()]
    assert [re.split(", which|, but", line)[0] for line in lines] == [
        "8:18: resnet8 on digits (data.image_size 24): budget.bops_g is 0.0001",
        "8:18: resnet8 on digits (data.image_size 8): budget.bops_g is 0.0001",
        "12:30: deit_tiny on digits (data.image_size 8): data.image_size is 8",
        "12:33: deit_tiny on digits (data.image_size 24): data.image_size is 24",
    ]
    # No number is named twice.
    assert [line.rsplit("such as ", 1)[1] for line in lines[2:]] == ["16", "16 or 32"]


def test_data_of_the_users_own_that_fails_is_named_where_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_set.py").write_text("def bad(root, *, image_size):\n    raise OSError('disk gone')\n")
    (tmp_path / "s.yaml").write_text(
        "name: own\nnetwork: {name: resnet8}\ndata: {image_size: 8}\nreference: {epochs: 1}\n"
        "method: {name: edmips}\nfinetune: {epochs: 1}\ntrials: 3\nspace:\n  method.zeta: {fixed: 1.0}\n"
        "  data.name: {choice: [digits, 'failing_set:bad']}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    expected = r"s\.yaml:10:32: resnet8 on failing_set:bad: data\.name: 'failing_set:bad' failed at .*disk gone"
    with pytest.raises(SpecError, match=expected):
        survey_all(load_spec(tmp_path / "s.yaml"))


def test_bits_that_share_a_reference_are_as_many_as_one_likes(tmp_path: Path) -> None:
    text = (
        "name: own\nnetwork: {name: resnet8}\ndata: {name: digits, image_size: 16}\nreference: {epochs: 1}\n"
        "method: {name: edmips}\nfinetune: {epochs: 1}\ntrials: 3\nspace:\n  method.zeta: {fixed: 1.0}\n"
    )
    path = tmp_path / "s.yaml"
    path.write_text(f"{text}  network.stem_bits: {{int: [2, 16]}}\n  network.head_bits: {{int: [2, 16]}}\n")
    spec = load_spec(path)
    assert (len(combinations(spec)), len(references(spec))) == (225, 1)
    path.write_text(f"{text}  data.fraction: {{grid: [{', '.join(f'0.{100 + n}' for n in range(201))}]}}\n")
    with pytest.raises(SpecError, match=r"s\.yaml:9:3: space: 201 full-precision references, .* give at most 200"):
        combinations(load_spec(path))


def test_too_many_values_of_a_size_are_no_grid(tmp_path: Path) -> None:
    spec = several(tmp_path, ("{grid: [8, 16]}", "{int: [8, 40000]}"))
    expected = (
        r"s\.yaml:9:20: space\.data\.image_size: with it there are more than 10000 combinations of network and data;"
    )
    with pytest.raises(SpecError, match=expected):
        combinations(spec)
