"""A night's report for people: in the terminal, and in Markdown. It has everything; nothing is judged here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.nightly_report import ClaimFinding, Finding, NightReport, SweepReport, Verdict
from service.verdict import where_of

STYLES: dict[Verdict, str] = {"reproduced": "green", "new": "cyan", "drifted": "yellow", "broken": "red"}
MAX_ROWS = 30
"""Of a sweep's findings in a table; report.json has all."""
MAX_COMMITS = 10
_METRICS = ("top1", "bops_g", "ard", "hypervolume", "front_distance", "step_ratio")


def as_report(report: NightReport) -> RenderableType:
    """For the terminal: a line for each sweep, then what has drifted, claims, policies and commits of those that have
    something to say."""
    parts: list[RenderableType] = [_overview(report)]
    for sweep in report.sweeps:
        parts += [Text(), *_details(sweep)]
    parts.append(Text(_closing(report)))
    return Group(*parts)


def _overview(report: NightReport) -> Table:
    table = Table(title=f"night {report.night}: {report.standing}", title_justify="left")
    for name in ("sweep", "verdict", "policies", "claims", *_METRICS):
        table.add_column(name, justify="left" if name in ("sweep", "verdict") else "right")
    for sweep in report.sweeps:
        cells = [_number(sweep.metrics.get(name)) for name in _METRICS]
        verdict = Text(sweep.verdict, style=STYLES[sweep.verdict])
        table.add_row(sweep.name, verdict, _policies(sweep), _held(sweep), *cells)
    for name in report.left:
        table.add_row(name, Text("not reached", style="dim"), *([""] * (2 + len(_METRICS))))
    return table


def _details(sweep: SweepReport) -> list[RenderableType]:
    parts: list[RenderableType] = [Text.assemble((sweep.name, "bold"), f": {sweep.verdict}: {sweep.reason}")]
    parts += [Text(f"  ! {warning}", style="yellow") for warning in sweep.warnings]
    shown = shown_findings(sweep)
    if shown:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for place, name in enumerate(FINDING_COLUMNS):
            table.add_column(name, justify="left" if place < 2 else "right")
        for finding in shown:
            table.add_row(*finding_cells(finding), style="" if finding.drifted else "dim")
        parts.append(table)
    parts += [Text(f"  {line}") for line in _claim_lines(sweep.claims)]
    parts += [Text(f"  {line}") for line in _commit_lines(sweep)]
    if sweep.error:
        parts += [Text(f"  {line}", style="red") for line in sweep.error.splitlines()]
    return parts


FINDING_COLUMNS = ("what", "of", "baseline", "now", "difference", "× spread", "allowed", "")


def shown_findings(sweep: SweepReport) -> Sequence[Finding]:
    """What has drifted, the largest first, and of the rest what is of all trials together."""
    drifted = sorted(sweep.drifted, key=lambda one: -(one.times_spread or 0.0))
    calm = [one for one in sweep.findings if not one.drifted and not one.where]
    return [*drifted, *calm][:MAX_ROWS]


def finding_cells(finding: Finding) -> tuple[str, ...]:
    """In the order of FINDING_COLUMNS."""
    return (
        finding.what,
        where_of(finding.where) or "all",
        _number(finding.baseline),
        _number(finding.now),
        "" if finding.difference is None else f"{finding.difference:+.4g}",
        "" if finding.times_spread is None else f"{finding.times_spread:.2f}",
        _number(finding.allowed),
        "drifted" if finding.drifted else "",
    )


def _claim_lines(claims: Iterable[ClaimFinding]) -> list[str]:
    return [f"{_mark(claim)} {claim.claim} ({claim.source}){_measured(claim)}" for claim in claims]


def _mark(claim: ClaimFinding) -> str:
    if claim.holds is None:
        return "?"
    return "+" if claim.holds else "-"


def _measured(claim: ClaimFinding) -> str:
    if claim.holds is None:
        return f": {claim.why}"
    sides = f"{_number(claim.left)} to {_number(claim.right)}"
    return f": {sides}, margin {_number(claim.margin)}, needed {_number(claim.needed)}"


def _commit_lines(sweep: SweepReport) -> list[str]:
    rest = len(sweep.revisions) - MAX_COMMITS
    lines = [f"{one.commit[:10]} {one.subject}" for one in sweep.revisions[:MAX_COMMITS]]
    return lines + ([f"and {rest} more commits since the baseline"] if rest > 0 else [])


def _policies(sweep: SweepReport) -> str:
    total = sweep.policies.same + len(sweep.policies.changed)
    return f"{sweep.policies.same}/{total} same" if total else ""


def _held(sweep: SweepReport) -> str:
    return f"{sum(claim.holds is True for claim in sweep.claims)}/{len(sweep.claims)}" if sweep.claims else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _closing(report: NightReport) -> str:
    left = f"Not reached: {', '.join(report.left)}; go on with: bitfront nightly --night {report.night}\n"
    return f"{left if report.left else ''}Report: {report.folder}/report.md"


def as_markdown(report: NightReport) -> str:
    """The whole report as a document."""
    lines = [f"# Night {report.night}: {report.standing}", "", _about(report), ""]
    lines += _table(
        ("sweep", "verdict", "policies", "claims", *_METRICS),
        [
            (one.name, one.verdict, _policies(one), _held(one), *(_number(one.metrics.get(name)) for name in _METRICS))
            for one in report.sweeps
        ]
        + [(name, "not reached", *([""] * (2 + len(_METRICS)))) for name in report.left],
    )
    for sweep in report.sweeps:
        lines += _section(sweep)
    return "\n".join(lines).rstrip() + "\n"


def _about(report: NightReport) -> str:
    facts = {"revision": report.revision, "version": report.version, **report.environment}
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return (
        f"Began {moment(report.started_ms)}{f', ended {moment(report.ended_ms)}' if report.ended_ms else ''}. {told}."
    )


def _section(sweep: SweepReport) -> list[str]:
    lines = ["", f"## {sweep.name}: {sweep.verdict}", "", _escaped(sweep.reason), ""]
    if sweep.baseline:
        lines += [f"Baseline: night {sweep.baseline.night}, revision {sweep.baseline.revision or 'unknown'}.", ""]
    lines += [f"- {_escaped(warning)}" for warning in sweep.warnings]
    shown = shown_findings(sweep)
    if shown:
        lines += ["", *_table(FINDING_COLUMNS, [finding_cells(one) for one in shown])]
    if sweep.claims:
        rows = [
            (_mark(one), one.claim, one.source, _number(one.left), _number(one.right), _number(one.margin),
             _number(one.needed), one.why)
            for one in sweep.claims
        ]  # fmt: skip
        lines += ["", *_table(("holds", "claim", "source", "left", "right", "margin", "needed", "why"), rows)]
    if sweep.policies.changed:
        changed = [(one.trial, one.baseline[:12], one.now[:12]) for one in sweep.policies.changed]
        lines += ["", *_table(("trial", "policy of the baseline", "policy now"), changed)]
    if sweep.revisions:
        lines += ["", *(f"- {line}" for line in map(_escaped, _commit_lines(sweep)))]
    if sweep.error:
        lines += ["", "```", sweep.error.replace("```", "'''"), "```"]
    return lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(_escaped(cell) for cell in cells)} |"

    return [line(columns), f"|{'---|' * len(columns)}", *(line(row) for row in rows)]


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def moment(time_ms: int) -> str:
    """A time as people read it, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def as_list(reports: Sequence[NightReport]) -> Table:
    """Past nights, the last first: a column for each sweep."""
    names = list(dict.fromkeys(sweep.name for report in reports for sweep in report.sweeps))
    table = Table()
    for name in ("night", "verdict", "revision", *names):
        table.add_column(name)
    for report in reversed(reports):
        verdicts = {sweep.name: sweep.verdict for sweep in report.sweeps}
        cells = [Text(verdicts[name], style=STYLES[verdicts[name]]) if name in verdicts else Text("") for name in names]
        standing = Text(report.standing, style=STYLES[report.verdict] if report.sweeps else "dim")
        table.add_row(report.night, standing, report.revision[:10], *cells)
    return table
