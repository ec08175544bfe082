"""DAQ's and LSQ's single passes against operations on whole tensors: values bit for bit, gradients to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainables.quantizers import daq, lsq
from trainables.quantizers.daq import DaqActivations, DaqWeights
from trainables.quantizers.learned_passes import fused
from trainables.quantizers.lsq import LsqActivations, LsqWeights

SIZE = (1 << 18) + 777
"""More than a thread takes at a time, and no multiple of a block."""
QUANTIZERS = {
    "daq weights": lambda bits: DaqWeights(bits),
    "daq activations": lambda bits: DaqActivations(bits, signed=False),
    "daq signed": lambda bits: DaqActivations(bits, signed=True),
    "lsq weights": lambda bits: LsqWeights(bits),
    "lsq activations": lambda bits: LsqActivations(bits, signed=False),
    "lsq signed": lambda bits: LsqActivations(bits, signed=True),
}


def results(quantizer: nn.Module, x: Tensor, upstream: Tensor, widths: int) -> list[Tensor]:
    """Output and all gradients."""
    x = x.detach().requires_grad_()
    probs = torch.softmax(torch.arange(widths) * 0.3, 0).to(x.dtype).requires_grad_(widths > 1)
    y = quantizer(x, probs)
    inputs = [x, *([probs] if widths > 1 else []), *quantizer.parameters()]
    return [y.detach(), *torch.autograd.grad(y, inputs, upstream)]


def plainly(monkeypatch: pytest.MonkeyPatch, *given: object) -> list[Tensor]:
    with monkeypatch.context() as patch:
        for module in (daq, lsq):
            patch.setattr(module, "fused", lambda *tensors: None)
        return results(*given)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [(3,), (2, 3, 4), (8, 2, 5)])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_single_pass_gives_the_values_of_whole_tensors_and_their_gradients(
    name: str, bits: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    quantizer, x, upstream = QUANTIZERS[name](bits), torch.randn(SIZE) * 2, torch.randn(SIZE)
    with torch.no_grad():
        quantizer.calibrate(x)
    assert fused(x) is not None
    found = results(quantizer, x, upstream, len(bits))
    expected = plainly(monkeypatch, quantizer, x, upstream, len(bits))
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-7)
    # Sums of a quarter of a million terms of either sign, which torch adds up in float32.
    exact = plainly(monkeypatch, quantizer.double(), x.double(), upstream.double(), len(bits))
    for ours, theirs in zip(found[2:], exact[2:], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=3e-3)


@pytest.mark.parametrize("name", ["daq activations", "lsq activations"])
def test_memory_layouts_and_threads_change_nothing(name: str) -> None:
    torch.manual_seed(1)
    quantizer = QUANTIZERS[name]((2, 4))
    images, upstream = torch.rand(9, 16, 48, 50) * 4, torch.randn(9, 16, 48, 50)
    with_gaps = torch.empty(9, 16, 48, 100)[..., ::2]
    with_gaps.copy_(images)
    expected = results(quantizer, images, upstream, 2)
    last = torch.channels_last
    for x, grad in ((images.to(memory_format=last), upstream), (with_gaps, upstream.to(memory_format=last))):
        found = results(quantizer, x, grad, 2)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        for ours, theirs in zip(found[2:], expected[2:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(map(torch.equal, results(quantizer, images, upstream, 2), expected))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["daq activations", "lsq activations"])
def test_what_is_not_a_number_stays_so_in_values_and_sums(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, x = QUANTIZERS[name]((2, 3)), torch.tensor([0.4, float("nan"), float("inf"), -1.0])
    found = results(quantizer, x, torch.ones(4), 2)
    expected = plainly(monkeypatch, quantizer, x, torch.ones(4), 2)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-6)
    assert bool(found[0].isnan().any())


def test_nothing_in_nothing_out() -> None:
    for make in QUANTIZERS.values():
        quantizer, x = make((2, 3)), torch.zeros(0, 3, requires_grad=True)
        if not isinstance(quantizer, DaqWeights | LsqWeights):
            assert quantizer(x, torch.ones(2) / 2).shape == (0, 3)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_single_passes_take_probabilities_with_gaps_and_leave_other_types_to_torch(name: str) -> None:
    torch.manual_seed(2)
    quantizer, x, upstream = QUANTIZERS[name]((2, 4, 8)), torch.randn(301) * 2, torch.randn(301)
    table = torch.rand(3, 2).softmax(0)
    results = []
    for probs in (table[:, 1], table[:, 1].clone(), table[:, 1].double()):
        y = quantizer(x, probs)
        results.append([y.detach(), *torch.autograd.grad(y, list(quantizer.parameters()), upstream)])
    assert all(map(torch.equal, results[0], results[1]))
    for ours, theirs in zip(results[0], results[2], strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-4, atol=1e-4)
