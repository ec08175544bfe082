"""Which code a sweep was begun with."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

REVISION_VARIABLE = "BITFRONT_REVISION"
"""Set for a submitted sweep: the job's own folder is in no repository."""
TIMEOUT_S = 10
MAX_COMMITS = 100


def revision(folder: Path) -> str:
    """Git commit of the repository that `folder` is in, with "-dirty" where tracked files differ; "" outside of one."""
    given = os.environ.get(REVISION_VARIABLE)
    if given is not None:
        return given
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def version() -> str:
    """Bitfront's own; "" where its code was sent along without being installed."""
    try:
        return importlib.metadata.version("bitfront")
    except importlib.metadata.PackageNotFoundError:
        return ""


def commits_between(folder: Path, before: str, now: str) -> tuple[tuple[str, str], ...] | None:
    """Commits that `now` has and `before` has not, the newest first: hash and subject; at most MAX_COMMITS.

    Both are what `revision` gave. None where the repository of `folder` does not know them.
    """
    old, new = (name.removesuffix("-dirty") for name in (before, now))
    if not (re.fullmatch("[0-9a-f]{7,64}", old) and re.fullmatch("[0-9a-f]{7,64}", new)):
        return None
    command = [
        "git",
        "-C",
        str(folder),
        "log",
        "--format=%H%x09%s",
        f"--max-count={MAX_COMMITS}",
        f"{old}..{new}",
        "--",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if found.returncode != 0:
        return None
    lines = (line.partition("\t") for line in found.stdout.splitlines())
    return tuple((commit, subject) for commit, _, subject in lines)
