"""Whatever is in a file that comes from outside: a value, or an error that is meant for people; in bounded time."""

import ast
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.baseline import Baseline
from service.records import SweepStore
from service.spec import load_spec
from trainables.choices import Choices, Scores
from trainables.errors import BitfrontError
from trainables.indicators import Indicators
from trainables.model_files import ModelCard
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.pretrained import begin_with
from trainables.report import ReferenceRecord
from trainables.samples import SampleImages
from trainables.tensor_files import read_tensors

ROOT = Path(__file__).parents[2]
TIGHT = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "policy": ("policy.json", PolicyRecord.load),
    "indicators": ("indicators.json", Indicators.load),
    "choices": ("choices.json", Choices.load),
    "model card": ("model.json", lambda path: ModelCard.load(path.parent)),
    "reference": ("record.json", lambda path: ReferenceRecord.find(path.parent.parent, path.parent.name)),
    "random policy": ("random/record.json", lambda path: Baseline.find(path.parent.parent)),
    "sweep": ("sweep.json", lambda path: SweepStore(path.parent).sweep()),
    "trial": ("trials/t0000/trial.json", lambda path: SweepStore(path.parents[2]).trials()),
    "result": ("trials/t0000/result.json", lambda path: SweepStore(path.parents[2]).trial("t0000")),
    "history": ("trials/t0000/history.jsonl", lambda path: SweepStore(path.parents[2]).history("t0000")),
    "rungs": ("rungs.jsonl", lambda path: SweepStore(path.parent).rungs()),
    "sample images": ("images.npz", SampleImages.load),
    "tensors": ("model.pt", read_tensors),
    "spec": ("s.yaml", load_spec),
}
"""File and reader, by what it is."""


def examples() -> dict[str, Any]:
    """What each JSON file looks like where it is whole."""
    policy = PolicyRecord(
        policy=BitPolicy(network="resnet8", bits={"conv": LayerBits(4, 4)}),
        method="gmpq",
        settings={"eta": 1.0},
        costs={"bops_g": 1.0},
    )
    scores = Scores((2, 4), (0.1, 0.2))
    choices = Choices(
        network="resnet8",
        layers=("conv",),
        weights={"conv": scores},
        acts={"g": scores},
        group_of={"conv": "g"},
        pinned={},
    )
    trial = {"trial_id": "t0000", "number": 0, "state": "done", "settings": {"x": 1}, "metrics": {"top1": 1.0}}
    epoch = {"time_ms": 1, "seconds": 1.0, "stage": "search", "epoch": 1, "epochs": 2, "metrics": {"loss": 0.5}}
    return {
        "policy": json.loads(policy.to_json()),
        "indicators": {"weight": {"conv": {"2": 0.1}}, "act": {"conv": {"2": 0.1}}, "layer_name": ["conv"]},
        "choices": choices.to_content(),
        "model card": {
            "task": "classification", "network": "resnet8", "num_classes": 10, "image_size": 8, "quantizer": "lsq",
            "mean": [0.5], "std": [0.5], "class_names": ["a"], "metrics": {"top1": 1.0},
            "config": {}, "data_fingerprint": "",
        },
        "reference": {"key": "k", "top1": 9.0, "device_hours": 0.1, "data_fingerprint": "f", "fresh": []},
        "random policy": {"knee": "t0000", "knee_policy": "h", "seed": 0, "metrics": {"top1": 1.0}},
        "sweep": {"name": "s", "spec_hash": "h", "facts": {}, "total_trials": 1, "created_ms": 1, "constraints": ["x"]},
        "trial": trial,
        "result": trial,
        "history": epoch,
        "rungs": {"trial_id": "t0000", "epoch": 1, "stage": "search", "values": [0.5]},
    }  # fmt: skip


def file_for(folder: Path, what: str) -> Path:
    path = folder / READERS[what][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def read(what: str, path: Path) -> object:
    """The value, or None for an error that is meant for people; whatever else is raised fails the test."""
    try:
        return READERS[what][1](path)
    except BitfrontError as error:
        if not str(error).strip() or "Traceback" in str(error):
            raise AssertionError(f"{path.name}: not meant for people") from error
        return None
    except FileNotFoundError:
        return None


def test_the_examples_are_whole(tmp_path: Path) -> None:
    for what, content in examples().items():
        path = file_for(tmp_path, what)
        path.write_text(json.dumps(content) + "\n")
        assert read(what, path), what
        path.unlink()


@pytest.mark.parametrize("what", READERS)
def test_whatever_bytes_a_file_holds_it_is_read_or_refused(tmp_path: Path, what: str) -> None:
    path = file_for(tmp_path, what)
    form = st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))

    @TIGHT
    @given(form)
    def hold(content: bytes) -> None:
        path.write_bytes(content)
        read(what, path)

    hold()


def places(content: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*here, key))


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = content.copy()
    copy[place[0]] = changed(copy[place[0]], place[1:], value)
    return copy


ODD = [
    None,
    True,
    -1,
    10**400,
    1e308,
    "",
    "../x",
    "\x00",
    [],
    {},
    [[]],
    {"": 0},
    {"a": {"b": []}},
    float("nan"),
    float("inf"),
]


@pytest.mark.parametrize("what", examples())
def test_a_value_of_another_kind_anywhere_is_read_or_refused(tmp_path: Path, what: str) -> None:
    content, path = examples()[what], file_for(tmp_path, what)
    for place in places(content):
        for odd in ODD:
            path.write_text(json.dumps(changed(content, place, odd)) + "\n")
            read(what, path)


DEEP = 100_000
HOSTILE = {
    "nested lists": "[" * DEEP + "]" * DEEP,
    "nested objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "lists that never end": "[" * DEEP,
    "deep in a known key": '{"bitfront_policy": 2, "settings": ' + "[" * 900 + "]" * 900 + "}",
    "a number of a million digits": '{"bitfront_policy": ' + "9" * 1_000_000 + "}",
    "many keys": "{" + ",".join(f'"k{n}": {n}' for n in range(100_000)) + "}",
    "the same key again and again": "{" + ",".join('"a": 1' for _ in range(100_000)) + "}",
}


@pytest.mark.parametrize("what", READERS)
def test_files_that_are_made_to_do_harm_are_refused_at_once(tmp_path: Path, what: str) -> None:
    path = file_for(tmp_path, what)
    for name, text in HOSTILE.items():
        path.write_text(text)
        began = time.process_time()
        found = read(what, path)
        assert time.process_time() - began < 3, name
        assert not found, name


BILLION = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
)
YAMLS = {
    "aliases that double twenty times": (BILLION, "anchors and aliases are not used here"),
    "nested lists": ("a: " + "[" * 5000, "nested too deeply|not YAML"),
    "nested mappings": ("a: " + "{b: " * 900 + "1" + "}" * 900, "nested too deeply"),
    "nested by indentation": ("".join(" " * n + "a:\n" for n in range(300)), "nested too deeply"),
    "a key twice": ("name: s\nname: t\n", "the key stands twice"),
    "no number": ("name: .nan\n", "expected a finite number"),
    "a tag that makes an object": ("name: !!python/object/apply:os.system [id]\n", "is not used here"),
    "too large": ("name: s\n" + "#" * (1 << 16), "larger than 64 KiB"),
    "two documents": ("name: s\n---\nname: t\n", "not YAML|single document"),
    "keys without values": ("a: {" + "b," * 32_000 + "}", "more than 32768 keys and values"),
    "three thousand unknown keys": ("".join(f"{n:x}: 1\n" for n in range(3_000)), "… and [0-9]+ more"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_that_is_made_to_do_harm_is_refused_at_once_with_the_reason(tmp_path: Path, name: str) -> None:
    text, message = YAMLS[name]
    path = tmp_path / "s.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(BitfrontError, match=message) as found:
        load_spec(path)
    assert time.process_time() - began < 3
    assert len(str(found.value)) < 20_000


def test_a_sweep_that_is_short_enough_is_not_refused_for_its_many_values_nor_is_what_is_kept_of_it(
    tmp_path: Path,
) -> None:
    points = "".join(f"    - {{method.zeta: {n / 1000}, method.eta: 1}}\n" for n in range(1, 1000))
    spec = (
        "name: s\nnetwork: {name: resnet8}\ndata: {name: digits, image_size: 8}\nreference: {epochs: 1}\n"
        "method: {name: gmpq, epochs: 4}\nfinetune: {epochs: 4}\n"
        "space: {method.zeta: {uniform: [0, 1]}, method.eta: {uniform: [0, 1]}}\n"
        f"trials: 999\nwarm_start:\n  points:\n{points}"
    )
    path, kept = tmp_path / "s.yaml", tmp_path / "kept.yaml"
    path.write_text(spec)
    merged = load_spec(path, ["seed=3"])
    kept.write_text(merged.text)
    assert len(load_spec(kept).warm_start.points) == len(merged.warm_start.points) == 999


class Trap:
    """Leaves a folder behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_arrays_and_weights_that_are_pickles_are_refused_without_being_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    np.savez(tmp_path / "images.npz", maps=np.array([Trap(sprung)], dtype=object))
    torch.save({"weights": Trap(sprung)}, tmp_path / "weights.pt")
    (tmp_path / "indicators.pkl").write_bytes(pickle.dumps(Trap(sprung)))
    net = torch.nn.Linear(1, 1)
    for refused in (
        lambda: SampleImages.load(tmp_path / "images.npz"),
        lambda: begin_with(net, str(tmp_path / "weights.pt"), network="n", image_size=8),
        lambda: Indicators.load(tmp_path / "indicators.pkl"),
    ):
        with pytest.raises(BitfrontError, match=r"cannot be read|is a pickle|lacks|damaged|weights_only"):
            refused()
    assert not sprung.exists()


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    for folder in ("service", "trainables", "dashboards"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


UNSAFE = {
    "pickle.load",
    "pickle.loads",
    "joblib.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "dill.load",
    "eval",
    "exec",
}
OWN = {"cloudpickle.loads": "service/orchestrate/scheduler.py"}
"""What Ray itself has written on this machine a moment before."""


def test_nothing_is_read_that_could_run_code() -> None:
    for place, name, call in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in UNSAFE, place
        if name in OWN:
            assert place.startswith(OWN[name]), place
        if name == "torch.load":
            assert given.get("weights_only") == "True", place
        if name == "np.load":
            assert given.get("allow_pickle", "False") == "False", place
