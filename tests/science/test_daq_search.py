"""Searches on DAQ supernets, from the first calibration to the finetune."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables.config import DataConfig, NetworkConfig, ReferenceConfig, TrialConfig
from trainables.finetune_config import FinetuneConfig
from trainables.method_config import EdmipsConfig, GmpqConfig, SupernetConfig
from trainables.methods.loop import DAQ_LR, make_optimizers, new_supernet
from trainables.quantizers.layers import quant_layers, quantizer_parameters
from trainables.reference import Bench, ensure_reference, load_bench
from trainables.report import EpochReport
from trainables.trial import run_trial

TRIAL = TrialConfig(
    network=NetworkConfig(name="resnet8"),
    data=DataConfig(name="digits", image_size=8, fraction=0.4),
    reference=ReferenceConfig(epochs=4),
    method=EdmipsConfig(zeta=0.1, quantizer="daq", epochs=3, batch_size=64, bit_lr=0.5),
    finetune=FinetuneConfig(epochs=1),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("references")
    ensure_reference(TRIAL, lambda epoch: None, store=folder)
    return folder


@pytest.fixture(scope="module")
def bench(store: Path) -> Bench:
    return load_bench(TRIAL, store=store)


def test_before_a_search_every_layer_has_the_interval_and_the_size_of_a_training_batch(bench: Bench) -> None:
    supernet = new_supernet(bench, TRIAL.method)
    images = bench.calibration_images(TRIAL.method.batch_size)
    assert len(images) == 64
    sizes: dict[str, list[float]] = {}
    spreads: dict[str, float] = {}

    def watch(name: str):  # type: ignore[no-untyped-def]
        def hook(layer, inputs, output) -> None:  # type: ignore[no-untyped-def]
            (x,) = inputs
            exact = torch.nn.functional.conv2d(x, layer.weight, None, layer.stride, layer.padding)
            sizes[name] = [float(exact.abs().mean()), float(output.abs().mean())]
            spreads[name] = 3 * float(x.std(correction=0))

        return hook

    layers = quant_layers(supernet.net)
    assert set(layers) == set(bench.roles.searched)
    for name, layer in layers.items():
        layer.register_forward_hook(watch(name))
    with torch.no_grad():
        supernet.net.eval()(images)
    for name, layer in layers.items():
        assert sizes[name][1] == pytest.approx(sizes[name][0], rel=1e-3)
        assert float(layer.mixture.activations.high.detach()) == pytest.approx(spreads[name], rel=1e-4)
    assert len({round(float(layer.mixture.weights.gain.detach()), 6) for layer in layers.values()}) == len(layers)


def test_what_daqs_quantisers_learn_has_an_adam_of_its_own_without_decay_and_nothing_changes_for_pact(
    bench: Bench,
) -> None:
    supernet = new_supernet(bench, TRIAL.method)
    weights, logits, apart = make_optimizers(supernet, TRIAL.method)
    assert isinstance(apart, torch.optim.Adam)
    assert (apart.defaults["lr"], apart.defaults["weight_decay"]) == (DAQ_LR, 0) == (1e-4, 0)
    sets = [{id(p) for group in o.param_groups for p in group["params"]} for o in (weights, logits, apart)]
    assert sets[2] == {id(p) for p in quantizer_parameters(supernet.net)}
    assert sum(map(len, sets)) == len(set().union(*sets)) == len(list(supernet.net.parameters()))
    pact = replace(TRIAL.method, quantizer="pact")
    supernet = new_supernet(bench, pact)
    weights, logits = make_optimizers(supernet, pact)
    assert len(weights.param_groups[0]["params"]) == len(list(supernet.net.parameters())) - len(supernet.bit_logits())


@pytest.mark.parametrize(
    "method",
    [TRIAL.method, GmpqConfig(zeta=0.1, eta=1.0, quantizer="daq", epochs=3, batch_size=64, bit_lr=0.5)],
    ids=["edmips", "gmpq"],
)
def test_a_search_with_daq_learns_and_its_policy_is_finetuned_with_daq(store: Path, method: SupernetConfig) -> None:
    reports: list[EpochReport] = []
    config = replace(TRIAL, method=method)
    assert config.quantizer == "daq"
    result = run_trial(config, reports.append, store=store)
    risks = [epoch.metrics["task_risk"] for epoch in reports if epoch.stage == "search"]
    assert risks[2] < 0.7 * risks[0]
    assert reports[2].metrics["certainty"] > 0.34
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert result.metrics["top1"] > 80
    if isinstance(method, GmpqConfig):
        imitated = [epoch.metrics["generalisation_risk"] for epoch in reports if epoch.stage == "search"]
        assert imitated[2] < imitated[0]


def test_one_bit_weights_can_be_searched_with_daq(bench: Bench) -> None:
    supernet = new_supernet(bench, replace(TRIAL.method, weight_bits=(1, 2)))
    logits = supernet.net(bench.probe)
    logits.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in supernet.bit_logits())
