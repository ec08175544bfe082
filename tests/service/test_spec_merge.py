"""Bases, settings of the command line and secrets: what lies above wins, and an error says whose value it is."""

import pickle
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cli import main
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
    assert (spec.name, spec.trials, spec.fixed["data"]["image_size"]) == ("above", 8, 16)
    assert spec.fixed["method"] == {"eta": 1e-05, "weight_bits": [3]}
    assert spec.fixed["network"]["pinned"] == {"*.conv1": 4, "*.conv2": 8}
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
    assert spec.fixed["network"] == {"name": "resnet20"}


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
    assert (spec.name, spec.trials, spec.fixed["data"]["image_size"]) == ("above", 2, 16)


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


def test_what_a_base_fixes_its_heir_may_vary(child: Path) -> None:
    child.write_text(
        "base: below.yaml\nspace:\n  method.eta: {uniform: [0, 1]}\n  finetune.epochs: {choice: [1, 2]}\n"
        "  network.name: {fixed: resnet20, when: {finetune.epochs: 2}}\n"
    )
    spec = load_spec(child)
    assert spec.fixed["method"] == {"weight_bits": [2, 4]}
    assert spec.fixed["finetune"] == {}
    # Where the condition does not hold, what the base fixes.
    assert spec.names("network") == ("resnet20", "resnet8")
    spec = load_spec(child.with_name("below.yaml"), ["space.method.eta={grid: [1, 2]}"])
    assert (list(spec.space)[-1], spec.fixed["method"]) == ("method.eta", {"weight_bits": [2, 4]})
    child.write_text("base: below.yaml\nmethod: {eta: 2.0}\nspace: {method.eta: {uniform: [0, 1]}}\n")
    with pytest.raises(SpecError, match=r"above\.yaml:3:9: space\.method\.eta: also fixed under 'method:'"):
        load_spec(child)


SMOKE = """\
smoke:
  data: {image_size: 8}
  method: {epochs: 1}
  space:
    method.zeta: {grid: [0.1, 0.2]}
  sampler: {name: grid}
  trials: 2
"""


def test_a_smoke_run_is_the_sweep_with_its_profile_above(child: Path, tmp_path: Path) -> None:
    child.write_text(CHILD + SMOKE)
    spec, smoke = load_spec(child), load_spec(child, smoke=True)
    assert (spec.name, spec.trials, spec.fixed["data"]["image_size"]) == ("above", 8, 16)
    assert (smoke.name, smoke.trials, smoke.fixed["data"]["image_size"]) == ("above-smoke", 2, 8)
    assert smoke.fixed["method"] == {"eta": 1e-05, "weight_bits": [3], "epochs": 1}
    # Its space is the whole space: what makes no sense in a short run is gone.
    assert list(smoke.space) == ["method.zeta"]
    assert list(spec.space) == ["method.zeta", "method.capacity", "method.top_k"]


def test_what_is_kept_of_a_smoke_run_is_what_ran(child: Path, tmp_path: Path) -> None:
    for path, text in ((child, CHILD + SMOKE), (tmp_path / "alone.yaml", BASE + SMOKE)):
        path.write_text(text)
        smoke = load_spec(path, smoke=True)
        assert smoke.text.splitlines()[0].endswith(f"{path}, --smoke")
        assert "smoke:" not in smoke.text
        assert reread(smoke, tmp_path) == smoke
        assert reread(load_spec(path), tmp_path) == load_spec(path)


def test_a_base_may_carry_the_profile_and_its_heir_changes_it(child: Path) -> None:
    child.with_name("below.yaml").write_text(BASE + SMOKE)
    assert list(load_spec(child, smoke=True).space) == ["method.zeta"]
    child.write_text(
        CHILD + "smoke: {method: {epochs: 3}, space: {method.p: {fixed: 2}, method.zeta: {fixed: 1}}, trials: 1}\n"
    )
    smoke = load_spec(child, smoke=True)
    # Profiles are merged as files are: entries of the space one by one.
    assert (list(smoke.space), smoke.fixed["method"]["epochs"], smoke.trials) == (["method.zeta", "method.p"], 3, 1)
    assert smoke.identity["space"]["method.zeta"] == {"choice": [1.0]}
    assert smoke.fixed["data"]["image_size"] == 8


def test_a_profile_may_vary_what_the_sweep_or_a_profile_below_fixes(child: Path) -> None:
    child.with_name("below.yaml").write_text(BASE + SMOKE.replace("method: {epochs: 1}", "method: {epochs: 1, p: 2.0}"))
    child.write_text(
        CHILD + "smoke:\n  space: {method.zeta: {fixed: 1}, method.eta: {fixed: 2}, method.p: {grid: [1, 3]}}\n"
    )
    smoke = load_spec(child, smoke=True)
    assert smoke.fixed["method"] == {"epochs": 1, "weight_bits": [3]}
    assert load_spec(child).fixed["method"] == {"eta": 1e-05, "weight_bits": [3]}


def test_the_command_line_lies_above_the_profile(child: Path) -> None:
    child.write_text(CHILD + SMOKE)
    smoke = load_spec(child, ["method.epochs=4", "name=other", "trials=1"], smoke=True)
    assert (smoke.name, smoke.fixed["method"]["epochs"], smoke.trials) == ("other-smoke", 4, 1)


def test_a_file_without_a_profile_has_no_smoke_run(child: Path) -> None:
    with pytest.raises(SpecError, match=r"above\.yaml:1:1: --smoke: the file has no profile; say what a short run"):
        load_spec(child, smoke=True)


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("epochs: 1", "epochs: 0", "11:20", "with --smoke: method.epochs is 0; give a positive number"),
        ("epochs: 1", "epoch: 1", "11:12", "with --smoke: method.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        ("grid: [0.1, 0.2]", "int: [2, 1]", "13:18", "with --smoke: space.method.zeta: int: low 2 is not below high 1"),
        ("trials: 2", "trials: 3", "15:11", "with --smoke: trials is 3, but the grid has 2 points"),
        ("trials: 2", "trials: 2\n  tirals: 2", "16:3", "with --smoke: unknown key 'tirals'; did you mean 'trials'?"),
        ("trials: 2", "name: short", "15:9", "smoke.name: a smoke run has the sweep's name with '-smoke' behind it"),
        ("trials: 2", "smoke: {}", "15:10", "smoke.smoke: a profile has none of its own; leave it out"),
        ("trials: 2", "base: x.yaml", "15:9", "smoke.base: a profile is based on the rest of its file"),
        ("trials: 2", "trials: 2\n  trials: 3", "16:3", "smoke.trials: the key stands twice; keep one"),
        (
            "trials: 2",
            "trials: 2\n  description: '${HOME}'",
            "16:16",
            "with --smoke: description: found '${HOME}'; environment",
        ),
        ("trials: 2", "trials:", "15:10", "smoke.trials: has no value; give one or leave the key out"),
    ],
)
def test_a_mistake_in_a_profile_is_found_at_its_place_without_smoke_too(
    child: Path, old: str, new: str, place: str, message: str
) -> None:
    child.write_text(CHILD + SMOKE.replace(old, new))
    with pytest.raises(SpecError) as caught:
        load_spec(child)
    assert str(caught.value).splitlines()[0].startswith(f"{child}:{place}: {message}"), caught.value
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(SpecError, match=re.escape(f"{child}:{place}: {message.removeprefix('with --smoke: ')}")):
        load_spec(child, smoke=True)


def test_a_mistake_of_both_is_told_once(child: Path) -> None:
    child.write_text(CHILD.replace("1e-05", "much") + SMOKE)
    with pytest.raises(SpecError) as caught:
        load_spec(child)
    assert str(caught.value).splitlines() == [f"{child}:3:15: method.eta: found 'much'; expected a number"]


def test_a_setting_for_this_run_need_not_suit_the_profile(child: Path) -> None:
    child.write_text(CHILD + SMOKE)
    assert load_spec(child, ["trials=30"]).trials == 30
    with pytest.raises(SpecError, match=r"--set smoke\.trials=1: the profile stands in the file; set the key itself"):
        load_spec(child, ["smoke.trials=1"])


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


class TestTheEnvironmentsPlaceToRecord:
    """BITFRONT_TRACKING_URI, as a deployment sets it for whatever is launched there."""

    @pytest.fixture(autouse=True)
    def deployed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BITFRONT_TRACKING_URI", "http://mlflow:5000")

    def test_it_is_that_of_a_sweep_that_gives_none_and_is_kept_with_it(self, child: Path) -> None:
        spec = load_spec(child, to_launch=True)
        assert spec.tracking.uri == "http://mlflow:5000"
        kept = reread(spec, child.parent)
        assert kept.tracking == spec.tracking
        assert kept.identity == load_spec(child).identity
        assert "BITFRONT_TRACKING_URI" in spec.text.splitlines()[0]

    def test_a_sweep_that_is_stored_stays_where_it_is_recorded(self, child: Path) -> None:
        assert load_spec(child).tracking.uri == ""

    @pytest.mark.parametrize("given", ["http://other:5000", ""])
    def test_what_the_sweep_its_base_or_the_command_line_says_comes_first(self, child: Path, given: str) -> None:
        below = child.with_name("below.yaml")
        assert load_spec(child, [f"tracking.uri='{given}'"], to_launch=True).tracking.uri == given
        below.write_text(BASE + f"tracking: {{uri: '{given}'}}\n")
        assert load_spec(child, to_launch=True).tracking.uri == given
        below.write_text(BASE + "tracking: {experiment: nights}\n")
        spec = load_spec(child, to_launch=True)
        assert (spec.tracking.uri, spec.tracking.experiment) == ("http://mlflow:5000", "nights")

    def test_a_smoke_run_may_have_another(self, child: Path) -> None:
        below = child.with_name("below.yaml")
        below.write_text(BASE + "smoke: {trials: 2}\n")
        assert load_spec(child, smoke=True, to_launch=True).tracking.uri == "http://mlflow:5000"
        below.write_text(BASE + "smoke: {trials: 2, tracking: {uri: 'http://trial:5000'}}\n")
        assert load_spec(child, smoke=True, to_launch=True).tracking.uri == "http://trial:5000"
        assert load_spec(child, to_launch=True).tracking.uri == "http://mlflow:5000"

    def test_a_password_in_it_is_refused(self, child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BITFRONT_TRACKING_URI", "postgresql://u:hunter22@db/mlflow")
        with pytest.raises(SpecError, match=r"BITFRONT_TRACKING_URI: .* a password in it would be stored") as caught:
            load_spec(child, to_launch=True)
        assert "hunter" not in str(caught.value)

    def test_commands_that_launch_take_it(self, child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BITFRONT_TRACKING_URI", "gopher://mlflow:5000")
        for command in ("run", "check", "plan"):
            done = CliRunner().invoke(main, [command, str(child)])
            assert done.exit_code == 2, command
            assert "gopher" in done.stderr, command
        sent = []
        monkeypatch.setattr("service.orchestrate.jobs.submit_sweep", lambda spec, _: sent.append(spec) or "job")
        CliRunner().invoke(main, ["submit", str(child), "--address", "http://head:8265"], catch_exceptions=False)
        assert [spec.tracking.uri for spec in sent] == ["gopher://mlflow:5000"]
