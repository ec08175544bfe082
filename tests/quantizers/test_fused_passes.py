"""The compiled passes over the CPU's memory against those by torch's operations."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trainables.distributed import make_repeatable
from trainables.finetune_config import DeployedQuantizer
from trainables.quantizers import fused_cpu, piecewise
from trainables.quantizers.grid import Asked, Grid
from trainables.quantizers.hwgq import HwgqActivations, HwgqWeights
from trainables.quantizers.layers import BitMixture
from trainables.quantizers.pact import PactActivations, PactWeights

BITS = (2, 3, 4, 8)
KINDS = {
    "pact weights": (PactWeights(BITS).grids, None),
    "pact activations": (PactActivations(BITS, signed=False).grids, 1.5),
    "pact signed": (PactActivations(BITS, signed=True).grids, 1.5),
    "hwgq weights": (HwgqWeights(BITS).grids, None),
    "hwgq activations": (HwgqActivations(BITS, signed=False).grids, None),
    "hwgq signed": (HwgqActivations(BITS, signed=True).grids, None),
}
STEPS = torch.tensor([0.5, 0.3, 0.1, 0.007])
SIZES = [0, 1, 7, 1023, 1025, (1 << 18) + 5]


def numbers(size: int) -> Tensor:
    """Normal, with the special ones, zeros, and ties of rounding."""
    torch.manual_seed(size)
    x = torch.randn(size) * 3
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 0.25, 0.75, -0.25, 1.5, -1.5])
    x[: len(special)] = special[:size]
    return x


@pytest.mark.parametrize("widths", [1, 4])
@pytest.mark.parametrize(("grids", "clip"), KINDS.values(), ids=KINDS)
def test_the_fused_forward_pass_is_the_piecewise_one_bit_for_bit(
    grids: tuple[Grid, ...], clip: float | None, widths: int
) -> None:
    for size in SIZES:
        parts = numbers(size), torch.rand(4).softmax(0)[:widths], STEPS[:widths], grids[:widths]
        torch.testing.assert_close(
            fused_cpu.mixed(*parts), piecewise.mixed(*parts), rtol=0, atol=0, equal_nan=True, msg=f"{size} elements"
        )


@pytest.mark.parametrize("widths", [1, 4])
@pytest.mark.parametrize(("grids", "clip"), KINDS.values(), ids=KINDS)
def test_the_fused_backward_pass_gives_the_piecewise_gradients(
    grids: tuple[Grid, ...], clip: float | None, widths: int
) -> None:
    """That of x bit for bit, sums to rounding, against the piecewise ones in double precision."""
    for size in SIZES:
        x, grad, probs = numbers(size).nan_to_num(0.1, 9.0, -9.0), torch.randn(size), torch.rand(4).softmax(0)[:widths]
        top = None if clip is None else torch.tensor(clip)
        asked = Asked(x=True, dots=True, clip=top is not None)
        ours = fused_cpu.slopes(grad, x, probs, STEPS[:widths], top, grids[:widths], asked)
        theirs = piecewise.slopes(grad, x, probs, STEPS[:widths], top, grids[:widths], asked)
        torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=0)
        codes = torch.stack([g.codes(x, s) for g, s in zip(grids[:widths], STEPS, strict=False)]).double()
        scale = (codes.square().sum(1) + 1).sqrt()
        assert (((codes * grad).sum(1) - ours.dots).abs() <= 1e-6 * scale).all()
        if top is not None:
            exact = (piecewise.beyond(x, top, signed=grids[0].lo < 0).double() * grad).sum()
            assert float(exact - ours.clip) == pytest.approx(0.0, abs=1e-6 * size**0.5)


def test_a_not_a_number_has_no_gradient_beyond_the_clip_and_passes_none() -> None:
    x, grad = torch.tensor([float("nan"), 1.0]), torch.ones(2)
    grids, clip = PactActivations((4,), signed=True).grids, torch.tensor(0.5)
    found = fused_cpu.slopes(grad, x, torch.ones(1), torch.ones(1), clip, grids, Asked(x=True, dots=False, clip=True))
    assert found.x.tolist() == [0.0, 0.0]
    assert float(found.clip) == 1.0


def test_several_threads_give_the_same_bits() -> None:
    grids, clip = KINDS["pact activations"]
    x, grad, probs = numbers(1_000_003).nan_to_num(), torch.randn(1_000_003), torch.full((4,), 0.25)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        asked = Asked(x=True, dots=True, clip=True)
        found = fused_cpu.slopes(grad, x, probs, STEPS, torch.tensor(clip), grids, asked)
        results.append([fused_cpu.mixed(x, probs, STEPS, grids), *found])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_the_deviation_is_that_of_double_precision() -> None:
    torch.manual_seed(0)
    x = torch.randn(70_001) * 1e-3 + 5
    expected = float(x.double().std(correction=0))
    assert float(fused_cpu.deviation(x)) == pytest.approx(expected, rel=1e-6)


LOOP = """
from numba import types
from trainables.quantizers.compiled_loops import FLOATS, compiled

@compiled(types.float32(FLOATS))
def last(x):
    return x[-1]
"""


def test_loops_compile_where_no_folder_can_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package read-only, and a cache folder that does not exist and cannot be made."""
    (tmp_path / "loops_without_cache.py").write_text(LOOP)
    blocked = tmp_path / "__pycache__"
    blocked.write_text("a file where the folder would be")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(blocked))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    loops = importlib.import_module("loops_without_cache")
    assert loops.last(np.float32([1, 3])) == 3.0
    assert type(loops.last._cache).__name__ == "NullCache"


@pytest.mark.parametrize("name", ["pact activations", "hwgq activations"])
def test_probabilities_and_steps_may_lie_anywhere(name: str) -> None:
    """A column of a table of all layers' probabilities has gaps; an expanded number has one place for all."""
    grids, clip = KINDS[name]
    x, grad = numbers(1025).nan_to_num(), torch.randn(1025)
    top, asked = None if clip is None else torch.tensor(clip), Asked(x=True, dots=True, clip=clip is not None)
    for column in (torch.rand(4, 3).softmax(0)[:, 1], torch.tensor(0.25).expand(4)):
        steps = torch.stack([STEPS, STEPS + 1], dim=1)[:, 0]
        results = []
        for probs, ours in ((column, steps), (column.clone().contiguous(), STEPS)):
            found = fused_cpu.slopes(grad, x, probs, ours, top, grids, asked)
            results.append([fused_cpu.mixed(x, probs, ours, grids), *found])
        assert all(map(torch.equal, *results))


def test_trials_repeat_their_numbers_without_filling_new_memory_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deterministic mode alone writes NaN to all of it, a pass more for each tensor."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    with torch.random.fork_rng():
        make_repeatable(0)
    try:
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("quantizer", ["pact", "hwgq", "lsq", "daq"])
def test_nothing_reads_memory_that_it_has_not_written(
    monkeypatch: pytest.MonkeyPatch, quantizer: DeployedQuantizer
) -> None:
    """NaN in all new memory changes no value and no gradient, whichever of these are asked for."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.manual_seed(0)
    mixture = BitMixture(quantizer, weight_bits=(2, 4), act_bits=(2, 4), signed=False)
    x, weight = torch.randn(64, 33, requires_grad=True), torch.randn(70, 33, requires_grad=True)
    parameters = [*mixture.parameters()]

    def results(dtype: torch.dtype) -> list[Tensor]:
        mixed = torch.nn.functional.linear(*(part.to(torch.float32) for part in mixture(x.to(dtype), weight)))
        found = [mixed.detach()]
        for wanted in ([x, weight, *parameters], [x], parameters):
            grads = torch.autograd.grad(mixed.square().sum(), wanted, retain_graph=True)
            found.extend(grads)
        return found

    for dtype in (torch.float32, torch.bfloat16):
        expected = results(dtype)
        torch.set_deterministic_debug_mode("warn")
        try:
            assert torch.empty(3).isnan().all()
            found = results(dtype)
        finally:
            torch.set_deterministic_debug_mode("default")
        assert all(map(torch.equal, found, expected))
