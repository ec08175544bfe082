"""Layers that make mixed activations and weights again instead of saving them."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainables.quantizers import fused_cpu, layers, learned_cpu
from trainables.quantizers.layers import BitMixture, quantize_layers


def net(quantizer: Any, bits: tuple[int, ...]) -> nn.Module:
    """A convolution, a grouped one and a linear layer on tokens, all quantised."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(2), nn.Linear(36, 5)
    )
    mixtures = {
        name: BitMixture(quantizer, weight_bits=bits, act_bits=bits, signed=name != "2") for name in ("0", "2", "4")
    }
    return quantize_layers(plain, mixtures)


@contextmanager
def saving(*inputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield inputs


def gradients(network: nn.Module, images: Tensor) -> list[Tensor]:
    network.zero_grad(set_to_none=True)
    network(images).square().sum().backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("bits", [(4,), (2, 4)], ids=["one width", "two widths"])
@pytest.mark.parametrize("quantizer", ["pact", "hwgq", "lsq", "daq"])
def test_gradients_are_those_of_layers_that_save_their_inputs_bit_for_bit(
    quantizer: str, bits: tuple[int, ...], autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = net(quantizer, bits), torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = gradients(network, images)
        monkeypatch.setattr(layers, "recomputed", saving)
        theirs = gradients(network, images)
    assert len(ours) == len(theirs) >= 6
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("place", ["0", "2", "4"])
def test_a_layer_saves_neither_of_its_inputs(place: str, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of convolutions and of products with matrices, which save views."""
    packed: list[object] = []
    real = torch.autograd.graph.saved_tensors_hooks

    def recording(pack: Any, unpack: Any) -> Any:
        return real(lambda tensor: packed.append(pack(tensor)) or packed[-1], unpack)

    network = net("pact", (2, 4))
    x = network[: int(place)](torch.randn(4, 3, 8, 8)).detach()
    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", recording)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        network[int(place)](x)
    assert len(packed) == 2
    assert not any(isinstance(kept, Tensor) for kept in packed)


def test_mixtures_are_gone_after_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images, mixed = net("pact", (2, 4)), torch.randn(4, 3, 8, 8), list[Any]()
    for layer in (network[0], network[2], network[4]):
        layer.mixture.register_forward_hook(lambda _, __, made: mixed.extend(map(weakref.ref, made)))
    loss = network(images).sum()
    assert [made() for made in mixed] == [None] * 6
    monkeypatch.setattr(layers, "recomputed", saving)
    mixed.clear()
    loss = network(images).sum()
    assert all(made() is not None for made in mixed)
    loss.backward()


def test_a_weight_that_changes_before_its_gradient_is_an_error() -> None:
    network = net("pact", (2, 4))
    loss = network(torch.randn(4, 3, 8, 8)).sum()
    with torch.no_grad():
        network[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_those_of_layers_that_save_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = net("pact", (2, 4)), torch.randn(4, 3, 8, 8)
    parameters = list(network.parameters())

    def second() -> list[Tensor]:
        first = torch.autograd.grad(network(images).square().sum(), parameters, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), parameters))

    ours = second()
    monkeypatch.setattr(layers, "recomputed", saving)
    theirs = second()
    assert all(map(torch.equal, ours, theirs))
    assert any(bool(grad.any()) for grad in ours)


def test_nothing_is_hooked_where_there_are_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.autograd.graph, "saved_tensors_hooks")
    with torch.no_grad():
        assert net("pact", (2, 4))(torch.randn(4, 3, 8, 8)).shape == (4, 8, 5)


def test_a_graph_that_is_kept_can_be_gone_through_twice() -> None:
    network = net("hwgq", (2, 4))
    loss, parameters = network(torch.randn(4, 3, 8, 8)).square().sum(), list(network.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, parameters)))


@pytest.mark.parametrize("quantizer", ["pact", "hwgq", "lsq", "daq"])
def test_activation_checkpointing_gives_the_same_gradients_also_twice(quantizer: str) -> None:
    """It unpacks what a node saved only once in each backward pass."""
    network, images = net(quantizer, (2, 4)), torch.randn(4, 3, 8, 8)
    expected = gradients(network, images)
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    loss = checkpoint(network, images, use_reentrant=False).square().sum()
    for retain in (True, False):
        found = torch.autograd.grad(loss, parameters, retain_graph=retain)
        assert all(map(torch.equal, found, expected))


def test_an_input_that_changes_after_a_part_of_its_gradients_is_an_error() -> None:
    """What was unpacked for the first does not serve the second."""
    network = net("pact", (2, 4))
    loss = network(torch.randn(4, 3, 8, 8)).sum()
    torch.autograd.grad(loss, network[4].bias, retain_graph=True)
    with torch.no_grad():
        network[4].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("quantizer", ["pact", "hwgq", "lsq", "daq"])
def test_what_traces_code_meets_neither_recipes_nor_loops(quantizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = net(quantizer, (2, 4)), torch.randn(4, 3, 8, 8)
    expected = gradients(network, images)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.delattr(torch.autograd.graph, "saved_tensors_hooks")
    monkeypatch.delattr(fused_cpu, "as_array")
    monkeypatch.delattr(learned_cpu, "as_array")
    for ours, theirs in zip(gradients(network, images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("quantizer", ["pact", "hwgq", "lsq", "daq"])
def test_a_network_of_quantised_layers_is_exported_by_tracing_its_code(quantizer: str) -> None:
    network, images = net(quantizer, (2, 4)), torch.randn(4, 3, 8, 8)
    exported = torch.export.export(network, (images,), strict=True).module()
    torch.testing.assert_close(exported(images), network(images), rtol=1e-5, atol=1e-5)
