import pytest
import torch

from trainables.errors import ConfigError
from trainables.quantizers.pact import CLIP_START, PactActivations, PactWeights

ONE = torch.ones(1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_have_an_odd_number_of_levels_between_minus_and_plus_their_largest(bits: int) -> None:
    weight = torch.linspace(-1.3, 1.3, 20001)
    levels = PactWeights((bits,))(weight, ONE).unique()
    assert len(levels) == 2**bits - 1
    torch.testing.assert_close(levels[[0, -1]], torch.tensor([-1.3, 1.3]))
    torch.testing.assert_close(levels.diff(), torch.full((2**bits - 2,), 1.3 / (2 ** (bits - 1) - 1)))


def test_weights_pass_the_gradient_straight_through() -> None:
    weight = torch.randn(50, requires_grad=True)
    upstream = torch.randn(50)
    (grad,) = torch.autograd.grad(PactWeights((2,))(weight, ONE), weight, upstream)
    assert torch.equal(grad, upstream)


def test_one_bit_weights_are_an_error() -> None:
    with pytest.raises(ConfigError, match="1-bit weights do not exist"):
        PactWeights((1, 2))


def test_a_layer_of_zeros_stays_zero() -> None:
    assert torch.equal(PactWeights((2, 3))(torch.zeros(5), torch.tensor([0.5, 0.5])), torch.zeros(5))


@pytest.mark.parametrize("bits", range(1, 9))
def test_activations_have_all_levels_from_zero_to_the_clip(bits: int) -> None:
    levels = PactActivations((bits,), signed=False)(torch.linspace(-2, 9, 30001), ONE).unique()
    torch.testing.assert_close(levels, torch.arange(2**bits) * (CLIP_START / (2**bits - 1)))


def test_the_activation_gradients_are_those_of_the_clip() -> None:
    quantizer = PactActivations((2, 4), signed=False)
    x = torch.tensor([-1.0, 0.5, 3.0, 5.9, 6.5, 8.0], requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    y = quantizer(x, torch.tensor([0.4, 0.6]))
    grad_x, grad_clip = torch.autograd.grad(y, [x, quantizer.clip], upstream)
    assert grad_x.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0, 0.0]
    assert float(grad_clip) == 11.0


def test_signed_activations_keep_their_sign_and_pull_the_clip_from_both_ends() -> None:
    quantizer = PactActivations((3,), signed=True)
    x = torch.tensor([-8.0, -2.0, 2.0, 7.0], requires_grad=True)
    y = quantizer(x, ONE)
    torch.testing.assert_close(y, torch.tensor([-6.0, -2.0, 2.0, 6.0]))
    grad_x, grad_clip = torch.autograd.grad(y, [x, quantizer.clip], torch.tensor([1.0, 1.0, 1.0, 5.0]))
    assert grad_x.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert float(grad_clip) == 4.0


def test_calibration_finds_the_clip_of_least_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(20000).relu()
    errors = {}
    for bits in (2, 4):
        quantizer = PactActivations((bits,), signed=False)
        quantizer.calibrate(x)
        best = float(quantizer.clip.detach())

        def error(clip: float, quantizer: PactActivations = quantizer) -> float:
            quantizer.clip.data.fill_(clip)
            return float((quantizer(x, ONE).detach() - x).square().mean())

        errors[bits] = best
        assert error(best) < error(best * 1.3)
        assert error(best) < error(best * 0.7)
    assert errors[2] < errors[4] < float(x.max())
