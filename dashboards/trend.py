"""All nights of a storage on one page that needs no network: each sweep's numbers night by night, and its verdicts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dashboards.page_shell import Figure, Section, document, figure_place
from dashboards.tables import Cell, facts, number, short, table
from dashboards.trend_figures import LOOKS, metric_names, night_name, trend_figure
from service.files import write_text
from service.nightly_report import REPORT_FILE, ClaimFinding, NightReport, SweepReport, read_report
from trainables.errors import StorageError

PAGE_FILE = "trend.html"
STYLE = (Path(__file__).parent / "assets" / "trend.css").read_text(encoding="utf-8")
INITIALS = {"reproduced": "R", "new": "N", "drifted": "D", "broken": "B"}
COMMIT_LENGTH = 10
HEIGHT = 250
"""Of a small multiple, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Nights:
    """What a storage knows of its nights."""

    reports: tuple[NightReport, ...]
    """The first first."""
    unreadable: tuple[str, ...] = ()
    """What is wrong with reports that cannot be read."""


def read_nights(folder: Path) -> Nights:
    """The nights whose reports lie in the folders of `folder`, `<storage>/nightly`."""
    reports, unreadable = [], []
    for path in sorted(folder.glob(f"*/{REPORT_FILE}")):
        try:
            reports.append(read_report(path))
        except StorageError as error:
            unreadable.append(str(error))
    reports.sort(key=lambda report: (report.started_ms, report.night))
    return Nights(reports=tuple(reports), unreadable=tuple(unreadable))


def write_trend(folder: Path) -> Path:
    """Writes the page of all nights into `<storage>/nightly`, whole or not at all; where it is."""
    path = folder / PAGE_FILE
    write_text(path, trend_page(read_nights(folder)))
    return path


def trend_page(nights: Nights) -> str:
    """The page. The same nights make the same page."""
    courses = _courses(nights.reports)
    sections: list[Section | str] = [_overview(courses)]
    figures: dict[str, Figure] = {}
    for place, (name, course) in enumerate(courses.items()):
        section, drawn = _sweep_section(f"sweep-{place}", name, course)
        sections.append(section)
        figures |= drawn
    sections.append(_nights_section(nights.reports))
    return document(
        title="Nightly reproductions",
        header=_header(nights),
        sections=sections,
        figures=figures,
        content={"trials": None, "front": None, "scales": {}},
    )


Course = list[tuple[NightReport, SweepReport]]
"""A sweep through its nights, the first first."""


def _courses(reports: Sequence[NightReport]) -> dict[str, Course]:
    """By sweep; those of the last night first."""
    found: dict[str, Course] = {}
    for report in reversed(reports):
        for sweep in report.sweeps:
            found.setdefault(sweep.name, []).insert(0, (report, sweep))
    return found


def _header(nights: Nights) -> str:
    style = f"<style>{STYLE}</style>"
    wrong = "".join(f"<li>{html.escape(text)}</li>" for text in nights.unreadable)
    warnings = f'<ul class="warnings">{wrong}</ul>' if wrong else ""
    if not nights.reports:
        return f"<header>{style}<h1>Nightly reproductions</h1><p>No night has been run yet.</p>{warnings}</header>"
    last = nights.reports[-1]
    known = facts(
        (
            ("last night", night_name(last)),
            ("verdict", last.verdict),
            ("revision", last.revision[:COMMIT_LENGTH]),
            ("Bitfront", last.version),
            ("machine", last.environment.get("machine", "")),
            ("device", last.environment.get("device", "")),
            ("nights", str(len(nights.reports))),
        )
    )
    return f"<header>{style}<h1>Nightly reproductions</h1>{known}{warnings}</header>"


def _overview(courses: dict[str, Course]) -> Section:
    intro = (
        "Each sweep as the last night left it. A sweep is <em>reproduced</em> while its numbers stay within the band "
        "around the accepted baseline and every claim of the papers that is asked of it holds."
    )
    rows = []
    for name, course in courses.items():
        last = course[-1][1]
        rows.append(
            [
                Cell(name),
                Cell(last.verdict),
                Cell(last.reason),
                number(_in_a_row(course)),
                Cell(_claims_held(last)),
                Cell(_policies(last)),
                Cell(night_name(course[-1][0])),
            ]
        )
    heads = ["sweep", "verdict", "why", "nights in a row", "claims that hold", "same policies", "night"]
    body = f'<div class="told">{table(heads, rows, caption="Sweeps by what was last said of them.")}</div>'
    return Section(key="overview", title="Overview", intro=intro, body=body if rows else "")


def _in_a_row(course: Course) -> int:
    """For how many nights the last verdict has stood."""
    verdicts = [sweep.verdict for _, sweep in reversed(course)]
    return next((place for place, verdict in enumerate(verdicts) if verdict != verdicts[0]), len(verdicts))


def _claims_held(sweep: SweepReport) -> str:
    held = sum(claim.holds is True for claim in sweep.claims)
    return f"{held} of {len(sweep.claims)}" if sweep.claims else "–"


def _policies(sweep: SweepReport) -> str:
    total = sweep.policies.same + len(sweep.policies.changed)
    return f"{sweep.policies.same} of {total}" if total else "–"


def _sweep_section(key: str, name: str, course: Course) -> tuple[Section, dict[str, Figure]]:
    """Its verdicts, a small figure for each number, what became of its claims, and why it ever left the baseline."""
    figures, places = {}, []
    for metric in metric_names(course):
        figures[f"{key}-{metric}"] = trend_figure(course, metric)
        places.append(figure_place(f"{key}-{metric}", height=HEIGHT, label=f"{metric} of {name}, night by night"))
    last = course[-1][1]
    baseline = last.baseline
    of = f" Baseline: {baseline.night}, revision {baseline.revision[:COMMIT_LENGTH] or 'unknown'}." if baseline else ""
    intro = html.escape(f"{last.verdict.capitalize()}: {last.reason.rstrip('.')}.{of}")
    body = _strip(course) + f'<div class="grid thirds">{"".join(places)}</div>' + _claims(course) + _departures(course)
    return Section(key=key, title=name, intro=intro, body=body), figures


def _strip(course: Course) -> str:
    """A square for each night, and what the squares and the figures' marks mean."""
    squares = "".join(
        f'<li class="{sweep.verdict}" title="{html.escape(f"{night_name(report)}: {sweep.verdict}. {sweep.reason}")}">'
        f"{INITIALS[sweep.verdict]}</li>"
        for report, sweep in course
    )
    key = "".join(
        f'<span><b class="{verdict}">{INITIALS[verdict]}</b> {html.escape(look.sign)} {verdict}</span>'
        for verdict, look in LOOKS.items()
    )
    return (
        f'<ol class="strip" aria-label="Verdicts, the first night first">{squares}</ol>'
        f'<p class="strip-key">{key}<span><i class="band"></i> accepted baseline and its band</span></p>'
    )


def _claims(course: Course) -> str:
    """The last night's claims, with how often each has held."""
    rows = []
    for claim in course[-1][1].claims:
        past = [one.holds for _, sweep in course for one in sweep.claims if one.claim == claim.claim]
        rows.append(
            [
                Cell(claim.claim),
                Cell(claim.source),
                Cell(_holds(claim)),
                _known(claim.left),
                _known(claim.right),
                _known(claim.margin),
                _known(claim.needed),
                number(float(past.count(True)), f"{past.count(True)} of {len(past)} nights"),
            ]
        )
    heads = ["claim", "source", "last night", "its mean", "compared with", "margin", "needed", "has held"]
    return f'<div class="told">{table(heads, rows, caption="What the papers claim.")}</div>' if rows else ""


def _holds(claim: ClaimFinding) -> str:
    if claim.holds is None:
        return f"not known: {claim.why}" if claim.why else "not known"
    asked = "" if claim.required else ", not asked for"
    return ("holds" if claim.holds else "does not hold") + asked


def _known(value: float | None) -> Cell:
    return Cell("–") if value is None else number(value, short(value).replace("-", "−"))


def _departures(course: Course) -> str:
    """Nights on which the sweep was drifted or broken, the last first."""
    rows = [
        [
            Cell(night_name(report)),
            Cell(sweep.verdict),
            Cell(sweep.error or sweep.reason),
            number(len(sweep.policies.changed)),
            Cell(", ".join(f"{one.commit[:COMMIT_LENGTH]} {one.subject}" for one in sweep.revisions) or "–"),
        ]
        for report, sweep in reversed(course)
        if sweep.verdict in ("drifted", "broken")
    ]
    heads = ["night", "verdict", "why", "policies that changed", "revisions since the baseline"]
    return (
        f'<div class="told">{table(heads, rows, caption="Nights on which it was not reproduced.")}</div>'
        if rows
        else ""
    )


def _nights_section(reports: Sequence[NightReport]) -> Section:
    intro = "All nights, the last first."
    rows = [
        [
            Cell(night_name(report)),
            Cell(report.standing),
            Cell(_counted(report)),
            number(_minutes(report), f"{_minutes(report):.1f}") if report.ended_ms else Cell("–"),
            Cell(report.revision[:COMMIT_LENGTH] + ("-dirty" if report.revision.endswith("-dirty") else "") or "–"),
            Cell(report.version or "–"),
            Cell(", ".join(filter(None, (report.environment.get(name, "") for name in ("machine", "device")))) or "–"),
        ]
        for report in reversed(reports)
    ]
    heads = ["night", "verdict", "sweeps", "minutes", "revision", "version", "machine"]
    body = (
        f'<div class="told">{table(heads, rows, caption="Each with its verdict and its code.")}</div>' if rows else ""
    )
    return Section(key="nights", title="Nights", intro=intro, body=body)


def _counted(report: NightReport) -> str:
    verdicts = [sweep.verdict for sweep in report.sweeps]
    parts = [f"{verdicts.count(verdict)} {verdict}" for verdict in LOOKS if verdict in verdicts]
    left = [f"{len(report.left)} not reached"] if report.left else []
    return ", ".join(parts + left) or "–"


def _minutes(report: NightReport) -> float:
    return (report.ended_ms - report.started_ms) / 60_000
