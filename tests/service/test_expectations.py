"""What is expected of a nightly sweep: read with the place of every mistake, and the examples of the docs."""

import dataclasses
import re
from pathlib import Path

import pytest

from service.expectations import Claim, Comparing, Expectations, Limits, load_expectations, selects
from service.spec import SweepSpec, load_spec
from tests.service.outcomes import SPEC
from trainables.errors import SpecError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spec(tmp_path: Path) -> SweepSpec:
    (tmp_path / "two-methods.yaml").write_text(SPEC)
    return load_spec(tmp_path / "two-methods.yaml")


def problems(text: str, spec: SweepSpec, tmp_path: Path) -> list[str]:
    path = tmp_path / "two-methods.expect.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"expect\.yaml") as raised:
        load_expectations(path, spec)
    return [line.removeprefix(f"{path}:") for line in str(raised.value).splitlines()]


def test_without_a_file_the_defaults_are_expected(spec: SweepSpec, tmp_path: Path) -> None:
    found = load_expectations(tmp_path / "none.expect.yaml", spec)
    assert found == Expectations(comparing=Comparing(), limits=Limits(), claims=())
    assert (found.comparing.floor("top1"), found.comparing.floor("ard")) == (0.1, 0.0)


def test_the_example_of_the_docs_loads_for_the_sweep_that_compares_methods(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(match:.*?)```", (ROOT / "docs" / "nightly.md").read_text(), flags=re.DOTALL)
    (tmp_path / "digits.expect.yaml").write_text(example)
    found = load_expectations(tmp_path / "digits.expect.yaml", load_spec(ROOT / "sweeps" / "compare" / "digits.yaml"))
    assert [claim.relation for claim in found.claims] == ["less", "not_less", "band"]
    assert found.claims[1].at == {"budget.bops_g": (0.0345, 0.05)}
    assert found.limits == Limits(step_ratio=4.0)
    assert found.comparing.floor("top1") == 0.3


def test_every_key_stands_in_the_docs() -> None:
    described = set(re.findall(r"`([a-z_0-9]+)`", (ROOT / "docs" / "nightly.md").read_text()))
    names = {field.name for kind in (Claim, Comparing, Limits) for field in dataclasses.fields(kind)}
    assert names - described == set()


def test_everything_that_is_wrong_is_told_at_once_with_its_place(spec: SweepSpec, tmp_path: Path) -> None:
    found = problems(
        """\
match: identcal
false_alarms: 2
metrics: [top1, bopsg]
floors: {top1: -1}
limits: {step_ration: 4.0}
tolerance: 3
claims:
  - claim: a
    source: b
    metric: ard
    less: {method.name: gmpqq}
    than: {method.nam: edmips}
  - claim: a
    sauce: b
    metric: map
    band: [1, 2]
  - 3
""",
        spec,
        tmp_path,
    )
    assert [line.split(" ")[0] for line in found] == [
        "1:8:", "2:15:", "3:10:", "4:9:", "5:10:", "6:1:", "11:25:", "12:12:", "13:5:", "14:5:", "15:13:", "17:5:",
    ]  # fmt: skip
    for number, expected in enumerate((
        "found 'identcal'; expected one of 'spread', 'identical'",
        "give more than 0 and less than 1",
        "unknown metric 'bopsg'; did you mean 'bops_g'?",
        "top1 is -1.0; give zero or a positive number",
        "did you mean 'step_ratio'?",
        "unknown key 'tolerance'",
        "the sweep never has method.name 'gmpqq'; expected one of edmips, gmpq",
        "does not vary 'method.nam'; did you mean 'method.name'?",
        "'source' is missing here",
        "unknown key 'sauce'; did you mean 'source'?",
        "which promotions alone measure",
        "found 3; expected keys such as 'claim'",
    )):  # fmt: skip
        assert expected in found[number]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("less: {method.name: gmpq}", "claims: 'less' needs 'than'"),
        ("less: {method.name: gmpq}, than: {method.name: gmpq}", "than: the same trials as 'less'"),
        ("less: {method.name: gmpq}, band: [1, 2]", "claims: says less and band of"),
        ("by: 1", "claims: says none of"),
        ("less: {method.name: gmpq}, than: {method.name: edmips}, of: {seed: 1}", "of: belongs to a band"),
        ("less: {method.name: gmpq}, than: {method.name: edmips}, by: -1", "claims.by is -1.0; give zero or"),
        ("band: [2, 1]", "band: found [2.0, 1.0]; expected [low, high]"),
        ("band: [1, 2], by: 1", "by: a band has none"),
        ("band: [1, 2], of: {method.name: []}", "method.name has no value"),
    ],
)
def test_a_claim_says_one_thing(said: str, expected: str, spec: SweepSpec, tmp_path: Path) -> None:
    (found, *_) = problems(f"claims: [{{claim: a, source: b, metric: ard, {said}}}]\n", spec, tmp_path)
    assert expected in found


def test_a_time_is_not_compared(spec: SweepSpec, tmp_path: Path) -> None:
    (found,) = problems("metrics: [device_hours]\n", spec, tmp_path)
    assert "'device_hours' is a time, which is never the same twice" in found


def test_a_selection_needs_every_setting_and_true_is_not_one() -> None:
    assert selects({"a": (1, 2), "b": "x"}, {"a": 2.0, "b": "x", "c": 0})
    assert not selects({"a": (1, 2), "b": "x"}, {"a": 2})
    assert not selects({"a": 1}, {"a": True})
    assert selects({}, {"a": True})
