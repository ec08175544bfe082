"""Steps of a search never ask the device for a number: all could be launched without waiting for one to end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.config import NetworkConfig
from trainables.counting import measure
from trainables.data.splits import Batch
from trainables.distributed import Workers
from trainables.method_config import BpnasConfig, EdmipsConfig, GmpqConfig, RgmpqConfig, SupernetConfig
from trainables.methods.gmpq import ImitationTerms
from trainables.methods.loop import Generalisation, make_objective, training_plan
from trainables.models import build_network
from trainables.quantizers import daq, lsq, piecewise, staircase
from trainables.reference_maps import AskedMaps, KeptMaps, MapSetting
from trainables.stepping import Step
from trainables.supernet import assign_roles, build_supernet

WAITING = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
    # Made of Python's numbers: a copy to the device, which waits.
    torch.ops.aten.lift_fresh.default,
)


def mask_of(index: Tensor | None) -> bool:
    """Whether how many entries it chooses is known from its values alone."""
    return index is not None and index.dtype == torch.bool


class Refusing(TorchDispatchMode):
    """Notes operations whose result the host has to know, or that it has to send."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.all = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        self.all += 1
        if func in WAITING or (func is torch.ops.aten.index.Tensor and any(mask_of(index) for index in args[1])):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def refusing() -> Iterator[Refusing]:
    with Refusing() as mode:
        yield mode


def step_of(config: SupernetConfig, batch: Batch) -> Step[Batch]:
    torch.manual_seed(0)
    reference = build_network("resnet8", num_classes=10, image_size=16).eval().requires_grad_(False)
    costs = measure(reference, batch.images)
    supernet = build_supernet(reference, costs, assign_roles(costs, NetworkConfig(name="resnet8")), config)
    supernet.net.requires_grad_(True).train()
    generalisation = None
    if isinstance(config, GmpqConfig):
        said = AskedMaps(reference, MapSetting.of(config, 16), probe=batch.images)(batch)
        theirs = KeptMaps(said.maps, said.risks, "flip")
        generalisation = Generalisation(config.eta, ImitationTerms(supernet, theirs, config, probe=batch.images))
    limits = {"bops_g": 10**8, "storage_mb": 10**6}
    objective = make_objective(supernet.net, supernet, config, generalisation, limits=limits)
    plan = training_plan(supernet, config, lambda epoch: pytest.fail("none are asked for"))
    return Step(supernet.net, plan, objective, Workers(0, 1, torch.device("cpu")))


@pytest.fixture
def batch() -> Batch:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=random)
    return Batch(images, torch.arange(8), torch.arange(8), torch.rand(8, 5, generator=random))


CONFIGS: dict[str, SupernetConfig] = {
    "gmpq": GmpqConfig(zeta=0.1, eta=1.0, barrier=0.1, batch_size=8),
    "gmpq, p": GmpqConfig(zeta=0.1, eta=1.0, p=3.0, batch_size=8),
    "rgmpq": RgmpqConfig(zeta=0.1, eta=1.0, top_k=20, batch_size=8),
    "edmips": EdmipsConfig(zeta=0.1, batch_size=8),
    "bpnas": BpnasConfig(batch_size=8),
    "daq": GmpqConfig(zeta=0.1, eta=1.0, quantizer="daq", batch_size=8),
    "lsq": GmpqConfig(zeta=0.1, eta=1.0, quantizer="lsq", batch_size=8),
    "bf16": GmpqConfig(zeta=0.1, eta=1.0, amp="bf16", channels_last=True, batch_size=8),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_no_step_of_a_search_waits_for_the_device(name: str, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    # What GPUs run: the CPU's own loops may look at numbers.
    monkeypatch.setattr(staircase, "_passes", lambda *tensors: piecewise)
    for quantizer in (daq, lsq):
        monkeypatch.setattr(quantizer, "fused", lambda *tensors: None)
    step = step_of(CONFIGS[name], batch)
    step(batch)
    with refusing() as mode:
        step(batch)
    assert mode.seen == []
    assert mode.all > 500


@pytest.mark.parametrize("look", [lambda x: float(x.sum()), lambda x: x[x > 0], lambda x: torch.tensor(1.0)])
def test_what_waits_is_noticed(look: Any) -> None:
    values: Tensor = torch.randn(4)
    with refusing() as mode:
        look(values)
    assert mode.seen
