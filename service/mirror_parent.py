"""The run of a sweep itself: its course, its note, its files, how it ended."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dashboards.note import as_note
from service.files import write_text
from service.final_table import final_table
from service.front import Front
from service.note_blocks import block_of, with_block
from service.records import SweepRecord, SweepStore, TrialRecord
from service.run_facts import ENDED_TAG, NOTE_TAG, Course, MetricPoint, datasets, sweep_tags
from service.run_writer import KnownRun, RunWriter
from service.tracking import server_address

ALWAYS = ("front.json", "front.md", "final.md", "final.json", "final.csv")
AT_THE_END = ("front.png", "front.html")
"""Written when a sweep is closed; what lies there before is of an earlier time."""
WIDEST = 900
"""Pixels of a picture in the note: MLflow does not scale it, and a wider one pushes its neighbours off the page."""
END_STATUS = {"finished": "FINISHED", "error": "FAILED"}


class ParentRun:
    """Brings a sweep's run in line with its storage."""

    def __init__(self, writer: RunWriter, store: SweepStore, run: KnownRun | None) -> None:
        """`run`: as it was found in MLflow; None makes one."""
        self._writer, self._store = writer, store
        sweep = store.sweep()
        self.run = run or writer.create(name=sweep.name, start_ms=sweep.created_ms, tags=sweep_tags(sweep))
        if not self.run.described:
            writer.files(self.run, [store.folder / "spec.yaml"])
            # Last: a run without them is described again.
            writer.log(self.run, params=sweep.facts)
        self._course = Course(sweep)
        self._counted: set[tuple[str, int]] = set()
        """Trials with the attempt that ended."""
        self._sent: dict[str, int] = {}
        """Files by the time of their last change, ns."""

    def sync(
        self,
        sweep: SweepRecord,
        found: Front,
        ended: Sequence[tuple[TrialRecord, float]],
        *,
        links: Mapping[str, str],
        alive: bool,
        refresh: bool,
        settled: bool,
    ) -> bool:
        """Writes what has changed; whether files and note were left for later.

        Args:
            ended: each end of a trial, with the device-hours since its last one.
            links: by trial, the rest of its run's address behind the server's; of a promotion also by SWEEP_ID/TRIAL
                of the trials that found its policies.
            settled: whether no other process writes the sweep's page now.
        """
        new = sorted((one for one in ended if _which(one[0]) not in self._counted), key=_when)
        points = self._points(new)
        tags = {**sweep_tags(sweep), ENDED_TAG: str(self._course.ended)}
        self._writer.inputs(self.run, datasets(sweep, sweep.references))
        if refresh:
            if settled and sweep.ended_ms:
                self._link(self._store.folder / "front.html", links)
            self._send_files(sweep)
            hours = sum(spent for _, spent in ended)
            pictures = self._pictures(found, links)
            final = final_table(self._store) if sweep.kind == "finetune" else None
            note = as_note(sweep, found, device_hours=hours, links=links, pictures=pictures, final=final)
            # What it says of other runs is `mirror_lineage`'s.
            tags[NOTE_TAG] = with_block(note, block_of(self.run.tags.get(NOTE_TAG, "")))
        self._set_status(sweep, ended, alive)
        self._writer.log(self.run, points=points, tags=tags)
        return not refresh and self._is_behind()

    def _points(self, new: Sequence[tuple[TrialRecord, float]]) -> list[MetricPoint]:
        """The sweep's course through these trials, from the last step that is recorded on."""
        recorded = int(self.run.tags.get(ENDED_TAG, "0"))
        points = []
        for trial, hours in new:
            self._counted.add(_which(trial))
            points += self._course.add(trial, device_hours=hours)
        return [point for point in points if point[3] >= recorded]

    def _files(self, names: Sequence[str]) -> dict[str, int]:
        """Those that exist, with the time of their last change."""
        paths = {name: self._store.folder / name for name in names}
        return {name: path.stat().st_mtime_ns for name, path in paths.items() if path.exists()}

    def _is_behind(self) -> bool:
        return any(self._sent.get(name) != time_ns for name, time_ns in self._files(ALWAYS).items())

    def _send_files(self, sweep: SweepRecord) -> None:
        names = (*ALWAYS, *AT_THE_END) if sweep.ended_ms else ALWAYS
        changed = {name: time_ns for name, time_ns in self._files(names).items() if self._sent.get(name) != time_ns}
        self._writer.files(self.run, [self._store.folder / name for name in changed])
        self._sent |= changed

    def _link(self, page: Path, links: Mapping[str, str]) -> None:
        """Gives the stored page the addresses of the runs: from a file a click opens them, too."""
        from dashboards.page import with_links

        # Somebody else's storage, or one that is kept as it is, has its page without them.
        if page.exists() and os.access(page.parent, os.W_OK):
            text = page.read_text()
            linked = with_links(text, base=server_address(self._writer.uri), runs=links)
            if linked != text:
                write_text(page, linked)

    def _pictures(self, found: Front, links: Mapping[str, str]) -> dict[str, str]:
        """Addresses, relative to MLflow's pages, of the pictures that the runs have, by their captions."""
        pictures = {}
        if "front.png" in self._sent:
            caption = f"{found.accuracy.name_alone} against BOPs"
            pictures[caption] = _artifact(self.run.run_id, "front.png")
        knee = found.knee
        if knee and knee.trial_id in links:
            width = _png_width(self._store.trial_folder(knee.trial_id) / "bits.png")
            if 0 < width <= WIDEST:
                pictures["bits of the knee"] = _artifact(links[knee.trial_id].rpartition("/")[2], "bits.png")
        return pictures

    def _set_status(self, sweep: SweepRecord, ended: Sequence[tuple[TrialRecord, float]], alive: bool) -> None:
        if sweep.ended_ms:
            status = END_STATUS.get(sweep.end.split(":")[0], "KILLED")
            self._writer.set_status(self.run, status, end_ms=sweep.ended_ms)
        elif not alive:
            last_ms = max([sweep.created_ms, *(trial.ended_ms for trial, _ in ended)])
            self._writer.set_status(self.run, "KILLED", end_ms=last_ms)
        else:
            self._writer.set_status(self.run, "RUNNING")


def _which(trial: TrialRecord) -> tuple[str, int]:
    return trial.trial_id, trial.attempts


def _when(one: tuple[TrialRecord, float]) -> tuple[int, int]:
    return one[0].ended_ms, one[0].number


def _png_width(path: Path) -> int:
    """Pixels; 0 where there is no picture."""
    with path.open("rb") if path.exists() else io.BytesIO() as file:
        # The header's first number, behind signature, length and name (PNG specification, 11.2.1).
        return int.from_bytes(file.read(24)[16:20], "big")


def _artifact(run_id: str, path: str) -> str:
    return f"get-artifact?path={path}&run_uuid={run_id}"
