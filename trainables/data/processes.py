"""Loader processes that make batches ahead of time, and stay for the next epoch.

To start them takes longer than many an epoch of a small data set. They know the images alone: which of them make a
batch, and how these change, is sent for each. Those of the last SETS image sets stay: training and validation take
turns.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainables.errors import BitfrontError

if TYPE_CHECKING:
    from trainables.data.batches import ImageSet, LabelledImages

SETS = 2
"""Image sets whose processes are kept."""

Request = tuple[Tensor, Tensor | None]
"""Places [N] and draws [N, DRAWS] of a batch."""
_Sent = tuple[NDArray[np.int64], NDArray[np.float32] | None]
"""The same as what is copied into a message: a tensor would be a file in shared memory."""


class _Maker(Dataset["LabelledImages | BitfrontError"]):
    """What a loader process does: a batch for each request."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, request: _Sent) -> LabelledImages | BitfrontError:
        places, draws = request
        try:
            return self.images.batch(torch.from_numpy(places), None if draws is None else torch.from_numpy(draws))
        except BitfrontError as error:
            # Raised here, its message would arrive with a traceback in it.
            return error


class _Requests(Sampler[_Sent]):
    """The requests of the epoch that comes next."""

    def __init__(self) -> None:
        self.coming: Sequence[Request] = ()

    def __iter__(self) -> Iterator[_Sent]:
        return ((places.numpy(), None if draws is None else draws.numpy()) for places, draws in self.coming)


class _Processes:
    """Loader processes of one image set."""

    def __init__(self, images: ImageSet, *, workers: int, pinned: bool) -> None:
        self.images, self.busy, self._requests = images, False, _Requests()
        self._loader = DataLoader(
            _Maker(images),
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=pinned,
            # One of its own: the loader would otherwise draw from the global random state.
            generator=torch.Generator(),
        )

    def made(self, requests: Sequence[Request]) -> Iterator[Any]:
        """The batches in the order of the requests. One iteration at a time."""
        self._requests.coming = requests
        yield from self._loader


_kept: OrderedDict[tuple[int, int, bool], _Processes] = OrderedDict()
"""By the set's identity, which cannot pass to another while it is in here; the last used at the end."""
_of_parent: list[_Processes] = []
"""In a fork: what it must neither use nor let go of, as that would tell its parent's processes to end."""


def _leave_to_parent() -> None:
    _of_parent.extend(_kept.values())
    _kept.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def made(
    images: ImageSet, requests: Sequence[Request], *, workers: int, pinned: bool
) -> Iterator[LabelledImages | BitfrontError]:
    """Images and labels for each request, in order; `pinned`: where a GPU can fetch them without waiting."""
    key = (id(images), workers, pinned)
    found = _kept.get(key)
    if found is None or found.busy:
        # Where one epoch is read while another has not ended, each has processes of its own.
        found = _Processes(images, workers=workers, pinned=pinned)
        _kept[key] = found
    _kept.move_to_end(key)
    while len(_kept) > SETS:
        _kept.popitem(last=False)
    found.busy, failed = True, True
    try:
        yield from found.made(requests)
        failed = False
    except GeneratorExit:
        # Nobody waits for the rest, which the processes pass over when they are asked again.
        failed = False
        raise
    finally:
        found.busy = False
        if failed and _kept.get(key) is found:
            del _kept[key]


@contextmanager
def let_go() -> Iterator[None]:
    """In the end no process stays that was started meanwhile or before: a trial's images are not the next one's."""
    try:
        yield
    finally:
        stop()


def stop() -> None:
    """Ends all processes that no epoch is being read from."""
    for key in [key for key, found in _kept.items() if not found.busy]:
        del _kept[key]
