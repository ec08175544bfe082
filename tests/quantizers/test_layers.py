import torch
from torch import nn

from trainables.quantizers.layers import BitMixture, quantize_layers, quantizer_parameters


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
