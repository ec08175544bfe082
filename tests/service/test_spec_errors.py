"""Every mistake is found, at its place, in plain words; and nothing else than SpecError ever comes out."""

import json
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.spec import TOP_KEYS, load_spec
from trainables.errors import SpecError
from trainables.method_config import EdmipsConfig, GmpqConfig

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    path
    for path in (ROOT / "sweeps").rglob("*.yaml")
    if path.parent.name != "finetune" and not path.name.endswith(".expect.yaml")
)
"""Sweeps; finetune templates and expectations have tests of their own."""
BAD = sorted((ROOT / "tests" / "specs_bad").glob("*.yaml"))
GOOD = """\
name: good
network: {name: resnet8}
data: {name: digits, image_size: 16}
reference: {epochs: 20}
method:
  name: gmpq
  eta: 1.0
  weight_bits: [2, 4]
finetune: {batch_size: 128}
space:
  method.zeta: {loguniform: [1e-2, 1.0]}
  method.capacity: {choice: [12.0, 24.0]}
  finetune.epochs: {int: [1, 3]}
trials: 8
resources: {workers: 2}
"""


def load(text: str, folder: Path) -> object:
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return load_spec(path)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_each_mistake_of_a_bad_spec_is_found_at_its_place_and_nothing_else(path: Path) -> None:
    """A bad spec begins with lines `# expect 7:8: message`, the place with its file where this is another."""
    expected = re.findall(r"^# expect (?:(\S+\.yaml):)?(\d+:\d+): (.+)$", path.read_text(), flags=re.MULTILINE)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    lines = str(caught.value).splitlines()
    for file, place, message in expected:
        wanted = f"{path.parent / (file or path.name)}:{place}: "
        assert any(line.startswith(wanted) and message in line for line in lines), f"{wanted}{message}\n{caught.value}"
    assert len(lines) == len(expected) > 0, caught.value


def test_there_are_many_bad_specs() -> None:
    assert len(BAD) >= 60


def test_all_mistakes_of_a_file_come_at_once_in_its_order(tmp_path: Path) -> None:
    text = GOOD.replace("resnet8", "resnet9").replace("trials: 8", "trials: x").replace("eta: 1.0", "eta: y")
    with pytest.raises(SpecError) as caught:
        load(text, tmp_path)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["2", "7", "14"]


def test_an_unknown_method_hides_no_other_mistake(tmp_path: Path) -> None:
    text = GOOD.replace("gmpq", "gmqp").replace("loguniform", "logunif").replace("int: [1, 3]", "int: [0, 3]")
    with pytest.raises(SpecError) as caught:
        load(text, tmp_path)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["6", "11", "13"]


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("eta: 1.0", "eta: .nan", "7:8"),
        ("eta: 1.0", "eta:", "7:7"),
        ("[1e-2, 1.0]", "[~, 1.0]", "11:30"),
        ("{name: resnet8}", "resnet8", "2:10"),
        ("{name: resnet8}", "", "2:9"),
    ],
)
def test_one_mistake_is_one_line(tmp_path: Path, old: str, new: str, place: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(GOOD.replace(old, new), tmp_path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{tmp_path}/s.yaml:{place}"], lines


def test_a_long_mistake_is_shown_from_both_ends(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"network: found \[1, 1, .* … .* 1\]; expected settings below it") as caught:
        load(GOOD.replace("{name: resnet8}", "[" + "1, " * 3000 + "1]"), tmp_path)
    assert len(str(caught.value)) < 800


def test_a_spec_from_a_pipe_is_read_once_and_kept_whole(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(GOOD,), daemon=True)
    writer.start()
    assert load_spec(pipe).text == GOOD
    writer.join(timeout=5)
    assert not writer.is_alive()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"- a\n", "does not start with a mapping"), (b"\xff\xfe", "not UTF-8 text"),
     (b"a: [" * 5000, "nested too deeply|not YAML"), (b"#" * (1 << 21), "larger than 64 KiB"),
     (b"a: 1\n---\nb: 2\n", "not YAML"), (b"a: \x00", "not YAML"), (b"? [a]\n: b\n", "a key must be a word")],
)  # fmt: skip
def test_a_file_that_is_no_sweep_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(SpecError, match=message):
        load_spec(tmp_path / "s.yaml")


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a folder; give the YAML file in it"):
        load_spec(tmp_path)
    with pytest.raises(SpecError, match=r"none\.yaml: no such file"):
        load_spec(tmp_path / "none.yaml")


def test_a_good_spec_becomes_the_settings_of_trials(tmp_path: Path) -> None:
    spec = load(GOOD, tmp_path)
    config = spec.trial_config({"method.zeta": 0.3, "method.capacity": 24.0, "finetune.epochs": 2})
    assert isinstance(config.method, GmpqConfig)
    assert (config.method.zeta, config.method.eta, config.method.weight_bits) == (0.3, 1.0, (2, 4))
    assert (config.finetune.epochs, config.finetune.batch_size, config.data.image_size) == (2, 128, 16)
    assert spec.resources.launch_resolved == "train"
    assert spec.example_settings() == {"method.zeta": 0.01, "method.capacity": 12.0, "finetune.epochs": 1}


def test_edmips_takes_no_settings_of_attribution(tmp_path: Path) -> None:
    text = GOOD.replace("name: gmpq", "name: edmips")
    with pytest.raises(SpecError, match=r"method\.eta: unknown key 'eta'"):
        load(text, tmp_path)
    text = text.replace("  eta: 1.0\n", "").replace("  method.capacity: {choice: [12.0, 24.0]}\n", "")
    config = load(text, tmp_path).trial_config({"method.zeta": 0.1, "finetune.epochs": 1})
    assert isinstance(config.method, EdmipsConfig)
    assert config.method.quantizer == "hwgq"


def test_the_hash_is_of_what_results_depend_on(tmp_path: Path) -> None:
    spec = load(GOOD, tmp_path)
    assert load("# a comment\n" + GOOD + "description: other words\n", tmp_path).hash == spec.hash
    assert load(GOOD.replace("name: good", "name: other") + "storage: {path: elsewhere}\n", tmp_path).hash == spec.hash
    written_out = GOOD.replace("eta: 1.0", "eta: 1\n  epochs: 25").replace("epochs: 20", "epochs: 20, lr: 0.1")
    assert load(written_out, tmp_path).hash == spec.hash
    changes = [
        ("trials: 8", "trials: 9"), ("eta: 1.0", "eta: 1.5"), ("1e-2", "2e-2"), ("loguniform", "uniform"),
        ("[2, 4]", "[2, 3]"), ("workers: 2", "workers: 1"), ("trials", "sampler: {name: random}\ntrials"),
    ]  # fmt: skip
    hashes = [load(GOOD.replace(old, new), tmp_path).hash for old, new in changes]
    assert len({spec.hash, *hashes}) == 1 + len(changes)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_sweep_that_is_shipped_loads(path: Path) -> None:
    prefix = f"{path.parent.name}-" if path.parent.name == "compare" else ""
    assert load_spec(path).name == f"{prefix}{path.stem}"


JUNK = ["", ":", "\n", "  ", "- ", "{", "]", "'", "!!x", "*a", "0x1", "1_0", "null", "é", "\t", "1e9"]


def mutated(data: st.DataObject, text: str) -> str:
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.sampled_from(JUNK) | st.text(max_size=3)) + text[start + length :]
    return text


def check_only_spec_errors(path: Path, overrides: list[str]) -> None:
    """Either the spec loads, and what is kept of it reads as the same; or every line of the error says where."""
    starts = (f"{path.parent}/", "--set ")
    try:
        spec = load_spec(path, overrides)
    except SpecError as error:
        found = str(error).splitlines()
    else:
        found = []
        assert spec.trial_config(spec.example_settings()).seed == spec.seed
        kept = path.with_name("kept.yaml")
        kept.write_text(spec.text, encoding="utf-8", newline="")
        assert load_spec(kept) == spec
    assert [line for line in found if not line.startswith(starts)] == []


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_spec_loads_or_is_a_spec_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(mutated(data, GOOD), encoding="utf-8", errors="replace")
    check_only_spec_errors(path, [])


SETTINGS = st.sampled_from(["method.eta", "space.method.zeta", "space", "name", "tracking.uri", "method.name", "x.y.z"])
OVERRIDES = st.lists(
    st.text(max_size=20)
    | st.builds(
        "{}={}".format, SETTINGS, st.text(max_size=12) | st.sampled_from(["0.1", "{int: [1, 2]}", "1e-5", "a"])
    ),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(st.data(), OVERRIDES)
def test_a_mutated_base_and_any_setting_load_or_are_a_spec_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, overrides: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    below = data.draw(st.sampled_from(["below.yaml", "below.yaml", "below.yaml", "child.yaml", ".", "none.yaml"]))
    (folder / "below.yaml").write_text(mutated(data, GOOD), encoding="utf-8", errors="replace")
    (folder / "child.yaml").write_text(
        f"base: {below}\n"
        + data.draw(st.sampled_from(["", "method: {eta: 2}\n", "space: {finetune.lr: {fixed: 1}}\n"]))
    )
    check_only_spec_errors(folder / "child.yaml", overrides)


KEYS = [*TOP_KEYS, "method.zeta", "finetune.epochs", "choice", "int", "uniform", "epochs", "batch_size", "weight_bits"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["gmpq", "resnet8", "digits"])
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)


CONTENT = st.dictionaries(st.sampled_from(TOP_KEYS), VALUES, min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(CONTENT, CONTENT)
def test_any_content_with_a_number_for_a_network_is_a_spec_error(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object], below: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(json.dumps({"base": "any-below.yaml", **content, "network": 0}), encoding="utf-8")
    path.with_name("any-below.yaml").write_text(json.dumps(below), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert [line for line in str(caught.value).splitlines() if not line.startswith(f"{path.parent}/")] == []
