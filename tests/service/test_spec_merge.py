"""Bases, settings of the command line and secrets: what lies above wins, and an error says whose value it is."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.spec import SweepSpec, load_spec
from service.yaml_source import parse_yaml, write_yaml
from trainables.errors import SpecError

BASE = """\
name: below
network: {name: resnet8, pinned: {"*.conv1": 4}}
data: {name: digits, image_size: 16}
reference: {epochs: 20}
method: {name: gmpq, eta: 1.0, weight_bits: [2, 4]}
finetune: {epochs: 8}
space:
  method.zeta: {loguniform: [1e-2, 1.0]}
  method.capacity: {choice: [12.0, 24.0]}
trials: 8
tags: {team: vision, goal: small}
"""
CHILD = """\
base: below.yaml
name: above
method: {eta: 1e-05, weight_bits: [3]}
network: {pinned: {"*.conv2": 8}}
space:
  method.top_k: {int: [4, 8]}
  method.zeta: {uniform: [0, 1]}
tags: {team: "1e-3"}
"""


@pytest.fixture
def child(tmp_path: Path) -> Path:
    (tmp_path / "below.yaml").write_text(BASE)
    (tmp_path / "above.yaml").write_text(CHILD)
    return tmp_path / "above.yaml"


def reread(spec: SweepSpec, folder: Path) -> SweepSpec:
    (folder / "kept.yaml").write_text(spec.text)
    return load_spec(folder / "kept.yaml")


def test_mappings_are_merged_and_all_else_is_replaced(child: Path) -> None:
    spec = load_spec(child)
    assert (spec.name, spec.trials, spec.data.image_size) == ("above", 8, 16)
    assert spec.fixed["method"] == {"eta": 1e-05, "weight_bits": [3]}
    assert spec.network.pinned == {"*.conv1": 4, "*.conv2": 8}
    assert spec.tags == {"team": "1e-3", "goal": "small"}


def test_an_entry_of_the_space_is_replaced_whole_and_keeps_its_turn(child: Path) -> None:
    spec = load_spec(child)
    assert list(spec.space) == ["method.zeta", "method.capacity", "method.top_k"]
    assert spec.identity["space"]["method.zeta"] == {"uniform": [0.0, 1.0]}


def test_a_merged_spec_is_kept_as_what_it_came_to(child: Path, tmp_path: Path) -> None:
    overrides = ("method.momentum=1e-3", "space.method.capacity={grid: [12, 1e1]}", "name=x2", "tags.n='5'")
    spec = load_spec(child, overrides)
    first, rest = spec.text.split("\n", 1)
    assert first.startswith(
        f"# Merged from {tmp_path}/below.yaml, {tmp_path}/above.yaml, --set method.momentum=1e-3, --"
    )
    assert "base" not in rest
    again = reread(spec, tmp_path)
    assert again == spec
    assert (again.hash, list(again.space)) == (spec.hash, list(spec.space))


def test_what_could_not_be_read_again_is_not_kept(child: Path) -> None:
    for path, key in ((child, "owner"), (child.with_name("below.yaml"), "description")):
        path.write_text(f"{path.read_text()}{key}: {'x' * 40_000}\n")
    with pytest.raises(SpecError, match=r"above\.yaml:1:1: merged with its bases it is larger than 64 KiB"):
        load_spec(child)


def test_a_spec_of_its_own_is_kept_as_written(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("# mine\n" + BASE)
    assert load_spec(tmp_path / "s.yaml").text == "# mine\n" + BASE


def test_the_command_line_wins_over_the_file_and_the_file_over_its_base(child: Path) -> None:
    spec = load_spec(
        child, ["method.eta=0.25", "space.method.top_k={fixed: 5}", "trials=3", "network={name: resnet20}"]
    )
    assert spec.fixed["method"]["eta"] == 0.25
    assert spec.identity["space"]["method.top_k"] == {"choice": [5]}
    assert spec.trials == 3
    # What is set is set whole: nothing of the file's network is left.
    assert (spec.network.name, spec.network.pinned) == ("resnet20", {})


def test_the_last_of_two_equal_settings_wins(child: Path) -> None:
    assert load_spec(child, ["trials=3", "trials=4"]).trials == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.eta=abc", "--set method.eta=abc: method.eta: found 'abc'; expected a number"),
        ("method.eta=", "--set method.eta=: method.eta: has no value; give one"),
        ("method.eta=~", "--set method.eta=~: method.eta: has no value"),
        ("method.eta=[1", "--set method.eta=[1: method.eta: not YAML: "),
        ("method.eta=&a 1", "--set method.eta=&a 1: method.eta: anchors and aliases are not used here"),
        ("method.etta=1", "--set method.etta=1: method.etta: unknown key 'etta'; did you mean 'eta'?"),
        ("metod.eta=1", "--set metod.eta=1: unknown key 'metod'; did you mean 'method'?"),
        ("space.method.zeta={uniform: [2, 1]}", "space.method.zeta: uniform: low 2 is not below high 1"),
        ("space.method.zetta={uniform: [2, 1]}", "'method.zetta' is not a setting; did you mean 'method.zeta'?"),
        ("method.zeta=0.1", "above.yaml:7:3: space.method.zeta: also fixed under 'method:'; remove one of the two"),
        ("trials", "--set trials: expected a setting, '=' and its value, such as --set method.eta=0.5"),
        ("=5", "--set =5: expected a setting, '=' and its value"),
        ("method..eta=5", "--set method..eta=5: expected a setting, '=' and its value"),
        ("base=x.yaml", "--set base=x.yaml: a base is named in the file, not on the command line"),
        ("name.first=x", "--set name.first=x: name: found {'first': 'x'}; expected text"),
        (
            "data.root=${HOME}",
            "--set data.root=${HOME}: data.root: found '${HOME}'; environment variables are for secrets",
        ),
        ("description=a\nb: c", "--set description=a\\nb: c: description: not YAML"),
    ],
)
def test_a_wrong_setting_is_told_by_the_command_line_it_stands_in(child: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(child, [override])
    assert len(str(caught.value).splitlines()) == 1
    assert message in str(caught.value)


def test_bases_may_have_bases_in_other_folders(child: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "top.yaml").write_text("base: ../above.yaml\ntrials: 2\n")
    spec = load_spec(tmp_path / "deep" / "top.yaml")
    assert (spec.name, spec.trials, spec.data.image_size) == ("above", 2, 16)


def test_a_value_replaced_above_says_nothing_of_the_one_below(child: Path) -> None:
    child.with_name("below.yaml").write_text(BASE.replace("eta: 1.0", "eta: much"))
    assert load_spec(child).fixed["method"]["eta"] == 1e-05


def test_places_are_found_after_loading_and_in_another_process(child: Path, tmp_path: Path) -> None:
    spec = pickle.loads(pickle.dumps(load_spec(child, ["resources.workers=2"])))
    assert spec.place(("space", "method.top_k")) == f"{tmp_path}/above.yaml:6:17"
    assert spec.place(("space", "method.capacity", "choice", 1)) == f"{tmp_path}/below.yaml:9:36"
    assert spec.place(("method", "eta")) == f"{tmp_path}/above.yaml:3:15"
    assert spec.place(("method", "top_k")) == f"{tmp_path}/below.yaml:5:1"
    assert spec.place(("limits", "retries")) == f"{tmp_path}/above.yaml:1:1"
    assert str(spec.refuse(("resources", "workers"), "too many")) == "--set resources.workers=2: too many"
    assert len(pickle.dumps(spec)) < 10_000


def test_a_secret_comes_from_the_environment_and_is_never_kept(
    child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO", "ann:hidden")
    for path, overrides in ((child, ["tracking.uri=https://${WHO}@host"]), (tmp_path / "plain.yaml", [])):
        (tmp_path / "plain.yaml").write_text(BASE + "tracking: {uri: 'https://${WHO}@host'}\n")
        spec = load_spec(path, overrides)
        assert spec.tracking.uri == "https://ann:hidden@host"
        assert "https://${WHO}@host" in spec.text
        assert "hidden" not in spec.text
        assert reread(spec, tmp_path) == spec
    monkeypatch.setenv("WHO", "")
    with pytest.raises(SpecError, match=r"plain\.yaml:12:17: tracking\.uri: the environment variable 'WHO' is not set"):
        load_spec(tmp_path / "plain.yaml")


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ODD = st.sampled_from(
    ["yes", "null", "~", "1e-3", "0x1", ".5", "- a", "a: b", "#", "true", "1_0", "2020-01-01", "<<", "="]
)
NUMBERS = st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.booleans() | NUMBERS | WORDS | ODD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | ODD, inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(WORDS | ODD, VALUES, max_size=4))
def test_what_is_written_reads_as_the_same(content: dict[str, object]) -> None:
    source = parse_yaml(write_yaml(content), "s.yaml")
    source.raise_problems()
    assert repr(source.content) == repr(content)
