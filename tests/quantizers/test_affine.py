import pytest
import torch
from torch import Tensor

from trainables.errors import ConfigError
from trainables.quantizers.affine import AffineGrid
from trainables.quantizers.layers import ACT_QUANTIZERS, WEIGHT_QUANTIZERS

ONE = torch.ones(1)
WEIGHTS = [(name, bits) for name in WEIGHT_QUANTIZERS for bits in (1, 2, 3, 8) if bits > 1 or name in ("hwgq", "daq")]
ACTIVATIONS = [
    (name, bits, signed)
    for name in ACT_QUANTIZERS
    for bits in (1, 2, 3, 8)
    for signed in (False, True)
    if bits > 1 or not signed or name == "hwgq"
]


def value(grid: AffineGrid, codes: Tensor) -> Tensor:
    """The formula that an exporter writes down."""
    assert int(codes.min()) >= grid.lo
    assert int(codes.max()) <= grid.hi
    return grid.gain * grid.scale * (codes + grid.offset)


@pytest.mark.parametrize(("name", "bits"), WEIGHTS)
def test_a_weight_is_its_codes_times_scale_and_gain(name: str, bits: int) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(6, 5, 3, 3) * 0.2 + 0.03
    quantizer = WEIGHT_QUANTIZERS[name]((bits,))
    quantizer.calibrate(weight)
    if name == "daq":
        with torch.no_grad():
            quantizer.gain.fill_(-0.37)
            quantizer.low.fill_(-2.0)
    with torch.no_grad():
        quantized = quantizer(weight, ONE)
    grid = quantizer.affine(weight)
    codes = grid.codes(quantized)
    assert len(codes.unique()) >= 2
    torch.testing.assert_close(value(grid, codes), quantized, rtol=1e-6, atol=1e-7)
    if name != "daq":
        torch.testing.assert_close(grid.quantized(weight), quantized, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "bits", "signed"), ACTIVATIONS)
def test_an_activation_is_rounded_on_the_grid_that_is_told(name: str, bits: int, signed: bool) -> None:
    torch.manual_seed(bits)
    x = torch.randn(4000) * 2 if signed else (torch.randn(4000) * 2).relu()
    quantizer = ACT_QUANTIZERS[name]((bits,), signed=signed)
    quantizer.calibrate(x)
    with torch.no_grad():
        quantized = quantizer(x, ONE)
    grid = quantizer.affine()
    # Middles between two codes, which float rounding may carry to either.
    places = x.double() / grid.scale - grid.offset
    clear = ((places - places.floor() - 0.5).abs() > 1e-4) | (places < grid.lo) | (places > grid.hi)
    assert float(clear.float().mean()) > 0.95
    torch.testing.assert_close(grid.quantized(x)[clear], quantized[clear], rtol=1e-6, atol=1e-6)
    told = quantized[x > 0] if grid.half_wave else quantized
    torch.testing.assert_close(value(grid, grid.codes(told)), told, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["pact", "lsq", "daq"])
def test_one_bit_cannot_hold_a_sign_and_a_zero(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: a signed activation needs at least 2 bits"):
        ACT_QUANTIZERS[name]((1,), signed=True)


def test_an_exact_middle_goes_where_the_quantiser_rounds_it() -> None:
    x = torch.tensor([0.5, 1.5, 2.5])
    for name, expected in (("daq", [0.0, 1.0, 2.0]), ("lsq", [0.0, 2.0, 2.0])):
        quantizer = ACT_QUANTIZERS[name]((2,), signed=False)
        with torch.no_grad():
            # A step of one: DAQ's interval ends at its third level, and LSQ's step starts as one.
            (quantizer.high.fill_(3.0) if name == "daq" else quantizer.step.fill_(1.0))
            levels = quantizer(x, ONE) * (3 if name == "daq" else 1)
        grid = quantizer.affine()
        torch.testing.assert_close(levels, torch.tensor(expected))
        torch.testing.assert_close(grid.quantized(x) / grid.gain, torch.tensor(expected))
