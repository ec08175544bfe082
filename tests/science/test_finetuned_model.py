"""A finetuned network in its folder: whole or not there, built again exactly, measured again to the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from trainables import model_folder
from trainables.api import FinetuneResult, count, ensure_reference, finetune
from trainables.config import BenchConfig, DataConfig, NetworkConfig, ReferenceConfig
from trainables.data import load_data
from trainables.errors import ConfigError, StorageError
from trainables.finetune_config import FinetuneConfig
from trainables.finetuned_model import load_model, measure_model
from trainables.folders import replaced
from trainables.model_folder import save_model
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.reference import load_bench

TINY = BenchConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, fraction=0.3),
    reference=ReferenceConfig(epochs=3),
    finetune=FinetuneConfig(epochs=2, batch_size=64, quantizer="pact", ema=0.9),
)


@dataclass
class Made:
    """A network that was finetuned from another data set's policy."""

    folder: Path
    result: FinetuneResult
    given: PolicyRecord


def quiet(epoch: object) -> None:
    """No report is wanted."""


def policy_elsewhere() -> PolicyRecord:
    """As a search on larger images of other classes found it."""
    work = count("resnet8", image_size=32, num_classes=7)
    bits = {name: LayerBits(4, 3) for name in work.layers} | {"conv1": LayerBits(6, 8), "fc": LayerBits(7, 7)}
    policy = BitPolicy(network="resnet8", bits=bits, pinned=frozenset({"conv1", "fc"}))
    return PolicyRecord.measured(policy, work, method="gmpq", settings={"eta": 1.0}, image_size=32, num_classes=7)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root, given = tmp_path_factory.mktemp("finetuned"), policy_elsewhere()
    ensure_reference(TINY, quiet, store=root / "references")
    result = finetune(TINY, given, quiet, store=root / "references", output=root / "model")
    yield Made(root / "model", result, given)
    torch.set_num_threads(threads)


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "model"))


def test_a_network_that_is_loaded_again_has_exactly_the_recorded_accuracy(made: Made) -> None:
    measured = measure_model(made.folder, TINY)
    assert dict(measured) == {name: made.result.metrics[name] for name in ("top1", "top5")}
    assert 12 < measured["top1"] < measured["top5"] < 100
    loaded = load_model(made.folder)
    assert not loaded.net.training
    assert loaded.card.metrics == made.result.metrics


def test_the_card_says_what_is_needed_to_use_the_network(made: Made) -> None:
    card, data = load_model(made.folder).card, load_data(TINY.data)
    assert (card.task, card.network, card.num_classes, card.image_size) == ("classification", "resnet8", 10, 8)
    assert card.quantizer == "pact"
    assert card.data_fingerprint == data.fingerprint
    assert card.config["finetune"]["ema"] == 0.9
    places = torch.arange(5)
    images, _ = data.validation.batch(places, None)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    torch.testing.assert_close((data.validation.pixels(places) / 255 - mean) / std, images, rtol=1e-4, atol=1e-4)


def test_the_policy_is_the_given_one_with_the_work_of_the_network_that_was_finetuned(made: Made) -> None:
    record = load_model(made.folder).record
    here = count("resnet8", image_size=8, num_classes=10)
    assert record.policy == made.given.policy
    assert (record.method, dict(record.settings)) == ("gmpq", {"eta": 1.0})
    assert (record.image_size, record.num_classes) == (8, 10)
    assert record.costs["bops_g"] == here.bops_g(record.policy) == made.result.metrics["bops_g"]
    assert record.costs["bops_g"] != made.given.costs["bops_g"]


def test_writing_again_replaces_and_writing_that_fails_leaves_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(folder)
    card = replace(loaded.card, class_names=("a",) * 10)
    save_model(loaded.net, card, loaded.record, folder)
    assert load_model(folder).card.class_names == card.class_names

    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(model_folder, "save_tensors", full)
    with pytest.raises(StorageError, match=r"model: the network cannot be written \(No space left.*make room"):
        save_model(loaded.net, loaded.card, loaded.record, folder)
    monkeypatch.undo()
    assert load_model(folder).card.class_names == card.class_names
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.pt", "policy.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.json", "holds no finetuned network: it has no model.json"),
        ("policy.json", "policy.json: no such file. Finetune the policy again, or copy"),
        ("model.pt", "has no model.pt; finetune the policy again"),
    ],
)
def test_a_missing_file_is_named_with_the_fix(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(StorageError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", b"{}", r"model\.json cannot be read"),
        ("policy.json", b"{", r"policy\.json:1:2: not JSON.*Finetune the policy again"),
        ("model.pt", b"PK\x03\x04 half", r"model\.pt cannot be read.*copy it again, or finetune"),
    ],
)
def test_a_damaged_file_is_named_with_the_fix(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(StorageError, match=message):
        load_model(folder)


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code was run",)


def test_code_in_the_weights_is_never_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv1.weight": Evil()}, folder / "model.pt")
    with pytest.raises(StorageError, match=r"model\.pt cannot be read"):
        load_model(folder)
    assert "code was run" not in capsys.readouterr().out


def test_files_of_different_networks_are_told(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    for change, message in (
        ({"num_classes": 11}, "the weights are not those of the network"),
        ({"network": "mobilenet_v2", "image_size": 32}, "names layers that mobilenet_v2 does not have"),
        ({"task": "segmentation"}, "the task 'segmentation' is not known"),
    ):
        (folder / "model.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(StorageError, match=message):
            load_model(folder)
    torch.save(nn.Linear(1, 1).state_dict(), folder / "model.pt")
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(StorageError, match="the weights are not those of the network"):
        load_model(folder)


def test_data_of_another_size_are_refused(made: Made) -> None:
    with pytest.raises(ConfigError, match="made for images of 8 pixels in 10 classes, but data has 16 pixels"):
        measure_model(made.folder, replace(TINY, data=replace(TINY.data, image_size=16)))


def test_a_policy_of_other_layers_is_refused_before_a_step(made: Made) -> None:
    policy = made.given.policy
    other = replace(made.given, policy=replace(policy, bits={**policy.bits, "layer9": LayerBits(2, 2)}))
    with pytest.raises(ConfigError, match="layer9"):
        finetune(TINY, other, quiet, store=made.folder.parent / "references")


@pytest.mark.long
@pytest.mark.parametrize("quantizer", ["pact", "hwgq", "lsq", "daq"])
@pytest.mark.parametrize("network", ["resnet8", "mobilenet_v2", "deit_tiny_patch4"])
def test_every_quantiser_is_built_again_exactly(tmp_path: Path, quantizer: str, network: str) -> None:
    config = replace(
        TINY,
        network=NetworkConfig(name=network),
        data=replace(TINY.data, fraction=0.1, image_size=64 if network == "mobilenet_v2" else 8),
        reference=ReferenceConfig(epochs=1),
        finetune=FinetuneConfig(epochs=1, batch_size=32, quantizer=quantizer),  # type: ignore[arg-type]
    )
    ensure_reference(config, quiet, store=tmp_path / "references")
    work = load_bench(config, store=tmp_path / "references").costs
    policy = BitPolicy(network=network, bits={name: LayerBits(4, 4) for name in work.layers})
    record = PolicyRecord(policy=policy, method="uniform", settings={}, costs={})
    result = finetune(config, record, quiet, store=tmp_path / "references", output=tmp_path / "model")
    assert measure_model(tmp_path / "model", config)["top1"] == result.metrics["top1"]


def test_what_was_there_comes_back_where_the_new_folder_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename, moved = tmp_path / "model", Path.rename, []
    folder.mkdir()
    (folder / "old").touch()

    def second_fails(path: Path, target: Path) -> Path:
        moved.append(path)
        if len(moved) == 2:
            raise OSError("gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="gone"), replaced(folder) as unfinished:
        (unfinished / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
