"""A user's own network: from its import path in a sweep to its costs, and what is wrong with it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from service.orchestrate.jobs import _pack
from service.spec import load_spec
from trainables import api
from trainables.errors import ConfigError, SpecError
from trainables.models import build_network, check_network

MODULE = """\
import torch
from torch import nn

def small(num_classes):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def sized(*, image_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 5), nn.Linear(5, num_classes))

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def no_module(num_classes):
    return num_classes

def wrong_head(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

def wrong_channels(num_classes):
    return nn.Conv2d(1, 8, 3)

def no_classes():
    return nn.Flatten()
"""
SPEC = """\
name: own
network: {name: "my_nets:small", pinned: {"2": 4}}
data: {name: digits, image_size: 8}
reference: {epochs: 1}
method: {name: gmpq, eta: 1.0}
finetune: {epochs: 1}
space: {method.zeta: {loguniform: [0.1, 1.0]}}
trials: 1
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_nets.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_nets", None)


def test_a_sweep_with_a_network_by_import_path_is_checked_and_surveyed(folder: Path) -> None:
    path = folder / "sweep.yaml"
    path.write_text(SPEC.replace(', pinned: {"2": 4}', ""))
    spec = load_spec(path)
    config = spec.trial_config(spec.example_settings())
    found = api.survey(config)
    assert found.searched == ("2",)
    assert found.pinned == {"0": 8, "6": 8}
    macs = 64 * 9 * 3 * 8 + 64 * 9 * 8 * 8 + 8 * 10
    assert found.full_bops_g == macs * 1024 / 1e9
    assert found.map_pixels == {"native": 64, "input": 64}


def test_a_name_that_is_no_import_path_is_a_finding_with_its_place_in_the_file(folder: Path) -> None:
    path = folder / "sweep.yaml"
    path.write_text(SPEC.replace("my_nets:small", "my_nets.py:small"))
    with pytest.raises(SpecError, match=r"sweep\.yaml:2:17: network\.name: 'my_nets\.py:small' is no import path"):
        load_spec(path)


def test_a_file_is_checked_where_the_users_module_is_not() -> None:
    check_network("a_module_of_another_machine:f")


@pytest.mark.parametrize(("name", "parameters"), [("sized", 5 * 193 + 18), ("Net", 12)])
def test_a_function_is_given_the_image_size_where_its_signature_asks_for_it(name: str, parameters: int) -> None:
    net = build_network(f"my_nets:{name}", num_classes=3, image_size=8)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_module", r"'my_nets:no_module' returned a int; return a torch\.nn\.Module"),
        ("wrong_head", r"of one image of 8×8 pixels and 4 classes its network makes \(1, 3\); .* shape \(1, 4\)"),
        ("wrong_channels", r"'my_nets:wrong_channels' failed at .*conv\.py:\d+: RuntimeError: .*channels"),
        ("no_classes", r"'my_nets:no_classes' failed: TypeError: no_classes\(\) got an unexpected .* 'num_classes'"),
        ("absent", r"has no 'absent'; known: .*small"),
    ],
)
def test_a_network_that_does_not_fit_is_an_error_before_anything_is_trained(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^network\.name: .*{message}"):
        build_network(f"my_nets:{name}", num_classes=4, image_size=8)


def test_trying_a_network_changes_nothing_in_it() -> None:
    torch.manual_seed(0)
    built = build_network("my_nets:small", num_classes=4, image_size=8)
    torch.manual_seed(0)
    fresh = sys.modules["my_nets"].small(4)
    for name, value in fresh.state_dict().items():
        assert torch.equal(built.state_dict()[name], value)


def test_a_job_takes_the_users_code_along(folder: Path) -> None:
    """Run in the job's folder alone, as the cluster does."""
    path, sent = folder / "sweep.yaml", folder / "sent"
    path.write_text(SPEC)
    sent.mkdir()
    _pack(load_spec(path), sent)
    code = (
        "from service.spec import load_spec; from pathlib import Path; from trainables.models import build_network;"
        "spec = load_spec(Path('sweep.yaml')); config = spec.trial_config(spec.example_settings());"
        "net = build_network(config.network.name, num_classes=4, image_size=8);"
        "import trainables, my_nets; print(trainables.__file__, my_nets.__file__)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=sent, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(sent / "trainables" / "__init__.py"), str(sent / "my_nets.py")]
