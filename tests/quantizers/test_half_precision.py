"""Gradients that are summed over half-precision numbers: in float32, and given so to parameters."""

import pytest
import torch

from trainables.quantizers.pact import PactActivations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_clips_gradient_counts_every_piece(dtype: torch.dtype) -> None:
    pieces = 600
    quantizer = PactActivations((4,), signed=False)
    x = torch.full((pieces * (1 << 16),), 100.0, dtype=dtype)
    grad = torch.zeros_like(x)
    # One entry of each piece lies beyond the clip and has a gradient.
    grad[:: 1 << 16] = 1.0
    quantizer(x, torch.ones(1)).backward(grad)
    assert quantizer.clip.grad is not None
    assert float(quantizer.clip.grad) == pieces


@pytest.mark.parametrize("again", [False, True], ids=["once", "to differentiate again"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_half_precision_numbers_are_neither_rounded_to_them_nor_infinite(
    dtype: torch.dtype, again: bool
) -> None:
    """66 716 is beyond float16's 65 504, and bfloat16 has 66 560 next to it."""
    quantizer, probs = PactActivations((2, 4), signed=False), torch.tensor([0.25, 0.75], requires_grad=True)
    x = torch.full((16_679,), 100.0, dtype=dtype, requires_grad=True)
    grads = torch.autograd.grad(
        quantizer(x, probs), [probs, quantizer.clip], torch.full_like(x, 4.0), create_graph=again
    )
    assert grads[1].dtype == grads[0].dtype == torch.float32
    assert float(grads[1]) == 66_716
    # Both widths give the clip, 6.
    assert grads[0].tolist() == pytest.approx([6 * 66_716.0] * 2, rel=2e-3)
