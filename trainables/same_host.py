"""Gradients of workers on one host, averaged in memory that they share.

On the CPU a process group sends them through the kernel's network stack, which takes as much of each worker's core as
copying them several times. Here each of the W workers leaves what the others need of its gradients g_w in shared
memory, averages one part of W, and takes the other parts from there:

    mean_p = (g_p,p + Σ_{w ≠ p} g_w,p) / W,   computed by worker p alone, so that all have the same bits

A worker moves two copies of the gradients and what it adds up. Two small messages of the group keep the workers in
step.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_TOKEN_BYTES = 32
_ALIGNED = 64
"""Bytes: a cache line."""


@dataclass(slots=True)
class SharedMemory:
    """The exchange of one network's gradients: the state of `averaged`, the hook of its DistributedDataParallel."""

    rank: int
    size: int
    left: Tensor
    """What each worker leaves for the others, uint8 [W, bytes]."""
    means: Tensor
    """uint8 [bytes]. Not among the former: a worker may leave the next gradients while another still reads these."""
    begin: int = 0
    """Where the next bucket's bytes begin."""

    @classmethod
    def of(cls, net: nn.Module, *, rank: int, size: int) -> SharedMemory | None:
        """For all gradients of `net`; None, on all workers, where some of them cannot share memory.

        The memory has no name, so that nothing is left behind however workers end: they find it by way of rank 0's open
        file, and know it by a random token.
        """
        room = sum(_aligned(p.numel() * p.element_size()) for p in net.parameters() if p.requires_grad)
        total = (size + 1) * room + _TOKEN_BYTES
        told: list[tuple[str, bytes] | None] = [None]
        file = -1
        if rank == 0:
            file, token = _anonymous(total), secrets.token_bytes(_TOKEN_BYTES)
            told = [(f"/proc/{os.getpid()}/fd/{file}", token)] if file >= 0 and _written(file, total, token) else told
        dist.broadcast_object_list(told, src=0)
        memory = None if told[0] is None else _mapped(*told[0], total)
        agreed = torch.tensor(float(memory is not None))
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        if file >= 0:
            os.close(file)
        if memory is None or not bool(agreed):
            return None
        return cls(rank, size, memory[: size * room].view(size, room), memory[size * room : (size + 1) * room])

    def average(self, gradients: Tensor, *, first: bool) -> None:
        """Of a bucket on all workers, in place. `first`: a step's buckets begin anew."""
        begin = 0 if first else self.begin
        self.begin = begin + _aligned(gradients.numel() * gradients.element_size())
        here = slice(begin, begin + gradients.numel() * gradients.element_size())
        left = [row[here].view(gradients.dtype) for row in self.left]
        means = self.means[here].view(gradients.dtype)
        ends = [gradients.numel() * part // self.size for part in range(self.size + 1)]
        parts = [slice(ends[part], ends[part + 1]) for part in range(self.size)]
        own, others = parts[self.rank], [part for part in range(self.size) if part != self.rank]
        for part in others:
            left[self.rank][parts[part]].copy_(gradients[parts[part]])
        _meet()
        for worker in others:
            gradients[own].add_(left[worker][own])
        means[own].copy_(gradients[own].div_(self.size))
        _meet()
        for part in others:
            gradients[parts[part]].copy_(means[parts[part]])


def averaged(shared: SharedMemory, bucket: Any) -> torch.futures.Future[Tensor]:
    """A communication hook of DistributedDataParallel; `bucket` is its GradBucket."""
    gradients = bucket.buffer()
    shared.average(gradients, first=bucket.index() == 0)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _anonymous(size: int) -> int:
    """A file in memory, with `size` bytes that are really there; -1 where the system has none."""
    try:
        file = os.memfd_create("gradients")
    except (AttributeError, OSError):
        return -1
    try:
        os.posix_fallocate(file, 0, size)
    except OSError:
        os.close(file)
        return -1
    return file


def _written(file: int, size: int, token: bytes) -> bool:
    return os.pwrite(file, token, size - _TOKEN_BYTES) == _TOKEN_BYTES


def _mapped(path: str, token: bytes, size: int) -> Tensor | None:
    """The memory behind `path`, uint8 [size], if it ends with the token: on another host the path is another's."""
    try:
        with Path(path).open("rb") as file:
            if os.pread(file.fileno(), _TOKEN_BYTES, size - _TOKEN_BYTES) != token:
                return None
        return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError):
        return None


def _meet() -> None:
    """No worker goes on before all are here. What one wrote before, the others read behind."""
    dist.all_reduce(torch.zeros(1))
