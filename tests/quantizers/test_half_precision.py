"""Gradients that are summed over pieces of a half-precision activation."""

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
