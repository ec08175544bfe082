"""Nights in MLflow: a run for each night, and one for each sweep whose charts have a point for every night.

    experiment `bitfront-nightly`
        20261122t020000z    a night: metrics `<sweep>/top1` and so on, verdicts, report, trend page, a note with links
        digits-methods      a sweep: its metrics; the step is the number of the night, the time that of its end

Everything is found again by tags, and recording a night again changes nothing. A lost record is rebuilt by recording
all nights once more, the first first (`record_all`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from dashboards.trend import PAGE_FILE
from service.marks import NIGHTS
from service.nightly_report import MARKDOWN_FILE, REPORT_FILE, VERDICTS, NightReport, SweepReport, Verdict, read_report
from service.records import SweepStore
from service.run_facts import KIND_TAG, NOTE_TAG, SWEEP_TAG, TAG_LENGTH, MetricPoint
from service.run_writer import KnownRun, RunWriter
from service.simultaneous import make_once
from service.sweeps import refresh, stored_tracking
from service.tracking import check_tracking, resolve_uri, server_address
from trainables.errors import BitfrontError, StorageError

EXPERIMENT = "bitfront-nightly"
NIGHT_TAG, NUMBER_TAG = "bitfront.night", "bitfront.night_number"
"""Of a night's run: NIGHT@STARTED_MS, and its place among the nights recorded here, from 1, which never changes."""
COURSE_TAG = "bitfront.nightly_sweep"
"""Of a sweep's run: its name."""
VERDICT_TAG, REVISION_TAG, VERSION_TAG = "bitfront.verdict", "bitfront.revision", "bitfront.version"
STATUS: dict[Verdict, str] = {"reproduced": "FINISHED", "new": "FINISHED", "drifted": "FAILED", "broken": "FAILED"}
REASON_LENGTHS = (300, 80, 0)
"""Characters of a reason in the note: the first with which it fits into a tag."""


def record(night_folder: Path, *, uri: str = "") -> str:
    """Brings MLflow in line with a night; doing it again changes nothing. One that was cut off is left for its end.

    The address of the night's run on a server; empty where it has none.

    Args:
        night_folder: `<storage>/nightly/<night>`, with its report.
        uri: the tracking server or database; empty: that of the night's sweeps. Raises TrackingError where it refuses.
    """
    report = read_report(night_folder / REPORT_FILE)
    if not report.ended_ms:
        return ""
    storage = night_folder.absolute().parent.parent
    place = uri or _tracking_of(report, storage)
    check_tracking(place)

    def make() -> tuple[RunWriter, KnownRun]:
        writer = RunWriter(place, experiment=EXPERIMENT)
        return writer, _record(report, night_folder, writer)

    writer, run = make_once(make, uri=place, what="records")
    if not place.startswith(("http:", "https:")):
        return ""
    return f"{server_address(place)}/#/experiments/{writer.experiment_id}/runs/{run.run_id}"


def record_all(storage: Path, *, uri: str = "") -> list[str]:
    """Records every night of a storage, the first first; which. What is no report, or a damaged one, is left out."""
    found = {}
    for path in (storage / NIGHTS).glob(f"[!.]*/{REPORT_FILE}"):
        with contextlib.suppress(StorageError):
            found[path.parent] = read_report(path)
    nights = sorted(found, key=lambda folder: (found[folder].started_ms, folder.name))
    for folder in nights:
        record(folder, uri=uri)
    return [folder.name for folder in nights]


def _tracking_of(report: NightReport, storage: Path) -> str:
    """Where the first of its sweeps that has begun is recorded; without one, the storage's own database."""
    for sweep in report.sweeps:
        refresh(storage, sweep.sweep)
        if (storage / sweep.sweep / "spec.yaml").exists():
            return resolve_uri(stored_tracking(SweepStore(storage / sweep.sweep)).uri, storage)
    return resolve_uri("", storage)


def _record(report: NightReport, folder: Path, writer: RunWriter) -> KnownRun:
    run, number = _night_run(report, writer)
    for sweep in report.sweeps:
        _record_course(report, sweep, number, writer)
    points = [
        (f"{sweep.name}/{name}", value, sweep.judged_ms or report.ended_ms, 0)
        for sweep in report.sweeps
        for name, value in numbers(sweep).items()
    ]
    points.append(("verdict", float(VERDICTS.index(report.verdict)), report.ended_ms, 0))
    writer.files(run, [folder / REPORT_FILE, folder / MARKDOWN_FILE, folder.parent / PAGE_FILE])
    writer.set_status(run, STATUS[report.verdict], end_ms=report.ended_ms)
    tags = {**_tags(report), NUMBER_TAG: str(number), NOTE_TAG: note(report, _links(report, folder, writer))}
    # The tags are the last: a run that lacks them is recorded again.
    writer.log(run, params={} if run.described else _params(report), points=points, tags=tags)
    return run


def _night_run(report: NightReport, writer: RunWriter) -> tuple[KnownRun, int]:
    """The night's run, once, and its number; what another process has made twice is deleted."""
    nights = writer.find(KIND_TAG, "night")
    identity = f"{report.night}@{report.started_ms}"
    own = [run for run in nights if run.tags.get(NIGHT_TAG) == identity]
    for run in own[1:]:
        writer.delete(run)
    if own and _number(own[0]):
        return own[0], _number(own[0])
    number = 1 + max(map(_number, nights), default=0)
    tags = {KIND_TAG: "night", NIGHT_TAG: identity, NUMBER_TAG: str(number)}
    run = own[0] if own else writer.create(name=report.night, start_ms=report.started_ms, tags=tags)
    return run, number


def _number(run: KnownRun) -> int:
    """Of the run's night; 0 where it has none, or somebody has changed it."""
    tag = run.tags.get(NUMBER_TAG, "")
    return int(tag) if tag.isdecimal() else 0


def _record_course(report: NightReport, sweep: SweepReport, number: int, writer: RunWriter) -> None:
    """Adds the night's point to the sweep's own run; MLflow keeps a point that it has once."""
    found = writer.find(COURSE_TAG, sweep.name)
    for run in found[1:]:
        writer.delete(run)
    tags = {KIND_TAG: "nightly", COURSE_TAG: sweep.name}
    run = found[0] if found else writer.create(name=sweep.name, start_ms=report.started_ms, tags=tags)
    judged_ms = sweep.judged_ms or report.ended_ms
    points: list[MetricPoint] = [(name, value, judged_ms, number) for name, value in numbers(sweep).items()]
    if number >= _number(run):
        tags |= {**_tags(report), VERDICT_TAG: sweep.verdict, NUMBER_TAG: str(number)}
        writer.set_status(run, STATUS[sweep.verdict], end_ms=max(run.end_ms, report.ended_ms))
    writer.log(run, params={} if run.described else {"sweep": sweep.name}, points=points, tags=tags)


def numbers(sweep: SweepReport) -> dict[str, float]:
    """What MLflow's charts show of a sweep and a night; `verdict` is 0 reproduced, 1 new, 2 drifted, 3 broken."""
    total = sweep.policies.same + len(sweep.policies.changed)
    asked = [claim for claim in sweep.claims if claim.required]
    shares = {
        "policies_changed": len(sweep.policies.changed) if total else None,
        "claims_held": sum(claim.holds is True for claim in asked) / len(asked) if asked else None,
        "numbers_drifted": len(sweep.drifted) if sweep.findings else None,
    }
    known = {name: float(value) for name, value in shares.items() if value is not None}
    return {**sweep.metrics, **known, "verdict": float(VERDICTS.index(sweep.verdict))}


def _tags(report: NightReport) -> dict[str, str]:
    found = {
        VERDICT_TAG: report.verdict,
        REVISION_TAG: report.revision,
        VERSION_TAG: report.version,
        "mlflow.source.git.commit": report.revision.removesuffix("-dirty"),
        "mlflow.source.name": "bitfront nightly",
        "mlflow.source.type": "LOCAL",
    }
    return {name: value for name, value in found.items() if value}


def _params(report: NightReport) -> dict[str, str]:
    return {"night": report.night, **{name: value for name, value in report.environment.items() if value}}


def _links(report: NightReport, folder: Path, writer: RunWriter) -> dict[str, str]:
    """Addresses of the sweeps' own runs, behind the server's, by the sweep's name of that night."""
    links = {}
    for sweep in report.sweeps:
        try:
            sweep_id = SweepStore.open(folder.absolute().parent.parent / sweep.sweep).sweep().sweep_id
        except (BitfrontError, OSError):
            continue  # it never began, or its folder was cleaned away
        for run in writer.search_everywhere(f"tags.`{SWEEP_TAG}` = '{sweep_id}'")[:1]:
            links[sweep.sweep] = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return links


def note(report: NightReport, links: Mapping[str, str]) -> str:
    """The night in Markdown: a row for each sweep, linked to its run where that is known."""
    texts = (_note(report, links, length) for length in REASON_LENGTHS)
    return next((text for text in texts if len(text) <= TAG_LENGTH), f"**{report.verdict}**: see report.md.")


def _note(report: NightReport, links: Mapping[str, str], length: int) -> str:
    lines = [
        f"**{report.verdict}**, revision {report.revision[:10] or 'unknown'}",
        "",
        "| sweep | verdict | claims | policies | why |",
        "| --- | --- | --- | --- | --- |",
    ]
    for sweep in report.sweeps:
        name = f"[{sweep.name}]({links[sweep.sweep]})" if sweep.sweep in links else sweep.name
        held = f"{sum(claim.holds is True for claim in sweep.claims)} of {len(sweep.claims)}" if sweep.claims else "–"
        total = sweep.policies.same + len(sweep.policies.changed)
        same = f"{sweep.policies.same} of {total} the same" if total else "–"
        why = " ".join(sweep.reason.split()).replace("|", "\\|")[:length]
        lines.append(f"| {name} | {sweep.verdict} | {held} | {same} | {why} |")
    if report.left:
        lines += ["", f"Not reached: {', '.join(report.left)}."]
    lines += ["", f"`{PAGE_FILE}` among the artifacts shows all nights; the runs named like sweeps have their charts."]
    return "\n".join(lines)
