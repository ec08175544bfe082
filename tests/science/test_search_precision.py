"""Searches in mixed precision and channels last: nearly the plain one's numbers; maps are in float32."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainables import methods
from trainables.attribution import Attribution
from trainables.config import BudgetConfig, DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.distributed import Workers
from trainables.errors import ConfigError
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import EdmipsConfig, GmpqConfig, LimpqConfig, MethodConfig, RgmpqConfig
from trainables.methods.loop import make_objective, training_plan
from trainables.reference import Bench, ensure_reference, load_bench
from trainables.reference_maps import KeptMaps
from trainables.report import EpochReport
from trainables.stepping import Step
from trainables.supernet import build_supernet

SHORT = {"epochs": 1, "batch_size": 64}
METHODS: dict[str, MethodConfig] = {
    "gmpq": GmpqConfig(zeta=0.1, eta=1.0, weight_lr=0.01, **SHORT),  # type: ignore[arg-type]
    "rgmpq": RgmpqConfig(zeta=0.1, eta=1.0, weight_lr=0.01, **SHORT),  # type: ignore[arg-type]
    "edmips": EdmipsConfig(zeta=0.1, weight_lr=0.01, **SHORT),  # type: ignore[arg-type]
    "limpq": LimpqConfig(fraction=0.5, **SHORT),  # type: ignore[arg-type]
}
TRIAL = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=16, fraction=0.1, augment="flip"),
    reference=ReferenceConfig(epochs=2),
    method=METHODS["gmpq"],
    finetune=FinetuneConfig(epochs=1, batch_size=64),
    budget=BudgetConfig(compression=50.0),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TRIAL, lambda report: None, store=folder)
    return folder


def reports(store: Path, method: MethodConfig) -> list[EpochReport]:
    found: list[EpochReport] = []
    trial = replace(TRIAL, method=method)
    methods.search(load_bench(trial, store=store), trial, found.append)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_search_in_bf16_and_channels_last_is_nearly_the_plain_one(store: Path, name: str) -> None:
    plain, half = (
        reports(store, replace(METHODS[name], amp=amp, channels_last=amp != "none"))  # type: ignore[call-arg]
        for amp in ("none", "bf16")
    )
    for one, other in zip(plain, half, strict=True):
        assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=0.1)
        assert other.metrics["loss"] != one.metrics["loss"]


def test_a_search_in_which_each_layer_is_offered_one_width_trains_its_weights(store: Path) -> None:
    (only,) = reports(store, replace(METHODS["edmips"], weight_bits=(4,), act_bits=(4,)))
    assert only.metrics["certainty"] == 1.0


@pytest.mark.parametrize("name", ["gmpq", "limpq"])
def test_a_precision_that_the_device_has_not_is_refused_by_the_name_of_its_setting(store: Path, name: str) -> None:
    message = r"method\.amp is fp16, which scales losses on a GPU, but there is none here; give bf16 or none"
    with pytest.raises(ConfigError, match=message):
        reports(store, replace(METHODS[name], amp="fp16"))  # type: ignore[call-arg]


def bench(store: Path) -> Bench:
    return load_bench(TRIAL, store=store)


def test_maps_of_an_autocast_pass_are_those_of_its_features_in_single_precision(store: Path) -> None:
    stand = bench(store)
    net = copy.deepcopy(stand.reference)
    tap = Attribution(net, stand.probe)
    outs: list[Tensor] = []
    net.get_submodule(tap.feature_layer).register_forward_hook(lambda module, inputs, out: outs.append(out))
    classes = torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = tap.maps(net(stand.probe), classes)
    (features,) = outs
    assert (features.dtype, maps.dtype) == (torch.bfloat16, torch.float32)
    expected = torch.relu(torch.einsum("nc,nchw->nhw", net.fc.weight[classes], features.float()))  # type: ignore[index,union-attr]
    torch.testing.assert_close(maps, expected / expected.sum((1, 2), keepdim=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_fused_update_in_either_layout_is_the_plain_one(store: Path, channels_last: bool) -> None:
    """Fused loops pair weights and gradients by their place in memory."""
    stand, ends = bench(store), []
    batch = next(iter(stand.training_batches(0, 64)))
    for fused in (True, False):
        config = GmpqConfig(zeta=0.1, eta=0.0, channels_last=channels_last, batch_size=64)
        supernet = build_supernet(stand.reference, stand.costs, stand.roles, config)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        supernet.net.requires_grad_(True).train().to(memory_format=layout)
        plan = training_plan(supernet, config, lambda epoch: stand.training_batches(epoch, 64))
        for optimizer in plan.optimizers:
            for group in optimizer.param_groups:
                group["fused"] = fused
        step = Step(supernet.net, plan, make_objective(supernet.net, supernet, config, None), Workers(0, 1, _CPU))
        step(batch)
        ends.append([p.detach() for p in supernet.net.parameters()])
        grads = [p.grad for p in supernet.net.parameters()]
        assert all(g is not None and g.stride() == p.stride() for g, p in zip(grads, ends[-1], strict=True))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


_CPU = torch.device("cpu")


def test_kept_maps_stay_where_they_are_on_the_cpu() -> None:
    kept = KeptMaps(torch.rand(3, 2, 2), torch.rand(3))
    assert kept.near(_CPU) is kept


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kept_maps_are_the_same_from_a_gpu_and_from_files(store: Path) -> None:
    stand = bench(store)
    batch = next(iter(stand.training_batches(0, 64)))
    cuda = torch.device("cuda")
    kept = KeptMaps(torch.rand(len(stand.data.train), 4, 4), torch.rand(len(stand.data.train)), "flip")
    for found in (kept(batch.to(cuda)), kept.near(cuda)(batch.to(cuda))):
        for one, other in zip(found, kept(batch), strict=True):
            assert one.device.type == "cuda"
            assert torch.equal(one.cpu(), other)
