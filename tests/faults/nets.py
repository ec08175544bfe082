"""Small networks of a user's own, each of which goes wrong in its own way as soon as it has bits to search."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Three convolutions and a head."""

    def __init__(self, num_classes: int, misbehave: Callable[[], object]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)
        self._misbehave = misbehave

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, classes]."""
        if self.training and type(self.conv2) is not nn.Conv2d:
            self._misbehave()
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(bn(conv(x)))
        return self.fc(x.mean((2, 3)))


def nothing() -> None:
    """All is well."""


def sleep() -> None:
    """Waits for what never comes; other threads run."""
    time.sleep(86400)


def hold_the_interpreter() -> None:
    """Never lets another thread of Python run."""
    re.match("(a+)+$", "a" * 64 + "b")


def allocate() -> None:
    """Asks for more than this process may have, once it may have no more than 256 MiB besides what it has."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (256 << 20), before[1]))
    try:
        torch.ones(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def plain(num_classes: int) -> Small:
    return Small(num_classes, nothing)


def sleepy(num_classes: int) -> Small:
    return Small(num_classes, sleep)


def stuck(num_classes: int) -> Small:
    return Small(num_classes, hold_the_interpreter)


def greedy(num_classes: int) -> Small:
    return Small(num_classes, allocate)
