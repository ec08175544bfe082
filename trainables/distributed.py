"""One worker or several: plain torch.distributed, whoever started the processes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.same_host import SharedMemory, averaged

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, slots=True)
class Workers:
    """This process's place among the workers of a trial."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def current(cls) -> Workers:
        """From the process group, if one was started; the device is this process's own GPU or the CPU."""
        grouped = dist.is_available() and dist.is_initialized()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local_rank % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
        return cls(dist.get_rank() if grouped else 0, dist.get_world_size() if grouped else 1, torch.device(device))

    def wrap(self, net: nn.Module) -> nn.Module:
        """`net` with gradients averaged over the workers; itself where there is one."""
        if self.size == 1:
            return net
        # Gradients lie in the buckets that are sent, and need no way back.
        model = DistributedDataParallel(
            net,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        # All have rank 0's buffers from now on. What training only writes is shared when it is read (`share_buffers`).
        model.broadcast_buffers = not _only_running_statistics(net)
        shared = None if self.device.type == "cuda" else SharedMemory.of(net, rank=self.rank, size=self.size)
        if shared is not None:
            # As it is, torch would look for the class in its annotations, which are strings.
            model.register_comm_hook(shared, lambda state, bucket: averaged(state, bucket))
        return model

    def total(self, values: Tensor) -> Tensor:
        """Sum of `values` over the workers, on each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gathered(self, values: Tensor) -> list[Tensor]:
        """Every worker's `values`, of the same shape on all, on the CPU."""
        if self.size == 1:
            return [values.cpu()]
        values = values.to(self.device)
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values)
        return [each.cpu() for each in found]

    def share_buffers(self, net: nn.Module) -> None:
        """Gives `net` rank 0's buffers on all workers, which each have run their own shares of the batches."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)

    def told(self, values: dict[str, float]) -> dict[str, float]:
        """Rank 0's `values`, on every worker."""
        if self.size == 1:
            return values
        content: list[dict[str, float]] = [values]
        dist.broadcast_object_list(content, src=0, device=self.device)
        return content[0]


def _only_running_statistics(net: nn.Module) -> bool:
    """Whether no buffer that is kept has a part in a step: batch normalisation trains by the batch's own statistics."""
    kept = net.state_dict().keys()
    return all(
        isinstance(module, _BATCH_NORMS) or f"{name}.{buffer}".lstrip(".") not in kept
        for name, module in net.named_modules()
        for buffer, _ in module.named_buffers(recurse=False)
    )


def make_repeatable(seed: int) -> None:
    """Same seed, same machine, same threads: same numbers, bit for bit."""
    torch.manual_seed(seed)
    # cuBLAS reads this when its first handle is made; without it deterministic mode refuses matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # This mode would write NaN to all new memory first, a pass more for each tensor. Nothing here reads what it has not
    # written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
