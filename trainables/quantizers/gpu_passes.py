"""Which passes serve a GPU: Triton's kernels where they run, else torch's operations, said once for each reason."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch

from trainables.quantizers import piecewise

_OLDEST = {torch.float32: (7, 0), torch.float16: (7, 0), torch.bfloat16: (8, 0)}
"""The compute capability from which on a GPU is tried. Older ones than 8.0 have no instructions for bfloat16."""


@cache
def passes_on(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """`fused_cuda`, tried on this device with this type, or `piecewise`."""
    if dtype not in _OLDEST:
        return piecewise
    reason = _reason_against(device, dtype)
    if reason is not None:
        _tell(reason)
        return piecewise
    from trainables.quantizers import fused_cuda

    return fused_cuda


def _reason_against(device: torch.device, dtype: torch.dtype) -> str | None:
    if torch.version.cuda is None:
        return "they are written for NVIDIA's GPUs, and this torch is built for another maker's"
    if find_spec("triton") is None:
        return "Triton is not installed (torch's builds for GPUs on Linux bring it)"
    capability, oldest = torch.cuda.get_device_capability(device), _OLDEST[dtype]
    if capability < oldest:
        versions = ".".join(map(str, capability)), ".".join(map(str, oldest))
        return f"the GPU has compute capability {versions[0]}, and {dtype} needs {versions[1]}"
    try:
        from trainables.quantizers import fused_cuda

        return None if fused_cuda.usable(device, dtype) else f"they give wrong numbers on this GPU in {dtype}"
    except torch.OutOfMemoryError:
        # Of the trial, not of the kernels.
        raise
    # Triton needs a C compiler, a folder to write to and a new driver; each lack has an exception of its own.
    except Exception as error:
        return f"they failed with {type(error).__name__}: {error}"


@cache
def _tell(reason: str) -> None:
    warnings.warn(f"the mixture of widths runs without Triton's kernels, more slowly: {reason}", stacklevel=2)
