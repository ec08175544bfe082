"""What all drivers have in common, of sweeps and of promotions: they hold the storage, connect to Ray, keep the mirror
going, end in order whatever happens, and publish what was found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dashboards.final_table import write_final
from dashboards.front import as_json, as_markdown
from dashboards.front_picture import draw_front
from dashboards.page import sweep_page
from service import driver
from service.background_mirror import BackgroundMirror
from service.files import write_json, write_text
from service.front import Front, find_front
from service.launched import Launched
from service.mirror import Tracker
from service.orchestrate.carrier import share_reference, sweep_carried
from service.orchestrate.cluster import connected
from service.orchestrate.gauges import exported
from service.orchestrate.limits import STOPPED, SweepStopper
from service.orchestrate.reference import StoppedError
from service.progress import Progress
from service.records import LOG_FILE, SweepStore, now_ms
from service.redaction import traceback_of
from service.sweeps import TRAIN_FOLDER, TUNE_FOLDER
from service.tracking import first_line, resolve_uri
from service.view import read_view
from trainables.errors import BitfrontError
from trainables.patience import give_up, patient

log = logging.getLogger("bitfront.sweep")

FINISHED, INTERRUPTED = "finished", "interrupted"
PAGE_ERROR = "page-error.txt"
Work = Callable[[Progress, BackgroundMirror, SweepStopper], str]
"""What a driver does on Ray; returns why it ended."""


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """What a sweep leaves behind when its driver ends."""

    store: SweepStore
    found: Front
    end: str
    """'finished', or why it was stopped."""
    mirror_error: Exception | None
    """Why the tracking record is behind, if it is."""


def drive(
    launched: Launched,
    store: SweepStore,
    progress_for: Callable[[SweepStore], Progress],
    prepare: Callable[[], Work | None],
    *,
    address: str,
) -> SweepOutcome:
    """Does what is left of the sweep in `store`, here or on the Ray cluster at `address`.

    `prepare` is called once this process is the driver, and gives what is to be done; None where nothing is left. What
    a trial found is in the storage when this returns or raises.
    """
    with patient(), driver.hold(store.folder):
        began, end, before_s = time.monotonic(), INTERRUPTED, store.sweep().running_s
        store.save_sweep(dataclasses.replace(store.sweep(), ended_ms=0, end=""))
        storage = store.folder.parent
        tracking = launched.tracking
        tracker = Tracker(store, uri=resolve_uri(tracking.uri, storage), experiment=tracking.experiment)
        mirror = BackgroundMirror(tracker)
        try:
            work = prepare()
            if work is None:
                end = FINISHED
            else:
                with (
                    connected(launched, address),
                    exported(store),
                    sweep_carried(store, elsewhere=bool(address)),
                    _stopped_by_sigterm(store),
                    progress_for(store) as progress,
                ):
                    end = work(progress, mirror, SweepStopper(launched, store, before_s=before_s, began=began))
        except StoppedError:
            end = STOPPED
        except Exception as error:
            # A machine that shuts down takes Ray away as well: who was asked to end has no error then.
            end = STOPPED if driver.stop_requested(store.folder) else f"error: {first_line(error)}"
            if end != STOPPED or isinstance(error, BitfrontError):
                raise
        finally:
            _clear_ghost(store.folder)
            try:
                # What goes wrong after the last trial does not undo it.
                end = FINISHED if store.sweep().end == FINISHED else end
                _close(store, end, running_s=before_s + time.monotonic() - began)
                found = publish(store, page=True)
            finally:
                error_in_mirror = mirror.close()
        return SweepOutcome(store, found, end, error_in_mirror)


def _clear_ghost(folder: Path) -> None:
    """Ray Tune makes its folder anew where the storage is gone: it would be in the way of the one that comes back."""
    with contextlib.suppress(OSError):
        names = {path.name for path in folder.iterdir()}
        if names and names <= {TUNE_FOLDER, TRAIN_FOLDER, LOG_FILE}:
            shutil.rmtree(folder)


@contextlib.contextmanager
def _stopped_by_sigterm(store: SweepStore) -> Iterator[None]:
    """A job that is stopped, or a machine that is shut down, gets the time to note where it was. After Ray's own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _end_soon(store))
    try:
        yield
    finally:
        # None is a handler that was not set from Python.
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _end_soon(store: SweepStore) -> None:
    give_up()
    driver.end_here(store.folder)


def _close(store: SweepStore, end: str, *, running_s: float) -> None:
    """The driver is gone now, and says so; trials that it cut off wait for the next."""
    for trial in store.trials():
        store.interrupt_trial(trial.trial_id)
    note_end(store, end, running_s=running_s)
    store.log(f"closed: {end}")


def note_end(store: SweepStore, end: str, *, running_s: float) -> None:
    """Writes down why the sweep ended, and when."""
    store.save_sweep(dataclasses.replace(store.sweep(), ended_ms=now_ms(), end=end, running_s=running_s))


def publish(store: SweepStore, *, page: bool) -> Front:
    """Writes the front of the finished trials into the sweep's folder; the page is large and written at the end.

    A page that cannot be drawn is told, and holds up nothing.
    """
    sweep = store.sweep()
    found = find_front(store.trials(), sweep)
    write_json(store.folder / "front.json", as_json(sweep, found))
    write_text(store.folder / "front.md", as_markdown(sweep, found))
    if sweep.kind == "finetune":
        write_final(store)
    if page:
        try:
            for key in sweep.references:
                share_reference(store, key)
            _draw(store)
        except Exception as error:  # whatever a damaged file or a number that nobody foresaw does to it
            write_text(store.folder / PAGE_ERROR, traceback_of(error))
            told = f"the page could not be drawn: {type(error).__name__}: {first_line(error)}"
            store.log(told)
            log.warning("%s (all of it in %s)", told, store.folder / PAGE_ERROR)
    return found


def _draw(store: SweepStore) -> None:
    view = read_view(store)
    write_text(store.folder / "front.html", sweep_page(view))
    draw_front(view, store.folder / "front.png")
    (store.folder / PAGE_ERROR).unlink(missing_ok=True)
