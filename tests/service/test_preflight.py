"""What cannot work is told before anything is computed, at its place in the file."""

from pathlib import Path

import pytest

from service.preflight import check, check_survey
from service.records import SweepRecord, SweepStore
from service.spec import SweepSpec, load_spec
from trainables import api
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


def survey_of(spec: SweepSpec) -> api.Survey:
    """Surveys read the data and build the network; most sweeps here differ in what is not surveyed."""
    config = spec.trial_config(spec.example_settings())
    if repr(config) not in _surveys:
        _surveys[repr(config)] = api.survey(config)
    return _surveys[repr(config)]


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
