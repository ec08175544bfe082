"""Finetunes of a 2-bit policy on digits: each fails where one of a quantiser's gradients is missing or wrong."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.config import DataConfig
from trainables.counting import measure
from trainables.data import load_data
from trainables.data.splits import loader
from trainables.finetune_config import DeployedQuantizer
from trainables.models import build_network
from trainables.policy import BitPolicy, LayerBits
from trainables.quantizers.layers import WEIGHT_QUANTIZERS, calibrate, quant_layers, quantizer_parameters
from trainables.recount import recount
from trainables.supernet import deploy

DATA = load_data(DataConfig(name="digits", image_size=8))
NETWORK = "resnet8"


class Trained(NamedTuple):
    """A float network, and its policy: 2 bits everywhere but in stem and head."""

    net: nn.Module
    policy: BitPolicy
    batch: Tensor

    def deployed(self, quantizer: DeployedQuantizer) -> nn.Module:
        net = deploy(self.net, measure(self.net, self.batch[:2]), self.policy, quantizer)
        calibrate(net, self.batch)
        return net


def steps(net: nn.Module, parameters: Iterable[nn.Parameter], *, epochs: int, lr: float) -> None:
    learned = list(parameters)
    optimizer = torch.optim.Adam(learned, lr=lr)
    for epoch in range(epochs):
        for batch in loader(DATA.train, batch_size=64, shuffle=True, seed=0, epoch=epoch):
            loss = F.cross_entropy(net(batch.images), batch.labels)
            for parameter, grad in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                parameter.grad = grad
            optimizer.step()


@torch.no_grad()
def scores(net: nn.Module) -> tuple[float, float]:
    """Cross-entropy and share of right answers on the held-out images."""
    net.eval()
    count = len(DATA.validation)
    batch = next(iter(loader(DATA.validation, batch_size=count, shuffle=False, seed=0, epoch=0)))
    logits = net(batch.images)
    return float(F.cross_entropy(logits, batch.labels)), float((logits.argmax(1) == batch.labels).float().mean())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small only wait for each other, on a busy machine for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(one_thread: None) -> Trained:
    torch.manual_seed(0)
    net = build_network(NETWORK, num_classes=10, image_size=8)
    steps(net, net.parameters(), epochs=3, lr=3e-3)
    assert scores(net)[1] > 0.95
    batch = next(iter(loader(DATA.train, batch_size=256, shuffle=True, seed=1, epoch=0))).images
    names = list(measure(net, batch[:2]).layers)
    ends = frozenset((names[0], names[-1]))
    bits = {name: LayerBits(8, 8) if name in ends else LayerBits(2, 2) for name in names}
    return Trained(net, BitPolicy(network=NETWORK, bits=bits, pinned=ends), batch)


@pytest.mark.parametrize("quantizer", WEIGHT_QUANTIZERS)
def test_a_whole_finetune_brings_two_bits_near_to_floating_point(trained: Trained, quantizer: str) -> None:
    net = trained.deployed(quantizer)
    net.train()
    steps(net, net.parameters(), epochs=2, lr=3e-3)
    assert scores(net)[1] > 0.85
    costs = measure(trained.net, trained.batch[:2])
    searched = set(trained.policy.searched)
    assert recount(net, trained.batch[:2], searched=searched).bops == costs.counts(trained.policy).bops


@pytest.mark.parametrize("quantizer", WEIGHT_QUANTIZERS)
def test_weights_alone_learn_through_both_quantisers(trained: Trained, quantizer: str) -> None:
    """Of the stem, too, which is reached through the activations of all others alone. Batch norm stands still."""
    net = trained.deployed(quantizer)
    before, _ = scores(net)
    steps(net, [layer.weight for layer in quant_layers(net).values()], epochs=1, lr=3e-3)
    assert scores(net)[0] < before / 2


@pytest.mark.parametrize("quantizer", ["pact", "lsq", "daq"])
def test_quantisers_that_start_too_narrow_find_better_ranges_by_themselves(trained: Trained, quantizer: str) -> None:
    net = trained.deployed(quantizer)
    with torch.no_grad():
        for parameter in quantizer_parameters(net):
            parameter.mul_(0.5)
    before, _ = scores(net)
    steps(net, quantizer_parameters(net), epochs=1, lr=5e-2)
    after, _ = scores(net)
    assert after < before * 0.85
