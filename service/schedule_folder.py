"""The sweeps of a folder that have a schedule. A file that is broken is told, and holds up no other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.schedule import ScheduleConfig
from service.spec import load_spec
from trainables.errors import BitfrontError

MAX_NAME = 47
"""Of a sweep that is launched: with the time behind it a name has 64 characters."""
BESIDE = (".expect.yaml", ".baseline.json")
"""A sweep with one of these beside it is a nightly reproduction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledSweep:
    """A sweep that is launched by the clock."""

    file: Path
    name: str
    schedule: ScheduleConfig
    nightly: bool
    """Whether it is judged against a baseline or expectations."""


def read_folder(folder: Path) -> tuple[list[ScheduledSweep], list[str]]:
    """Sweeps with a cron line, by file; and what is wrong with files of the folder. Raises OSError without a folder.

    Files that begin with `_` are what others are based on.
    """
    found: dict[str, ScheduledSweep] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".yaml", ".yml") or path.name.startswith(("_", ".")) or path.name.endswith(BESIDE[0]):
            continue
        try:
            sweep = _read(path)
        except (BitfrontError, OSError) as error:
            problems.append(str(error))
            continue
        if sweep is None:
            continue
        if sweep.name in found:
            problems.append(f"{path}: name is {sweep.name!r}, as in {found[sweep.name].file}; that one is launched")
        elif len(sweep.name) > MAX_NAME:
            problems.append(f"{path}: name has {len(sweep.name)} characters; give up to {MAX_NAME} to launch it")
        else:
            found[sweep.name] = sweep
    return list(found.values()), problems


def _read(path: Path) -> ScheduledSweep | None:
    spec = load_spec(path)
    if not spec.schedule.cron:
        return None
    nightly = any(path.with_name(path.stem + ending).exists() for ending in BESIDE)
    return ScheduledSweep(file=path, name=spec.name, schedule=spec.schedule, nightly=nightly)
