from __future__ import annotations

import pytest
import torch
from torch import nn

from trainables.optimizers import fused_sgd


def test_a_first_step_that_overflows_leaves_the_momentum_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that memory that nobody wrote to cannot happen to be zero.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    weight = nn.Parameter(torch.ones(3))
    optimizer = fused_sgd([weight], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    found = []
    try:
        for gradient in (float("inf"), 1.0, 1.0):
            weight.grad = scaler.scale(torch.full((3,), gradient))
            scaler.step(optimizer)
            scaler.update()
            found.append(weight[0].item())
    finally:
        torch.use_deterministic_algorithms(False)
    assert found == pytest.approx([1.0, 0.9, 0.71])


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_torchs_own_sgd(nesterov: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(50)) for _ in range(2))
    pair = (
        fused_sgd([ours], lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=nesterov),
        torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=nesterov),
    )
    for _ in range(4):
        ours.grad = torch.randn(50)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_without_momentum_nothing_is_kept() -> None:
    optimizer = fused_sgd([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.0, nesterov=True)
    assert not optimizer.state
