"""Every mistake is found, at its place, in plain words; and nothing else than SpecError ever comes out."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.spec import TOP_KEYS, load_spec
from trainables.config import EdmipsConfig, GmpqConfig
from trainables.errors import SpecError

ROOT = Path(__file__).parents[2]
GOOD = """\
name: good
network: {name: resnet8}
data: {name: digits, image_size: 16}
reference: {epochs: 20}
method:
  name: gmpq
  eta: 1.0
  weight_bits: [2, 4]
finetune: {epochs: 8}
space:
  method.zeta: {loguniform: [1e-2, 1.0]}
  method.capacity: {choice: [12.0, 24.0]}
  finetune.epochs: {int: [1, 3]}
trials: 8
resources: {workers: 2}
"""
GOOD = GOOD.replace("finetune: {epochs: 8}\n", "finetune: {batch_size: 128}\n")

CASES = [
    # what (once in the good spec), replaced by, line:column, message
    ("name: good", "name: Good Name", "1:7", "name is 'Good Name'"),
    ("name: good", "name: ../up", "1:7", "name is '../up'"),
    ("name: good\n", "", "1:1", "name: missing"),
    ("resnet8", "resnet9", "2:17", "unknown network 'resnet9'; did you mean 'resnet8'?"),
    ("{name: resnet8}", "resnet8", "2:10", "network: found 'resnet8'; expected settings below it"),
    ("{name: resnet8}", "{name: resnet8, stem_bits: 99}", "2:37", "stem_bits is 99; give 2 to 16 bits"),
    ("{name: resnet8}", "{name: resnet8, pinned: {a: 1.5}}", "2:38", "a: found 1.5; expected a whole number"),
    ("digits", "digit", "3:14", "unknown data set 'digit'; did you mean 'digits'?"),
    ("image_size: 16", "image_size: '16'", "3:34", "data.image_size: found '16'; expected a whole number"),
    ("image_size: 16", "image_size: -1", "3:34", "data.image_size is -1; give a positive number"),
    ("image_size: 16", "augment: flip", "3:1", "data.image_size: missing"),
    ("image_size: 16", "image_size: 16, augment: mirror", "3:47", "found 'mirror'; expected one of 'none', 'flip'"),
    ("{epochs: 20}", "{epochs: 20, lr: fast}", "4:29", "reference.lr: found 'fast'; expected a number"),
    ("{epochs: 20}", "{epochs: true}", "4:21", "reference.epochs: found True; expected a whole number"),
    ("{epochs: 20}", "{epochs: 20, epochs: 3}", "4:25", "reference.epochs: the key stands twice"),
    ("{epochs: 20}", "{epochs: 20, batch_size: 63}", "4:37", "63 images cannot be shared equally by 2 workers"),
    ("name: gmpq", "name: gmqp", "6:9", "unknown method 'gmqp'; did you mean 'gmpq'?"),
    ("  name: gmpq\n", "", "5:1", "method.name: missing"),
    ("eta: 1.0", "eta: .nan", "7:8", "found .nan; expected a finite number"),
    ("eta: 1.0", "eta: 1e999", "7:8", "found 1e999; expected a finite number"),
    ("eta: 1.0", "eta:", "7:7", "method.eta: has no value"),
    ("eta: 1.0", "etta: 1.0", "7:3", "method.etta: unknown key 'etta'; did you mean 'eta'?"),
    ("eta: 1.0", "eta: 1.0\n  zeta: 0.5", "12:3", "zeta: also fixed under 'method:'"),
    ("[2, 4]", "[1, 4]", "8:16", "'pact' has no 1-bit weights"),
    ("[2, 4]", "[2, 2]", "8:16", "method.weight_bits is [2, 2]; give different widths"),
    ("[2, 4]", "[2, x]", "8:20", "found 'x'; expected a whole number"),
    ("[2, 4]", "4", "8:16", "method.weight_bits: found 4; expected a list in brackets"),
    ("method.zeta", "method.zetta", "11:3", "'method.zetta' is not a setting; did you mean 'method.zeta'?"),
    ("loguniform: [1e-2, 1.0]", "loguniform: [0, 1.0]", "11:16", "a log scale needs positive numbers"),
    ("loguniform: [1e-2, 1.0]", "uniform: [-1, 1.0]", "11:16", "method.zeta is -1.0; give zero or a positive number"),
    ("loguniform: [1e-2, 1.0]", "uniform: [2, 1]", "11:16", "uniform: low 2 is not below high 1"),
    ("loguniform: [1e-2, 1.0]", "normal: [0, 1]", "11:16", "unknown kind of range 'normal'"),
    ("{loguniform: [1e-2, 1.0]}", "0.5", "11:16", "found 0.5; expected one of {choice: [...]}"),
    ("choice: [12.0, 24.0]", "choice: []", "12:20", "choice: the list is empty"),
    ("choice: [12.0, 24.0]", "choice: [12.0, 12.0]", "12:20", "12.0 stands twice"),
    ("choice: [12.0, 24.0]", "choice: [0.0, 24.0]", "12:20", "method.capacity is 0.0; give a positive number"),
    ("choice: [12.0, 24.0]", "choice: [big]", "12:20", "method.capacity: found 'big'; expected a number"),
    (
        "method.capacity: {choice: [12.0, 24.0]}",
        "method.act_bits: {choice: [2, 3]}",
        "12:3",
        "'method.act_bits' is a list, which a space cannot vary; fix it in its section",
    ),
    ("int: [1, 3]", "int: [1, 2.5]", "13:20", "expected whole numbers, or use 'uniform'"),
    ("int: [1, 3]", "int: [0, 3]", "13:20", "finetune.epochs is 0; give a positive number"),
    ("trials: 8", "trials: 0", "14:9", "trials is 0; give at least 1"),
    ("trials: 8", "trials: 8\nseed: -3", "15:7", "seed is -3; give zero or a positive number"),
    ("{epochs: 20}", "{epochs: 20, seed: -3}", "4:31", "reference.seed is -3; give zero or a positive number"),
    ("trials: 8", "trials: 8\ntags: {x$: y}", "15:7", "tags: the name 'x$' has signs that MLflow refuses"),
    ("trials: 8", "trails: 8", "14:1", "unknown key 'trails'; did you mean 'trials'?"),
    ("{workers: 2}", "{workers: 2, launch: process}", "15:33", "launch is 'process', which has one worker, not 2"),
    ("{workers: 2}", "&a {workers: 2}", "15:12", "anchors and aliases are not used here"),
    ("{workers: 2}", "!!python/object:os.system {}", "15:12", "the tag"),
    ("{workers: 2}", "{workers: 2", "16:1", "not YAML"),
    ("name: good", "name: _x", "1:7", "a letter or digit first"),
    ("name: good", "name: !!str good", "1:7", "the tag 'tag:yaml.org,2002:str' is not used here"),
    ("name: good", 'name: "\\ud800"', "1:7", r"found '\ud800', in which \ud800 to \udfff is half of a character"),
    ("{workers: 2}", "{workers: 2}\nsampler: {seed: -1}", "16:17", "sampler.seed is -1; give 0 to 4294967295"),
    ("{workers: 2}", "{workers: 2}\ntracking: {experiment: ''}", "16:24", "tracking.experiment is ''; give the name"),
    ("batch_size: 128", "batch_size: 127", "9:24", "127 images cannot be shared equally by 2 workers"),
    (
        "method.capacity: {choice: [12.0, 24.0]}",
        "method.batch_size: {choice: [64, 63]}",
        "12:22",
        "space.method.batch_size: 63 images cannot be shared equally by 2 workers; give multiples of 2",
    ),
    (
        "method.capacity: {choice: [12.0, 24.0]}",
        "method.batch_size: {int: [64, 128]}",
        "12:22",
        "space.method.batch_size: 65 images cannot be shared equally by 2 workers",
    ),
    (
        "[2, 4]\nfinetune: {batch_size: 128}\nspace:",
        "[1, 4]\nfinetune: {batch_size: 128}\nspace:\n  method.quantizer: {choice: [hwgq, pact]}",
        "11:21",
        "space.method.quantizer: with 'pact', method.weight_bits: 'pact' has no 1-bit weights",
    ),
]


def load(text: str, folder: Path) -> object:
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return load_spec(path)


@pytest.mark.parametrize(("old", "new", "place", "message"), CASES, ids=[f"{c[2]} {c[3][:40]}" for c in CASES])
def test_a_mistake_is_found_at_its_place(tmp_path: Path, old: str, new: str, place: str, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(SpecError) as caught:
        load(GOOD.replace(old, new), tmp_path)
    lines = str(caught.value).splitlines()
    wanted = f"{tmp_path}/s.yaml:{place}: "
    assert any(line.startswith(wanted) and message in line for line in lines), f"{wanted}{message}\n" + "\n".join(lines)


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


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_sweep_that_is_shipped_loads(path: Path) -> None:
    assert load_spec(path).name == path.stem


JUNK = ["", ":", "\n", "  ", "- ", "{", "]", "'", "!!x", "*a", "0x1", "1_0", "null", "é", "\t", "1e9"]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_spec_loads_or_is_a_spec_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.sampled_from(JUNK) | st.text(max_size=3)) + text[start + length :]
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        spec = load_spec(path)
    except SpecError as error:
        found = str(error).splitlines()
    else:
        found = []
        assert spec.trial_config(spec.example_settings()).seed == spec.seed
    assert [line for line in found if not line.startswith(f"{path}:")] == []


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


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(TOP_KEYS), VALUES, min_size=1, max_size=6))
def test_any_content_with_a_number_for_a_network_is_a_spec_error(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(json.dumps({**content, "network": 0}), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert [line for line in str(caught.value).splitlines() if not line.startswith(f"{path}:")] == []
