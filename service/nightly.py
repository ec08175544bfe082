"""A night of sweeps: each is run under a name of its own and judged; what breaks one is its verdict, and no other's.

A sweep that was judged is not run again, so a night that was cut off goes on where it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dashboards.nightly_report import as_markdown
from service.expectations import BASELINE_ENDING, EXPECT_ENDING, load_expectations
from service.files import write_text
from service.measured import read_measured
from service.night_folder import LOG_FILE, SPEC_FILE, Night, NightFolder, Planned, nights
from service.night_launch import Launch
from service.nightly_baseline import (
    Baseline,
    Outcome,
    TrialOutcome,
    accepted,
    changes,
    check_acceptable,
    read_baseline,
    save_baseline,
)
from service.nightly_report import MARKDOWN_FILE, REPORT_FILE, Commit, NightReport, SweepReport, save_report, worst
from service.records import SweepStore, now_ms
from service.redaction import traceback_of, without_credentials
from service.revision import commits_between, revision, version
from service.spec import PROMOTE_FILE, SweepSpec, differences, load_spec
from service.sweeps import refresh
from service.verdict import Case, judge
from service.working_copy import Place
from trainables.errors import BitfrontError, ConfigError, SpecError, StorageError

Tell = Callable[[str], None]
"""Passes a line on to whoever watches."""


def tonight() -> str:
    """The name of a night that begins now."""
    return datetime.now(UTC).strftime("%Y%m%dt%H%M%Sz")


def sweep_files(paths: Sequence[Path]) -> list[Path]:
    """The sweeps that are meant: of a folder its own, without expectations and files that begin with '_'.

    Raises ConfigError for paths without one, and for two of one name.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.glob("[!_.]*.yaml") if not p.name.endswith(EXPECT_ENDING))
            if not inside:
                raise ConfigError(f"{path} holds no sweep; give a folder with NAME.yaml files, or the files.")
            found += inside
        elif not path.exists():
            raise ConfigError(f"{path}: no such file or folder.")
        elif path.name.endswith(EXPECT_ENDING):
            raise ConfigError(f"{path} holds expectations; name the sweep that they are for.")
        else:
            found.append(path)
    files = {path.absolute(): path.stem for path in found}
    for file, name in files.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,70}", name):
            raise ConfigError(
                f"{file}: a night calls the sweep by its file, and {name!r} is no name for its records; "
                "give the file one of letters, digits, '.', '_' and '-', at most 71."
            )
    for name in files.values():
        of_name = [str(file) for file, stem in files.items() if stem == name]
        if len(of_name) > 1:
            raise ConfigError(f"two sweeps are called {name}: {' and '.join(of_name)}; a night has each name once.")
    return list(files)


def beside(file: Path, ending: str) -> Path:
    """NAME.expect.yaml or NAME.baseline.json of NAME.yaml."""
    return file.with_name(file.stem + ending)


def begin(storage: Path, night: str, files: Sequence[Path]) -> NightFolder:
    """The night, with these sweeps too; a new one where there is none."""
    folder = NightFolder(storage, night)
    if files:
        folder.begin(Night(night=night, started_ms=now_ms(), revision=_revision_now(), version=version()))
    if not folder.read().sweeps and not files:
        raise ConfigError(f"night {night} has no sweep yet; name the sweeps that it is to run.")
    return folder


def _revision_now() -> str:
    """Of the code that runs; where it is in no repository, of the current folder."""
    return revision(Path(__file__).parent) or revision(Path.cwd())


def check_files(files: Sequence[Path]) -> None:
    """Raises SpecError where not one of the sweeps can be run; one that can is not kept from it by the others."""
    problems = []
    for file in files:
        try:
            load_expectations(beside(file, EXPECT_ENDING), load_spec(file))
        except SpecError as error:
            problems.append(str(error))
    if files and len(problems) == len(files):
        raise SpecError("\n".join(problems))


def planned(file: Path, night: str) -> Planned:
    """What the night calls it."""
    try:
        name = load_spec(file).name
    except BitfrontError:
        name = file.stem  # what is wrong becomes its verdict
    return Planned(name=file.stem, file=str(file), sweep=f"{name}-{night}")


def run_night(
    folder: NightFolder, files: Sequence[Path], launch: Launch, tell: Tell, *, accept_new: bool = False
) -> NightReport:
    """Runs and judges what is left of the night; its report. What was done is in the report whenever this ends."""
    with folder.held():
        night = folder.add([planned(file, folder.night) for file in files])
        _check_names(night)
        named = {file.stem for file in files}
        for one in night.sweeps:
            if folder.verdict(one.name) is None and (not named or one.name in named):
                publish(folder, night)
                tell(f"{one.name}: running as {one.sweep} …")
                report = _judged(folder, night, one, launch)
                if accept_new and report.verdict == "new":
                    report = _accept_new(folder, one, report)
                report = replace(report, judged_ms=now_ms())
                folder.save_verdict(report)
                tell(f"{one.name}: {report.verdict}: {report.reason}")
        return publish(folder, night)


def _check_names(night: Night) -> None:
    """Raises ConfigError where two files name the same sweep: one would be judged by the other's result."""
    files: dict[str, str] = {}
    for one in night.sweeps:
        if files.setdefault(one.sweep, one.file) != one.file:
            raise ConfigError(f"{files[one.sweep]} and {one.file} have the same name; a night has each name once.")


def publish(folder: NightFolder, night: Night) -> NightReport:
    """Writes the report as it stands."""
    found = [folder.verdict(one.name) for one in night.sweeps]
    judged = tuple(one for one in found if one is not None)
    left = tuple(one.name for one, verdict in zip(night.sweeps, found, strict=True) if verdict is None)
    environments = [dict(one.environment) for one in judged if one.environment]
    report = NightReport(
        night=night.night,
        folder=str(Place.of(folder.folder)),
        started_ms=night.started_ms,
        ended_ms=0 if left else max((one.judged_ms for one in judged), default=0) or now_ms(),
        verdict=worst(one.verdict for one in judged),
        left=left,
        revision=night.revision,
        version=night.version,
        environment=environments[-1] if environments else {},
        sweeps=judged,
    )
    save_report(folder.folder / REPORT_FILE, report)
    write_text(folder.folder / MARKDOWN_FILE, as_markdown(report))
    folder.carry()
    return report


def _judged(folder: NightFolder, night: Night, one: Planned, launch: Launch) -> SweepReport:
    """Runs a sweep and judges it. Whatever is wrong with it is its verdict, also what nobody has foreseen."""
    try:
        return _run_one(folder, night, one, launch)
    except (BitfrontError, OSError) as found:
        problem = without_credentials(str(found))
    except Exception as found:
        problem = f"{without_credentials(f'{type(found).__name__}: {found}')}\n{traceback_of(found)}"
    return judge(Case(name=one.name, sweep=one.sweep, error=problem))


def _run_one(folder: NightFolder, night: Night, one: Planned, launch: Launch) -> SweepReport:
    own, file = folder.of(one.name), Path(one.file)
    own.mkdir(parents=True, exist_ok=True)
    spec = load_spec(file)
    expected = load_expectations(beside(file, EXPECT_ENDING), spec)
    write_text(own / SPEC_FILE, spec.text)
    if spec.promotion:
        write_text(own / PROMOTE_FILE, spec.promotion.text)
    named = [f"name={one.sweep}", f"storage.path={json.dumps(str(Place.of(folder.storage)))}"]
    ours = load_spec(file, named, to_launch=True)
    error = launch(ours, file, own / LOG_FILE)
    outcome = _outcome(folder, night, one)
    if outcome:
        folder.save_outcome(one.name, outcome)
    baseline, problem = _baseline(file)
    return judge(
        Case(
            name=one.name,
            sweep=one.sweep,
            expected=expected,
            baseline=baseline,
            changed=changes(baseline, spec) if baseline else (),
            now=outcome,
            error=error or problem,
            revisions=_revisions(baseline, outcome.revision if outcome else night.revision),
        )
    )


def _baseline(file: Path) -> tuple[Baseline | None, str]:
    """The accepted baseline, or why it cannot be read."""
    path = beside(file, BASELINE_ENDING)
    try:
        return read_baseline(path), ""
    except StorageError as error:
        return None, f"its baseline cannot be read: {error} Take it from git again, or accept a night anew"


def _outcome(folder: NightFolder, night: Night, one: Planned) -> Outcome | None:
    """What the storage has of the sweep."""
    refresh(folder.storage, one.sweep)
    try:
        store = SweepStore.open(folder.storage / one.sweep)
        sweep, trials = store.sweep(), store.trials()
    except StorageError:
        return None
    measured = read_measured(store.folder)
    return Outcome(
        night=night.night,
        revision=_revision_now(),  # a night that goes on may do so with other code
        version=version(),
        environment=measured.environment,
        objectives=sweep.objectives,
        constraints=sweep.constraints,
        planned=sweep.total_trials,
        trials=tuple(TrialOutcome.of(trial) for trial in trials),
        step_ratio=measured.step_ratio or 0.0,
    )


def _revisions(baseline: Baseline | None, now: str) -> tuple[Commit, ...]:
    """Commits since the baseline, the newest first; where no repository knows them both ends, where they differ."""
    before = baseline.outcome.revision if baseline else ""
    if not before:
        return ()
    found = commits_between(Path(__file__).parent, before, now)
    if found is None:
        found = commits_between(Path.cwd(), before, now)
    if found is None:
        found = ((now, "this night"), (before, "the baseline")) if before != now else ()
    if now.endswith("-dirty"):
        found = ((now, "uncommitted changes"), *found)
    return tuple(Commit(commit=commit, subject=subject) for commit, subject in found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A baseline that is to be another one."""

    path: Path
    before: Baseline | None
    after: Baseline
    report: SweepReport
    """The night's sweep, judged by the baseline as it is now."""


def plan_move(storage: Path, file: Path, night: str = "") -> Move:
    """The move of a sweep's baseline to what it came to on a night, or on the last one that has it.

    Raises StorageError for a night without a whole result, or of another version of the sweep.
    """
    folder = NightFolder(storage, night) if night else _last_with(storage, file.stem)
    folder.read()
    verdict, outcome = folder.verdict(file.stem), folder.outcome(file.stem)
    if verdict is None or outcome is None:
        raise StorageError(f"{file.stem}: night {folder.night} has no result of it; run it, or give another --night.")
    before, _ = _baseline(file)
    check_acceptable(outcome, file.stem)
    spec = load_spec(file)
    _check_same(folder, file, spec)
    after = accepted(outcome, spec, name=file.stem, before=before, now_ms=now_ms())
    report = judge(
        Case(
            name=file.stem,
            sweep=verdict.sweep,
            expected=load_expectations(beside(file, EXPECT_ENDING), spec),
            baseline=before,
            changed=changes(before, spec) if before else (),
            now=outcome,
        )
    )
    return Move(path=beside(file, BASELINE_ENDING), before=before, after=after, report=report)


def make_move(move: Move) -> None:
    """Writes the baseline."""
    save_baseline(move.path, move.after)


def _check_same(folder: NightFolder, file: Path, spec: SweepSpec) -> None:
    """Raises StorageError where the sweep has changed since that night."""
    then = load_spec(folder.of(file.stem) / SPEC_FILE)
    changed = differences(then.identity, spec.identity)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed[:10])
        raise StorageError(
            f"{file.stem} has changed since night {folder.night}; run it again first. What differs:\n{lines}"
        )


def _last_with(storage: Path, name: str) -> NightFolder:
    found = [one for one in nights(storage) if one.verdict(name) is not None]
    if not found:
        raise StorageError(f"{storage} has no night with {name}; run one: bitfront nightly {name}.yaml")
    return found[-1]


def _accept_new(folder: NightFolder, one: Planned, report: SweepReport) -> SweepReport:
    folder.save_verdict(report)
    try:
        make_move(plan_move(folder.storage, Path(one.file), folder.night))
    except (BitfrontError, OSError) as error:
        return replace(report, warnings=(*report.warnings, f"its result could not become the baseline: {error}"))
    return replace(report, reason=f"{report.reason}; its result is the baseline now")
