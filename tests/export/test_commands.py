"""`bitfront export` and `bitfront evaluate` on a network that was finetuned here, and the page that describes them."""

import csv
import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner, Result

from service.cli import main
from service.promoted import model_folder, promoted_id
from service.records import SweepRecord, SweepStore
from tests.export.networks import images_of, mixed_policy
from trainables.api import ensure_reference, finetune
from trainables.config import BenchConfig, DataConfig, NetworkConfig, ReferenceConfig
from trainables.export import exporting
from trainables.finetune_config import FinetuneConfig
from trainables.policy_file import PolicyRecord

CONFIG = BenchConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=16, fraction=0.3),
    reference=ReferenceConfig(epochs=1),
    finetune=FinetuneConfig(epochs=1, batch_size=64, quantizer="lsq"),
)
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finetuned network."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finetuned")
    record = mixed_policy("resnet8", image_size=16, num_classes=10, images=images_of("digits", 16, 8), seed=1)
    ensure_reference(CONFIG, lambda epoch: None, store=folder / "references")
    finetune(CONFIG, record, lambda epoch: None, store=folder / "references", output=folder / "model")
    return folder / "model"


@pytest.fixture
def run(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a folder with `model`, the network, and `policy.json`, its policy."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(network, tmp_path / "model")
    shutil.copy(network / "policy.json", tmp_path)

    def command(*arguments: str, status: int = 0) -> Result:
        found = CliRunner().invoke(main, [*arguments])
        assert found.exit_code == status, found.output
        return found

    return command


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_an_onnx_file_is_written_once_it_agrees_on_the_networks_own_data(run: Run) -> None:
    told = run("export", "model", "--format", "onnx", "-o", "n.onnx", "--images", "40").output
    assert re.search(r"n\.onnx: resnet8, policy [0-9a-f]{10}, [0-9.]+ MB, opset 21", told)
    assert re.search(r"on 40 validation images: the same class for (39|40);", told)
    assert re.search(r"in wider integers .*bits in int8 \(\d", told)
    assert "layer by layer on 8 of them" in told
    onnx.checker.check_model("n.onnx", full_check=True)
    assert (
        "n.onnx exists; give another file, or --force"
        in run("export", "model", "--format", "onnx", "-o", "n.onnx", status=2).output
    )


def test_reports_are_for_programs_too(run: Run) -> None:
    told = json.loads(run("export", "model", "--format", "onnx", "-o", "n.onnx", "--images", "0", "--json").output)
    assert told["agreement"] is None
    assert told["layers"]["conv1"] == {"weight": 8, "act": 8, "weight_type": "INT8", "act_type": "INT8"}


def test_a_file_that_does_not_agree_is_not_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = exporting.layer_grids
    from trainables.export import onnx_model

    def wrong(net: torch.nn.Module) -> object:
        grids = insert(net)
        fc = grids["fc"]
        return grids | {"fc": dataclasses.replace(fc, weight=dataclasses.replace(fc.weight, scale=fc.weight.scale * 2))}

    monkeypatch.setattr(onnx_model, "layer_grids", wrong)
    told = run("export", "model", "--format", "onnx", "-o", "n.onnx", status=2).output
    assert "the output differs from exact arithmetic" in told
    assert sorted(path.name for path in Path().iterdir()) == ["model", "policy.json"]


def test_without_the_data_set_noise_is_compared_and_that_is_told(run: Run) -> None:
    card = json.loads(Path("model/model.json").read_text())
    card["config"]["data"] |= {"name": "flowers102", "root": "nowhere"}
    Path("model/model.json").write_text(json.dumps(card))
    told = run("export", "model", "--format", "onnx", "-o", "n.onnx", "--images", "8").output
    assert "images of noise (the data set is not here: --data)" in told
    assert "elsewhere" in run("evaluate", "model", "--data", "elsewhere", status=2).output


def test_missing_packages_are_named_with_the_command_that_brings_them(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else sys)
    told = run("export", "model", "--format", "onnx", "-o", "n.onnx", status=2).output
    assert 'needs onnxscript, which is not installed: pip install "bitfront[export]"' in told
    run("export", "model", "--format", "csv", "-o", "n.csv")


def test_tables_are_of_networks_with_scales_and_of_policies_without(run: Run) -> None:
    run("export", "model", "--format", "csv", "-o", "n.csv")
    run("export", "policy.json", "--format", "csv", "-o", "p.csv")
    of_network, of_policy = rows("n.csv"), rows("p.csv")
    record = PolicyRecord.load(Path("policy.json"))
    assert [row["layer"] for row in of_network] == list(record.policy.bits)
    assert sum(int(row["bops"]) for row in of_network) == round(record.costs["bops_g"] * 1e9)
    assert sum(float(row["share"]) for row in of_network) == pytest.approx(1)
    assert all(float(row["weight_scale"]) > 0 < float(row["act_scale"]) for row in of_network)
    assert {row["weight_scale"] + row["act_scale"] for row in of_policy} == {""}


def test_encodings_need_a_network_and_lie_beside_their_graph(run: Run) -> None:
    told = run("export", "policy.json", "--format", "aimet", "-o", "n.encodings", status=2).output
    assert "A policy becomes a network with `bitfront promote`" in told
    told = run("export", "model", "--format", "aimet", "-o", "n.encodings").output
    assert re.search(r"\d layers have fewer than the 4 bits", told)
    assert json.loads(Path("n.encodings").read_text())["version"] == "0.6.1"
    onnx.checker.check_model("n.onnx")
    told = run("export", "model", "--format", "aimet", "-o", "other.onnx", status=2).output
    assert "-o names the encodings" in told


def stored(kind: str, name: str, storage: Path) -> SweepStore:
    """A sweep or a promotion with one trial, whose folder is the network's policy's."""
    record = SweepRecord(name=name, spec_hash="h", facts={}, total_trials=1, created_ms=1, kind=kind)  # type: ignore[arg-type]
    store = SweepStore.create(storage, record, spec_text=f"name: {name}\n")
    trial = promoted_id(PolicyRecord.load(Path("policy.json")).policy.hash) if kind == "finetune" else "t0000"
    store.plan_trial(trial, number=0, settings={})
    store.start_trial(trial, now_ms=2)
    return store


def test_networks_of_promotions_are_found_by_trial_number_and_digits_of_the_hash(run: Run, tmp_path: Path) -> None:
    trial = promoted_id(PolicyRecord.load(Path("policy.json")).policy.hash)
    store = stored("finetune", "full", tmp_path / "st")
    where = ("--format", "csv", "--storage", "st", "--force", "-o", "n.csv")
    told = run("export", f"full/{trial}", "--format", "aimet", "-o", "n.enc", "--storage", "st", status=2).output
    assert f"full/{trial} is running and has no network: only a finetune that is done has." in told
    shutil.copytree("model", model_folder(store.trial_folder(trial)))
    for name in (trial, trial[1:7], trial[:6], "0"):
        run("export", f"full/{name}", *where)
        assert float(rows("n.csv")[0]["weight_scale"]) > 0
    assert "full has no trial 'ffff0'" in run("export", "full/ffff0", *where, status=2).output


def test_a_trial_of_a_search_has_a_policy_and_no_network(run: Run, tmp_path: Path) -> None:
    stored("search", "s", tmp_path / "st")
    told = run("export", "s/t0000", "--format", "onnx", "-o", "n.onnx", "--storage", "st", status=2).output
    assert "is the trial of a search, which keeps its policy and no network" in told
    assert "bitfront promote s" in told


@pytest.mark.parametrize(
    ("name", "message"),
    [("st", "st holds no finetuned network: it has no model.json"), ("nothing", "no such folder; give the folder")],
)
def test_what_is_no_network_is_told(name: str, message: str, run: Run) -> None:
    Path("st").mkdir()
    assert message in run("export", name, "--format", "onnx", "-o", "n.onnx", status=2).output
    assert message in run("evaluate", name, status=2).output


def test_a_network_measures_what_was_recorded(run: Run) -> None:
    told = run("evaluate", "model").output
    assert re.search(r"top1   recorded ([0-9.]+), measured \1: the same", told)
    found = json.loads(run("evaluate", "model", "--json").output)
    assert found["recorded"] == found["measured"]
    assert found["different"] == []


def test_a_network_that_measures_something_else_ends_with_status_1(run: Run) -> None:
    card = json.loads(Path("model/model.json").read_text())
    card["metrics"]["top1"] += 0.25
    Path("model/model.json").write_text(json.dumps(card))
    told = run("evaluate", "model", status=1).output
    assert "differs" in told
    assert "--within allows it" in told
    assert "close enough" in run("evaluate", "model", "--within", "0.3").output
    card["data_fingerprint"] = "0" * 64
    Path("model/model.json").write_text(json.dumps(card))
    assert "the data set is not the one that it was measured on" in run("evaluate", "model", status=1).output


def test_the_example_in_the_docs_runs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    run("export", "model", "--format", "onnx", "--pixels", "-o", "network.onnx", "--images", "8")
    exec(compile(example, "docs/export.md", "exec"), {})
    error, bops = map(float, capsys.readouterr().out.split())
    # Noise in 2 bits: a tie may have been rounded the other way.
    assert error < 1
    assert bops == PolicyRecord.load(Path("policy.json")).costs["bops_g"]


@pytest.mark.long
def test_a_network_that_was_registered_is_exported_by_its_address(run: Run, tmp_path: Path) -> None:
    record = PolicyRecord.load(Path("policy.json"))
    trial = promoted_id(record.policy.hash)
    store = stored("finetune", "full", tmp_path / "st")
    shutil.copytree("model", model_folder(store.trial_folder(trial)))
    store.save_policy(trial, record)
    metrics = json.loads(Path("model/model.json").read_text())["metrics"]
    done = dataclasses.replace(store.trial(trial), state="done", metrics=metrics, policy_hash=record.policy.hash)
    store.finish_trial(dataclasses.replace(done, ended_ms=3))
    run("register", "full", "--trial", "0", "--alias", "best", "--storage", "st")
    for name in ("models:/full/1", "models:/full@best"):
        run("export", name, "--format", "csv", "-o", "n.csv", "--storage", "st", "--force")
        assert float(rows("n.csv")[0]["weight_scale"]) > 0
    assert "measured" in run("evaluate", "models:/full/1", "--storage", "st").output
