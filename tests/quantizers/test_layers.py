import pytest
import torch
from torch import nn

from trainables.quantizers.layers import BitMixture, calibrate, quantize_layers, quantizer_parameters


def test_the_quantisers_parameters_are_told_once_and_without_logits_or_weights() -> None:
    """Two layers that share an activation quantiser have one clip."""
    first, second = (BitMixture("pact", weight_bits=(2, 4), act_bits=(2, 4), signed=False) for _ in range(2))
    second.activations = first.activations
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Linear(7, 2))
    quantize_layers(net, {"0": first, "1": second})
    (clip,) = quantizer_parameters(net)
    assert clip is first.activations.clip
    assert quantizer_parameters(nn.Sequential(nn.Linear(2, 2))) == []
    assert isinstance(clip, torch.nn.Parameter)


def test_calibration_starts_the_steps_from_the_layers_weights_and_from_what_they_read() -> None:
    """The second layer reads what the first makes of its codes."""
    torch.manual_seed(0)
    mixtures = {str(i): BitMixture("lsq", weight_bits=(3,), act_bits=(4,), signed=i == 0) for i in (0, 1)}
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 1))
    images = torch.randn(6, 3, 5, 5)
    quantize_layers(net, mixtures)
    calibrate(net, images)
    for i, layer in enumerate(net):
        weight = layer.weight.detach()
        expected = (weight.mean().abs() + 3 * weight.std(correction=0)) / 4
        assert float(mixtures[str(i)].weights.step.detach()) == pytest.approx(float(expected))
    with torch.no_grad():
        read = net[0](images)
    expected = 2 * read.abs().mean() / 15**0.5
    assert float(mixtures["1"].activations.step.detach()) == pytest.approx(float(expected))
