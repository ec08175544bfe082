"""Which passes a GPU gets, and what is said where these are not the fast ones; no GPU is needed to ask."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from trainables.quantizers import gpu_passes, piecewise

GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="torch came without Triton")


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of the year 2020, as far as it is asked about; nothing is remembered of it."""
    for remembered in (gpu_passes.passes_on, gpu_passes._tell):
        remembered.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    yield
    for remembered in (gpu_passes.passes_on, gpu_passes._tell):
        remembered.cache_clear()


def kernels_that(monkeypatch: pytest.MonkeyPatch, outcome: bool | BaseException) -> Any:
    from trainables.quantizers import fused_cuda

    def usable(device: torch.device, dtype: torch.dtype) -> bool:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(fused_cuda, "usable", usable)
    return fused_cuda


@pytest.mark.parametrize("reason", ["another maker's", "Triton is not installed", "capability 6.1", "wrong numbers"])
def test_a_gpu_without_kernels_is_told_of_once(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_that(monkeypatch, outcome=False)
    if reason == "another maker's":
        monkeypatch.setattr(torch.version, "cuda", None)
    elif reason == "Triton is not installed":
        monkeypatch.setattr(gpu_passes, "find_spec", lambda _: None)
    elif reason == "capability 6.1":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    with pytest.warns(UserWarning, match=reason):
        assert gpu_passes.passes_on(GPU, torch.float32) is piecewise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpu_passes.passes_on(torch.device("cuda", 1), torch.float32) is piecewise


def test_a_fault_of_the_compiler_is_told_of_and_full_memory_or_an_interrupt_passes_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt("stop")):
        kernels_that(monkeypatch, error)
        with pytest.raises(type(error), match=str(error)):
            gpu_passes.passes_on(GPU, torch.float32)
    # Nothing was decided meanwhile.
    kernels_that(monkeypatch, RuntimeError("no C compiler"))
    with pytest.warns(UserWarning, match="RuntimeError: no C compiler"):
        assert gpu_passes.passes_on(GPU, torch.float32) is piecewise


@pytest.mark.parametrize(("capability", "served"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_older_gpus_have_the_kernels_in_all_types_but_bfloat16(
    capability: tuple[int, int], served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = kernels_that(monkeypatch, outcome=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert gpu_passes.passes_on(GPU, torch.float32) is gpu_passes.passes_on(GPU, torch.float16) is kernels
    with warnings.catch_warnings():
        warnings.simplefilter("error" if served else "ignore")
        assert gpu_passes.passes_on(GPU, torch.bfloat16) is (kernels if served else piecewise)
        # Who asks for double precision wants torch's own.
        warnings.simplefilter("error")
        assert gpu_passes.passes_on(GPU, torch.float64) is piecewise
