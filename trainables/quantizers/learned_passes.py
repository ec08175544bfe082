"""Which tensors DAQ and LSQ pass over in one go."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from trainables.quantizers.layout import floats_of_the_cpu


def fused(*tensors: Tensor) -> ModuleType | None:
    """`learned_cpu` for float32 on the CPU; None where operations on whole tensors have to do."""
    if not floats_of_the_cpu(*tensors):
        return None
    # numba takes a quarter of a second to import.
    from trainables.quantizers import learned_cpu

    return learned_cpu
