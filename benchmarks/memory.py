"""Peak memory of a step, as torch's allocators saw it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

_MEASURED = "the step that is measured"


def peak_bytes(step: Callable[[], object], *, device: str = "cpu") -> int:
    """The most bytes that tensors took at any one moment of `step()`, above what they took when it began.

    What the networks, gradients and optimizer hold all the time is not in it: `held_bytes` counts that. On the CPU
    every allocation and release of torch's allocator is recorded in turn; what oneDNN takes inside of a convolution
    without asking torch is not seen, and the step is done twice, of which the second one is measured.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        # A release is seen only of what was taken under the profiler: gradients of the step before, for instance.
        step()
        with record_function(_MEASURED):
            step()
    assert recorded.profiler is not None
    results = recorded.profiler.kineto_results
    assert results is not None
    (began,) = (event.start_ns() for event in results.events() if event.name() == _MEASURED)
    changes = [event for event in results.events() if event.name() == "[memory]" and event.start_ns() >= began]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors' memory, each storage once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
