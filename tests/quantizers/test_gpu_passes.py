"""The kernels for GPUs against the passes by torch's operations: interpreted on the CPU, compiled for a GPU that is not
there, and, where there is one, run."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from trainables.quantizers import piecewise
from trainables.quantizers.grid import Asked, Grid, Slopes
from trainables.quantizers.hwgq import HwgqActivations
from trainables.quantizers.pact import PactActivations
from trainables.quantizers.staircase import staircase

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="torch came without Triton")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

INTERPRETED = """
import torch
from trainables.quantizers import fused_cuda, piecewise
from trainables.quantizers.grid import Asked, Grid

STEPS, CLIP = torch.tensor([0.5, 0.1, 0.007]), torch.tensor(1.5)

def of(lo, **rest):
    return tuple(Grid(lo=lo(2**b), hi=(2**b - 1) if lo(8) >= 0 else 2 ** (b - 1) - 1, **rest) for b in (2, 4, 8))

kinds = [
    (of(lambda n: 1 - n // 2), None),
    (of(lambda n: 0), CLIP),
    (of(lambda n: 1 - n // 2), CLIP),
    (of(lambda n: -n // 2, offset=0.5), None),
    (of(lambda n: 1, half_wave=True, windowed=True), None),
    (of(lambda n: -n // 2, offset=0.5, windowed=True), None),
]
torch.manual_seed(0)
x, grad, probs = torch.randn(4100), torch.randn(4100), torch.tensor([0.2, 0.5, 0.3])
special = torch.tensor([float("inf"), -float("inf"), 0.0, 0.25, 0.75, -0.25, 1.5, -1.5])
x[: len(special)] = special
for grids, clip in kinds:
    for n in (1, 3):
        mix = x, probs[:n], STEPS[:n]
        assert torch.equal(fused_cuda.mixed(*mix, grids[:n]), piecewise.mixed(*mix, grids[:n]))
        asked = Asked(x=True, dots=True, clip=clip is not None)
        ours = fused_cuda.slopes(grad, *mix, clip, grids[:n], asked)
        theirs = piecewise.slopes(grad, *mix, clip, grids[:n], asked)
        assert torch.equal(ours.x, theirs.x)
        assert torch.allclose(ours.dots.float(), theirs.dots, rtol=1e-5, atol=1e-2), (ours.dots, theirs.dots)
        assert clip is None or torch.allclose(ours.clip.float(), theirs.clip, rtol=1e-5, atol=1e-3)
unknown = torch.tensor([float("nan"), 1.0])
assert fused_cuda.mixed(unknown, probs[:1], STEPS[:1], kinds[1][0][:1]).isnan().tolist() == [True, False]
half = x.clamp(-9, 9).bfloat16()
mixed = fused_cuda.mixed(half, probs, STEPS, kinds[1][0])
exact = piecewise.mixed(half.float(), probs, STEPS, kinds[1][0])
# The interpreter cuts digits off where a GPU rounds.
assert mixed.dtype == torch.bfloat16
assert torch.allclose(mixed.float(), exact, rtol=2**-7, atol=0)
print("equal")
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from trainables.quantizers import fused_cuda

def signature(kernel, dtype, constants):
    wide = {"x_at", "y_at", "grad_at", "grad_x_at"}
    types = {name: "*" + dtype if name in wide else "*fp32" for name in kernel.arg_names}
    return types | {"size": "i64"} | dict.fromkeys(constants, "constexpr")

block = {"BLOCK": 256, "HALF_WAVE": True}
for kernel, constants in [
    (fused_cuda._mix, {"N": 2, **block}),
    (fused_cuda._differentiate, {"N": 2, "PASSING": 2, "DOTS": True, **block}),
    (fused_cuda._differentiate, {"N": 2, "PASSING": 3, "DOTS": True, **block}),
]:
    source = ASTSource(kernel, signature(kernel, "bf16", constants), constants)
    for capability in (70, 75, 80, 90):
        made = compile(source, target=GPUTarget("cuda", capability, 32), options=fused_cuda._OPTIONS)
        assert len(made.asm["cubin"]) > 1000
print("compiled")
"""


def printed(code: str, **environment: str) -> str:
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or told.stderr


def test_interpreted_kernels_give_the_piecewise_numbers() -> None:
    assert printed(INTERPRETED, TRITON_INTERPRET="1") == "equal"


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="Triton has no compiler there")
def test_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    assert printed(COMPILED) == "compiled"


def compared(x: Tensor, grids: tuple[Grid, ...], clip: Tensor | None) -> list[tuple[Tensor, Slopes]]:
    from trainables.quantizers import fused_cuda

    torch.manual_seed(0)
    probs, steps = torch.tensor([0.2, 0.5, 0.3], device="cuda"), torch.tensor([0.5, 0.1, 0.007], device="cuda")
    grad, asked = torch.randn_like(x), Asked(x=True, dots=True, clip=clip is not None)
    results = []
    for passes, dtype in ((fused_cuda, x.dtype), (piecewise, torch.float32)):
        read, upstream = x.to(dtype), grad.to(dtype)
        top = None if clip is None else clip.cuda()
        found = passes.slopes(upstream, read, probs, steps, top, grids, asked)
        results.append((passes.mixed(read, probs, steps, grids), found))
    return results


@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["pact", "pact signed", "hwgq", "hwgq signed"])
def test_a_gpu_gives_the_numbers_of_float32(name: str, dtype: torch.dtype) -> None:
    signed = name.endswith("signed")
    quantizer = (PactActivations if name.startswith("pact") else HwgqActivations)((2, 4, 8), signed=signed)
    clip = torch.tensor(1.5) if name.startswith("pact") else None
    x = torch.randn(8, 33, 17, 19, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    ours, theirs = compared(x, quantizer.grids, clip)
    digits = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(ours[0].float(), theirs[0], rtol=digits, atol=1e-7)
    torch.testing.assert_close(ours[1].x.float(), theirs[1].x, rtol=digits, atol=1e-7)
    torch.testing.assert_close(ours[1].dots.float(), theirs[1].dots, rtol=1e-5, atol=1e-2)
    if clip is not None:
        torch.testing.assert_close(ours[1].clip.float(), theirs[1].clip, rtol=1e-5, atol=1e-3)


@GPU
def test_a_gpu_repeats_its_bits_and_does_not_wait_for_them() -> None:
    quantizer = PactActivations((2, 4, 8), signed=False).cuda()
    x = torch.randn(16, 64, 56, 56, device="cuda", requires_grad=True)
    probs = torch.tensor([0.2, 0.5, 0.3], device="cuda", requires_grad=True)
    wanted = [x, probs, quantizer.clip]
    first = torch.autograd.grad(quantizer(x, probs).sum(), wanted)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = torch.autograd.grad(quantizer(x, probs).sum(), wanted)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, first, again))


@GPU
def test_a_gpu_takes_more_elements_than_32_bits_count() -> None:
    x = torch.zeros(2**31 + 4097, device="cuda", dtype=torch.bfloat16)
    x[-1] = 3.0
    y = staircase(x, torch.ones(1, device="cuda"), torch.ones(1, device="cuda"), (Grid(lo=-1, hi=1),))
    assert float(y[-1]) == 1.0
    assert not bool(y[:-1].any())
