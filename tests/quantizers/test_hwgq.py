import pytest
import torch

from trainables.quantizers.hwgq import HwgqActivations, HwgqWeights, normal_step

ONE = torch.ones(1)
WEIGHT_STEPS = (1.596, 0.996, 0.586, 0.335, 0.1881, 0.1041, 0.0569, 0.0308)
ACT_STEPS = (0.798, 0.538, 0.3217, 0.1842, 0.1030, 0.0566, 0.0307, 0.0165)


@pytest.mark.parametrize("bits", range(1, 9))
def test_derived_steps_are_the_published_ones(bits: int) -> None:
    """To the digits that are printed (the 2-bit activation step is printed as .538, derived .5388)."""
    assert normal_step(bits, half=False) == pytest.approx(WEIGHT_STEPS[bits - 1], abs=6e-4 if bits < 5 else 6e-5)
    assert normal_step(bits, half=True) == pytest.approx(ACT_STEPS[bits - 1], abs=9e-4 if bits < 3 else 6e-5)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_step_is_optimal_on_normal_samples(bits: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(400_000)
    quantizer = HwgqActivations((bits,), signed=False)

    def error(scale: float) -> float:
        quantizer.steps = torch.tensor([normal_step(bits, half=True) * scale])
        return float((quantizer(x, ONE) - x.relu()).square().mean())

    assert error(1.0) < min(error(0.95), error(1.05))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_weights_have_two_to_the_bits_levels_and_no_zero(bits: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5000) * 0.3
    levels = HwgqWeights((bits,))(weight, ONE).unique()
    assert len(levels) == 2**bits
    assert float(levels.abs().min()) == pytest.approx(
        normal_step(bits, half=False) / 2 * float(weight.std(correction=0)), rel=1e-5
    )


def test_activations_are_zero_below_zero_and_pass_no_gradient_outside() -> None:
    quantizer = HwgqActivations((2,), signed=False)
    step = normal_step(2, half=True)
    x = torch.tensor([-1.0, 0.0, 0.01, 1.0, 3 * step + 0.01, 5.0], requires_grad=True)
    y = quantizer(x, ONE)
    torch.testing.assert_close(y, torch.tensor([0.0, 0.0, step, 2 * step, 3 * step, 3 * step]))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_each_branch_has_its_own_window() -> None:
    quantizer = HwgqActivations((1, 2), signed=False)
    x = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    (grad,) = torch.autograd.grad(quantizer(x, torch.tensor([0.3, 0.7])).sum(), x)
    torch.testing.assert_close(grad, torch.tensor([1.0, 0.7, 0.0]))
