"""Carries what this process finishes, while it goes on computing, to a storage that is kept as objects.

Every second or two, and only what has changed: epochs of 0.1 s do not each cost requests. While the store is away
nothing waits; what has gathered is pushed when it is back. Of a storage in a folder none of this does anything.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.marks import SWEEP, SWEEP_FILE, TRIALS, Group
from service.object_store import StoreAwayError, patience
from service.records import SweepStore
from service.reference_replica import fetch_checkpoint, fetch_reference, push_checkpoint, push_reference
from service.replica import ReplacedError, Replica, replica_of
from service.working_copy import Place
from trainables.patience import wait_s
from trainables.report import RECORD_FILE

log = logging.getLogger("bitfront.storage")

PUSH_S = 2.0
POLL_S = 5.0
"""How often a driver looks for what other machines have pushed."""


def alone() -> None:
    """Nobody else is waited for."""


def trial_group(trial_id: str) -> str:
    """The group of a trial's files."""
    return f"{TRIALS}/{trial_id}"


@contextmanager
def attempt_begun(
    place: Place, name: str, *, rank: int = 0, barrier: Callable[[], None] = alone
) -> Iterator[SweepStore]:
    """The sweep's storage on this machine; what a group was when it was last worked on is here, its checkpoint as well.

    `barrier` waits for the other workers: all go on from the same checkpoint.
    """
    store = SweepStore(place.here)
    if store.replica is None:
        yield store
        return
    with patience(wait_s()):
        if rank == 0:
            # What a process that was killed here had not pushed is, unless somebody else has gone on.
            store.replica.fetch(store.folder.name, name)
            store.replica.push(store.folder.name, name)
        barrier()
        if rank != 0:
            store.replica.fetch(store.folder.name, name, exact=True)
        if not (store.folder / SWEEP_FILE).exists():
            store.replica.fetch(store.folder.name, SWEEP)
        barrier()
        yield store


@contextmanager
def group_carried(store: SweepStore, name: str) -> Iterator[None]:
    """Pushes what this process writes of a trial, or of the random policy, while no other attempt has followed it."""
    replica = store.replica
    if replica is None:
        yield
        return
    group = Group(replica.root, store.folder.name, name)

    def push() -> None:
        try:
            if group.has_changed():
                replica.push(group.sweep, group.name, guarded=True)
        except ReplacedError:
            # The trial's own record here then says that this attempt is over.
            replica.fetch(group.sweep, group.name, checkpoint=False)

    with _again_and_again(push, PUSH_S):
        yield


@contextmanager
def sweep_carried(store: SweepStore, *, elsewhere: bool) -> Iterator[None]:
    """Pushes what the driver writes; fetches what trials write where they may run `elsewhere`."""
    replica = store.replica
    if replica is None:
        yield
        return
    group = Group(replica.root, store.folder.name, SWEEP)

    def carry() -> None:
        if group.has_changed():
            replica.push(group.sweep, SWEEP)
        if elsewhere:
            replica.fetch_sweep(group.sweep)

    with _again_and_again(carry, POLL_S):
        yield


@contextmanager
def reference_carried(
    references: Path, key: str, *, rank: int = 0, barrier: Callable[[], None] = alone
) -> Iterator[None]:
    """A reference that was trained elsewhere is here, or else how far that had come; what is trained here goes there.

    `barrier` waits for the other workers: all go on from the same checkpoint.
    """
    replica = replica_of(references.parent)
    if replica is None:
        yield
        return
    checkpoint = references / f".{key}.checkpoint.pt"
    with patience(wait_s()):
        if rank == 0:
            fetch_reference(replica, references / key, maps=True)
            fetch_checkpoint(replica, checkpoint)
        barrier()
        if rank != 0:
            fetch_reference(replica, references / key, maps=True)
            if not replica.fetch_file(checkpoint):
                checkpoint.unlink(missing_ok=True)
        barrier()
        with _again_and_again(_pushing(replica, checkpoint), PUSH_S) if rank == 0 else contextlib.nullcontext():
            yield
        if rank == 0:
            push_reference(replica, references / key)
            push_checkpoint(replica, checkpoint)
        barrier()
        if rank != 0 and not (references / key / RECORD_FILE).exists():
            fetch_reference(replica, references / key, maps=False)


def share_reference(store: SweepStore, key: str) -> None:
    """For the driver: a reference that somebody has trained is here, and one that is here is there."""
    if store.replica is not None:
        with patience(wait_s()):
            push_reference(store.replica, store.references / key)
            fetch_reference(store.replica, store.references / key, maps=False)


def _pushing(replica: Replica, path: Path) -> Callable[[], None]:
    """Pushes one file whenever it has changed."""
    last = 0

    def push() -> None:
        nonlocal last
        with contextlib.suppress(FileNotFoundError):
            changed = path.stat().st_mtime_ns
            if changed != last:
                push_checkpoint(replica, path)
                last = changed

    return push


@contextmanager
def maps_carried(references: Path, key: str, *, rank: int) -> Iterator[None]:
    """The reference is here, with its maps; what maps are made here go there."""
    replica = replica_of(references.parent)
    if replica is None or not key:
        yield
        return
    with patience(wait_s()):
        fetch_reference(replica, references / key, maps=True)
        yield
        if rank == 0:
            push_reference(replica, references / key)


@contextmanager
def _again_and_again(work: Callable[[], None], every_s: float) -> Iterator[None]:
    """Meanwhile `work` is done by another thread, which asks a store that is away once, and then the next time."""
    ended = threading.Event()

    def loop() -> None:
        is_away = False
        while not ended.wait(every_s):
            try:
                with patience(0):
                    work()
                is_away = False
            except Exception as error:
                # Whatever goes wrong: this thread is all that pushes.
                if not (is_away and isinstance(error, StoreAwayError)):
                    log.warning("%s It is tried again.", error)
                is_away = True

    thread = threading.Thread(target=loop, name="bitfront-carrier", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
