"""References that begin with float weights from files, in the forms in which people have them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from trainables.api import ensure_reference, survey, survey_finetune
from trainables.config import BenchConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.errors import ConfigError, DataMissingError, StorageError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import GmpqConfig
from trainables.models import build_network
from trainables.policy import BitPolicy, LayerBits
from trainables.policy_file import PolicyRecord
from trainables.pretrained import PUBLISHED, begin_with
from trainables.reference import load_bench

TINY = BenchConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, fraction=0.1),
    reference=ReferenceConfig(epochs=0, weights="weights.pt"),
    finetune=FinetuneConfig(epochs=1, batch_size=32, quantizer="pact"),
)
State = dict[str, Tensor]


def network(classes: int = 10) -> nn.Module:
    return build_network("resnet8", num_classes=classes, image_size=8)


def state(classes: int = 10) -> State:
    torch.manual_seed(5)
    return network(classes).state_dict()


def begin(path: Path, net: nn.Module) -> tuple[str, tuple[str, ...]]:
    return begin_with(net, str(path), network="resnet8", image_size=8)


def config_of(path: Path, *, epochs: int = 0) -> BenchConfig:
    return replace(TINY, reference=ReferenceConfig(epochs=epochs, weights=str(path), batch_size=32, lr=1e-9))


FORMS: dict[str, tuple[str, Callable[[State, Path], None]]] = {
    "a state dict": ("a.pt", torch.save),
    "below state_dict": ("a.pth", lambda s, p: torch.save({"state_dict": s, "epoch": 3}, p)),
    "below model": ("a.pth", lambda s, p: torch.save({"model": s}, p)),
    "of a wrapped network": ("a.pt", lambda s, p: torch.save({f"module.{n}": t for n, t in s.items()}, p)),
    "of a compiled, wrapped one": (
        "a.pt",
        lambda s, p: torch.save({"state_dict": {f"_orig_mod.module.{n}": t for n, t in s.items()}}, p),
    ),
    "safetensors": ("a.safetensors", lambda s, p: save_file({n: t.contiguous() for n, t in s.items()}, p)),
    "without counts of batches": (
        "a.pt",
        lambda s, p: torch.save({n: t for n, t in s.items() if not n.endswith("num_batches_tracked")}, p),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_every_form_in_which_people_have_them(tmp_path: Path, form: str) -> None:
    name, write = FORMS[form]
    expected, net = state(), network()
    write(expected, tmp_path / name)
    begun = begin(tmp_path / name, net)
    assert begun == (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(), ())
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_a_head_for_other_classes_stays_fresh_and_is_named(tmp_path: Path) -> None:
    given = state(classes=7)
    torch.save(given, tmp_path / "a.pt")
    net = network()
    head = {name: tensor.clone() for name, tensor in net.fc.state_dict().items()}
    _, fresh = begin(tmp_path / "a.pt", net)
    assert fresh == ("fc",)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, head[name[3:]] if name.startswith("fc.") else given[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.bias"), r"a\.pt does not fit resnet8: missing: fc\.bias\. Give weights of the same"),
        (lambda s: s.update(extra=torch.zeros(1)), "too much: extra"),
        (
            lambda s: s.update({"conv1.weight": torch.zeros(16, 3, 7, 7)}),
            r"of another shape: conv1\.weight \[16, 3, 7, 7\] for \[16, 3, 3, 3\]",
        ),
        # Other features in front of the head are another network, not other classes.
        (lambda s: s.update({"fc.weight": torch.zeros(7, 65)}), r"of another shape: fc\.weight \[7, 65\]"),
    ],
)
def test_weights_of_another_network_are_refused_with_what_is_missing_and_too_much(
    tmp_path: Path, change: Callable[[State], object], message: str
) -> None:
    given = dict(state())
    change(given)
    torch.save(given, tmp_path / "a.pt")
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        begin(tmp_path / "a.pt", net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_files_that_are_none_damaged_or_hold_code_are_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"gone\.pt is no file; name one that every worker sees"):
        begin(tmp_path / "gone.pt", network())
    with pytest.raises(ConfigError, match=r"'weights\.bin'; give torchvision, or a file \.pt, \.pth, \.safetensors"):
        begin(Path("weights.bin"), network())
    for name in ("damaged.pt", "damaged.safetensors"):
        (tmp_path / name).write_bytes(b"half of a file")
        with pytest.raises(DataMissingError, match=rf"{name} cannot be read as tensors alone.*get it again"):
            begin(tmp_path / name, network())
    torch.save(network(), tmp_path / "whole.pt")
    with pytest.raises(DataMissingError, match=r"whole\.pt cannot be read as tensors alone.*state_dict\(\)"):
        begin(tmp_path / "whole.pt", network())
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ConfigError, match=r"empty\.pt holds no state dict"):
        begin(tmp_path / "empty.pt", network())


def test_a_reference_takes_weights_as_they_are_and_notices_when_the_file_changes(tmp_path: Path) -> None:
    path, given = tmp_path / "mine.pt", state()
    torch.save(given, path)
    config, store = config_of(path), tmp_path / "references"
    reports: list[object] = []
    record = ensure_reference(config, reports.append, store=store)
    assert reports == []
    assert record.weights == hashlib.sha256(path.read_bytes()).hexdigest()
    bench = load_bench(config, store=store)
    assert bench.record == record
    assert all(torch.equal(tensor, given[name]) for name, tensor in bench.reference.state_dict().items())
    assert ensure_reference(config, reports.append, store=store) == record
    torch.save(state(classes=9), path)
    with pytest.raises(StorageError, match=r"mine\.pt has changed since .*resnet8-digits.*put the old file back"):
        ensure_reference(config, reports.append, store=store)
    # Nobody needs a file any more that has gone.
    path.unlink()
    assert ensure_reference(config, reports.append, store=store) == record


def test_a_reference_that_is_trained_on_other_classes_records_its_fresh_head(tmp_path: Path) -> None:
    path, given = tmp_path / "mine.pt", state(classes=7)
    torch.save(given, path)
    with pytest.raises(ConfigError, match=r"reference\.epochs is 0, but the head in reference\.weights \(fc\) is not"):
        ensure_reference(config_of(path), lambda epoch: None, store=tmp_path / "references")
    config = config_of(path, epochs=1)
    record = ensure_reference(config, lambda epoch: None, store=tmp_path / "references")
    assert record.fresh == ("fc",)
    content = json.loads((tmp_path / "references" / record.key / "record.json").read_text())
    assert content["fresh"] == ["fc"]
    bench = load_bench(config, store=tmp_path / "references")
    torch.testing.assert_close(bench.reference.get_parameter("conv1.weight").data, given["conv1.weight"])


def test_published_weights_that_cannot_be_fetched_are_an_error_that_tells_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(PUBLISHED["resnet18"].value, "url", "https://127.0.0.1:9/models/resnet18-f37072fd.pth")
    net = models.resnet18(num_classes=10)
    with pytest.raises(DataMissingError, match=r"cannot be fetched.*put resnet18-f37072fd\.pth into .*hub/checkpoints"):
        begin_with(net, "torchvision", network="resnet18", image_size=32)
    place = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    published = models.resnet18().state_dict()
    torch.save(published, place)
    assert begin_with(net, "torchvision", network="resnet18", image_size=32).fresh == ("fc",)
    assert torch.equal(net.conv1.weight, published["conv1.weight"])
    with pytest.raises(ConfigError, match="torchvision, which publishes none for resnet8, but for mobilenet_v2"):
        begin_with(network(), "torchvision", network="resnet8", image_size=8)


def test_weights_that_do_not_fit_are_known_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save({"layer": torch.zeros(1)}, path)
    config = config_of(path, epochs=1)
    trial = TrialConfig(
        network=config.network,
        data=config.data,
        reference=config.reference,
        finetune=config.finetune,
        method=GmpqConfig(zeta=0.3, eta=0.0, batch_size=32),
    )
    with pytest.raises(ConfigError, match=r"mine\.pt does not fit resnet8: missing: conv1\.weight.* more; too much"):
        survey(trial)
    names = [name for name, module in network().named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    policy = BitPolicy(network="resnet8", bits=dict.fromkeys(names, LayerBits(2, 2)))
    record = PolicyRecord(policy=policy, method="gmpq", settings={}, costs={})
    with pytest.raises(ConfigError, match=r"mine\.pt does not fit resnet8"):
        survey_finetune(config, record, threads=1)
