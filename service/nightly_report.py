"""What a night came to, as its `report.json` has it. docs/nightly.md says what each key means."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from service.files import write_json
from service.validate import build
from trainables.errors import ConfigError, StorageError

FORMAT = 1
REPORT_FILE, MARKDOWN_FILE = "report.json", "report.md"
Verdict = Literal["reproduced", "new", "drifted", "broken"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "new", "drifted", "broken")
"""The best first."""
Setting = bool | int | float | str
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A number of the baseline and of this night, side by side."""

    what: str
    """Metric, or hypervolume, front_distance, step_ratio, finished trials, diverged trials."""
    where: Mapping[str, Setting] = field(default_factory=dict)
    """Settings of the group, without the seed; empty: of all."""
    baseline: float | None = None
    now: float | None = None
    difference: float | None = None
    spread: float | None = None
    """Sample standard deviation of the seeds, pooled; of a front distance that between the baseline's seeds."""
    times_spread: float | None = None
    """The difference over the spread; None where that is zero, or not known."""
    allowed: float | None = None
    """The largest difference that is no drift."""
    drifted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimFinding:
    """What became of a claim."""

    claim: str
    source: str
    holds: bool | None
    """None: it can be neither true nor false."""
    left: float | None = None
    """Mean of the trials of which it is said."""
    right: float | None = None
    """Mean of those that they are compared with; of a band the nearer end."""
    margin: float | None = None
    """By how much left is ahead, as claimed; of a band the distance to its nearer end, below 0 outside."""
    needed: float | None = None
    """What the margin has to exceed, or to reach."""
    pairs: int = 0
    """Of trials; of a band its trials."""
    required: bool = True
    why: str = ""
    """Of one that could not be judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedPolicy:
    """A trial whose policy is another one."""

    trial: str
    baseline: str
    """Content hash; empty where it had no policy."""
    now: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """Of the trials that both have."""

    same: int = 0
    changed: tuple[ChangedPolicy, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A revision between baseline and now."""

    commit: str
    subject: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineFacts:
    """What a sweep was compared with."""

    night: str
    revision: str
    accepted_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepReport:
    """One sweep of a night."""

    name: str
    """Of its files: NAME.yaml."""
    sweep: str
    """Its name in the storage."""
    verdict: Verdict
    reason: str
    baseline: BaselineFacts | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    same_environment: bool = False
    identical: bool = False
    revisions: tuple[Commit, ...] = ()
    findings: tuple[Finding, ...] = ()
    claims: tuple[ClaimFinding, ...] = ()
    policies: Policies = field(default_factory=Policies)
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: str = ""
    judged_ms: int = 0
    """When; 0 in reports of versions that did not note it."""

    @property
    def drifted(self) -> tuple[Finding, ...]:
        """The numbers that have left the baseline."""
        return tuple(finding for finding in self.findings if finding.drifted)


@dataclass(frozen=True, kw_only=True, slots=True)
class NightReport:
    """All sweeps of a night."""

    night: str
    folder: str
    started_ms: int
    ended_ms: int = 0
    """0 of a night that was cut off, or still runs."""
    verdict: Verdict
    left: tuple[str, ...] = ()
    """Sweeps that were not reached."""
    revision: str = ""
    version: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the last sweep that says one; they share it unless they ran on different machines."""
    sweeps: tuple[SweepReport, ...] = ()
    format: int = FORMAT

    @property
    def standing(self) -> str:
        """The verdict, and whether it is the last word."""
        if not self.left:
            return self.verdict
        return f"{self.verdict} so far" if self.sweeps else "nothing judged yet"

    def to_content(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        content: dict[str, Any] = dataclasses.asdict(self)
        return {"format": content.pop("format"), **content}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of several; of none `new`, as nothing is known."""
    return max(verdicts, key=VERDICTS.index, default="new")


def save_report(path: Path, report: NightReport) -> None:
    """Writes it whole or not at all."""
    write_json(path, report.to_content())


def read_report(path: Path) -> NightReport:
    """A night's report. Raises StorageError for a file that is none, or of another format."""
    return read_as(NightReport, path, FORMAT)


def read_as(kind: type[T], path: Path, expected: int = 0) -> T:
    """A JSON file of ours as its class; `expected` is the number of its format, 0 where it has none.

    Raises StorageError that says what is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from None
    if expected and (not isinstance(content, dict) or content.get("format") != expected):
        found = content.get("format") if isinstance(content, dict) else None
        raise StorageError(f"{path} has the format {found!r}; this version of Bitfront reads {expected}.")
    try:
        return build(kind, content)
    except ConfigError as error:
        raise StorageError(f"{path} is damaged: {error}") from None
